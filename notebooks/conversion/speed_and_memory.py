# %% [markdown]
# # Speed and memory of a converted model
#
# How much faster and smaller is a converted model than the original, in reading a text of $n$ tokens and in continuing
# it, from which length on, and how do both grow?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

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
# The model is `SmolLM2-135M-Instruct` {cite:p}`benallal2025`, its text the held-out speeches, one after the other without a break. Each setting
# keeps every weight and changes what attention reads; [similarity](similarity.ipynb) has what that costs in quality.
# Two phases, with one text at a time:
#
# - **prefill**: the pass over $n$ tokens with which `generate` begins. It fills the cache and computes the logits of the
#   last token alone.
# - **decode**: tokens one by one after those $n$, each the most likely, with the cache that prefill left. The first is
#   off the clock, since in it a conversion that reads states builds those of the prompt, once for the whole text.
#
# Original and settings take turns, round after round in rotated order, so that whatever slows the machine slows all alike;
# a speedup is the median of the ratios within a round, with a 95 % interval by order statistics, which takes six rounds or
# more. How many there are was fixed before the first. Each task is called before it counts, on a quarter of the text if the
# text is long. The C library is told to keep the memory that tensors free, as a GPU's allocator does.
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
import functools
import itertools
from typing import Any

from bsbr import convert, sources, stats
from bsbr.conversion.memory import cache_bytes
from bsbr.measure import machine, memory, speed
from bsbr.store import Sweep, row
from bsbr.studies import documents, pretrained, scaling, tasks
from bsbr.studies import settings as known

SETTINGS = {name: known.SETTINGS[name] for name in ("neighbours", "states", "top-16", "top-32")}
ALL, SOME, BEST = list(SETTINGS), ["neighbours", "top-16"], ["top-16"]
MOST = [*SOME, "top-32"]
# "timed": at each precision and length, the settings timed in reading, and whether they are timed in decoding too.
PROFILES: dict[str, dict[str, Any]] = {
    "tiny": {
        "timed": {
            ("float32", 80): (BEST, False), ("float32", 160): (BEST, True), ("float32", 320): (BEST, True),
            ("bfloat16", 320): (BEST, True),
        },
        "rounds": 1, "memory": {80: BEST, 160: BEST, 320: BEST}, "new_tokens": 2, "layers": 4, "ranges": [(80, 320)],
    },
    "quick": {
        "timed": {
            ("float32", 128): (SOME, False), ("float32", 256): (SOME, False), ("float32", 512): (SOME, False),
            ("float32", 1024): (SOME, True), ("bfloat16", 1024): (BEST, True),
        },
        "rounds": 7, "memory": {128: BEST, 512: BEST, 1024: BEST}, "new_tokens": 4, "layers": None,
        "ranges": [(128, 1024)],
    },
    "full": {
        "timed": {
            ("float32", 128): (ALL, True), ("float32", 256): (ALL, False), ("float32", 512): (ALL, False),
            ("float32", 1024): (ALL, True), ("float32", 2048): (ALL, False), ("float32", 4096): (MOST, True),
            ("float32", 8192): (SOME, True), ("bfloat16", 1024): (BEST, True),
            ("bfloat16", 4096): (BEST, False), ("bfloat16", 8192): (BEST, True),
        },
        "rounds": 7, "memory": {128: ALL, 512: ALL, 1024: ALL, 2048: ALL, 4096: BEST, 8192: BEST},
        "new_tokens": 8, "layers": None, "ranges": [(128, 1024), (1024, 8192)],
    },
}  # fmt: skip
LONG = 1024  # tokens from which a task's uncounted first call reads a quarter only
MB = 1e6
settings = PROFILES[profile]
TIMED, ROUNDS, NEW_TOKENS, LAYERS = (settings[name] for name in ("timed", "rounds", "new_tokens", "layers"))
WEIGHED = settings["memory"]
best = known.default(SETTINGS)
device = machine.device(target)
keeps_freed_memory = machine.keep_freed_memory()
figures.table(known.frame(SETTINGS), caption="The settings (compression factor 0: none)")

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
def model_of(dtype: str, setting: str) -> Any:
    """Conversions share the original's weights, so each is made when it is needed."""
    original = pretrained.load("SmolLM2", dtype, device, LAYERS)[0]
    return original if setting == known.ORIGINAL else convert(original, SETTINGS[setting])


