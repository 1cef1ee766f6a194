"""The speed and memory that this project aims at, measured: `nox -s bench`, or `python -m bsbr.studies.bench`.

One run, float32, one row of tokens, at the sizes of the published comparison. Names of parts as arguments run those
alone. Ends with an error if an aim is missed.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from bsbr import stats
from bsbr.config import ModelConfig
from bsbr.measure import flops, machine, memory, speed
from bsbr.mechanisms import MECHANISMS
from bsbr.model import TransformerLM
from bsbr.store.machine import describe
from bsbr.studies import passes
from bsbr.studies.operations import expected
from bsbr.studies.tasks import decode_task, prefill_task

LINEAR = [name for name, mechanism in MECHANISMS.items() if mechanism.growth == "linear"]
ENCODE_LENGTHS = (1024, 2048, 4096, 8192, 16384)
COMPARED_LENGTHS = (1024, 4096, 16384)  # for every mechanism; the others between them for standard and bsbr alone
MEMORY_LENGTHS = (4096, 16384, 65536)
RATE_AIMS = dict.fromkeys(LINEAR, 0.6) | {"deltanet": 0.4, "gated_deltanet": 0.4, "gau": 0.4, "moba": 0.5}


class Aim(NamedTuple):
    """A measured number, its spread if it has one, and what it is to be held against."""

    name: str
    value: float
    sign: str
    aim: float
    spread: str = ""

    @property
    def kept(self) -> bool:
        return self.value >= self.aim if self.sign == "≥" else self.value <= self.aim


def estimate_aim(name: str, found: stats.Estimate, sign: str, aim: float) -> Aim:
    return Aim(name, found.value, sign, aim, spread(found))


def spread(found: stats.Estimate, factor: float = 1.0, digits: int = 2) -> str:
    """An interval in brackets, if there is one."""
    if found.low is None or found.high is None:
        return ""
    return f" ({found.low * factor:.{digits}f}–{found.high * factor:.{digits}f})"


def make(mechanism: str) -> TransformerLM:
    """The mechanism at the published sizes, which are the defaults of `ModelConfig`."""
    torch.manual_seed(0)
    return TransformerLM(ModelConfig(mechanism=mechanism)).eval()


def random_ids(model: TransformerLM, n: int) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (1, n), generator=torch.Generator().manual_seed(n))


def encode(model: TransformerLM, n: int) -> Callable[[], object]:
    task = prefill_task(model, random_ids(model, n))
    return lambda: task.run(None)


def encoding() -> Iterator[Aim]:
    """Time, operations and share of this machine's rate for the same products, for every mechanism by n."""
    machine.keep_freed_memory()
    models, times = {name: make(name) for name in MECHANISMS}, {}
    for n in ENCODE_LENGTHS:
        names = MECHANISMS if n in COMPARED_LENGTHS else ("standard", "bsbr")
        tasks = {name: encode(models[name], n) for name in names}
        products = {f"{name}: products": flops.alone(flops.products(task)) for name, task in tasks.items()}
        times[n] = speed.interleave({**tasks, **products}, seconds=15)
        print(f"n = {n}", flush=True)
        for name, task in tasks.items():
            took = stats.median(times[n][name])
            share = stats.ratio(times[n][f"{name}: products"], times[n][name])
            counted, formula = flops.count(task), expected(models[name].config, n).forward
            print(
                f"  {name:<15} {took.value * 1000:8.1f} ms{spread(took, 1000, 1)}"
                f"  {counted / 1e9:8.2f} GFLOP  {counted / took.value / 1e9:6.1f} GFLOP/s"
                f"  {share.value:.2f}{spread(share)} of the rate of its products"
            )
            if counted != formula:
                raise AssertionError(f"{name}, n = {n}: {counted} operations counted, the formula says {formula}")
            if n >= 4096 and name in RATE_AIMS:
                yield estimate_aim(f"{name}, n = {n}: share of the rate of its products", share, "≥", RATE_AIMS[name])
    for n, aim in ((8192, 2.5), (16384, 4.0)):
        gain = stats.ratio(times[n]["standard"], times[n]["bsbr"])
        yield estimate_aim(f"n = {n}: standard's time over bsbr's", gain, "≥", aim)
    growth = stats.power_law(ENCODE_LENGTHS, [stats.median(times[n]["bsbr"]) for n in ENCODE_LENGTHS])
    yield estimate_aim("bsbr: exponent of time, n = 1024 … 16384", growth.exponent, "≤", 1.15)


