# %% [markdown]
# # Inference time
#
# How long does each mechanism take to read a text of $n$ tokens and to continue it, and how does that grow with $n$?

# %% tags=["remove-input"]
from bsbr.show import figures

answer, claimed, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# The documents under test give times in seconds on other machines, and one states speedups. Seconds do not travel
# from one processor to another, but ratios between two mechanisms on one machine nearly do. So each document's
# time of standard attention is divided here by its time of BSBR at the same length. The documents disagree with
# one another by more than any machine could explain.

# %% tags=["hide-input"]
from bsbr.show import claims

TIME_TABLES = ["Inference Time", "Inference Time (seconds)", "Inference Speed Comparison"]

stated = claims.load("time")
stated = stated[stated["section"].isin(TIME_TABLES)]
stated_times = stated.pivot(index=["document", "n"], columns="mechanism", values="value")
stated_speedups = stated_times.rdiv(stated_times["standard"], axis=0)["bsbr"].dropna()
by_document = stated_speedups.unstack("document").sort_index().rename(columns=claims.short).rename_axis(columns=None)
figures.table(
    by_document.reset_index(), caption="Claimed: how many times as fast as standard attention BSBR reads n tokens"
)

# %% [markdown]
# ## Method
#
# Every mechanism sits in the same backbone with the same sizes, weights drawn from one seed, and reads the same
# random tokens; no arithmetic here takes a shorter way for particular values. Two phases are timed:
#
# - **prefill**: one pass over $n$ tokens up to the last hidden state, as a classifier or an encoder runs it;
# - **decode**: new tokens one by one, after a prompt of $n$ tokens that was read off the clock.
#
# Both are timed for one text and for a batch of texts, in eager mode, which is how PyTorch runs a model unless told
# otherwise. At a few lengths the pass is also compiled by `torch.compile`, for exactly that length. The C library is
# told to keep the memory that tensors free, as a GPU's allocator does, since getting it back from the system takes
# longer than some of the arithmetic.
#
# Softmax attention is timed twice in prefill: by PyTorch's fused kernel (`standard`), which is what a user of PyTorch
# gets, and by plain matrix products (`standard_unfused`), which store the matrix of scores, as implementations did when
# the architectures of the documents were proposed. The documents name two sizes of models, so a few lengths are timed at
# the larger one as well.
#
# In each cell the mechanisms take turns, round after round in rotated order, so that whatever slows the machine slows
# all alike, and a speedup is the median of the ratios within a round. Times are medians. Intervals are 95 % ones from
# order statistics, which assume nothing about the distribution. A control cell is repeated at the start, in the middle
# and at the end: how far its times differ is the noise of this run. How many rounds a cell has is fixed beforehand, by
# how far a few rounds that do not count scatter. A mechanism that the growth of its own times puts beyond the limit for
# one call is not run at that length; it gets a row that says so. [](../../book/method.md) has the details.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import functools

import pandas as pd
import torch

from bsbr import MECHANISMS, TransformerLM, stats
from bsbr.measure import machine, speed
from bsbr.store import Sweep, row
from bsbr.studies import passes, scaling, tasks