def ids_of(n: int) -> Any:
    return documents.joined_ids(pretrained.load("SmolLM2", "float32", device, LAYERS)[1], n, device)


def take_turns(timed: dict[str, speed.Task]) -> dict[str, speed.Samples]:
    return speed.interleave(timed, min_rounds=ROUNDS, max_rounds=ROUNDS)


def measure(dtype: str, n: int) -> list[dict]:
    """Time the original and its conversions in turn, in both phases; decode goes on from the caches of prefill."""
    (names, decodes), ids = TIMED[dtype, n], ids_of(n)
    models = {name: model_of(dtype, name) for name in [known.ORIGINAL, *names]}
    left = {name: tasks.Prefilled() for name in models}
    first = n // 4 if n > LONG else None
    reading = {name: tasks.generate_prefill_task(model, ids, left[name], first=first) for name, model in models.items()}
    rows = tasks.timed_rows(take_turns(reading), "setting", baseline=known.ORIGINAL, phase="prefill")
    if decodes:
        writing = {name: tasks.generate_decode_task(model, left[name], NEW_TOKENS) for name, model in models.items()}
        samples = take_turns(writing)
        rows += tasks.per_token_rows(samples, NEW_TOKENS, "setting", phase="decode")
        for name in names:
            gain = stats.ratio(samples[known.ORIGINAL], samples[name])
            rows.append(row("speedup", gain, setting=name, phase="decode"))
    return rows


def count_cache(dtype: str, n: int, phase: str) -> list[dict]:
    """What decoding keeps of the text, by the conversion's own formula."""
    original = model_of(dtype, known.ORIGINAL)
    names = [known.ORIGINAL, *TIMED[dtype, n][0]]
    return [row("cache_memory", cache_bytes(original, n, SETTINGS.get(name)) / MB, setting=name) for name in names]


def weigh(dtype: str, n: int, phase: str) -> list[dict]:
    """The peak of prefill, and each conversion's beside the original's."""
    ids, peaks = ids_of(n), {}
    for name in [known.ORIGINAL, *WEIGHED[n]]:
        model = model_of(dtype, name)
        if device.type == "cuda":
            tasks.forward(model, ids)  # so that libraries have their workspaces
        peaks[name] = memory.tensors(functools.partial(tasks.forward, model, ids), model, ids).total / MB
    rows = [row("peak_memory", peak, setting=name) for name, peak in peaks.items()]
    for name in WEIGHED[n]:
        rows.append(row("memory_relative", peaks[known.ORIGINAL] / peaks[name], setting=name))
        rows.append(row("relative_memory", peaks[name] / peaks[known.ORIGINAL], setting=name))
    return rows


# %% tags=["hide-input", "remove-output"]
sweep = Sweep(
    "conversion/speed_and_memory",
    target=target,
    profile=profile,
    parameters={
        "settings": known.parameters(SETTINGS),
        "rounds": ROUNDS,
        "new_tokens": NEW_TOKENS,
        "layers": LAYERS,
        "batch": 1,
        "keeps_freed_memory": keeps_freed_memory,
    },
    sources=[sources.pin_path(name) for name in ("smollm2", "speeches")],
)
at = [{"dtype": dtype, "n": n} for dtype, n in TIMED]
timed = sweep.measure(at, measure, machine_bound=True)
caches = sweep.measure([{**cell, "phase": "decode"} for cell in at], count_cache, machine_bound=False)
peaks = sweep.measure([{"dtype": "float32", "n": n, "phase": "prefill"} for n in WEIGHED], weigh, machine_bound=False)
measured = pd.concat([timed, caches, peaks], ignore_index=True)

