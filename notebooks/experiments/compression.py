# %% [markdown]
# # Compression
#
# What do smaller chunk states save in memory, and what do they cost in time and in quality?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

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
# A chunk's state is a matrix of `head_dim` × `head_dim` numbers per head, $K^\top V / B$. With compression factor $f$ the
# values are first mapped to `head_dim` $/ f$ dimensions, so that a state has $f$ times fewer numbers, and what is
# retrieved is mapped back; both maps are learned. That is less memory for states and less work for mixing them, and two
# more products per token.
#
# One model, BSBR with random weights, at several factors; factor zero stands for no compression. At each length they take
# turns on the clock, seven rounds or more, and each time is divided by that of no compression in the same round. A number
# is the median of the rounds, its interval two of them in order that hold the median in 95 % of cases.
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

from bsbr import ModelConfig, sources
from bsbr.measure import machine
from bsbr.show import learning
from bsbr.store import NUMBERS, Sweep, only
from bsbr.studies import quality, variants

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
options = {"seconds": settings["seconds"], "new_tokens": settings["new_tokens"]}
plan = quality.PLANS[profile]

# %% [markdown]
# ## Measuring


# %% tags=["hide-input", "remove-output"]
def times(mechanism: str, phase: str, n: int) -> list[dict]:
    return variants.times("compression_factor", configs, NONE, phase, n, device=machine.device(target), **options)


def sizes(mechanism: str, phase: str, n: int) -> list[dict]:
    return variants.sizes("compression_factor", configs, NONE, phase, n, device=machine.device(target))


sweep = Sweep(
    "experiments/compression",
    target=target,
    profile=profile,
    parameters={**SIZES, **settings, "chunk_size": CHUNK_SIZE, "batch": 1, "dtype": "float32"},
)
cells = [{"mechanism": "bsbr", "phase": phase, "n": n} for phase in ("prefill", "decode") for n in settings[phase]]
tables = [sweep.measure(cells, times, machine_bound=True), sweep.measure(cells, sizes, machine_bound=False)]
# What is timed does not hang on how models are trained, and is kept when that changes.
sweep.extend(parameters={"trained": plan.parameters}, sources=[sources.pin_path(name) for name in quality.CORPORA])
by_factor_of = {factor: {"chunk_size": CHUNK_SIZE, "compression_factor": factor or None} for factor in factors}
tables.append(quality.hold(sweep, plan, "compression_factor", by_factor_of, NONE, device=machine.device(target).type))
result = sweep.publish(pd.concat(tables, ignore_index=True))

# %% tags=["remove-input"]
lengths, decoded = settings["prefill"], settings["decode"]
long, long_decode, most = lengths[-1], decoded[-1], factors[-1]


def found(metric: str, factor: int, phase: str = "prefill") -> pd.Series:
    n = long if phase == "prefill" else long_decode
    return only(result.table, metric, compression_factor=factor, n=n, phase=phase)


def shown(metric: str, factor: int, phase: str = "prefill", digits: int = 3) -> str:
    return figures.interval(*found(metric, factor, phase)[NUMBERS], digits=digits)


compared = learning.is_compared(result)
names = {factor: f"bsbr, compression {factor or 'none'}" for factor in factors}
trained = learning.by_setting(result, "compression_factor", names.__getitem__)
control = {"n": plan.n, "than": names[NONE], "against": NONE}
predicted = f"Perplexity of text: {learning.differing(trained, 'perplexity_gain', factor='model', **control)}"
kept = {factor: found("state_size", factor, "decode")["value"] for factor in factors}
figures.say(
    f"**At {long:,} tokens compression by {most} saves {shown('memory_saved', most)} % of the peak memory of reading and "
    f"{shown('memory_saved', most, 'decode')} % of that of decoding, and reading takes "
    f"{shown('relative_time', most)} times as long as without.** A layer keeps "
    f"{figures.number(100 * kept[most] / kept[NONE])} % of the numbers to decode with, not {figures.number(100 / most)} %: "
    f"the open chunk's keys and values are not compressed. A decoded token takes "
    f"{shown('relative_time', most, 'decode')} times as long. {predicted if compared else ''}",
    answer,
)
figures.say(claims.line(result), stated)

saved = variants.with_control(result.select("memory_saved"), "compression_factor", NONE, 0)
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
def by_factor(metric: str, phase: str, caption: str, scale: float = 1) -> None:
    rows = result.select(metric, phase=phase)
    rows = rows.assign(compression=[str(factor or "none") for factor in rows["compression_factor"]])
    figures.table(figures.pivot(rows, "compression", "n", scale=scale), caption)