MAIN, LARGE = "256x2x4", "512x4x8"
SIZES = {
    MAIN: {"vocab_size": 10_000, "hidden_dim": 256, "num_layers": 2, "num_heads": 4, "ff_dim": 512},
    LARGE: {"vocab_size": 10_000, "hidden_dim": 512, "num_layers": 4, "num_heads": 8, "ff_dim": 2048},
}
COMMON = {"chunk_size": 128, "window_size": 128}
EVERY, UNFUSED = list(MECHANISMS), passes.UNFUSED
PRECISION = 0.05  # of the median: the width of interval that the number of rounds aims at
LEAST = stats.METHODS["order statistics"].least  # rounds, for a median to have an interval
PROFILES = {
    "tiny": {
        "longest": 256, "large": [64], "control_n": 64, "new_tokens": 4, "seconds": 0.1, "min_rounds": 7,
        "longest_call": 5, "batch": 2, "batched": [64], "compiled": {64: ["standard", "bsbr"]}, "longest_compile": 0,
        "ranges": [(64, 256)],
    },
    "quick": {
        "longest": 4096, "decoded": [64, 4096], "large": [256], "control_n": 1024, "new_tokens": 50, "seconds": 1,
        "min_rounds": LEAST, "longest_call": 6, "batch": 8, "batched": [64], "compiled": {512: ["bsbr"]},
        "longest_compile": 0, "ranges": [(64, 1024), (1024, 4096)],
    },
    "full": {
        "longest": 65536, "large": [64, 128, 256, 512, 1024, 2048, 4096], "control_n": 1024, "new_tokens": 50,
        "seconds": 6, "min_rounds": 7, "longest_call": 4, "batch": 8, "batched": [64, 256, 1024, 4096],
        "compiled": {512: EVERY, 4096: ["standard", "bsbr"]}, "longest_compile": 60,
        "ranges": [(64, 1024), (64, 2048), (1024, 4096), (1024, 16384), (4096, 65536)],
    },
}  # fmt: skip
settings = PROFILES[profile]
mechanisms = list(MECHANISMS)
lengths = [64 * 2**i for i in range(20) if 64 * 2**i <= settings["longest"]]
device = machine.device(target)
keeps_freed_memory = machine.keep_freed_memory()

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
@functools.cache
def model_of(size: str, mechanism: str) -> TransformerLM:
    return passes.model_of(mechanism, **SIZES[size], **COMMON).to(device).eval()


def random_ids(batch: int, n: int) -> torch.Tensor:
    vocab_size = SIZES[MAIN]["vocab_size"]
    return torch.randint(vocab_size, (batch, n), generator=torch.Generator().manual_seed(n)).to(device)


def interleave(todo: dict[str, speed.Task]) -> dict[str, speed.Samples]:
    return speed.interleave(todo, seconds=settings["seconds"], min_rounds=settings["min_rounds"], precision=PRECISION)


def measure(size: str, phase: str, n: int, batch: int, mode: str, repeat: int | None = None) -> list[dict]:
    """Time every mechanism in turn; one that does not fit into memory or time gets rows that say so."""
    ids, decoding = random_ids(batch, n), phase == "decode"
    rows, todo = [], {}
    for name in [*mechanisms, UNFUSED] if phase == "prefill" and batch == 1 else mechanisms:

        def make(length: int, name: str = name) -> speed.Task:
            if decoding:
                return tasks.decode_task(model_of(size, name), ids[:, :length], settings["new_tokens"])
            of = "standard" if name == UNFUSED else name
            return tasks.prefill_task(model_of(size, of), ids[:, :length], fused=name != UNFUSED)

        found = tasks.ready(make, n, settings["longest_call"])
        if isinstance(found, tasks.Refused):
            metrics = ("time", "time_per_token") if decoding else ("time",)
            rows += [found.row(metric, mechanism=name) for metric in metrics]
        else:
            todo[name] = found
    samples = interleave(todo)
    rows += tasks.timed_rows(samples, "mechanism", baseline="standard")
    if decoding:
        rows += tasks.per_token_rows(samples, settings["new_tokens"], "mechanism")
    return rows


def measure_compiled(size: str, phase: str, n: int, batch: int, mode: str) -> list[dict]:
    """Time each mechanism compiled in turn with itself as it is; the time to compile is a row of its own."""
    ids, rows, todo = random_ids(batch, n), [], {}
    for name in settings["compiled"][n]:
        eager = model_of(size, name)

        def encode(tokens: torch.Tensor, model: TransformerLM = eager) -> torch.Tensor:
            return model.encode(tokens)

        try:
            with torch.inference_mode():
                fast, seconds = speed.compiled(encode, [ids], settings["longest_compile"], dynamic=False)
        except (speed.CompileError, speed.TooLongError) as error:
            status = "too_long" if isinstance(error, speed.TooLongError) else "not_available"
            refused = tasks.Refused(status, str(error))
            rows += [refused.row("time", mechanism=name), refused.row("time", mechanism=name, phase="compile")]
            continue
        rows.append(row("time", seconds, samples=1, mechanism=name, phase="compile"))
        todo[name] = speed.Task(lambda _, fast=fast: torch.inference_mode()(fast)(ids))
        todo[f"{name}, eager"] = tasks.prefill_task(eager, ids)
    samples = interleave(todo)
    compiled_alone = {name: taken for name, taken in samples.items() if name in mechanisms}
    rows += tasks.timed_rows(compiled_alone, "mechanism", baseline="standard")
    for name in compiled_alone:
        beside = tasks.timed_rows(samples, "mechanism", control=f"{name}, eager")
        rows += [found for found in beside if found["metric"] == "relative_time" and found["mechanism"] == name]
    return rows