# %% [markdown]
# From the costs follow, for original and settings, the exponent of a power law on each range of lengths, the slope between
# each length and half of it, and the length from which a conversion stays the better.


# %% tags=["hide-input"]
COST = {"prefill": "time", "decode": "time_per_token"}

derived = []
for dtype, setting in itertools.product(pretrained.DTYPES, [known.ORIGINAL, *SETTINGS]):
    for phase, metric in COST.items():
        where = {"phase": phase, "dtype": dtype, "setting": setting}
        derived += scaling.exponents(measured, metric, where, settings["ranges"])
        derived += scaling.slopes(measured, metric, where)
        if setting != known.ORIGINAL:
            derived.append(scaling.crossover(measured, "speedup", where))
    where = {"phase": "prefill", "dtype": dtype, "setting": setting}
    derived += scaling.exponents(measured, "peak_memory", where, settings["ranges"])
    if setting != known.ORIGINAL:
        derived.append(scaling.crossover(measured, "memory_relative", where, name="memory_crossover_n"))
derived = [found for found in derived if found["status"] == "ok"]  # of too few lengths nothing is said
result = sweep.publish(pd.concat([measured, pd.DataFrame(derived)], ignore_index=True))

# %% tags=["remove-input"]
PREFILL: dict[str, Any] = {"phase": "prefill", "dtype": "float32"}
DECODE: dict[str, Any] = {**PREFILL, "phase": "decode"}


def lengths_of(metric: str, setting: str = best, where: dict = PREFILL) -> list[int]:
    """At which lengths a number was measured, shortest first."""
    return sorted(int(n) for n in result.select(metric, **where, setting=setting).dropna(subset="value")["n"])


def shown(metric: str, digits: int = 3, setting: str = best, **factors: object) -> str:
    found = result.select(metric, setting=setting, **factors).iloc[0]
    return figures.interval(found["value"], found["low"], found["high"], digits)


def growth(setting: str, metric: str = "exponent", where: dict = PREFILL) -> tuple[str, str]:
    """The exponent on the range of the longest lengths, and that range."""
    found = result.select(metric, **where, setting=setting).sort_values(["n_to", "n_from"]).iloc[-1]
    return f"$n^{{{found['value']:.2f}}}$", f"{found['n_from']:,} to {found['n_to']:,} tokens"


def from_where(metric: str, better: str, where: dict = PREFILL, setting: str = best) -> str:
    """From which length on a conversion is the better, in words."""
    found = result.select(metric, **where, setting=setting)
    if found.empty:
        return "too few lengths were measured to say from where on"
    if found.iloc[0]["value"] == float("inf"):
        return f"up to the longest length measured it is never for good the one that is {better}"
    roughly = float(f"{found.iloc[0]['value']:.2g}")
    return f"it stays {better} from about {figures.number(roughly)} tokens on"


def cache_ratio(setting: str, n: int) -> float:
    held, before = (result.value("cache_memory", **DECODE, setting=name, n=n) for name in (setting, known.ORIGINAL))
    return held / before


