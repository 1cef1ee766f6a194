# %% [markdown]
# # Speed and memory of a converted model
#
# How much faster and smaller is a converted model than the original, in reading a text of $n$ tokens and in continuing
# it, from which length on, and how do both grow?

# %% tags=["remove-input"]
from bsbr import claims, figures

answer, claimed, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# One of the documents gives seconds and megabytes of a `gpt2` and of its conversion, by length, and from them an exponent
# of each and the length from which the conversion is the better. Its original runs out of memory where a fused attention
# kernel, which stores no matrix of scores, would not. Seconds and megabytes belong to its machine and model; what is held
# against the measurement here are ratios, growth and crossover.

# %% tags=["hide-input"]
import pandas as pd

SPEED, MEMORY, GROWTH = "Inference Speed Comparison", "Memory Usage Analysis", "Computational Complexity Analysis"
STATED = {
    ("time", "standard"): "original (s)",
    ("time", "bsbr"): "converted (s)",
    ("speedup", "bsbr"): "times as fast",
    ("peak_memory", "standard"): "original (MB)",
    ("peak_memory", "bsbr"): "converted (MB)",
}

stated = claims.load("time", "speedup", "peak_memory", "exponent", "crossover_n", "memory_crossover_n")
stated = stated[stated["document"].str.contains("Conversion") & stated["section"].isin([SPEED, MEMORY, GROWTH])]


def stated_of(quantity: str, mechanism: str = "bsbr") -> pd.DataFrame:
    return stated[(stated["quantity"] == quantity) & (stated["mechanism"] == mechanism)]


def stated_cell(quantity: str, mechanism: str, n: int) -> str:
    """What the document has in a place of its tables."""
    found = stated_of(quantity, mechanism)
    values = list(found[found["n"] == n]["value"])
    if not values:
        return "–"
    return "out of memory" if pd.isna(values[0]) else figures.number(values[0], 4)


figures.table(
    pd.DataFrame(
        {"n": n, **{title: stated_cell(*of, n) for of, title in STATED.items()}}
        for n in sorted(stated["n"].dropna().unique())
    ),
    caption="Claimed: a converted GPT-2 beside the original",
)
whole = stated[stated["n"].isna()]
figures.table(whole[["quantity", "mechanism", "value", "unit"]], caption="Claimed: growth and crossover")

# %% [markdown]
# ## Method
#
# The model is `SmolLM2-135M-Instruct`, its text the held-out speeches, one after the other without a break. Each rung
# keeps every weight and changes what attention reads; [similarity](similarity.ipynb) has what that costs in quality.
# Two phases, with one text at a time:
#
# - **prefill**: the pass over $n$ tokens with which `generate` begins. It fills the cache and computes the logits of the
#   last token alone.
# - **decode**: tokens one by one after those $n$, each the most likely, with the cache that prefill left. The first is
#   off the clock, since in it a conversion that reads states builds those of the prompt, once for the whole text.
#
# Original and rungs take turns, round after round in rotated order, so that whatever slows the machine slows all alike;
# a speedup is the median of the ratios within a round. Long texts have few rounds. Below six rounds no interval from
# order statistics reaches 95 %, and what is given is the whole range of the rounds; a single round has none. Each task
# is called before it counts, on a quarter of the text if the text is long. The C library is told to keep the memory that
# tensors free, as a GPU's allocator does.
#
# **Peak memory** of prefill is the largest number of bytes that tensors hold at any one moment, by PyTorch's own
# tracking, weights and cache included. It depends on the sizes alone. **Cache** is what decoding keeps from token to
# token: keys and values of every token, and beside them what retrieval chooses by.
#
# Everything is measured as `convert` does it by default. Up to the length of the local window a converted model runs the
# original attention, so a short text costs what it costs the original. A setting, `original_below`, moves that point up;
# it is off here.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import copy
import functools
import itertools
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch

import bsbr.convert
from bsbr import ConversionConfig, convert
from bsbr.convert.memory import cache_bytes
from bsbr.measure import machine, memory, scaling, speed
from bsbr.results import Sweep, row, select
from bsbr.tasks import sources

