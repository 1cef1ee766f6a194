"""The passes over n tokens whose memory and whose use of a machine are measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bsbr.config import ModelConfig
from bsbr.measure import memory
from bsbr.model import TransformerLM
from bsbr.studies.original import Original

UNFUSED = "standard_unfused"
ORIGINAL = "original"


class Pass(NamedTuple):
    """One call, and what it works on."""

    run: Callable[[], object]
    model: TransformerLM | Original
    ids: Tensor


def model_of(mechanism: str, **sizes: Any) -> TransformerLM | Original:
    """A model with random weights from one seed, of what `make` takes as a mechanism."""
    torch.manual_seed(0)
    if mechanism == ORIGINAL:
        return Original(**{name: value for name, value in sizes.items() if name != "window_size"})
    return TransformerLM(ModelConfig("standard" if mechanism == UNFUSED else mechanism, **sizes))


def make(
    phase: str,
    mechanism: str,
    n: int,
    *,
    checkpointing: bool = False,
    device: torch.device | str = "cpu",
    **sizes: Any,
) -> Pass:
    """A pass over one row of n random tokens by a model with random weights.

    Args:
        phase: `"inference"` reads the tokens up to the last hidden state, without gradients; `"training"` predicts
            each next token, and takes the mean cross-entropy and all gradients; `"training_backbone"` has the same
            without the prediction: gradients of the mean square of the last hidden states.
        mechanism: of `bsbr.MECHANISMS`, or `"standard_unfused"`: standard attention by matrix products, which stores
            its matrices of scores, n × n a head; or `"original"`: the original implementation of BSBR.
        checkpointing: keep of each layer its input alone, and compute the rest again in the backward pass.
        sizes: of `ModelConfig`; `vocab_size` and those of the original are needed where it is measured.

    Raises:
        ValueError: an unknown phase, n below 2, checkpointing of the original, or what `ModelConfig` refuses.
    """
    if phase not in _PHASES:
        raise ValueError(f"phase must be one of {', '.join(_PHASES)}, not {phase!r}")
    if n < 2:
        raise ValueError(f"n must be at least 2, so that there is a next token to predict, but is {n}")
    if mechanism == ORIGINAL and checkpointing:
        raise ValueError("checkpointing must be off for the original implementation, which has none")
    unfused = mechanism == UNFUSED
    model = model_of(mechanism, **sizes).to(device)
    model.train(phase != "inference")
    vocab_size = sizes["vocab_size"]
    if isinstance(model, TransformerLM):
        model.gradient_checkpointing, vocab_size = checkpointing, model.config.vocab_size
    ids = torch.randint(vocab_size, (1, n), generator=torch.Generator().manual_seed(n)).to(device)
    passing = _PHASES[phase]

    def run() -> None:
        if unfused:
            with sdpa_kernel(SDPBackend.MATH):
                passing(model, ids)
        else:
            passing(model, ids)

    return Pass(run, model, ids)


def _inference(model: TransformerLM | Original, ids: Tensor) -> None:
    with torch.inference_mode():
        model.encode(ids)


def _training(model: TransformerLM | Original, ids: Tensor) -> None:
    logits = model(ids)
    F.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()


def _training_backbone(model: TransformerLM | Original, ids: Tensor) -> None:
    model.encode(ids).square().mean().backward()


_PHASES: dict[str, Callable[[TransformerLM | Original, Tensor], None]] = {
    "inference": _inference,
    "training": _training,
    "training_backbone": _training_backbone,
}


def fresh(
    phase: str, mechanism: str, n: int, threads: int, freed: str, options: dict[str, Any]
) -> Callable[[], object]:
    """The call of a pass for `memory.peak`, in a child process; gradients are in place.

    Args:
        freed: what happens to freed memory: `"kept"`, as the C library does by default, or `"returned"`.
        options: of `make`.
    """
    if freed == "returned":
        memory.return_freed_blocks()
    torch.set_num_threads(threads)
    make(phase, mechanism, 64, **options).run()  # what a first call of any size loads and keeps is not the mechanism's
    given = make(phase, mechanism, n, **options)
    if phase != "inference":
        with_gradients(given.model)
    return given.run


def with_gradients(model: TransformerLM | Original) -> None:
    """Give every parameter a gradient of zeros, as the passes before it leave one when gradients are accumulated."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
