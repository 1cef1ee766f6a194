"""What the same model costs under several settings: time, memory of tensors, decoding state and operations."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from bsbr.measure import flops, memory, speed
from bsbr.model import ModelConfig, ModelState, TransformerLM
from bsbr.results import Row, row

MB = 1e6
PHASES = ("prefill", "decode")


def costs(
    factor: str,
    variants: Mapping[Hashable, ModelConfig],
    control: Hashable,
    phase: str,
    n: int,
    *,
    seconds: float = 5.0,
    new_tokens: int = 512,
    device: torch.device | str = "cpu",
) -> list[Row]:
    """Rows of a result's table, each with `factor` and a variant's name.

    `time` of a pass over n tokens or of `new_tokens` decoded ones after them, `relative_time` to the control in the
    same round, `peak_memory`; for prefill also `flops`; for decode also `time_per_token` and `state_size`.

    The memory of decoding is that of the step that reads the n-th token. Where n is a multiple of a chunk's size, this
    step closes a chunk, which takes the most.

    Args:
        factor: the setting that tells the variants apart.
        variants: a config for each of its values.
        control: the value that the times of others are divided by.
        phase: `"prefill"` or `"decode"`.
        n: tokens of the text, 2 or more.
        seconds: how long to go on timing in search of narrow intervals.
        new_tokens: a whole number of every variant's chunks lets their closing weigh as it does in a long text.

    Raises:
        ValueError: the control is none of the variants, or another phase is given.
    """
    if control not in variants:
        raise ValueError(f"control must be one of the variants {', '.join(map(str, variants))}, not {control!r}")
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}, not {phase!r}")
    models = {name: _make(config, device) for name, config in variants.items()}
    ids = _ids(next(iter(models.values())), n)
    tasks = {
        name: _reading(model, ids) if phase == "prefill" else _writing(model, ids, new_tokens)
        for name, model in models.items()
    }
    samples = speed.interleave({str(name): task for name, task in tasks.items()}, seconds=seconds)
    rows: list[Row] = []
    for name, model in models.items():
        taken = samples[str(name)]
        where: dict[str, Any] = {factor: name}
        rows.append(row("time", **asdict(speed.median(taken)), **where))
        rows.append(row("relative_time", **asdict(speed.ratio(taken, samples[str(control)])), **where))
        if phase == "prefill":
            rows.append(row("peak_memory", _reading_peak(model, ids) / MB, **where))
            rows.append(row("flops", flops.count_passes(variants[name], n).forward, **where))
        else:
            rows.append(row("time_per_token", **asdict(speed.median(taken / new_tokens * 1000)), **where))
            rows.append(row("peak_memory", _writing_peak(model, ids) / MB, **where))
            rows.append(row("state_size", state_size(_prefill(model, ids)), **where))
    return rows


def state_size(state: ModelState) -> int:
    """Numbers that one layer keeps, for one row of tokens, to decode the next token: positions apart."""
    kept = (tensor for tensor in leaves(state.layers[0]) if tensor.is_floating_point())
    return sum(tensor.numel() for tensor in kept) // len(state.length)


def leaves(state: Any) -> Iterator[Tensor]:
    """The tensors of a decoding state (nested tuples)."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from leaves(part)


def _make(config: ModelConfig, device: torch.device | str) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(config).to(device).eval()


def _ids(model: TransformerLM, n: int) -> Tensor:
    ids = torch.randint(model.config.vocab_size, (1, n), generator=torch.Generator().manual_seed(n))
    return ids.to(model.embedding.weight.device)


@torch.inference_mode()
def _prefill(model: TransformerLM, ids: Tensor) -> ModelState:
    return model.prefill(ids)[1]


def _reading(model: TransformerLM, ids: Tensor) -> speed.Task:
    @torch.inference_mode()
    def run(_: None) -> None:
        model.encode(ids)

    return speed.Task(run)


def _writing(model: TransformerLM, ids: Tensor, new_tokens: int) -> speed.Task:
    state, token = _prefill(model, ids), ids[:, -1]

    @torch.inference_mode()
    def run(now: ModelState) -> None:
        for _ in range(new_tokens):
            _, now = model.step(token, now)

    return speed.Task(run, prepare=lambda: speed.clone(state))


def _reading_peak(model: TransformerLM, ids: Tensor) -> int:
    return memory.tensors(_once(_reading(model, ids)), model, ids).total


def _writing_peak(model: TransformerLM, ids: Tensor) -> int:
    states, token = [_prefill(model, ids[:, :-1])], ids[:, -1]

    @torch.inference_mode()
    def run() -> None:
        model.step(token, states.pop())

    return memory.tensors(run, model, token, *leaves(states[0])).total


def _once(task: speed.Task) -> Callable[[], object]:
    return lambda: task.run(task.prepare())
