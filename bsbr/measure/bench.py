"""The speed that this project aims at, measured: `python -m bsbr.measure.bench`, or `nox -s bench`.

One run, float32, one row of tokens, at the sizes of the published comparison. Ends with an error if an aim is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from bsbr.measure import machine, scaling, speed
from bsbr.model import ModelConfig, TransformerLM

LENGTHS = [1024, 2048, 4096, 8192, 16384]
AIMS: dict[str, tuple[str, float]] = {
    "encode n = 8192: standard's time over bsbr's": ("≥", 2.5),
    "encode n = 16384: standard's time over bsbr's": ("≥", 4.0),
    "exponent of bsbr's encode, n = 1024 … 16384": ("≤", 1.15),
    "a decoded token of bsbr after 16384 tokens over one after 256": ("<", 1.5),
}


def models() -> dict[str, TransformerLM]:
    """BSBR and standard attention at the published sizes, which are the defaults of `ModelConfig`."""
    torch.manual_seed(0)
    return {name: TransformerLM(ModelConfig(mechanism=name)).eval() for name in ("standard", "bsbr")}


def encode(model: TransformerLM, n: int) -> Callable[[], object]:
    ids = torch.randint(model.config.vocab_size, (1, n), generator=torch.Generator().manual_seed(n))
    return torch.inference_mode()(lambda: model.encode(ids))


@torch.inference_mode()
def decode(model: TransformerLM, n: int, new_tokens: int = 50) -> speed.Task:
    """Decode after a prompt of n tokens, which is read once and not on the clock."""
    _, state = model.prefill(torch.randint(model.config.vocab_size, (1, n)))
    token = torch.zeros(1, dtype=torch.int64)

    @torch.inference_mode()
    def run(now: Any) -> None:
        for _ in range(new_tokens):
            _, now = model.step(token, now)

    return speed.Task(run, prepare=lambda: speed.clone(state))


def measure() -> dict[str, speed.Estimate | float]:
    """The number for each aim, in the order of `AIMS`."""
    pair = models()
    times = {}
    for n in LENGTHS:
        times[n] = speed.interleave({name: encode(model, n) for name, model in pair.items()}, seconds=10)
        print(f"encode n = {n:>5}: " + ", ".join(f"{k} {speed.median(v).value:.4f} s" for k, v in times[n].items()))
    tokens = speed.interleave({str(n): decode(pair["bsbr"], n) for n in (256, 16384)}, seconds=10)
    growth = scaling.fit_power_law(LENGTHS, [speed.median(times[n]["bsbr"]).value for n in LENGTHS])
    found: list[speed.Estimate | float] = [
        speed.ratio(times[8192]["standard"], times[8192]["bsbr"]),
        speed.ratio(times[16384]["standard"], times[16384]["bsbr"]),
        growth.exponent,
        speed.ratio(tokens["16384"], tokens["256"]),
    ]
    return dict(zip(AIMS, found, strict=True))


def main() -> int:
    here = machine.describe()
    print(f"{here['cpu']}, {here['cores']} cores, {here['threads']} threads")
    missed = 0
    for name, found in measure().items():
        value = found.value if isinstance(found, speed.Estimate) else found
        spread = f" ({found.low:.2f}–{found.high:.2f})" if isinstance(found, speed.Estimate) else ""
        sign, aim = AIMS[name]
        kept = {"≥": value >= aim, "≤": value <= aim, "<": value < aim}[sign]
        missed += not kept
        print(f"{'kept  ' if kept else 'MISSED'}  {name}: {value:.2f}{spread}, aim {sign} {aim}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
