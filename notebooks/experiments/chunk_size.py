# %% [markdown]
# # Chunk size
#
# How do time, memory and quality of BSBR depend on how many tokens a chunk holds?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

answer, stated, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# One document has time and memory grow steadily with the size of a chunk, and accuracy as well; it names neither the
# length of the text nor the task. Another, on converted models, has speed and memory get worse with larger chunks too,
# beside a sentence that says the opposite of speed; converted models have their own page. What theory says is a
# bargain: reading inside a chunk of $B$ tokens costs $O(B)$ per token, while there are $n/B$ chunks, whose states take
# memory and whose mixing costs $O(n/B^2)$ per token. So the best size lies in between, and moves up with $n$.
#
# ## Method
#
# One model, BSBR with random weights, at several chunk sizes; all else is equal, the number of parameters too. At each
# length the sizes take turns on the clock, seven rounds or more, and each time is divided by that of the control size
# in the same round. A number is the median of the rounds, its interval two of them in order that hold the median in
# 95 % of cases.
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

from bsbr import ModelConfig, sources, stats
from bsbr.measure import machine
from bsbr.show import learning
from bsbr.store import NUMBERS, Sweep, only
from bsbr.studies import quality, variants

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
options = {"seconds": settings["seconds"], "new_tokens": settings["new_tokens"]}
plan = quality.PLANS[profile]

# %% [markdown]
# ## Measuring


# %% tags=["hide-input", "remove-output"]
def times(mechanism: str, phase: str, n: int) -> list[dict]:
    return variants.times("chunk_size", configs, CONTROL, phase, n, device=machine.device(target), **options)


def sizes(mechanism: str, phase: str, n: int) -> list[dict]:
    return variants.sizes("chunk_size", configs, CONTROL, phase, n, device=machine.device(target))


sweep = Sweep(
    "experiments/chunk_size",
    target=target,
    profile=profile,
    parameters={**SIZES, **settings, "control": CONTROL, "batch": 1, "dtype": "float32"},
)
cells = [{"mechanism": "bsbr", "phase": phase, "n": n} for phase in ("prefill", "decode") for n in settings[phase]]
tables = [sweep.measure(cells, times, machine_bound=True), sweep.measure(cells, sizes, machine_bound=False)]
# What is timed does not hang on how models are trained, and is kept when that changes.
sweep.extend(parameters={"trained": plan.parameters}, sources=[sources.pin_path(name) for name in quality.CORPORA])
by_chunk = {size: {"chunk_size": size} for size in chunk_sizes}
tables.append(quality.hold(sweep, plan, "chunk_size", by_chunk, CONTROL, device=machine.device(target).type))
result = sweep.publish(pd.concat(tables, ignore_index=True))

# %% tags=["remove-input"]
lengths, decoded = settings["prefill"], settings["decode"]
long, long_decode = lengths[-1], decoded[-1]
smallest, largest = chunk_sizes[0], chunk_sizes[-1]


def shown(metric: str, size: int, n: int = long, phase: str = "prefill", digits: int = 3) -> str:
    found = only(result.table, metric, chunk_size=size, n=n, phase=phase)
    return figures.interval(*found[NUMBERS], digits=digits)


def as_fast(n: int, metric: str = "time", phase: str = "prefill") -> list[int]:
    """The size of the least median time, and those whose intervals meet its own."""
    rows = result.select(metric, phase=phase, n=n)
    found = dict(zip(rows["chunk_size"], stats.from_rows(rows.to_dict("records")), strict=True))
    return stats.as_good_as_best(found)


def listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))