NEIGHBOURS = ConversionConfig(chunk_size=128, local_chunks=2, sink_tokens=4, retrieval="none")
TOP_16 = ConversionConfig(chunk_size=128, local_chunks=2, sink_tokens=32, retrieval="top_k", top_k=16, block_size=32)
RUNGS = {
    "neighbours": NEIGHBOURS,
    "states": replace(NEIGHBOURS, retrieval="states"),
    "top-16": TOP_16,
    "top-32": replace(TOP_16, top_k=32),
}


class Timing(NamedTuple):
    """Which rungs are timed beside the original, and in how many rounds."""

    rungs: list[str]
    prefill: int
    decode: int = 0


ALL, SOME, BEST = list(RUNGS), ["neighbours", "top-16"], ["top-16"]
MOST = [*SOME, "top-32"]
PROFILES: dict[str, dict[str, Any]] = {
    "tiny": {
        "timed": {
            ("float32", 80): Timing(BEST, 1), ("float32", 160): Timing(BEST, 1, 1), ("float32", 320): Timing(BEST, 1, 1),
            ("float32", 640): Timing(BEST, 1), ("bfloat16", 320): Timing(BEST, 1, 1),
        },
        "memory": {80: BEST, 160: BEST, 320: BEST}, "new_tokens": 2, "context": 320, "layers": 4,
        "ranges": [(80, 320)],
    },
    "quick": {
        "timed": {
            ("float32", 128): Timing(SOME, 2), ("float32", 256): Timing(SOME, 2), ("float32", 512): Timing(SOME, 2),
            ("float32", 1024): Timing(SOME, 2, 1), ("float32", 2048): Timing(SOME, 1),
            ("bfloat16", 1024): Timing(BEST, 1, 1),
        },
        "memory": {128: BEST, 512: BEST, 1024: BEST}, "new_tokens": 4, "context": 8192, "layers": None,
        "ranges": [(128, 1024)],
    },
    "full": {
        "timed": {
            ("float32", 128): Timing(ALL, 4, 2), ("float32", 256): Timing(ALL, 3), ("float32", 512): Timing(ALL, 3),
            ("float32", 1024): Timing(ALL, 3, 2), ("float32", 2048): Timing(ALL, 2),
            ("float32", 4096): Timing(MOST, 2, 1), ("float32", 8192): Timing(SOME, 2, 1),
            ("float32", 12288): Timing(BEST, 1),
            ("bfloat16", 1024): Timing(BEST, 2, 1), ("bfloat16", 4096): Timing(BEST, 2), ("bfloat16", 8192): Timing(BEST, 2, 1),
        },
        "memory": {128: ALL, 512: ALL, 1024: ALL, 2048: ALL, 4096: BEST, 8192: BEST},
        "new_tokens": 16, "context": 8192, "layers": None, "ranges": [(128, 1024), (1024, 8192)],
    },
}  # fmt: skip
LONG = 1024  # tokens from which a task's uncounted first call reads a quarter only
MB = 1e6
settings = PROFILES[profile]
device = machine.device(target)
keeps_freed_memory = machine.keep_freed_memory()
rungs = pd.DataFrame([{"rung": name, **asdict(config)} for name, config in RUNGS.items()])
rungs[["top_k", "block_size"]] = rungs[["top_k", "block_size"]].where(rungs["retrieval"] == "top_k").astype("Int64")
figures.table(rungs.drop(columns=["layers", "compression_factor"]), caption="The rungs")

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@functools.lru_cache(maxsize=1)
def original(dtype: str) -> tuple:
    """The model and its tokenizer."""
    found, tokenizer = sources.load_smollm2(DTYPES[dtype])
    found.model.layers = found.model.layers[: settings["layers"]]  # fewer in the profile that only tries the page
    found.config.num_hidden_layers = len(found.model.layers)
    return found.to(device), tokenizer


def model_of(dtype: str, rung: str) -> Any:
    """Conversions share the original's weights, so each is made when it is needed."""
    return original(dtype)[0] if rung == "original" else convert(original(dtype)[0], RUNGS[rung])