longest, longest_told = lengths_of("speedup")[-1], lengths_of("speedup", where=DECODE)[-1]
longest_held = lengths_of("relative_memory")[-1]
figures.say(
    f"**Converted by the default, `{best}`, the model reads {longest:,} tokens {shown('speedup', **PREFILL, n=longest)} "
    f"times as fast as the original; after {longest_told:,} tokens it writes further ones "
    f"{shown('speedup', **DECODE, n=longest_told)} times as fast.** In reading, {from_where('crossover_n', 'faster')}. From "
    f"{growth(best)[1]} the time to read grows as {growth(best)[0]}, the original's as {growth(known.ORIGINAL)[0]}. The peak "
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
chart = figures.lines(
    gains, "n", group="setting", title="Reading n tokens: times as fast as the original", x_title="n (tokens)",
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
chart = figures.lines(
    times, "n", group="setting", title="Time to read n tokens", x_title="n (tokens)", log_x=True, log_y=True
)
add_claims(chart, "time")
figures.show(figures.axis_toggle(chart.update_layout(LEGEND_BELOW)), "time")
figures.table(figures.pivot(times, "n", "setting"), caption="Seconds to read n tokens, median and interval")
figures.table(figures.pivot(gains, "n", "setting"), caption="Times as fast as the original, same rounds")
figures.show_provenance(result)

# %% [markdown]
# ## Decode
#
# Each new token costs one pass through all weights, whatever the length, and its attention. The cache of `transformers`
# is copied to grow by a token, in the original and in a conversion alike.

# %% tags=["remove-input"]
tokens = result.select("time_per_token", **DECODE)
chart = figures.lines(
    tokens, "n", group="setting", title="One decoded token after n tokens", x_title="n (tokens)", log_x=True
)
chart.update_yaxes(rangemode="tozero")
figures.show(figures.axis_toggle(chart.update_layout(LEGEND_BELOW)), "decode")
figures.table(figures.pivot(tokens, "n", "setting"), caption="Milliseconds a token after n tokens, median and interval")
figures.table(
    figures.pivot(result.select("speedup", **DECODE), "n", "setting"),
    caption="Times as fast as the original, same rounds",
)
figures.show_provenance(result)

# %% [markdown]
# ## Memory

# %% tags=["remove-input"]
peaks_by_n = result.select("peak_memory", **PREFILL)
chart = figures.lines(
    peaks_by_n,
    "n",
    group="setting",
    title="Peak memory of reading n tokens",
    x_title="n (tokens)",
    log_x=True,
    log_y=True,
)
add_claims(chart, "peak_memory")
figures.show(figures.axis_toggle(chart.update_layout(LEGEND_BELOW)), "memory")
figures.table(
    figures.pivot(peaks_by_n, "n", "setting", digits=4), caption="Peak memory of prefill, MB, weights included"
)
figures.table(
    figures.pivot(result.select("relative_memory", **PREFILL), "n", "setting", digits=4),
    caption="Peak memory of prefill over the original's: below 1, the conversion needs less",
)
held = result.select("cache_memory", **DECODE)
chart = figures.lines(
    held, "n", group="setting", title="What decoding keeps of n tokens", x_title="n (tokens)", log_x=True, log_y=True
)
figures.show(figures.axis_toggle(chart.update_layout(LEGEND_BELOW)), "cache")
figures.table(figures.pivot(held, "n", "setting"), caption="Cache of one text of n tokens, MB")
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
    return figures.pivot(found.assign(range=spans), "setting", "range").set_index("setting")


tables = [by_range("exponent", "{}"), by_range("memory_exponent", "peak memory")]
growing = pd.concat(tables, axis=1).reindex([known.ORIGINAL, *SETTINGS]).dropna(how="all").fillna("–")
of_document = {
    known.ORIGINAL: stated_of("exponent", "standard")["value"].iloc[0],
    best: stated_of("exponent")["value"].iloc[0],
}
growing["prefill, claimed"] = [figures.number(of_document.get(str(name))) for name in growing.index]
figures.table(
    growing.rename_axis("setting").reset_index(),
    caption="Exponents of time, with the 95 % interval that errors of timing give them, and of peak memory, which has none",
)
fits = result.select("r_squared", dtype="float32")
spans = [f"{fit.phase}, n = {fit.n_from:,} … {fit.n_to:,}" for fit in fits.itertuples()]
figures.table(figures.pivot(fits.assign(range=spans), "setting", "range", digits=4), caption="R² of the fits of time")

CROSSINGS = {"crossover_n": "{}, faster from", "memory_crossover_n": "{}, smaller from"}
crossings = pd.concat([result.select(metric, dtype="float32") for metric in CROSSINGS])
if len(crossings):
    names = [CROSSINGS[str(found.metric)].format(found.phase) for found in crossings.itertuples()]
    crossings = crossings.assign(where=names, **{part: crossings[part].round() for part in ("value", "low", "high")})
    wide = figures.pivot(crossings, "setting", "where").replace("^∞.*", "not by the longest length", regex=True)
    figures.table(wide, caption="From which n (tokens) a conversion stays the better")

local = result.select("local_exponent", **PREFILL)
if len(local):
    chart = figures.lines(
        local, "n", group="setting", title="Local exponent of the time to read: slope from n/2 to n", x_title="n (tokens)",
        y_title="exponent", log_x=True,
    )  # fmt: skip
    chart.add_hline(y=2, line={"color": "#7F7F7F", "width": 1, "dash": "dot"})
    figures.show(level_one(chart), "local-exponent")
    figures.table(
        figures.pivot(local, "n", "setting", digits=2), caption="Local exponent of the time to read, from n/2 to n"
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
    found = found[found["setting"].isin([known.ORIGINAL, best])]
    halved_n = set(found[found["dtype"] == "bfloat16"]["n"])
    found = found[found["n"].isin(halved_n)].sort_values(["n", "dtype"], ascending=[True, False], kind="stable")
    if len(found):
        columns = [f"{dtype}, {setting}" for dtype, setting in zip(found["dtype"], found["setting"], strict=True)]
        figures.table(figures.pivot(found.assign(column=columns), "n", "column"), caption=caption)


if "bfloat16" in set(timed["dtype"]):
    beside("time", "prefill", "Seconds to read n tokens")
    beside("speedup", "prefill", f"Times as fast as the original of the same precision: reading, {best}")
    beside("time_per_token", "decode", "Milliseconds a token after n tokens")
    beside("speedup", "decode", f"Times as fast as the original of the same precision: decoding, {best}")
    figures.show_provenance(result)
else:
    figures.say("It is not measured in this profile.")

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
window = SETTINGS[best].window
within = [n for n in lengths_of("speedup") if n <= window]
sentences = []
if within:
    sentences.append(
        f"**Short texts.** Up to {window:,} tokens, the local window, a conversion runs the original attention. At "
        f"{within[-1]:,} tokens `{best}` is {shown('speedup', **PREFILL, n=within[-1])} times as fast: what differs from one is "
        f"the bookkeeping of a conversion, and noise."
    )
if "neighbours" in set(gains["setting"]):
    near, far = (result.value("speedup", **PREFILL, setting=name, n=longest) for name in ("neighbours", best))
    sentences.append(
        f"**What can be gained.** `neighbours` reads no far text at all and is {figures.number(near)} times as fast as the "
        f"original at {longest:,} tokens; `{best}` is {figures.number(far)} times as fast. The products with weights, and "
        f"attention to what is near, are in the time of every setting, so no retrieval can do better than `neighbours`."
    )
told = lengths_of("time_per_token", where=DECODE)


def token_ratio(setting: str) -> str:
    costs = [result.value("time_per_token", **DECODE, setting=setting, n=n) for n in (told[0], told[-1])]
    return figures.number(costs[1] / costs[0])


grown = (
    f"From {told[0]:,} to {told[-1]:,} tokens before it, the cost of a token changes by a factor of "
    f"{token_ratio(known.ORIGINAL)} in the original and of {token_ratio(best)} with `{best}`. "
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
        f"`{name}` {figures.number(cache_ratio(name, n))} at {n:,} tokens"
        for name, n in held[held["setting"] != known.ORIGINAL].groupby("setting", sort=False)["n"].max().items()
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
# - All rounds of a length are made in one go. What slows the machine for minutes is in the seconds of one length and not
#   in those of another; look at the ratios, which are of the same round, first.
# - An exponent's interval tells what errors of timing may do to it, and not how well the law fits. Exponents mix two parts: products with weights in proportion to $n$, and attention. The local exponent shows where the
#   second takes over.
# - Decoding is timed within one chunk. Once a chunk a conversion that reads states has one more to build, which is not in
#   these times, nor is the first token, in which all those of the prompt are built.
# - What an operation keeps to itself, such as the scratch of a fused kernel, is in no count of tensors. The page on
#   [memory](../benchmarks/memory.ipynb) observes processes as well.
# - Set `original_below` in `TOP_16` to the measured crossover. What do short texts cost then, and what becomes of the
#   exponent?