compared = learning.is_compared(result)
trained = learning.by_setting(result, "chunk_size", "bsbr, chunks of {}".format)
control = {"n": plan.n, "than": f"bsbr, chunks of {CONTROL}", "against": CONTROL}
predicted = f"Perplexity of text: {learning.differing(trained, 'perplexity_gain', factor='model', **control)}"
ends = [size for size in (smallest, largest) if size != CONTROL]
slower = " and ".join(f"chunks of {size} take {shown('relative_time', size, digits=2)} times" for size in ends)
figures.say(
    f"**To read {long:,} tokens, {slower} as long as chunks of {CONTROL}.** Indistinguishable "
    f"from the fastest, since their intervals meet: {listed(as_fast(long))}; at {lengths[0]:,} tokens "
    f"{listed(as_fast(lengths[0]))}. Peak memory at {long:,} tokens is {shown('peak_memory', smallest)} MB with chunks of "
    f"{smallest}, {shown('peak_memory', CONTROL)} with {CONTROL} and {shown('peak_memory', largest)} with {largest}. To "
    f"decode after {long_decode:,} tokens a layer keeps {shown('state_size', smallest, long_decode, 'decode')}, "
    f"{shown('state_size', CONTROL, long_decode, 'decode')} and "
    f"{shown('state_size', largest, long_decode, 'decode')} numbers. {predicted if compared else ''}",
    answer,
)
figures.say(claims.line(result), stated)

ratios = variants.with_control(result.select("relative_time", phase="prefill"), "chunk_size", CONTROL, 1)
chart = figures.lines(
    ratios.assign(n=[f"n = {n:,}" for n in ratios["n"]]), "chunk_size", group="n",
    title=f"Time to read n tokens, relative to chunks of {CONTROL}", x_title="chunk size (tokens)", log_x=True,
)  # fmt: skip
said = claims.load("time")
said = said[said["section"].str.contains("Chunk Size")]
if not said.empty:
    at = said["conditions"].map(lambda text: claims.conditions(text)["chunk_size"])
    figures.add_claim(chart, at, list(said["value"] / said.loc[at == CONTROL, "value"].iloc[0]), "claimed")
chart.update_yaxes(rangemode="tozero")
figures.show(chart, "relative-time", main_chart)
figures.say(figures.provenance_line(result), origin)


# %% [markdown]
# ## Prefill


# %% tags=["remove-input"]
def by_size(metric: str, phase: str, caption: str, scale: float = 1) -> None:
    figures.table(figures.pivot(result.select(metric, phase=phase), "chunk_size", "n", scale=scale), caption)


by_size("time", "prefill", "Milliseconds to read n tokens, by n: median and 95 % interval", 1000)
by_size("relative_time", "prefill", f"The same relative to chunks of {CONTROL}")
by_size("peak_memory", "prefill", "Peak memory in MB, parameters included, by n")
by_size("memory_saved", "prefill", f"Share of the peak with chunks of {CONTROL} that is not needed, in %")
by_size("flops", "prefill", "GFLOPs (thousand millions of operations), by n", 1e-9)
figures.show_provenance(result)

# %% [markdown]
# ## Decode

# %% tags=["remove-input"]
by_size("time_per_token", "decode", "Milliseconds per decoded token after n, by n: median and 95 % interval")
by_size("relative_time", "decode", f"The same relative to chunks of {CONTROL}")
by_size("peak_memory", "decode", "Peak memory in MB of the step that closes a chunk, by n")
by_size("state_size", "decode", "Numbers that a layer keeps after n tokens, by n")
states = result.select("state_size", phase="decode")
chart = figures.lines(
    states.assign(n=[f"n = {n:,}" for n in states["n"]]), "chunk_size", group="n", title="State of a layer after n tokens",
    x_title="chunk size (tokens)", log_x=True, log_y=True,
)  # fmt: skip
figures.show(figures.axis_toggle(chart), "state")
figures.show_provenance(result)

