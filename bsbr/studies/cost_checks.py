"""The model of `bsbr.studies.cost` beside what was measured: it has to find small cases before it is asked large ones.

Each check takes a published table and gives a frame with a row for each case: `what`, `case`, `measured`, `predicted`
and `error`, in percent of what was measured.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import least_squares

from bsbr.config import ModelConfig
from bsbr.measure.kernels import Kernel
from bsbr.studies import cost, traffic
from bsbr.studies.cost import Device

SIZES: dict[str, dict[str, Any]] = {  # of the models whose passes were measured
    "256x2x4": {"vocab_size": 10_000, "hidden_dim": 256, "num_layers": 2, "num_heads": 4, "ff_dim": 512},
    "512x4x8": {"vocab_size": 10_000, "hidden_dim": 512, "num_layers": 4, "num_heads": 8, "ff_dim": 2048},
}
OPTIONS: dict[str, Any] = {"chunk_size": 128, "window_size": 128}
LAYER: dict[str, Any] = {"hidden_dim": 256, "num_heads": 4}  # that processes shared
WAYS: dict[str, tuple[str, dict[str, Any], str | None]] = {  # by its name in the table: mechanism, options, method
    "bsbr": ("bsbr", {}, None),
    "bsbr_compressed": ("bsbr", {"compression_factor": 4}, None),
    "bsbr_two_local": ("bsbr", {"local_chunks": 2}, None),
    "linear": ("linear", {}, None),
    "deltanet": ("deltanet", {}, None),
    "all_gather": ("standard", {}, "all_gather"),
    "ring": ("standard", {}, "ring_keeping"),
    "later_only": ("standard", {}, "later_only"),
}
PASSES = {"inference": "prefill", "training": "training", "training_backbone": "training_backbone"}
FITTED = {"256x2x4": 4096, "512x4x8": 1024}  # tokens: times of texts up to that give the machine's rates


def config_of(size: str, mechanism: str) -> ModelConfig:
    """The model that was measured."""
    return ModelConfig(mechanism, **SIZES[size], **OPTIONS)


def sent(table: pd.DataFrame) -> pd.DataFrame:
    """Bytes that leave a process for one layer, by rank, direction and way of sharing, gloo's headers included.

    Args:
        table: of `benchmarks/sequence_parallel`.
    """
    rows = table[(table["metric"] == "bytes_sent") & (table["status"] == "ok") & table["method"].isin(list(WAYS))]
    found: dict[tuple[Hashable, ...], dict[str, Any]] = {}
    cases = []
    for row in rows.to_dict("records"):
        job = tuple(int(row[name]) for name in ("ranks", "n", "chunk_size"))
        if (*job, row["method"]) not in found:
            found[(*job, row["method"])] = _leaving(str(row["method"]), *job)
        where = f"{job[0]} ranks, n = {job[1]:,}, chunks of {job[2]}, rank {int(row['rank'])}"
        case = f"{row['method']}, {row['direction']}, {where}"
        cases.append((case, row["value"], found[(*job, row["method"])][str(row["direction"])][int(row["rank"])]))
    return _compared("bytes sent", cases)


def _leaving(name: str, ranks: int, n: int, chunk_size: int) -> dict[str, Any]:
    mechanism, options, method = WAYS[name]
    config = ModelConfig(mechanism, chunk_size=chunk_size, **LAYER, **options)
    sizes = traffic.of_layer(config, n, ranks, itemsize=4, method=method)
    back = np.sign(sizes.backward) if method == "all_gather" else sizes.messages.T  # there blocks are not cut in two
    return {
        "forward": traffic.with_gloo(sizes.forward, sizes.messages),
        "backward": traffic.with_gloo(sizes.backward, back),
    }


def held(table: pd.DataFrame, mechanisms: Sequence[str], lengths: Sequence[int]) -> pd.DataFrame:
    """Bytes that tensors hold at the peak of a pass.

    Args:
        table: of `benchmarks/memory`.
        mechanisms: those to compare.
        lengths: of these texts.
    """
    rows = table[(table["metric"] == "peak_memory") & table["mechanism"].isin(mechanisms) & table["n"].isin(lengths)]
    cases = []
    for row in rows.to_dict("records"):
        again = row["checkpointing"] == "on"
        config = config_of(str(row["size"]), str(row["mechanism"]))
        part = cost.own_slice(config, int(row["n"]), PASSES[str(row["phase"])], again, torch.float32)
        how = ", recomputed" if again else ""
        cases.append((f"{row['phase']}{how}, {_case(row)}", row["value"], sum(part.memory.values()) / 1e6))
    return _compared("peak memory", cases)


def counted(table: pd.DataFrame, mechanisms: Sequence[str], lengths: Sequence[int]) -> pd.DataFrame:
    """Operations of a forward pass.

    Args:
        table: of `benchmarks/parameters_and_flops`.
        mechanisms: those to compare.
        lengths: of these texts.
    """
    rows = table[(table["metric"] == "flops") & (table["direction"] == "forward") & table["size"].isin(list(SIZES))]
    rows = rows[rows["mechanism"].isin(mechanisms) & rows["n"].isin(lengths)]
    cases = [
        (_case(row), row["value"], sum(kernel.flops * times for kernel, times in _work(row).items()))
        for row in rows.to_dict("records")
    ]
    return _compared("operations", cases)


def timed(table: pd.DataFrame, mechanisms: Sequence[str]) -> pd.DataFrame:
    """Seconds to read a text: rates are fitted on short ones, apart for each size of model, and longer ones predicted.

    A row has also its `mechanism`, `size` and `n`, and whether the prediction is `inside` the measured 95 % interval.

    Args:
        table: of `benchmarks/inference_time`.
        mechanisms: those to compare.
    """
    rows = table[(table["metric"] == "time") & (table["phase"] == "prefill") & (table["status"] == "ok")]
    rows = rows[(rows["batch"] == 1) & (rows["mode"] == "eager") & rows["mechanism"].isin(mechanisms)]
    frames = []
    for size, longest in FITTED.items():
        cases = [(row, _work(row)) for row in rows[rows["size"] == size].to_dict("records")]
        known = [(work, float(row["value"])) for row, work in cases if row["n"] <= longest]
        asked = [(row, work) for row, work in cases if row["n"] > longest]
        if not asked:
            continue
        machine = fitted(known)
        seconds = [machine.seconds(work) for _, work in asked]
        frame = _compared(
            "seconds", [(_case(row), row["value"], found) for (row, _), found in zip(asked, seconds, strict=True)]
        )
        inside = [row["low"] <= found <= row["high"] for (row, _), found in zip(asked, seconds, strict=True)]
        about = pd.DataFrame([row for row, _ in asked])[["mechanism", "size", "n"]]
        frames.append(pd.concat([frame, about], axis=1).assign(inside=inside))
    return pd.concat(frames, ignore_index=True)


def fitted(cells: Sequence[tuple[Mapping[Kernel, int], float]]) -> Device:
    """The processor whose rates come nearest to the times of these cells, each by its ratio.

    Args:
        cells: kernels of a call, and the seconds that it took.

    Raises:
        ValueError: fewer cells than the four rates to find.

    Examples:
        >>> from bsbr.measure.kernels import Kernel
        >>> from bsbr.studies.cost import Device
        >>> from bsbr.studies.cost_checks import fitted
        >>> truth = Device("truth", flops=2e11, bandwidth=2e10, memory=0, attention=0.5, start=1e-5)
        >>> calls = [
        ...     {Kernel(kind, flops, moved): 3}
        ...     for kind in ("product", "attention") for flops, moved in ((10**9, 10), (10**7, 10**8), (10**4, 10))
        ... ]
        >>> found = fitted([(call, truth.seconds(call)) for call in calls])
        >>> f"{found.flops:.2g} {found.bandwidth:.2g} {found.attention:.2g} {found.start:.2g}"
        '2e+11 2e+10 0.5 1e-05'
    """
    if len(cells) < len(_START):
        raise ValueError(f"cells must be at least {len(_START)}, one for each rate to find, but are {len(cells)}")

    def off(logs: Any) -> Any:
        device = _device(logs)
        return [np.log(device.seconds(work) / seconds) for work, seconds in cells]

    return _device(least_squares(off, np.log(_START)).x)


_START = (1e11, 1e10, 1.0, 1e-5)  # operations and bytes a second, attention's share, seconds to start


def _device(logs: Any) -> Device:
    flops, bandwidth, attention, start = (float(value) for value in np.exp(logs))
    return Device("the machine of the runs", flops, bandwidth, memory=0, attention=attention, start=start)


def _work(row: Mapping[Hashable, Any]) -> Mapping[Kernel, int]:
    config = config_of(str(row["size"]), str(row["mechanism"]))
    return cost.own_slice(config, int(row["n"]), "prefill", False, torch.float32).kernels


def _case(row: Mapping[Hashable, Any]) -> str:
    return f"{row['mechanism']}, {row['size']}, n = {int(row['n']):,}"


def _compared(what: str, cases: Sequence[tuple[str, float, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(cases, columns=["case", "measured", "predicted"])
    return frame.assign(what=what, error=100 * (frame["predicted"] / frame["measured"] - 1))