@functools.cache
def all_ids() -> torch.Tensor:
    text = "\n\n".join(speech.text for speech in sources.load_speeches("held_out"))
    return original("float32")[1](text, return_tensors="pt", verbose=False)["input_ids"]


def ids_of(n: int) -> torch.Tensor:
    """The first n tokens, with memory of their own."""
    if all_ids().shape[1] < n:
        raise ValueError(f"the held-out speeches have only {all_ids().shape[1]} tokens, {n} are needed")
    return all_ids()[:, :n].clone().to(device)


def forward(model: Any, ids: torch.Tensor, cache: Any = None) -> Any:
    """The pass that `generate` makes, with a new cache or the given one."""
    with torch.inference_mode():
        return model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def prefill_task(model: Any, ids: torch.Tensor, left: dict[str, tuple], name: str) -> speed.Task:
    """Reads the text, and leaves its cache and the next token in `left`. What the call before left is freed first."""
    n = ids.shape[1]
    texts = itertools.chain([ids[:, : n // 4] if n > LONG else ids], itertools.repeat(ids))

    def prepare() -> torch.Tensor:
        left.pop(name, None)
        return next(texts)

    def run(text: torch.Tensor) -> None:
        output = forward(model, text)
        left[name] = output.past_key_values, output.logits.argmax(-1)

    return speed.Task(run, prepare)


def decode_task(model: Any, cache: Any, token: torch.Tensor) -> speed.Task:
    """Each call continues from a copy of the cache, so that all begin at the same length.

    One token is decoded before: in it a conversion builds the states of the prompt's chunks, once for the whole text.
    """
    first = forward(model, token, cache).logits.argmax(-1)

    def run(start: Any) -> None:
        now = first
        for _ in range(settings["new_tokens"]):
            now = forward(model, now, start).logits.argmax(-1)

    return speed.Task(run, prepare=lambda: copy.deepcopy(cache))


def estimate(found: speed.Estimate) -> dict:
    """A single sample has no interval."""
    return asdict(found) | ({} if found.samples > 1 else {"low": None, "high": None})


def rounds(tasks: dict[str, speed.Task], count: int) -> dict[str, speed.Samples]:
    return speed.interleave(tasks, min_rounds=count, max_rounds=count)


def measure(dtype: str, n: int) -> list[dict]:
    """Time the original and its conversions in turn, in both phases; decode goes on from the caches of prefill."""
    timing, ids = settings["timed"][dtype, n], ids_of(n)
    models = {name: model_of(dtype, name) for name in ["original", *timing.rungs]}
    left: dict[str, tuple] = {}
    samples = rounds({name: prefill_task(model, ids, left, name) for name, model in models.items()}, timing.prefill)
    rows = timed_rows("prefill", "time", samples)
    for name, model in models.items():
        held = cache_bytes(model, n, RUNGS.get(name)) / MB
        rows.append(row("cache_memory", held, phase="decode", rung=name))
    if timing.decode:
        samples = rounds({name: decode_task(model, *left[name]) for name, model in models.items()}, timing.decode)
        per_token = {name: taken / settings["new_tokens"] * 1000 for name, taken in samples.items()}
        rows += timed_rows("decode", "time_per_token", per_token)
    return rows


def timed_rows(phase: str, metric: str, samples: dict[str, speed.Samples]) -> list[dict]:
    rows = []
    for name, taken in samples.items():
        rows.append(row(metric, **estimate(speed.median(taken)), phase=phase, rung=name))
        if name != "original":
            gain = speed.ratio(samples["original"], taken)
            rows.append(row("speedup", **estimate(gain), phase=phase, rung=name))
    return rows


def measure_memory(dtype: str, n: int) -> list[dict]:
    """The peak of prefill, and each conversion's beside the original's."""
    ids, peaks = ids_of(n), {}
    for name in ["original", *settings["memory"][n]]:
        model = model_of(dtype, name)
        if device.type == "cuda":
            forward(model, ids)  # so that libraries have their workspaces
        peaks[name] = memory.tensors(functools.partial(forward, model, ids), model, ids).total / MB
    rows = [row("peak_memory", peak, phase="prefill", rung=name) for name, peak in peaks.items()]
    for name in settings["memory"][n]:
        rows.append(row("memory_relative", peaks["original"] / peaks[name], phase="prefill", rung=name))
        rows.append(row("relative_memory", peaks[name] / peaks["original"], phase="prefill", rung=name))
    return rows


# %% tags=["hide-input", "remove-output"]
sweep = Sweep(
    "conversion/speed_and_memory",
    target=target,
    profile=profile,
    parameters={
        "rungs": {name: asdict(config) for name, config in RUNGS.items()},
        "rounds": {f"{dtype}, {n}": timing for (dtype, n), timing in settings["timed"].items()},
        "new_tokens": settings["new_tokens"],
        "layers": settings["layers"],
        "context": settings["context"],
        "batch": 1,
        "keeps_freed_memory": keeps_freed_memory,
    },
    code=[bsbr.convert, speed, memory],
    sources=[sources.pin_path(name) for name in ("smollm2", "speeches")],
)
timed = sweep.measure([{"dtype": dtype, "n": n} for dtype, n in settings["timed"]], measure)
peaks = sweep.measure([{"dtype": "float32", "n": n} for n in settings["memory"]], measure_memory)
measured = pd.concat([timed, peaks], ignore_index=True)

# %% [markdown]
# From the costs follow, for original and rungs, the exponent of a power law on each range of lengths within the model's
# context, the slope between each length and half of it, and the length from which a conversion stays the better.


# %% tags=["hide-input"]
COST = {"prefill": "time", "decode": "time_per_token"}


def costs_of(metric: str, where: dict) -> pd.DataFrame:
    return select(measured, metric, **where).dropna(subset="value").sort_values("n")


def exponents(metric: str, where: dict, name: str) -> list[dict]:
    """Of a power law on each range that was measured with at least three lengths, both ends included."""
    found, costs = [], costs_of(metric, where)
    for start, end in settings["ranges"]:
        part = costs[costs["n"].between(start, end)]
        if len(part) < 3 or not {start, end} <= set(part["n"]):
            continue
        fit = scaling.fit_power_law(list(part["n"]), list(part["value"]))
        over = {**where, "n_from": start, "n_to": end}
        found.append(row(name, fit.exponent, low=fit.low, high=fit.high, samples=fit.points, **over))
        if name == "exponent":
            found.append(row("r_squared", fit.r_squared, samples=fit.points, **over))
    return found


def slopes(metric: str, where: dict) -> list[dict]:
    costs = costs_of(metric, where)
    lengths, alone = set(costs["n"]), set(costs[costs["low"].isna()]["n"])
    ends = [costs[bound].fillna(costs["value"]) for bound in ("low", "high")]
    found = scaling.local_exponents(list(costs["n"]), list(costs["value"]), *(list(end) for end in ends))
    rows = []
    for slope in found:
        if slope.n // 2 in lengths:  # else it is another number than the one from n/2 to n
            spread: dict[str, Any] = {} if alone & {slope.n, slope.n // 2} else {"low": slope.low, "high": slope.high}
            rows.append(row("local_exponent", slope.value, **spread, n=slope.n, **where))
    return rows


def crossover(name: str, gain: str, where: dict, what: str) -> list[dict]:
    """From which n a conversion's gain over the original stays at one or above."""
    gains = costs_of(gain, where)
    gains = gains[gains["n"] <= settings["context"]]
    if len(gains) < 3:
        return []
    bounds = [gains["value"], *(gains[bound].fillna(gains["value"]) for bound in ("high", "low"))]
    at, earliest, latest = (scaling.crossover(list(gains["n"]), list(bound)) for bound in bounds)
    if at is None or gains["value"].max() <= 1:
        reason = f"{what} than the original at n = {gains['n'].max():,}, the longest measured"
        return [row(name, None, status="not_available", reason=reason, **where)]
    spread: dict[str, Any] = {} if gains["low"].isna().all() else {"low": earliest, "high": latest}
    return [row(name, at, **spread, **where)]


derived = []
for dtype, rung in itertools.product(DTYPES, ["original", *RUNGS]):
    for phase, metric in COST.items():
        where = {"phase": phase, "dtype": dtype, "rung": rung}
        derived += exponents(metric, where, "exponent") + slopes(metric, where)
        if rung != "original":
            derived += crossover("crossover_n", "speedup", where, "slower")
    where = {"phase": "prefill", "dtype": dtype, "rung": rung}
    derived += exponents("peak_memory", where, "memory_exponent")
    if rung != "original":
        derived += crossover("memory_crossover_n", "memory_relative", where, "no smaller")

result = sweep.publish(pd.concat([measured, pd.DataFrame(derived)], ignore_index=True))

# %% tags=["remove-input"]
PREFILL: dict[str, Any] = {"phase": "prefill", "dtype": "float32"}
DECODE: dict[str, Any] = {**PREFILL, "phase": "decode"}
best = next(rung for rung, config in RUNGS.items() if config == ConversionConfig())
context = settings["context"]


def lengths_of(metric: str, rung: str = best, where: dict = PREFILL) -> list[int]:
    """At which lengths within the context a number was measured, shortest first."""
    found = result.select(metric, **where, rung=rung).dropna(subset="value")
    return sorted(int(n) for n in found["n"] if n <= context)


def shown(metric: str, digits: int = 3, rung: str = best, **factors: object) -> str:
    found = result.select(metric, rung=rung, **factors).iloc[0]
    return figures.interval(found["value"], found["low"], found["high"], digits)


def growth(rung: str, metric: str = "exponent", where: dict = PREFILL) -> tuple[str, str]:
    """The exponent on the range of the longest lengths, and that range."""
    found = result.select(metric, **where, rung=rung).sort_values(["n_to", "n_from"]).iloc[-1]
    return f"$n^{{{found['value']:.2f}}}$", f"{found['n_from']:,} to {found['n_to']:,} tokens"


def from_where(metric: str, better: str, where: dict = PREFILL, rung: str = best) -> str:
    """From which length on a conversion is the better, in words."""
    found = result.select(metric, **where, rung=rung)
    if found.empty:
        return "too few lengths were measured to say from where on"
    if found.iloc[0]["status"] != "ok":
        return f"at the longest length it is the original that is {better}"
    roughly = float(f"{found.iloc[0]['value']:.2g}")
    return f"it stays {better} from about {figures.number(roughly)} tokens on"


def cache_ratio(rung: str, n: int) -> float:
    held, before = (result.value("cache_memory", **DECODE, rung=name, n=n) for name in (rung, "original"))
    return held / before


longest, longest_told = lengths_of("speedup")[-1], lengths_of("speedup", where=DECODE)[-1]
longest_held = lengths_of("relative_memory")[-1]
figures.say(
    f"**Converted by the default, `{best}`, the model reads {longest:,} tokens {shown('speedup', **PREFILL, n=longest)} "
    f"times as fast as the original; after {longest_told:,} tokens it writes further ones "
    f"{shown('speedup', **DECODE, n=longest_told)} times as fast.** In reading, {from_where('crossover_n', 'faster')}. From "
    f"{growth(best)[1]} the time to read grows as {growth(best)[0]}, the original's as {growth('original')[0]}. The peak "
    f"of memory at {longest_held:,} tokens is {shown('relative_memory', 4, **PREFILL, n=longest_held)} times the "
    f"original's, and the cache at {longest:,} is {figures.number(cache_ratio(best, longest))} times as large: a conversion "
    f"keeps all keys and values. All in float32.",
    answer,
)
figures.say(claims.line(result), claimed)

LEGEND_BELOW = {"legend": {"orientation": "h", "y": -0.25, "yanchor": "top"}, "height": 480}


def level_one(chart: figures.go.Figure) -> figures.go.Figure:
    chart.add_hline(y=1, line={"color": "#7F7F7F", "width": 1, "dash": "dot"})
    return chart.update_layout(LEGEND_BELOW)


gains = result.select("speedup", **PREFILL)
gains = gains[gains["n"] <= context]
chart = figures.lines(
    gains, "n", group="rung", title="Reading n tokens: times as fast as the original", x_title="n (tokens)",
    y_title="times as fast", log_x=True,
)  # fmt: skip
points = stated_of("speedup")
points = points[points["value"].between(0, 100)]  # where its original ran out of memory it says ∞
figures.add_claim(chart, list(points["n"]), list(points["value"]), "claimed")
figures.show(level_one(chart), "speedup", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## Prefill


# %% tags=["remove-input"]
def add_claims(chart: figures.go.Figure, quantity: str) -> None:
    """What the document states of the original and of its conversion, by length."""
    for mechanism, symbol, name in (("standard", "circle", "original"), ("bsbr", "diamond", "conversion")):
        points = stated_of(quantity, mechanism).dropna(subset="value")
        figures.add_claim(chart, list(points["n"]), list(points["value"]), f"claimed: {name}", symbol)


times = result.select("time", **PREFILL)
times = times[times["n"] <= context]
chart = figures.lines(
    times, "n", group="rung", title="Time to read n tokens", x_title="n (tokens)", log_x=True, log_y=True
)
add_claims(chart, "time")
figures.show(figures.axis_toggle(chart.update_layout(LEGEND_BELOW)), "time")
figures.table(figures.pivot(times, "n", "rung"), caption="Seconds to read n tokens, median and interval")
figures.table(figures.pivot(gains, "n", "rung"), caption="Times as fast as the original, same rounds")
figures.show_provenance(result)

# %% [markdown]
# ## Decode
#
# Each new token costs one pass through all weights, whatever the length, and its attention. The cache of `transformers`
# is copied to grow by a token, in the original and in a conversion alike.

# %% tags=["remove-input"]
tokens = result.select("time_per_token", **DECODE)
chart = figures.lines(
    tokens, "n", group="rung", title="One decoded token after n tokens", x_title="n (tokens)", log_x=True
)
chart.update_yaxes(rangemode="tozero")
figures.show(figures.axis_toggle(chart.update_layout(LEGEND_BELOW)), "decode")
figures.table(figures.pivot(tokens, "n", "rung"), caption="Milliseconds a token after n tokens, median and interval")
figures.table(
    figures.pivot(result.select("speedup", **DECODE), "n", "rung"), caption="Times as fast as the original, same rounds"
)
figures.show_provenance(result)

# %% [markdown]
# ## Memory

# %% tags=["remove-input"]
peaks_by_n = result.select("peak_memory", **PREFILL)
chart = figures.lines(
    peaks_by_n, "n", group="rung", title="Peak memory of reading n tokens", x_title="n (tokens)", log_x=True, log_y=True
)
add_claims(chart, "peak_memory")
figures.show(figures.axis_toggle(chart.update_layout(LEGEND_BELOW)), "memory")
figures.table(figures.pivot(peaks_by_n, "n", "rung", digits=4), caption="Peak memory of prefill, MB, weights included")
figures.table(
    figures.pivot(result.select("relative_memory", **PREFILL), "n", "rung", digits=4),
    caption="Peak memory of prefill over the original's: below 1, the conversion needs less",
)
caches = result.select("cache_memory", **DECODE)
caches = caches[caches["n"] <= context]
chart = figures.lines(
    caches, "n", group="rung", title="What decoding keeps of n tokens", x_title="n (tokens)", log_x=True, log_y=True
)
figures.show(figures.axis_toggle(chart.update_layout(LEGEND_BELOW)), "cache")
figures.table(figures.pivot(caches, "n", "rung"), caption="Cache of one text of n tokens, MB")
figures.show_provenance(result)

# %% [markdown]
# ## Growth and crossover
#
# An exponent holds for the range it was fitted on. At short lengths the products with weights, which grow with $n$, hide
# the part of attention that grows with its square.


# %% tags=["remove-input"]
def by_range(metric: str, words: str) -> pd.DataFrame:
    """Exponents, a column a phase and range, for float32."""
    found = result.select(metric, dtype="float32")
    spans = [f"{words.format(fit.phase)}, n = {fit.n_from:,} … {fit.n_to:,}" for fit in found.itertuples()]
    return figures.pivot(found.assign(range=spans), "rung", "range").set_index("rung")


tables = [by_range("exponent", "{}"), by_range("memory_exponent", "peak memory")]
growing = pd.concat(tables, axis=1).reindex(["original", *RUNGS]).dropna(how="all").fillna("–")
of_document = {
    "original": stated_of("exponent", "standard")["value"].iloc[0],
    best: stated_of("exponent")["value"].iloc[0],
}
growing["prefill, claimed"] = [figures.number(of_document.get(str(rung))) for rung in growing.index]
figures.table(
    growing.rename_axis("rung").reset_index(),
    caption="Exponents of time and of peak memory, with 95 % interval of the fit",
)
fits = result.select("r_squared", dtype="float32")
spans = [f"{fit.phase}, n = {fit.n_from:,} … {fit.n_to:,}" for fit in fits.itertuples()]
figures.table(figures.pivot(fits.assign(range=spans), "rung", "range", digits=4), caption="R² of the fits of time")

CROSSINGS = {"crossover_n": "{}, faster from", "memory_crossover_n": "{}, smaller from"}
crossings = pd.concat([result.select(metric, dtype="float32") for metric in CROSSINGS])
if len(crossings):
    names = [CROSSINGS[str(found.metric)].format(found.phase) for found in crossings.itertuples()]
    crossings = crossings.assign(where=names, **{part: crossings[part].round() for part in ("value", "low", "high")})
    wide = figures.pivot(crossings, "rung", "where").replace("not available", "not up to the longest")
    figures.table(wide, caption="From which n (tokens) a conversion stays the better")
absent = crossings[crossings["status"] != "ok"]
if len(absent):
    figures.say("; ".join(f"`{r.rung}`, {r.phase}: {r.reason}" for r in absent.itertuples()) + ".")

local = result.select("local_exponent", **PREFILL)
if len(local):
    chart = figures.lines(
        local, "n", group="rung", title="Local exponent of the time to read: slope from n/2 to n", x_title="n (tokens)",
        y_title="exponent", log_x=True,
    )  # fmt: skip
    chart.add_hline(y=2, line={"color": "#7F7F7F", "width": 1, "dash": "dot"})
    figures.show(level_one(chart), "local-exponent")
    figures.table(
        figures.pivot(local, "n", "rung", digits=2), caption="Local exponent of the time to read, from n/2 to n"
    )
figures.show_provenance(result)

# %% [markdown]
# ## In bfloat16
#
# Original and conversion alike, beside the same in float32.


# %% tags=["remove-input"]
def beside(metric: str, phase: str, caption: str) -> None:
    """Both precisions, at the lengths at which both were measured."""
    found = result.select(metric, phase=phase)
    found = found[found["rung"].isin(["original", best])]
    halved_n = set(found[found["dtype"] == "bfloat16"]["n"])
    found = found[found["n"].isin(halved_n)].sort_values(["n", "dtype"], ascending=[True, False], kind="stable")
    if len(found):
        columns = [f"{dtype}, {rung}" for dtype, rung in zip(found["dtype"], found["rung"], strict=True)]
        figures.table(figures.pivot(found.assign(column=columns), "n", "column"), caption=caption)


if "bfloat16" in set(timed["dtype"]):
    beside("time", "prefill", "Seconds to read n tokens")
    beside("speedup", "prefill", f"Times as fast as the original of the same precision: reading, `{best}`")
    beside("time_per_token", "decode", "Milliseconds a token after n tokens")
    beside("speedup", "decode", f"Times as fast as the original of the same precision: decoding, `{best}`")
    figures.show_provenance(result)
else:
    figures.say("It is not measured in this profile.")

# %% [markdown]
# ## Beyond the context
#
# What a longer text costs can be measured although the model was never trained on one. What it would write there means
# nothing, with or without conversion: nothing is said here of quality.

# %% tags=["remove-input"]
beyond = result.table[(result.table["n"] > context) & result.table["metric"].isin(["time", "speedup", "cache_memory"])]
if len(beyond):
    titles = {"time": "seconds to read", "speedup": "times as fast", "cache_memory": "cache (MB)"}
    figures.table(
        figures.pivot(beyond.assign(what=beyond["metric"].map(titles)), "rung", "what"),
        caption=f"n = {' and '.join(f'{n:,}' for n in beyond['n'].unique())}, float32",
    )
    figures.show_provenance(result)
else:
    figures.say("No such length is part of this profile.")

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
window = RUNGS[best].window
within = [n for n in lengths_of("speedup") if n <= window]
sentences = []
if within:
    sentences.append(
        f"**Short texts.** Up to {window:,} tokens, the local window, a conversion runs the original attention. At "
        f"{within[-1]:,} tokens `{best}` is {shown('speedup', **PREFILL, n=within[-1])} times as fast: what differs from one is "
        f"the bookkeeping of a conversion, and noise."
    )
if "neighbours" in set(gains["rung"]):
    near, far = (result.value("speedup", **PREFILL, rung=rung, n=longest) for rung in ("neighbours", best))
    sentences.append(
        f"**What can be gained.** `neighbours` reads no far text at all and is {figures.number(near)} times as fast as the "
        f"original at {longest:,} tokens; `{best}` is {figures.number(far)} times as fast. The products with weights, and "
        f"attention to what is near, are in the time of every rung, so no retrieval can do better than `neighbours`."
    )
told = lengths_of("time_per_token", where=DECODE)


def token_ratio(rung: str) -> str:
    costs = [result.value("time_per_token", **DECODE, rung=rung, n=n) for n in (told[0], told[-1])]
    return figures.number(costs[1] / costs[0])


grown = (
    f"From {told[0]:,} to {told[-1]:,} tokens before it, the cost of a token changes by a factor of "
    f"{token_ratio('original')} in the original and of {token_ratio(best)} with `{best}`. "
    if len(told) > 1
    else ""
)
sentences.append(
    f"**Decoding.** {grown}After {longest_told:,} tokens `{best}` decodes {shown('speedup', **DECODE, n=longest_told)} times "
    f"as fast as the original; {from_where('crossover_n', 'faster', DECODE)}. A step of a conversion is more operations, each "
    f"of them smaller: it chooses and gathers before it reads. With one text at a time their fixed cost counts, and it does "
    f"not shrink with the text."
)
sentences.append(
    f"**Memory.** The fused kernel of the original stores no matrix of scores, so there is none to be saved. The peak of "
    f"`{best}` at {longest_held:,} tokens is {shown('relative_memory', 4, **PREFILL, n=longest_held)} times the original's; "
    f"{from_where('memory_crossover_n', 'smaller')}. A conversion keeps all keys and values, as any block may be read later, "
    f"and adds to the cache what it chooses by, or its states. The cache is, of the original's: "
    + ", ".join(
        f"`{rung}` {figures.number(cache_ratio(rung, n))} at {n:,} tokens"
        for rung, n in caches[caches["rung"] != "original"].groupby("rung", sort=False)["n"].max().items()
    )
    + "."
)
halved: dict[str, Any] = {"phase": "prefill", "dtype": "bfloat16"}
if lengths_of("speedup", where=halved):
    n = lengths_of("speedup", where=halved)[-1]
    sentences.append(
        f"**Half the bits.** In bfloat16 `{best}` reads {n:,} tokens {shown('speedup', **halved, n=n)} times as fast as the "
        f"original does in bfloat16; in float32 it is {shown('speedup', **PREFILL, n=n)} times."
    )
figures.say("\n\n".join(sentences))

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - One model, one machine, one text at a time, eager mode. A larger model spends a smaller share of its time on attention
#   at the same length, and a batch shares what decoding reads of the weights: both move the crossover.
# - The longest texts have few rounds, since a round takes minutes. Look at the ratios, which are of the same round, before
#   the seconds.
# - Exponents mix two parts: products with weights in proportion to $n$, and attention. The local exponent shows where the
#   second takes over.
# - Decoding is timed within one chunk. Once a chunk a conversion that reads states has one more to build, which is not in
#   these times, nor is the first token, in which all those of the prompt are built.
# - What an operation keeps to itself, such as the scratch of a fused kernel, is in no count of tensors. The page on
#   [memory](../benchmarks/memory.ipynb) observes processes as well.
# - Set `original_below` in `TOP_16` to the measured crossover. What do short texts cost then, and what becomes of the
#   exponent?
