"""The original implementation of BSBR (the package `bsbr` 0.1.1), to be measured beside ours.

It has the name of this package, so its one module is loaded from the pinned file under a name of its own. Then it is
a model like any other: whatever measures ours measures it, in the same process and with the same memory allocator.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bsbr import sources

LONGEST = 5000  # positions that its positional encoding has


def future_influence(
    encode: Callable[[Tensor], Tensor], vocab_size: int, n: int, change_from: int, seed: int = 0
) -> list[float]:
    """How much each token's output changes when the tokens from position `change_from` on are all replaced.

    Of a causal model the first `change_from` numbers are 0.

    Args:
        encode: from ids (1, n) to outputs (1, n, hidden_dim).

    Returns:
        max |change| over the output's numbers, for each of the n positions.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size, (1, n), generator=generator)
    other = ids.clone()
    shift = torch.randint(1, vocab_size, (1, n - change_from), generator=generator)
    other[:, change_from:] = (ids[:, change_from:] + shift) % vocab_size
    return (encode(other) - encode(ids)).abs().amax(-1)[0].tolist()


class Original(nn.Module):
    """A `BSBRModel` of the original package, with the methods by which ours are measured.

    Args:
        sizes: its arguments: vocab_size, hidden_dim, num_layers, num_heads, chunk_size, ff_dim, and optionally dropout
            and compression_factor.

    Raises:
        SourceError: the package was not fetched, or was altered.
    """

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.model = _module().BSBRModel(**sizes)

    def encode(self, ids: Tensor) -> Tensor:
        """All that its model computes: from ids (batch, n) to (batch, n, hidden_dim), for n up to `LONGEST`."""
        return self.model(ids)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, n, vocab_size) by its embedding, as ours has them; the package has no output layer."""
        return self.encode(ids) @ self.model.embedding.weight.T

    @torch.inference_mode()
    def generate(self, ids: Tensor, max_new_tokens: int) -> Tensor:
        """`ids` (batch, n) and `max_new_tokens` more, each the most likely. It has no state, so it reads all again."""
        for _ in range(max_new_tokens):
            scores = self.encode(ids)[:, -1] @ self.model.embedding.weight.T
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
        return ids


@functools.cache
def _module() -> ModuleType:
    path = sources.check_files(sources.read_pin("bsbr")) / "bsbr.py"
    spec = importlib.util.spec_from_file_location("original_bsbr", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
