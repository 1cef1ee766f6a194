# %% [markdown]
# # Chunk size
#
# How do time and memory of BSBR depend on how many tokens a chunk holds?

# %% tags=["remove-input"]
from bsbr import claims, figures

answer, stated, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# One document has time and memory grow steadily with the size of a chunk, and accuracy as well; it names neither the
# length of the text nor the task. Another, on converted models, has speed and memory get worse with larger chunks too,
# beside a sentence that says the opposite of speed; converted models have their own page. What theory says is a
# bargain: reading inside a chunk of $B$ tokens costs a token $O(B)$, while there are $n/B$ chunks, whose states take
# memory and whose mixing costs a token $O(n/B^2)$. So the best size lies in between, and moves up with $n$.
#
# ## Method
#
# One model, BSBR with random weights, at several chunk sizes; all else is equal, the number of parameters too. At each
# length the sizes take turns on the clock, round after round, and each time is divided by that of the control size in
# the same round.
#
# - **prefill**: one pass over $n$ tokens up to the last hidden state;
# - **decode**: new tokens one by one after a prompt of $n$, as many as a chunk of the control size holds. So up to this
#   size the closing of chunks, which mixes the states anew, weighs as it does in a long text; larger chunks do it so
#   seldom that it is left out.
#
# Peak memory is what tensors hold at the worst moment, parameters included; for decoding, in the step that closes a
# chunk. The state is what a layer keeps in order to go on: the keys and values of the open chunk, one matrix and one
# meta key for each closed chunk, and their mix. Operations are those of matrix products.

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
CONTROL = 128
PROFILES = {
    "tiny": {"chunk_sizes": [32, 128], "prefill": [256], "decode": [256], "new_tokens": 8, "seconds": 0.1},
    "quick": {"prefill": [1024, 4096], "decode": [1024], "seconds": 3},
    "full": {"prefill": [1024, 4096, 16384], "decode": [1024, 4096, 16384], "seconds": 20},
}
settings = {"chunk_sizes": [32, 64, 128, 256, 512], "new_tokens": CONTROL, **PROFILES[profile]}
chunk_sizes = settings["chunk_sizes"]
configs = {size: ModelConfig("bsbr", **SIZES, chunk_size=size) for size in chunk_sizes}
device = machine.device(target)

# %% [markdown]
# ## Measuring


# %% tags=["hide-input", "remove-output"]
def measure(mechanism: str, phase: str, n: int) -> list[dict]:
    options = {"seconds": settings["seconds"], "new_tokens": settings["new_tokens"], "device": device}
    return variants.costs("chunk_size", configs, CONTROL, phase, n, **options)


COMING = {"accuracy": "not measured yet: needs trained models, which benchmarks/classification will bring"}
coming = [
    row(metric, None, mechanism="bsbr", chunk_size=size, status="not_available", reason=reason)
    for metric, reason in COMING.items()
    for size in chunk_sizes
]
sweep = Sweep(
    "experiments/chunk_size",
    target=target,
    profile=profile,
    parameters={**SIZES, **settings, "control": CONTROL, "batch": 1, "dtype": "float32"},
    code=[bsbr.model, flops, memory, speed, variants],
)
cells = [{"mechanism": "bsbr", "phase": phase, "n": n} for phase in ("prefill", "decode") for n in settings[phase]]
measured = sweep.measure(cells, measure)
result = sweep.publish(pd.concat([measured, pd.DataFrame(coming)], ignore_index=True))

# %% tags=["remove-input"]
lengths, decoded = settings["prefill"], settings["decode"]
long, long_decode = lengths[-1], decoded[-1]
smallest, largest = chunk_sizes[0], chunk_sizes[-1]


def fastest(n: int, phase: str = "prefill") -> int:
    times = result.select("relative_time", phase=phase, n=n)
    return int(times.loc[times["value"].idxmin(), "chunk_size"])


def shown(metric: str, size: int, n: int = long, phase: str = "prefill", digits: int = 3) -> str:
    found = result.select(metric, chunk_size=size, n=n, phase=phase).iloc[0]
    return figures.interval(found["value"], found["low"], found["high"], digits)


def as_fast(n: int) -> str:
    """The sizes whose time cannot be told from the least one's."""
    times = result.select("relative_time", phase="prefill", n=n)
    least = times.loc[times["value"].idxmin()]
    return ", ".join(str(size) for size in times.loc[times["low"] <= least["high"], "chunk_size"])


figures.say(
    f"**To read {long:,} tokens, chunks of {smallest} take {shown('relative_time', smallest, digits=2)} times as long as "
    f"chunks of {CONTROL}, and chunks of {largest} {shown('relative_time', largest, digits=2)} times.** Not to be told from "
    f"the fastest, within their intervals: {as_fast(long)}; at {lengths[0]:,} tokens {as_fast(lengths[0])}. Peak memory at "
    f"{long:,} tokens is {shown('peak_memory', smallest)} MB with chunks of {smallest}, {shown('peak_memory', CONTROL)} "
    f"with {CONTROL} and {shown('peak_memory', largest)} with {largest}. To decode after {long_decode:,} tokens a layer "
    f"keeps {shown('state_size', smallest, long_decode, 'decode')}, {shown('state_size', CONTROL, long_decode, 'decode')} "
    f"and {shown('state_size', largest, long_decode, 'decode')} numbers.",
    answer,
)
figures.say(claims.line(result), stated)

