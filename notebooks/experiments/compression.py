# %% [markdown]
# # Compression
#
# What do smaller chunk states save in memory, and what do they cost in time?

# %% tags=["remove-input"]
from bsbr import claims, figures

answer, stated, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# One document gives the memory that remains at each compression factor as a share, another the memory saved in a
# converted model, with a small gain in speed that grows with the factor; both say what accuracy is lost. Neither names a
# length. Converted models have their own page.
#
# ## Method
#
# A chunk's state is a matrix of `head_dim` × `head_dim` numbers a head, $K^\top V / B$. With compression factor $f$ the
# values are first mapped to `head_dim` $/ f$ dimensions, so that a state has $f$ times fewer numbers, and what is
# retrieved is mapped back; both maps are learned. That is less memory for states and less work for mixing them, and two
# products more for every token.
#
# One model, BSBR with random weights, at several factors; factor zero stands for no compression. At each length they take
# turns on the clock, round after round, and each time is divided by that of no compression in the same round.
#
# - **prefill**: one pass over $n$ tokens up to the last hidden state;
# - **decode**: new tokens one by one after a prompt of $n$, as many as one chunk holds, so that the closing of a chunk,
#   which mixes the states anew, weighs as it does in a long text.
#
# Peak memory is what tensors hold at the worst moment, parameters included; for decoding, in the step that closes a
# chunk. Memory saved is the share of the uncompressed peak that is not needed. The state is what a layer keeps in order
# to go on: states, but also the keys and values of the open chunk and the meta keys, which are not compressed.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import pandas as pd

import bsbr.model
from bsbr import ModelConfig
from bsbr.measure import flops, machine, memory, speed, variants
from bsbr.results import Sweep, row

SIZES = {"vocab_size": 10_000, "hidden_dim": 256, "num_layers": 2, "num_heads": 4, "ff_dim": 512}
CHUNK_SIZE = 128
NONE = 0
PROFILES = {
    "tiny": {"compression_factors": [0, 4], "prefill": [256], "decode": [256], "new_tokens": 8, "seconds": 0.1},
    "quick": {"prefill": [1024, 4096], "decode": [1024], "seconds": 3},
    "full": {"prefill": [1024, 4096, 16384], "decode": [1024, 4096, 16384], "seconds": 20},
}
settings = {"compression_factors": [0, 2, 4, 8], "new_tokens": CHUNK_SIZE, **PROFILES[profile]}
factors = settings["compression_factors"]
configs = {
    factor: ModelConfig("bsbr", **SIZES, chunk_size=CHUNK_SIZE, compression_factor=factor or None) for factor in factors
}
device = machine.device(target)

# %% [markdown]
# ## Measuring


# %% tags=["hide-input", "remove-output"]
def measure(mechanism: str, phase: str, n: int) -> list[dict]:
    options = {"seconds": settings["seconds"], "new_tokens": settings["new_tokens"], "device": device}
    rows = variants.costs("compression_factor", configs, NONE, phase, n, **options)
    peaks = {found["compression_factor"]: found["value"] for found in rows if found["metric"] == "peak_memory"}
    saved = {factor: 100 * (1 - peak / peaks[NONE]) for factor, peak in peaks.items()}
    return rows + [row("memory_saved", share, compression_factor=factor) for factor, share in saved.items()]


COMING = {"accuracy": "not measured yet: needs trained models, which benchmarks/classification will bring"}
coming = [
    row(metric, None, mechanism="bsbr", compression_factor=factor, status="not_available", reason=reason)
    for metric, reason in COMING.items()
    for factor in factors
]
sweep = Sweep(
    "experiments/compression",
    target=target,
    profile=profile,
    parameters={**SIZES, **settings, "chunk_size": CHUNK_SIZE, "batch": 1, "dtype": "float32"},
    code=[bsbr.model, flops, memory, speed, variants],
)
cells = [{"mechanism": "bsbr", "phase": phase, "n": n} for phase in ("prefill", "decode") for n in settings[phase]]
measured = sweep.measure(cells, measure)
result = sweep.publish(pd.concat([measured, pd.DataFrame(coming)], ignore_index=True))

# %% tags=["remove-input"]
lengths, decoded = settings["prefill"], settings["decode"]
long, long_decode, most = lengths[-1], decoded[-1], factors[-1]


def found(metric: str, factor: int, phase: str = "prefill") -> pd.Series:
    n = long if phase == "prefill" else long_decode
    return result.select(metric, compression_factor=factor, n=n, phase=phase).iloc[0]


def shown(metric: str, factor: int, phase: str = "prefill", digits: int = 3) -> str:
    number = found(metric, factor, phase)
    return figures.interval(number["value"], number["low"], number["high"], digits)


kept = {factor: found("state_size", factor, "decode")["value"] for factor in factors}
figures.say(
    f"**At {long:,} tokens compression by {most} saves {shown('memory_saved', most)} % of the peak memory of reading and "
    f"{shown('memory_saved', most, 'decode')} % of that of decoding, and reading takes "
    f"{shown('relative_time', most)} times as long as without.** A layer keeps "
    f"{figures.number(100 * kept[most] / kept[NONE])} % of the numbers to decode with, not {figures.number(100 / most)} %: "
    f"the open chunk's keys and values are not compressed. A decoded token takes "
    f"{shown('relative_time', most, 'decode')} times as long.",
    answer,
)
figures.say(claims.line(result), stated)