# %% [markdown]
# ## Quality
#
# Random weights say nothing about quality. So BSBR is trained at each chunk size, and standard attention beside it, on the
# terms of [How models are compared](../../book/fair.md): equal rows in equal order, a learning rate of its own for each from one
# grid, chosen by validation loss, then fresh seeds. Texts, tokens and grid are those of the page on [language
# modelling](../benchmarks/language_modeling.ipynb); a run reads less. Quality is the perplexity of the test part's tokens, and how
# many of them are told right. A gain is standard attention's perplexity over this one's, seed by seed. A chunk is at most an eighth
# of the text: a larger one would show standard attention under another name.
#
# How near a converted model stays to its original by chunk size is measured on the page about the hyperparameters of a
# conversion.

# %% tags=["remove-input"]
figures.say(figures.missing(result))
if compared:
    rows = result.select("perplexity", mechanism="bsbr", n=plan.n, seed=None)
    level = result.value("perplexity", mechanism="standard", n=plan.n, seed=None)
    chart = figures.lines(
        rows, "chunk_size", title=f"Perplexity on the test part, texts of {plan.n:,} tokens",
        x_title="chunk size (tokens)", log_x=True,
    )  # fmt: skip
    chart.add_hline(y=level, line={"color": "#7F7F7F", "width": 1, "dash": "dash"}, annotation_text="standard")
    figures.show(chart, "perplexity")
    learning.predicting(trained, plan.training.seed, beaten=quality.NGRAMS, **control)
if said_of_short := learning.short_run(result):
    figures.say(said_of_short)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
kept = result.select("state_size", phase="decode", n=long_decode)
least_state = kept.loc[kept["value"].idxmin(), "chunk_size"]
operations = result.select("flops", phase="prefill")
least_work = operations.loc[operations.groupby("n")["value"].idxmin(), ["n", "chunk_size"]].itertuples(index=False)
head_dim = SIZES["hidden_dim"] // SIZES["num_heads"]
peaks = [result.value("peak_memory", chunk_size=size, n=long, phase="prefill") for size in (smallest, largest)]
to_decode = {n: listed(as_fast(n, "time_per_token", "decode")) for n in decoded}
kept_up = [n for n in lengths if CONTROL in as_fast(n)]
for_quality = "What they are for quality is not measured yet."
if compared:
    for_quality = predicted
figures.say(
    f"**Both ends cost.** With chunks of {smallest} there are {long // smallest:,} states at {long:,} tokens, and every "
    f"chunk mixes all before it; with chunks of {largest} there are {long // largest:,}, and the work is inside chunks. "
    f"Operations are fewest with chunks of {', '.join(f'{size} at n = {n:,}' for n, size in least_work)}; of the times, "
    f"none is told from the least with {'; '.join(f'{listed(as_fast(n))} at n = {n:,}' for n in lengths)}. The best size "
    f"depends on the length, so a table that names no length says little.\n\n"
    f"**Chunks of {CONTROL} for general use?** To read, they are among the fastest at "
    f"{' and '.join(f'n = {n:,}' for n in kept_up) or 'no measured length'}; to decode, "
    f"{'; '.join(f'{sizes} are after {n:,} tokens' for n, sizes in to_decode.items())}. {for_quality}\n\n"
    f"**Memory was claimed to grow with the chunk; in prefill it {'falls' if peaks[0] > peaks[1] else 'grows'}**, from "
    f"{figures.number(peaks[0])} MB to {figures.number(peaks[1])} MB between the ends. A chunk leaves one matrix of "
    f"{head_dim} × {head_dim} per head: a chunk of {head_dim // 2} tokens leaves a state as large as its keys and values, "
    f"and smaller chunks leave more than they had. While decoding, the open chunk's keys and values count as well, so "
    f"after {long_decode:,} tokens a layer keeps least with chunks of {least_state}.\n\n"
    f"Sizes: {', '.join(f'{name} {value:,}' for name, value in SIZES.items())}; float32, batch of one, eager mode; "
    f"{settings['new_tokens']} decoded tokens per sample."
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
# - Models and trainings are small, and so is what they make of far text. Does the order of the sizes stay with more `steps`?