# %% tags=["hide-input", "remove-output"]
SINGLE, BATCHED = {"batch": 1, "mode": "eager"}, {"batch": settings["batch"], "mode": "eager"}
ONE = {"size": MAIN}
control = [{**ONE, "phase": "control", "n": settings["control_n"], **SINGLE, "repeat": repeat} for repeat in (1, 2, 3)]
prefill = [{**ONE, "phase": "prefill", "n": n, **SINGLE} for n in lengths]
decode = [{**ONE, "phase": "decode", "n": n, **SINGLE} for n in settings.get("decoded", lengths)]
batches = [{**ONE, "phase": phase, "n": n, **BATCHED} for phase in ("prefill", "decode") for n in settings["batched"]]
large = [{"size": LARGE, "phase": "prefill", "n": n, **SINGLE} for n in settings["large"]]
compiled = [{**ONE, "phase": "prefill", "n": n, "batch": 1, "mode": "compiled"} for n in settings["compiled"]]

sweep = Sweep(
    "benchmarks/inference_time",
    target=target,
    profile=profile,
    parameters={"dtype": "float32", "keeps_freed_memory": keeps_freed_memory},
)
eager = [control[0], *prefill, control[1], *decode, *batches, *large, control[2]]
measured = pd.concat(
    [
        sweep.measure(eager, measure, machine_bound=True),
        sweep.measure(compiled, measure_compiled, machine_bound=True),
    ],
    ignore_index=True,
)

# %% [markdown]
# From the times follow, for each mechanism, phase and batch, the exponent of a power law on each range of lengths, the
# slope between each length and the one before it, and the length from which it stays faster than standard attention.


# %% tags=["hide-input"]
def growth_rows(name: str, size: str, phase: str, how: dict) -> list[dict]:
    where = {"size": size, "phase": phase, **how, "mechanism": name}
    rows = scaling.slopes(measured, "time", where)
    rows += scaling.exponents(measured, "time", where, settings["ranges"])
    if name != "standard" and scaling.curve(measured, "speedup", where)[0]:
        rows.append(scaling.crossover(measured, "speedup", where))
    return rows


derived = [
    scaling.noise(measured, "time", {**ONE, "phase": "control", **SINGLE, "mechanism": name}) for name in mechanisms
]
for size in SIZES:
    for phase in ("prefill", "decode"):
        for how in (SINGLE, BATCHED):
            for name in [*mechanisms, UNFUSED]:
                derived += growth_rows(name, size, phase, how)

result = sweep.publish(pd.concat([measured, pd.DataFrame(derived)], ignore_index=True))

# %% tags=["remove-input"]
ranges = settings["ranges"]
PREFILL, DECODE = {**ONE, "phase": "prefill", **SINGLE}, {**ONE, "phase": "decode", **SINGLE}
gains = result.select("speedup", **PREFILL)
common = int(gains["n"].max())  # the longest length that standard attention ran too
unfused_longest = int(gains[gains["mechanism"] == UNFUSED]["n"].max())
last_from, last_to = next(r for r in reversed(ranges) if r[1] <= common)


def shown(metric: str, digits: int = 2, **factors: object) -> str:
    found = result.select(metric, **factors).iloc[0]
    return figures.interval(found["value"], found["low"], found["high"], digits)


def growth(name: str) -> str:
    where = {**PREFILL, "mechanism": name, "n_from": last_from, "n_to": last_to}
    return f"$n^{{{result.value('exponent', **where):.2f}}}$"


def from_where(name: str) -> str:
    at = result.select("crossover_n", **PREFILL, mechanism=name).iloc[0]
    if at["value"] == float("inf"):
        return f"there is {at['reason']}"
    if at["value"] <= lengths[0]:
        return f"it is the faster from the shortest measured length on, n = {lengths[0]}"
    roughly = float(f"{at['value']:.2g}")
    return f"it is the faster from about n = {figures.number(roughly)} on"


