"""What the same model costs under several settings: time, memory of tensors, decoding state and operations."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bsbr.config import ModelConfig
from bsbr.measure import memory, speed
from bsbr.model import ModelState, TransformerLM, leaves
from bsbr.store import Row, factor_columns, row
from bsbr.studies.operations import count_passes
from bsbr.studies.tasks import decode_task, per_token_rows, prefill_task, timed_rows

MB = 1e6
PHASES = ("prefill", "decode")


def times(
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
    """Rows of a result's table, each with `factor` and a variant's name, from variants that took turns on the clock.

    `time` of a pass over n tokens or of `new_tokens` decoded ones after them; of all but the control `relative_time` to
    it in the same round; for decode also `time_per_token`.

    Args:
        factor: the setting that tells the variants apart.
        variants: a config for each of its values.
        control: the value that the times of others are divided by.
        phase: `"prefill"` or `"decode"`.
        n: tokens of the text, 2 or more.
        seconds: about how long to time; seven rounds are made anyway.
        new_tokens: a whole number of every variant's chunks lets their closing weigh as it does in a long text.

    Raises:
        ValueError: the control is none of the variants, or another phase is given.
    """
    models = _models(variants, control, phase, device)
    ids = _ids(next(iter(models.values())), n)
    timed = {
        str(name): prefill_task(model, ids) if phase == "prefill" else decode_task(model, ids, new_tokens)
        for name, model in models.items()
    }
    samples = speed.interleave(timed, seconds=seconds)
    rows = timed_rows(samples, factor, control=str(control))
    if phase == "decode":
        rows += per_token_rows(samples, new_tokens, factor)
    names = {str(name): name for name in variants}
    return [{**found, factor: names[found[factor]]} for found in rows]


def sizes(
    factor: str,
    variants: Mapping[Hashable, ModelConfig],
    control: Hashable,
    phase: str,
    n: int,
    *,
    device: torch.device | str = "cpu",
) -> list[Row]:
    """Rows of what no clock touches, each with `factor` and a variant's name.

    `peak_memory` of tensors; of all but the control `memory_saved`, the share of its peak that is not needed; for
    prefill `flops`, for decode `state_size`.

    The memory of decoding is that of the step that reads the n-th token. Where n is a multiple of a chunk's size, this
    step closes a chunk, which takes the most.

    Arguments and errors are those of `times`.
    """
    models = _models(variants, control, phase, device)
    ids = _ids(next(iter(models.values())), n)
    peak = _prefill_peak if phase == "prefill" else _decode_peak
    peaks = {name: peak(model, ids) for name, model in models.items()}
    rows: list[Row] = []
    for name, model in models.items():
        where: dict[str, Any] = {factor: name}
        rows.append(row("peak_memory", peaks[name] / MB, **where))
        if name != control:
            rows.append(row("memory_saved", 100 * (1 - peaks[name] / peaks[control]), **where))
        if phase == "prefill":
            rows.append(row("flops", count_passes(variants[name], n).forward, **where))
        else:
            rows.append(row("state_size", state_size(_prefill(model, ids)), **where))
    return rows


def coming(factor: str, names: Iterable[Hashable], reasons: Mapping[str, str], **factors: Any) -> list[Row]:
    """Rows that keep the place of numbers to come: of each metric and each variant, with the reason why there is none.

    Args:
        reasons: by metric, which experiment will bring it.
    """
    return [
        row(name, None, status="not_available", reason=f"not measured yet: {reason}", **{factor: variant, **factors})
        for name, reason in reasons.items()
        for variant in names
    ]


def with_control(rows: pd.DataFrame, factor: str, control: Any, base: float) -> pd.DataFrame:
    """Rows of one metric that is relative to the control, and the control's own, to draw.

    Its number is `base` by definition, so that it stands in no table.
    """
    others = [name for name in factor_columns(rows) if name != factor]
    own = rows.drop_duplicates(others).assign(**{factor: control, "value": base, "low": np.nan, "high": np.nan})
    return pd.concat([rows, own], ignore_index=True)


def prefilled(config: ModelConfig, n: int, device: torch.device | str = "cpu") -> ModelState:
    """The decoding state of a model with random weights that has read n random tokens."""
    model = _make(config, device)
    return _prefill(model, _ids(model, n))


def state_size(state: ModelState) -> int:
    """Numbers that one layer keeps, for one row of tokens, to decode the next token: positions apart.

    Of a model whose layers keep different numbers, their mean, to the nearest whole one.
    """
    return round(state_size_of_all_layers(state) / len(state.layers))


def state_size_of_all_layers(state: ModelState) -> int:
    """Numbers that all layers together keep, as in `state_size`."""
    kept = (tensor for tensor in leaves(state.layers) if tensor.is_floating_point())
    return sum(tensor.numel() for tensor in kept) // len(state.length)


def _models(
    variants: Mapping[Hashable, ModelConfig], control: Hashable, phase: str, device: torch.device | str
) -> dict[Hashable, TransformerLM]:
    if control not in variants:
        raise ValueError(f"control must be one of the variants {', '.join(map(str, variants))}, not {control!r}")
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}, not {phase!r}")
    return {name: _make(config, device) for name, config in variants.items()}


def _make(config: ModelConfig, device: torch.device | str) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(config).to(device).eval()


def _ids(model: TransformerLM, n: int) -> Tensor:
    ids = torch.randint(model.config.vocab_size, (1, n), generator=torch.Generator().manual_seed(n))
    return ids.to(model.embedding.weight.device)


@torch.inference_mode()
def _prefill(model: TransformerLM, ids: Tensor) -> ModelState:
    return model.prefill(ids)[1]


def _prefill_peak(model: TransformerLM, ids: Tensor) -> int:
    return memory.tensors(lambda: prefill_task(model, ids).run(None), model, ids).total


def _decode_peak(model: TransformerLM, ids: Tensor) -> int:
    states, token = [_prefill(model, ids[:, :-1])], ids[:, -1]

    @torch.inference_mode()
    def run() -> None:
        model.step(token, states.pop())

    return memory.tensors(run, model, token, *leaves(states[0])).total