saved = result.select("memory_saved").dropna(subset="value")
chart = figures.lines(
    saved.assign(what=[f"{phase}, n = {n:,}" for phase, n in zip(saved["phase"], saved["n"], strict=True)]),
    "compression_factor", group="what", title="Peak memory saved", x_title="compression factor (0: none)",
)  # fmt: skip
said_of_memory = claims.load("memory_saved", "relative_memory")
said_of_memory = said_of_memory[said_of_memory["section"].str.contains("Compression")]
for symbol, (document, said) in zip(("circle", "square"), said_of_memory.groupby("document"), strict=True):
    at = said["conditions"].map(lambda text: claims.conditions(text)["compression_factor"])
    remaining = said["quantity"] == "relative_memory"
    values = said["value"].where(~remaining, 100 * (1 - said["value"]))
    figures.add_claim(chart, at, list(values), f"claimed: {claims.short(document)}", symbol)
figures.show(chart, "saved", main_chart)
figures.say(figures.provenance_line(result), origin)


# %% [markdown]
# ## Prefill


# %% tags=["remove-input"]
def by_factor(metric: str, phase: str, scale: float = 1.0) -> pd.DataFrame:
    rows = result.select(metric, phase=phase)
    rows = rows.assign(
        n=[f"n = {n:,}" for n in rows["n"]],
        compression=rows["compression_factor"].map(lambda factor: str(factor or "none")),
        **{name: rows[name] * scale for name in ("value", "low", "high")},
    )
    return figures.pivot(rows, "compression", "n")


figures.table(by_factor("time", "prefill", 1000), caption="Milliseconds to read n tokens, median and 95 % interval")
figures.table(by_factor("relative_time", "prefill"), caption="The same relative to no compression")
figures.table(by_factor("peak_memory", "prefill"), caption="Peak memory in MB, parameters included")
figures.table(by_factor("memory_saved", "prefill"), caption="Share of the peak that is saved, in %")
figures.table(by_factor("flops", "prefill", 1e-9), caption="GFLOPs (thousand millions of operations)")
figures.show_provenance(result)

# %% [markdown]
# ## Decode

# %% tags=["remove-input"]
figures.table(by_factor("time_per_token", "decode"), caption="Milliseconds a decoded token, median and 95 % interval")
figures.table(by_factor("relative_time", "decode"), caption="The same relative to no compression")
figures.table(by_factor("peak_memory", "decode"), caption="Peak memory in MB of the step that closes a chunk")
figures.table(by_factor("memory_saved", "decode"), caption="Share of this peak that is saved, in %")
figures.table(by_factor("state_size", "decode"), caption="Numbers that a layer keeps after n tokens")
figures.show_provenance(result)

# %% [markdown]
# ## Quality

# %% tags=["remove-input"]
missing = result.table[result.table["status"] == "not_available"]
figures.table(
    missing.pivot(index="compression_factor", columns="metric", values="reason")
    .rename_axis(columns=None)
    .reset_index(),
    caption="What compression does to quality",
)
figures.say(
    "The maps here are random, so nothing can be said about quality yet. What compression does to a converted model is a "
    "question of its own, for conversion/hyperparameters."
)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
head_dim = SIZES["hidden_dim"] // SIZES["num_heads"]
mixing = found("flops", most)["value"] / found("flops", NONE)["value"]
shares = result.select("memory_saved", phase="prefill", compression_factor=most)
gains = result.select("relative_time", phase="prefill", compression_factor=most)
faster = [f"n = {row.n:,}" for row in gains.itertuples() if row.high < 1]
slower = [f"n = {row.n:,}" for row in gains.itertuples() if row.low > 1]
figures.say(
    f"**What compression can save are states and nothing else.** At {long:,} tokens there are {long // CHUNK_SIZE:,} of "
    f"them, of {head_dim} × {head_dim} numbers a head; hidden states, queries, keys and values stay as they are, and the "
    f"maps are parameters more. "
    f"So what it saves grows with the length, and no single share can be stated for a factor: with factor {most} it is "
    f"{', '.join(f'{row.value:.1f} % at n = {row.n:,}' for row in shares.itertuples())} "
    f"in prefill.\n\n"
    f"**Time.** Factor {most} takes {figures.number(mixing)} times the operations at {long:,} tokens. It reads measurably "
    f"faster than no compression at {', '.join(faster) or 'no length'}, and measurably slower at "
    f"{', '.join(slower) or 'no length'}.\n\n"
    f"Sizes: {', '.join(f'{name} {value:,}' for name, value in SIZES.items())}, chunk_size {CHUNK_SIZE}; float32, batch of "
    f"one, eager mode; {settings['new_tokens']} decoded tokens a sample."
)

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - One model size. The larger `head_dim` is to the chunk, the more of the memory is states: try it in `SIZES`.
# - Halve `CHUNK_SIZE`: what happens to the memory that a factor saves, and why?
# - Could keys be compressed as well as values? Which of the two maps would then be needed?