def per_token(name: str, n: int) -> str:
    return figures.number(result.value("time_per_token", **DECODE, mechanism=name, n=n))


def longest(name: str, phase: str = "decode") -> int:
    times = result.select("time", **ONE, phase=phase, **SINGLE, mechanism=name)
    return int(times[times["status"] == "ok"]["n"].max())


def token_ratio(name: str) -> str:
    costs = [result.value("time_per_token", **DECODE, mechanism=name, n=n) for n in (lengths[0], longest(name))]
    return figures.number(costs[1] / costs[0])


figures.say(
    f"**BSBR reads {common:,} tokens {shown('speedup', **PREFILL, mechanism='bsbr', n=common)} times as "
    f"fast as standard attention; {from_where('bsbr')}.** From {last_from:,} to {last_to:,} tokens its time grows as "
    f"{growth('bsbr')}, that of standard attention as {growth('standard')}. A decoded token costs "
    f"{per_token('bsbr', lengths[0])} ms after {lengths[0]} tokens and {per_token('bsbr', common)} ms after "
    f"{common:,}, against {per_token('standard', lengths[0])} and {per_token('standard', common)} ms. Without a fused "
    f"kernel standard attention reads {unfused_longest:,} tokens "
    f"{shown('speedup', **PREFILL, mechanism=UNFUSED, n=unfused_longest)} times as fast as with it.",
    answer,
)
figures.say(claims.line(result), claimed)
prefill_times = result.select("time", **PREFILL)
chart = figures.lines(prefill_times, "n", title="Time to read n tokens", x_title="n (tokens)", log_x=True, log_y=True)
chart.update_traces(line_dash="dash", selector={"name": UNFUSED})
figures.show(figures.axis_toggle(chart), "prefill", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## Prefill

# %% tags=["remove-input"]
figures.table(
    figures.pivot(prefill_times, "n", "mechanism"), caption="Seconds to read n tokens, median and 95 % interval"
)
figures.show_provenance(result)

# %% tags=["hide-input"]
chart = figures.lines(
    gains, "n", title="Measured and claimed speedup over standard attention", x_title="n (tokens)",
    y_title="times as fast", log_x=True, log_y=True,
)  # fmt: skip
for symbol, document in zip(["circle", "square", "diamond"], by_document, strict=True):
    numbers = by_document[document].dropna()
    figures.add_claim(chart, numbers.index, numbers, f"bsbr, claimed: {document}", symbol)
chart.add_hline(y=1, line={"color": "#7F7F7F", "width": 1})
chart.update_layout(legend={"orientation": "h", "y": -0.25, "yanchor": "top"}, height=480)
figures.show(chart, "speedup")
figures.show_provenance(result)

# %% [markdown]
# ## Decode

# %% tags=["hide-input"]
tokens = result.select("time_per_token", **DECODE)
chart = figures.lines(tokens, "n", title="One decoded token after n tokens", x_title="n (tokens)", log_x=True)
chart.update_yaxes(rangemode="tozero")
figures.show(figures.axis_toggle(chart), "decode")
figures.table(
    figures.pivot(tokens, "n", "mechanism"), caption="Milliseconds per token after n tokens, median and 95 % interval"
)
figures.show_provenance(result)

# %% [markdown]
# ## A batch of texts
#
# A batch gives a processor more equal work at a time. What is fixed per call is then shared by more tokens, and growth
# shows from shorter lengths on.

# %% tags=["remove-input"]
where = {**ONE, "phase": "prefill", **BATCHED}
figures.table(
    figures.pivot(result.select("time", **where), "n", "mechanism"),
    caption=f"Seconds to read a batch of {settings['batch']} texts of n tokens, median and 95 % interval",
)
figures.table(
    figures.pivot(result.select("speedup", **where), "n", "mechanism", digits=2),
    caption=f"Times as fast as standard attention, batch of {settings['batch']}",
)
figures.table(
    figures.pivot(result.select("time_per_token", **ONE, phase="decode", **BATCHED), "n", "mechanism"),
    caption=f"Milliseconds per step of {settings['batch']} tokens, one per text, after n tokens each",
)
figures.show_provenance(result)

# %% [markdown]
# ## The larger size

# %% tags=["remove-input"]
where = {"size": LARGE, "phase": "prefill", **SINGLE}
figures.table(
    figures.pivot(result.select("time", **where), "n", "mechanism"),
    caption=f"Seconds to read n tokens, size {LARGE}, median and 95 % interval",
)
figures.table(
    figures.pivot(result.select("speedup", **where), "n", "mechanism", digits=2),
    caption=f"Times as fast as standard attention, size {LARGE}",
)
figures.show_provenance(result)

# %% [markdown]
# ## Compiled
#
# `torch.compile` fuses the small operations between the matrix products. It is given one length (`dynamic=False`), which
# is the best case for it. Compiling takes a time of its own, once for each length and mechanism, with nothing kept from
# earlier runs.

# %% tags=["remove-input"]
COMPILED = {"batch": 1, "mode": "compiled"}
compiled_times = result.select("time", phase="prefill", **COMPILED)
figures.table(
    figures.pivot(compiled_times, "mechanism", "n").rename(columns=lambda n: f"n = {n:,}" if isinstance(n, int) else n),
    caption="Seconds to read n tokens, compiled",
)
for metric, caption in (
    ("relative_time", "Time compiled over time in eager mode, same round"),
    ("speedup", "Times as fast as standard attention, both compiled"),
):
    if len(rows := result.select(metric, **{**COMPILED, "phase": "prefill"})):
        figures.table(figures.pivot(rows, "mechanism", "n", digits=2), caption=caption)
figures.table(
    figures.pivot(result.select("time", phase="compile", **COMPILED), "mechanism", "n"), caption="Seconds to compile"
)
absent = compiled_times[compiled_times["status"] != "ok"]
if len(absent):
    figures.say(
        "Not available: " + "; ".join(f"{r.mechanism}, n = {r.n:,}: {r.reason}" for r in absent.itertuples()) + "."
    )
figures.show_provenance(result)


# %% [markdown]
# ## Growth
#
# An exponent holds for the range it was fitted on: at short lengths a fixed cost of each call hides the growth, which
# is how a fit over short lengths can make standard attention look linear, as it did in one of the documents.


# %% tags=["remove-input"]
def span(rows: pd.DataFrame) -> list[str]:
    return [f"n = {start:,} … {end:,}" for start, end in zip(rows["n_from"], rows["n_to"], strict=True)]


def growth_of(phase: str, how: dict, size: str = MAIN) -> pd.DataFrame:
    fits = result.select("exponent", size=size, phase=phase, **how)
    if fits.empty:
        return fits
    return figures.pivot(fits.assign(range=span(fits)), "mechanism", "range").set_index("mechanism")


growth_table = growth_of("prefill", SINGLE)
for document, stated in claims.load("exponent").groupby("document", sort=False):
    values = stated.set_index("mechanism")["value"].map(figures.number)
    growth_table[f"claimed: {claims.short(document)}"] = growth_table.index.map(values).fillna("–")
figures.table(growth_table.reset_index(), caption="Exponent of the time to read n tokens, with 95 % interval")

r_squared = result.select("r_squared", **PREFILL)
table = figures.pivot(
    r_squared.assign(range=["R², " + name for name in span(r_squared)]), "mechanism", "range", digits=4
)
crossings = result.select("crossover_n", **ONE)
names = [f"{phase}, batch {batch}" for phase, batch in zip(crossings["phase"], crossings["batch"], strict=True)]
crossings = crossings.assign(
    where=names, value=crossings["value"].round(), low=crossings["low"].round(), high=crossings["high"].round()
)
crossings = figures.pivot(crossings, "mechanism", "where")
table = table.merge(crossings, how="left").fillna("–").replace("not available", "–")
figures.table(
    table,
    caption="How well the power law fits, and from which n on it is faster than standard attention; ∞ where it is not up "
    "to the longest length that both ran",
)
figures.show_provenance(result)

# %% [markdown]
# The slope between neighbouring lengths shows where a growth begins: the exponent of a range is an average of it.

# %% tags=["hide-input"]
local = result.select("local_exponent", **PREFILL)
chart = figures.lines(
    local, "n", title="Local exponent: slope from n/2 to n", x_title="n (tokens)", y_title="exponent", log_x=True
)
for level in (1, 2):
    chart.add_hline(y=level, line={"color": "#7F7F7F", "width": 1, "dash": "dot"})
figures.show(chart, "local-exponent")
figures.table(
    figures.pivot(local, "n", "mechanism", digits=2),
    caption="Local exponent of the time to read n tokens, from n/2 to n",
)
for phase, how, size in (
    ("prefill", SINGLE, LARGE), ("decode", SINGLE, MAIN), ("prefill", BATCHED, MAIN), ("decode", BATCHED, MAIN),
):  # fmt: skip
    if len(fits := growth_of(phase, how, size)):
        caption = f"Exponent of {phase}, batch of {how['batch']}, size {size}, with 95 % interval"
        figures.table(fits.reset_index(), caption=caption)
figures.show_provenance(result)

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)
figures.show_provenance(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
chunk = COMMON["chunk_size"]
shortest = result.select("speedup", **PREFILL, n=lengths[0], mechanism="bsbr").iloc[0]
noisiest = result.select("noise").sort_values("value").iloc[-1]
timed = result.table[(result.table["metric"] == "time") & result.table["low"].notna()]
widths = (timed["high"] - timed["low"]) / timed["value"] * 100
beyond = prefill_times[prefill_times["status"] == "too_long"]
left_out = ""
if len(beyond):
    first = beyond.groupby("mechanism", sort=False)["n"].min()
    which = " and ".join(f"{name} from n = {n:,} on" for name, n in first.items())
    left_out = (
        f"Left out is {which}: a call would have taken over {settings['longest_call']} seconds. The others go on to "
        f"n = {lengths[-1]:,}, which BSBR reads in {shown('time', **PREFILL, mechanism='bsbr', n=lengths[-1])} seconds.\n\n"
    )
figures.say(
    f"Up to one chunk of {chunk} tokens BSBR has nothing to retrieve, so it does what standard attention does and its "
    f"own projections besides: at n = {lengths[0]} it is {figures.number(shortest['value'])} times as fast. Beyond that "
    f"it reads a number of tokens that does not grow, plus one state per chunk, and the gap widens with every doubling. "
    f"The mixing of chunk states is quadratic in the number of chunks, which is n over {chunk}; it is part of what lifts "
    f"the growth to {growth('bsbr')} from {last_from:,} to {last_to:,} tokens.\n\n"
    f"{left_out}"
    f"A step of BSBR reads at most one chunk and one state, however long the text: a token costs "
    f"{token_ratio('bsbr')} times as much after {longest('bsbr'):,} tokens as after {lengths[0]}. Standard attention reads "
    f"all earlier keys and values again, and its ratio is {token_ratio('standard')} after {longest('standard'):,}.\n\n"
    f"The noise of this run: the control cell, timed three times over the run, differed by at most "
    f"{figures.number(noisiest['value'])} % ({noisiest['mechanism']}). A difference between mechanisms smaller than that "
    f"means nothing here. The 95 % interval of a time is as wide as {figures.number(widths.median())} % of it in the middle "
    f"cell and {figures.number(widths.max())} % in the widest; the number of rounds aims at "
    f"{figures.number(100 * PRECISION)} % within {settings['seconds']:g} seconds and is at least {settings['min_rounds']}. "
    f"Size {MAIN}: {', '.join(f'{name} {value:,}' for name, value in {**SIZES[MAIN], **COMMON}.items())}; float32; "
    f"{settings['new_tokens']} decoded tokens per sample."
)

# %% [markdown]
# ## Limits and exercises
#
# - One precision, and compiled code for fixed lengths only. On a GPU the fused kernel of standard attention is stronger than here, so
#   the crossover lies elsewhere: run this notebook with the target `gpu`.
# - Change `chunk_size` in `COMMON`: where does the crossover go when chunks get smaller, and what happens to the
#   exponent?
# - Give the model more heads of the same size. Which part of the time grows, and which does not?