by_factor("time", "prefill", "Milliseconds to read n tokens, by n: median and 95 % interval", 1000)
by_factor("relative_time", "prefill", "The same relative to no compression")
by_factor("peak_memory", "prefill", "Peak memory in MB, parameters included, by n")
by_factor("memory_saved", "prefill", "Share of the uncompressed peak that is not needed, in %")
by_factor("flops", "prefill", "GFLOPs (thousand millions of operations), by n", 1e-9)
figures.show_provenance(result)

# %% [markdown]
# ## Decode

# %% tags=["remove-input"]
by_factor("time_per_token", "decode", "Milliseconds per decoded token after n, by n: median and 95 % interval")
by_factor("relative_time", "decode", "The same relative to no compression")
by_factor("peak_memory", "decode", "Peak memory in MB of the step that closes a chunk, by n")
by_factor("memory_saved", "decode", "Share of the uncompressed peak that is not needed, in %")
by_factor("state_size", "decode", "Numbers that a layer keeps after n tokens, by n")
figures.show_provenance(result)

# %% [markdown]
# ## Quality
#
# Random maps say nothing about quality. So BSBR is trained at each factor, and standard attention beside it, on the terms of
# [How models are compared](../../book/fair.md): equal rows in equal order, a learning rate of its own for each from one grid,
# chosen by validation loss, then fresh seeds. Texts, tokens and grid are those of the page on [language
# modelling](../benchmarks/language_modeling.ipynb); a run reads less. Quality is the perplexity of the test part's tokens, and how
# many of them are told right. A gain is standard attention's perplexity over this one's, seed by seed.
#
# The trained models have smaller heads than those above, so that a factor leaves fewer numbers of a state. What compression does
# to a converted model is measured on the page about the hyperparameters of a conversion.

# %% tags=["remove-input"]
figures.say(figures.missing(result))
if compared:
    gains = result.select("perplexity_gain", mechanism="bsbr", n=plan.n, against=None)
    chart = figures.lines(
        gains, "compression_factor", title=f"Standard attention's perplexity over that of BSBR, n = {plan.n:,}",
        x_title="compression factor (0: none)",
    )  # fmt: skip
    chart.add_hline(y=1, line={"color": "#7F7F7F", "width": 1, "dash": "dash"}, annotation_text="standard")
    figures.show(chart, "perplexity-gain")
    learning.predicting(trained, plan.training.seed, beaten=quality.NGRAMS, **control)
if said_of_short := learning.short_run(result):
    figures.say(said_of_short)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
head_dim = SIZES["hidden_dim"] // SIZES["num_heads"]
mixing = found("flops", most)["value"] / found("flops", NONE)["value"]


def shares(factor: int, phase: str) -> str:
    rows = result.select("memory_saved", phase=phase, compression_factor=factor)
    return ", ".join(f"{figures.number(row.value)} % at n = {row.n:,}" for row in rows.itertuples())


gains = result.select("relative_time", phase="prefill", compression_factor=most)
faster = [f"n = {row.n:,}" for row in gains.itertuples() if row.high < 1]
slower = [f"n = {row.n:,}" for row in gains.itertuples() if row.low > 1]
for_quality = "What it costs in quality is not measured yet, so one side of the trade is open."
if compared:
    told = learning.differing(trained, "accuracy_difference", factor="model", **control)
    for_quality = f"{predicted} Tokens told right: {told}"
by_phase = {
    phase: "; ".join(f"with factor {factor} {shares(factor, phase)}" for factor in (2, 4) if factor in factors)
    for phase in ("prefill", "decode")
}
figures.say(
    f"**What compression can save are states and nothing else.** At {long:,} tokens there are {long // CHUNK_SIZE:,} of "
    f"them, of {head_dim} × {head_dim} numbers per head; hidden states, queries, keys and values stay as they are, and the "
    f"maps are parameters more. So what it saves grows with the length, and no single share can be stated for a factor: "
    f"with factor {most} it is {shares(most, 'prefill')} in prefill.\n\n"
    f"**A good tradeoff, as the documents say of small factors?** In memory, prefill saves {by_phase['prefill']}; decoding saves "
    f"{by_phase['decode']}. {for_quality}\n\n"
    f"**Time.** Factor {most} takes {figures.number(mixing)} times the operations at {long:,} tokens. It reads measurably "
    f"faster than no compression at {', '.join(faster) or 'no length'}, and measurably slower at "
    f"{', '.join(slower) or 'no length'}.\n\n"
    f"Sizes: {', '.join(f'{name} {value:,}' for name, value in SIZES.items())}, chunk_size {CHUNK_SIZE}; float32, batch of "
    f"one, eager mode; {settings['new_tokens']} decoded tokens per sample."
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
