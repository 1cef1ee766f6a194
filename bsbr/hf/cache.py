"""The decoding state of the backbone in the form that `generate` passes from one call to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from transformers import Cache

from bsbr.model import ModelState, leaves


class BSBRCache(Cache):
    """A `ModelState`, and how many columns of `input_ids` were read to reach it, padding included.

    Other caches hold keys and values of each token; this holds them only where a mechanism keeps them, so tokens cannot
    be taken back. A step may write into the state's memory: `copy.deepcopy` keeps one to go on from twice.

    Examples:
        >>> import torch
        >>> from bsbr import ModelConfig, TransformerLM
        >>> from bsbr.hf import BSBRForCausalLM
        >>> backbone = TransformerLM(ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2, chunk_size=8))
        >>> model = BSBRForCausalLM.from_backbone(backbone.eval())
        >>> ids = torch.randint(100, (1, 20))
        >>> cache = model(ids, use_cache=True).past_key_values
        >>> cache.get_seq_length(), cache.batch_size
        (20, 1)
        >>> cache.reset()
        >>> cache.get_seq_length()
        0
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.state: ModelState | None = None
        self.columns = 0

    def __repr__(self) -> str:
        return f"BSBRCache({self.columns} columns of {max(self.batch_size, 0)} rows)"

    def __len__(self) -> int:
        """The number of layers, 0 while it is empty."""
        return 0 if self.state is None else len(self.state.layers)

    @property
    def batch_size(self) -> int:
        """The number of rows, −1 while it is empty."""
        return -1 if self.state is None else len(self.state.length)

    @property
    def is_initialized(self) -> bool:
        """Whether a text was read."""
        return self.state is not None

    @property
    def is_compileable(self) -> bool:
        """False: its tensors grow."""
        return False

    @property
    def is_croppable(self) -> bool:
        """False: a state does not say what each token added."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The columns read, the same in all layers."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """−1: there is no longest text."""
        return -1

    def put(self, state: ModelState, new_columns: int) -> None:
        """Keep the state after `new_columns` more columns."""
        self.state, self.columns = state, self.columns + new_columns

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Raises ValueError: a layer of another model wants to keep its keys and values here."""
        raise ValueError("a BSBRCache holds the state of a BSBRForCausalLM; use a DynamicCache for other models")

    def reset(self) -> None:
        """Forget what was read."""
        self.state, self.columns = None, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Raises ValueError, unless there is nothing to remove."""
        if tokens_to_remove != 0:
            raise ValueError(
                f"tokens_to_remove must be 0, but is {tokens_to_remove}: the state of a mechanism does not say what "
                "each token added; read the text anew, or copy.deepcopy the cache before tokens that may be dropped"
            )

    def reorder_cache(self, beam_idx: Int[Tensor, " rows"]) -> None:
        """Go on from these rows, as beam search does."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, by number or by a mask."""
        if self.state is not None:
            rows = indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices
            self.state = select_rows(self.state, rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        if self.state is not None:
            rows = torch.arange(self.batch_size, device=self.state.length.device)
            self.state = select_rows(self.state, rows.repeat_interleave(repeats))


def select_rows(state: ModelState, rows: Int[Tensor, " rows"]) -> ModelState:
    """A copy of these rows of a state."""
    return _mapped(state, lambda tensor: tensor.index_select(0, rows.to(tensor.device)))


def put_rows(state: ModelState, rows: Int[Tensor, " rows"], other: ModelState) -> ModelState:
    """A state with the rows of `other` at `rows`; `state` is some steps ahead of it, so its tensors may be larger.

    What a larger tensor has beyond them is read by none of these rows. Only whole numbers say so themselves: −1 is a
    chunk that is not there.
    """
    older = leaves(other)

    def put(tensor: Tensor) -> Tensor:
        held = next(older)
        more = [(0, new - old) for new, old in zip(tensor.shape[1:], held.shape[1:], strict=True)]
        flat = [size for pair in reversed(more) for size in pair]
        if flat:
            held = F.pad(held, flat, value=0 if held.is_floating_point() else -1)
        return tensor.index_copy(0, rows.to(tensor.device), held)

    return _mapped(state, put)


def _mapped(state: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same nested tuples with `function` of each tensor, in the order of `leaves`."""
    if isinstance(state, Tensor):
        return function(state)
    if not isinstance(state, tuple):
        return state
    parts = (_mapped(part, function) for part in state)
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