def original() -> Iterator[Aim]:
    """The original implementation of BSBR, in turn with ours."""
    names = ("vocab_size", "hidden_dim", "num_layers", "num_heads", "chunk_size", "ff_dim")
    sizes = {name: getattr(ModelConfig("bsbr"), name) for name in names}
    ours = make("bsbr")
    models = {"theirs": passes.model_of(passes.ORIGINAL, **sizes).eval(), "ours": ours}
    prompt, text = (random_ids(ours, n) for n in (1024, 4096))
    reading = {who: prefill_task(model, text) for who, model in models.items()}
    writing = {who: functools.partial(model.generate, prompt, 50) for who, model in models.items()}
    read, written = speed.interleave(reading, seconds=30), speed.interleave(writing, seconds=40)
    for name, found in {"n = 4096": read, "50 tokens after 1024": written}.items():
        each = ", ".join(f"{who} {stats.median(taken).value * 1000:.0f} ms" for who, taken in found.items())
        print(f"  {name}: {each}", flush=True)
    yield estimate_aim("n = 4096: the original's time over bsbr's", stats.ratio(read["theirs"], read["ours"]), "≥", 20)
    gain = stats.ratio(written["theirs"], written["ours"])
    yield estimate_aim("50 tokens after 1024: the original's time over bsbr's", gain, "≥", 40)


def decoding() -> Iterator[Aim]:
    """A decoded token after 256 and after 16384 tokens, for every mechanism."""
    for name in MECHANISMS:
        model = make(name)
        times = speed.interleave(
            {str(n): decode_task(model, random_ids(model, n), 50) for n in (256, 16384)}, seconds=8
        )
        after = {n: stats.median(taken / 50 * 1000) for n, taken in times.items()}
        print(f"  {name:<15} " + ", ".join(f"{found.value:.2f} ms after {n} tokens" for n, found in after.items()))
        if name in LINEAR:
            grown = stats.ratio(times["16384"], times["256"])
            yield estimate_aim(f"{name}: a token after 16384 over one after 256", grown, "≤", 1.5)


def reading(mechanism: str, n: int, threads: int) -> Callable[[], object]:
    """For a child process of `memory.peak`."""
    torch.set_num_threads(threads)
    task = encode(make(mechanism), n)
    encode(make(mechanism), 64)()  # what a first call of any size loads and keeps is not the mechanism's
    return task


def remembering() -> Iterator[Aim]:
    """Peak memory of reading up to 65,536 tokens, and how it grows, for every mechanism that can read so many."""
    for name in LINEAR:
        peaks = {n: memory.peak(reading, name, n, torch.get_num_threads()) for n in MEMORY_LENGTHS}
        added = ", ".join(f"{peak.added / 2**20:.0f} MiB at n = {n}" for n, peak in peaks.items())
        print(f"  {name:<15} adds {added}; in all {peaks[65536].peak / 2**30:.2f} GiB at n = 65536")
        growth = stats.power_law(MEMORY_LENGTHS, [float(peaks[n].added) for n in MEMORY_LENGTHS])
        yield Aim(f"{name}, n = 65536: peak of the whole process in GiB", peaks[65536].peak / 2**30, "≤", 4)
        yield estimate_aim(f"{name}: exponent of added memory, n = 4096 … 65536", growth.exponent, "≤", 1.15)
        machine.keep_freed_memory()
        model = make(name)
        times = speed.interleave({str(n): encode(model, n) for n in MEMORY_LENGTHS}, seconds=10)
        growth = stats.power_law_of_rounds(MEMORY_LENGTHS, [times[str(n)] for n in MEMORY_LENGTHS])
        yield estimate_aim(f"{name}: exponent of time, n = 4096 … 65536", growth.exponent, "≤", 1.15)


# The original comes first, when it and ours have the allocator as it is; later parts tell it to keep freed memory.
PARTS: dict[str, Callable[[], Iterator[Aim]]] = {
    "original": original,
    "encoding": encoding,
    "decoding": decoding,
    "memory": remembering,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], metavar="part", help=f"of {', '.join(PARTS)}; all by default"
    )
    parts = parser.parse_args(arguments).parts or list(PARTS)
    here = describe()
    print(f"{here['cpu']}, {here['cores']} cores, {here['threads']} threads, PyTorch {torch.__version__}")
    aims = []
    for name in parts:
        print(f"\n{name}: {(PARTS[name].__doc__ or '').strip()}", flush=True)
        for aim in PARTS[name]():
            verdict = "kept  " if aim.kept else "MISSED"
            print(f"{verdict}  {aim.name}: {aim.value:.2f}{aim.spread}, aim {aim.sign} {aim.aim:g}", flush=True)
            aims.append(aim)
    print(f"\n{sum(aim.kept for aim in aims)} of {len(aims)} aims kept")
    return int(not all(aim.kept for aim in aims))


if __name__ == "__main__":
    sys.exit(main())