relative = result.select("relative_time", phase="prefill")
chart = figures.lines(
    relative.assign(n=[f"n = {n:,}" for n in relative["n"]]), "chunk_size", group="n",
    title=f"Time to read n tokens, relative to chunks of {CONTROL}", x_title="chunk size (tokens)", log_x=True,
)  # fmt: skip
said = claims.load("time")
said = said[said["section"].str.contains("Chunk Size")]
if not said.empty:
    sizes = said["conditions"].map(lambda text: claims.conditions(text)["chunk_size"])
    base = said.loc[sizes == CONTROL, "value"].iloc[0]
    figures.add_claim(chart, sizes, list(said["value"] / base), "claimed")
chart.update_yaxes(rangemode="tozero")
figures.show(chart, "relative-time", main_chart)
figures.say(figures.provenance_line(result), origin)


# %% [markdown]
# ## Prefill


# %% tags=["remove-input"]
def by_size(metric: str, phase: str, scale: float = 1.0) -> pd.DataFrame:
    rows = result.select(metric, phase=phase)
    rows = rows.assign(
        n=[f"n = {n:,}" for n in rows["n"]], **{name: rows[name] * scale for name in ("value", "low", "high")}
    )
    return figures.pivot(rows, "chunk_size", "n")


figures.table(by_size("time", "prefill", 1000), caption="Milliseconds to read n tokens, median and 95 % interval")
figures.table(by_size("relative_time", "prefill"), caption=f"The same relative to chunks of {CONTROL}")
figures.table(by_size("peak_memory", "prefill"), caption="Peak memory in MB, parameters included")
figures.table(by_size("flops", "prefill", 1e-9), caption="GFLOPs (thousand millions of operations)")
figures.show_provenance(result)

# %% [markdown]
# ## Decode

# %% tags=["remove-input"]
figures.table(
    by_size("time_per_token", "decode"), caption="Milliseconds a decoded token after n, median and 95 % interval"
)
figures.table(by_size("peak_memory", "decode"), caption="Peak memory in MB of the step that closes a chunk")
figures.table(by_size("state_size", "decode"), caption="Numbers that a layer keeps after n tokens")
states = result.select("state_size", phase="decode")
chart = figures.lines(
    states.assign(n=[f"n = {n:,}" for n in states["n"]]), "chunk_size", group="n", title="State of a layer after n tokens",
    x_title="chunk size (tokens)", log_x=True, log_y=True,
)  # fmt: skip
figures.show(figures.axis_toggle(chart), "state")
figures.show_provenance(result)

# %% [markdown]
# ## Quality

# %% tags=["remove-input"]
missing = result.table[result.table["status"] == "not_available"]
figures.table(
    missing.pivot(index="chunk_size", columns="metric", values="reason").rename_axis(columns=None).reset_index(),
    caption="What chunk size does to quality",
)
figures.say(
    "Random weights say nothing about quality. How near a converted model stays to its original by chunk size is a "
    "question of its own, for conversion/hyperparameters."
)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
per_layer = {size: result.value("state_size", chunk_size=size, n=long_decode, phase="decode") for size in chunk_sizes}
least_state = min(per_layer, key=lambda size: per_layer[size])
operations = result.select("flops", phase="prefill")
least_work = operations.loc[operations.groupby("n")["value"].idxmin(), ["n", "chunk_size"]].itertuples(index=False)
head_dim = SIZES["hidden_dim"] // SIZES["num_heads"]
ends = [result.value("peak_memory", chunk_size=size, n=long, phase="prefill") for size in (smallest, largest)]
figures.say(
    f"**Both ends cost.** With chunks of {smallest} there are {long // smallest:,} states at {long:,} tokens, and every "
    f"chunk mixes all before it; with chunks of {largest} there are {long // largest:,}, and the work is inside chunks. "
    f"Operations are fewest with chunks of {', '.join(f'{size} at n = {n:,}' for n, size in least_work)}; time was least "
    f"with {', '.join(f'{fastest(n)} at n = {n:,}' for n in lengths)}. The best size depends on the length, so a table that "
    f"names no length says little.\n\n"
    f"**Memory was claimed to grow with the chunk; in prefill it {'falls' if ends[0] > ends[1] else 'grows'}**, from "
    f"{figures.number(ends[0])} MB to {figures.number(ends[1])} MB between the ends. A chunk leaves one matrix of "
    f"{head_dim} × {head_dim} a head: a chunk of {head_dim // 2} tokens leaves a state as large as its keys and values, and "
    f"smaller chunks leave more than they had. While decoding, the open chunk's keys and values count as well, so after "
    f"{long_decode:,} tokens a layer keeps least with chunks of {least_state}.\n\n"
    f"Sizes: {', '.join(f'{name} {value:,}' for name, value in SIZES.items())}; float32, batch of one, eager mode; "
    f"{settings['new_tokens']} decoded tokens a sample."
)

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - One model size. With a larger `head_dim` a state is larger, and the best chunk with it: try it in `SIZES`.
# - Which length makes two neighbouring chunk sizes equally fast? Read it off the operations first.
# - What would `top_k` change at the small end?
