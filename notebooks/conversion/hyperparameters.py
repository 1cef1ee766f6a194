# %% [markdown]
# # Settings of a conversion
#
# What do chunk size, local chunks, sinks, retrieval and compression of a converted model give in quality, and what do
# they cost in time and memory?

# %% tags=["remove-input"]
import pandas as pd

from bsbr.show import claims, figures

answer, claimed, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# One document has a table for the chunk size of a converted model and one for compression. Its numbers are relative:
# those of chunk size to the smallest chunk, those of compression to none. It names neither a length nor a task. The text
# below its first table says that larger chunks are the faster ones; by the table itself they are the slower ones.

# %% tags=["hide-input"]
BY_CHUNK = ["relative_speed", "relative_memory", "output_similarity"]
BY_COMPRESSION = ["memory_saved", "speed_impact", "accuracy_drop"]


def stated_by(factor: str, quantities: list[str]) -> pd.DataFrame:
    """What the document on conversion states at each value of a factor."""
    stated = claims.load(*quantities)
    values = stated["conditions"].map(lambda text: claims.conditions(text).get(factor))
    return stated.assign(**{factor: values})[stated["document"].str.contains("Conversion") & values.notna()]


def units(stated: pd.DataFrame) -> list[tuple[str, str]]:
    return list(stated[["quantity", "unit"]].drop_duplicates().itertuples(index=False, name=None))


said_of_chunks = stated_by("chunk_size", BY_CHUNK)
said_of_compression = stated_by("compression_factor", BY_COMPRESSION)
for factor, stated in {"chunk_size": said_of_chunks, "compression_factor": said_of_compression}.items():
    wide = stated.pivot(index=factor, columns="quantity", values="value")[list(stated["quantity"].unique())]
    wide = wide.rename_axis(columns=None).reset_index().astype({factor: int})
    titles = {name: f"{claims.title(name)} ({unit})".removesuffix(" ()") for name, unit in units(stated)}
    figures.table(wide.rename(columns=titles), caption=f"Claimed: by {factor.replace('_', ' ')}")

# %% [markdown]
# ## Method
#
# `SmolLM2-135M-Instruct` {cite:p}`benallal2025` is converted under many settings, with no training, and each is held against the original.
# [The page on conversion](../../book/conversion.md) says what the settings mean. The converter's default is the centre:
# around it one factor is changed at a time, and chunk size is crossed with retrieval.
#
# - **Quality**: perplexity and agreement of first choices on speeches that were read by no model while conversions were
#   developed, over all positions from the first token. They are few, and the same for every setting: the comparison of
#   settings is what is meant here. [Similarity](similarity.ipynb) has the spread between documents for some of them.
# - **Cost**: one pass over the prompt as `generate` makes it, with a cache and the logits of the last position alone.
#   Settings take turns with the original on the clock, round after round, those that read states alone in one group and the
#   others in another. A speedup is the median of the ratios within a round, with a 95 % interval by order statistics.
#   Peak memory is what tensors hold at the worst moment of such a pass, weights included, counted off the clock. Counting
#   takes long where operations are many and small, so with states it is done on short texts only, and for compression alone.
#
# A setting is **on the front** if no other that was measured is at least as fast at a lower perplexity. States are the
# slowest to read long texts with; settings with them are measured on short ones only, and
# [speed and memory](speed_and_memory.ipynb) has what they cost on long ones.
#
# What the document calls output similarity is taken to be the cosine of logits, and its accuracy to be how often the
# first choice is the token that follows.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import functools
from collections.abc import Callable
from dataclasses import replace

from transformers import PreTrainedModel

from bsbr import convert, sources, stats
from bsbr.conversion.memory import cache_bytes
from bsbr.measure import machine, memory, speed
from bsbr.store import Sweep, over, row
from bsbr.studies import documents, pretrained, similarity, tasks
from bsbr.studies import settings as known
from bsbr.studies.settings import TOP_16

NONE, STATES = replace(TOP_16, retrieval="none"), replace(TOP_16, retrieval="states")
CHUNK_SIZES, REFERENCE_CHUNK = [64, 128, 256, 512], 64  # the document's sizes, and the one its numbers are relative to
SETTINGS = {
    "top-16": TOP_16,
    **{f"none, chunks of {size}": replace(NONE, chunk_size=size) for size in CHUNK_SIZES},
    **{f"states, chunks of {size}": replace(STATES, chunk_size=size) for size in CHUNK_SIZES},
    **{f"top-16, chunks of {size}": replace(TOP_16, chunk_size=size) for size in CHUNK_SIZES if size != 128},
    **{f"top-16, {count} local": replace(TOP_16, local_chunks=count) for count in (1, 4)},
    **{f"top-16, {count} sinks": replace(TOP_16, sink_tokens=count) for count in (0, 128)},
    **{f"top-{count}": replace(TOP_16, top_k=count) for count in (4, 8, 32, 64)},
    "both": known.SETTINGS["both"],
    **{f"states, compressed by {factor}": replace(STATES, compression_factor=factor) for factor in (2, 4, 8)},
    "fine states": known.FINE_STATES,
}
BY_RETRIEVAL = {
    kind: [name for size in CHUNK_SIZES for name, one in SETTINGS.items() if one == replace(base, chunk_size=size)]
    for kind, base in {"none": NONE, "states": STATES, "top-16": TOP_16}.items()
}
WITH_STATES = [name for name, one in SETTINGS.items() if one.retrieval == "states"]
PLAIN_STATES = "states, chunks of 128"  # what compression is held against
COMPRESSED = [PLAIN_STATES, *(f"states, compressed by {factor}" for factor in (2, 4, 8))]
ONE_FACTOR = {
    "chunk size": BY_RETRIEVAL["top-16"],
    "local chunks": ["top-16, 1 local", "top-16", "top-16, 4 local"],
    "sinks": ["top-16, 0 sinks", "top-16", "top-16, 128 sinks"],
    "top-k": ["top-4", "top-8", "top-16", "top-32", "top-64"],
    "retrieval": ["none, chunks of 128", PLAIN_STATES, "top-16", "both"],
    "compression": COMPRESSED,
}
LONG = [
    name for name in SETTINGS if name not in [*WITH_STATES, *(f"none, chunks of {size}" for size in (64, 256, 512))]
]
FEW = ["top-16", "none, chunks of 128", PLAIN_STATES, "top-16, chunks of 64", "states, compressed by 8"]
PROFILES = {
    "tiny": {
        "settings": {288: ["top-16"], 320: [*FEW, "top-8", "both"]},
        "documents": {288: 1, 320: 1}, "rounds": 1, "states_weighed": 320, "layers": 2,
    },
    "quick": {
        "settings": {1024: FEW},
        "documents": {1024: 1}, "rounds": 7, "states_weighed": 0, "layers": None,
    },
    "full": {
        "settings": {1024: COMPRESSED, 2048: LONG},
        "documents": {1024: 1, 2048: 1}, "rounds": 7, "states_weighed": 1024, "layers": None,
    },
}  # fmt: skip
MB = 1e6
settings = PROFILES[profile]
TRIED, ROUNDS, LAYERS = (settings[name] for name in ("settings", "rounds", "layers"))
STATES_WEIGHED = settings["states_weighed"]
device = machine.device(target)
keeps_freed_memory = machine.keep_freed_memory()
configs = known.frame(SETTINGS)
figures.table(configs, caption="The settings (compression factor 0: none)")

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
def load() -> tuple:
    return pretrained.load("SmolLM2", "float32", device, LAYERS)


def model_of(setting: str) -> PreTrainedModel:
    return load()[0] if setting == known.ORIGINAL else convert(load()[0], SETTINGS[setting])


@functools.lru_cache(maxsize=1)
def original_reading(n: int, document: str) -> similarity.Reading:
    return similarity.read(load()[0], documents.ids_of(document, load()[1], n, device), layers=False)


def read(n: int, document: str, setting: str) -> list[dict]:
    """One setting's reading of one text beside the original's."""
    before = original_reading(n, document)
    if setting == known.ORIGINAL:
        found = similarity.compare(before, before)
        return [row("perplexity", found.perplexity), row("next_token_accuracy", found.next_token_accuracy)]
    found = similarity.compare(before, similarity.read(model_of(setting), before.ids[None], layers=False))
    return [
        row("perplexity", found.perplexity),
        row("next_token_accuracy", found.next_token_accuracy),
        row("perplexity_ratio", found.perplexity_ratio),
        row("top_1_agreement", found.agreement[1]),
        row("cosine_similarity", found.cosine),
        row("kl_divergence", found.kl),
    ]


def reference_chunk(setting: str) -> str:
    """The setting of the same retrieval that the document holds other chunk sizes against."""
    of_its_kind = next((names for names in BY_RETRIEVAL.values() if setting in names), None)
    return of_its_kind[CHUNK_SIZES.index(REFERENCE_CHUNK)] if of_its_kind else ""


def group(n: int, turns: str) -> list[str]:
    """The original and the settings that take turns with it: those that read states alone, or all others."""
    return [known.ORIGINAL, *(name for name in TRIED[n] if (name in WITH_STATES) == (turns == "states"))]


def cost(phase: str, n: int, turns: str, document: str) -> list[dict]:
    """Time of the settings that take turns with one another and with the original."""
    ids = documents.ids_of(document, load()[1], n, device)
    passes = {name: tasks.generate_prefill_task(model_of(name), ids) for name in group(n, turns)}
    taken = speed.interleave(passes, min_rounds=ROUNDS, max_rounds=ROUNDS, block=0.0)
    rows = tasks.timed_rows(taken, "setting", baseline=known.ORIGINAL)
    for name in taken:
        if (control := reference_chunk(name)) in taken:
            rows.append(row("relative_speed", stats.ratio(taken[control], taken[name]), setting=name, control=control))
        if name in COMPRESSED and PLAIN_STATES in taken:
            faster = stats.median(100 * (taken[PLAIN_STATES] / taken[name] - 1))
            rows.append(row("speed_impact", faster, setting=name, control=PLAIN_STATES))
    return rows


def weigh(phase: str, n: int, turns: str, document: str) -> list[dict]:
    """Peak memory of the same passes, off the clock, and the cache that they leave."""
    names = group(n, turns)
    rows = [
        row("cache_memory", cache_bytes(load()[0], n, SETTINGS.get(name)) / MB, setting=name)
        for name in names
        if turns == "blocks" or name != known.ORIGINAL or "blocks" not in turns_at(n)
    ]
    if turns == "states":
        names = [name for name in names if name in (known.ORIGINAL, *COMPRESSED)] if n <= STATES_WEIGHED else []
    ids, peaks = documents.ids_of(document, load()[1], n, device), {}
    for name in names:
        model = model_of(name)
        if device.type == "cuda":
            tasks.forward(model, ids)  # so that libraries have their workspaces
        peaks[name] = memory.tensors(functools.partial(tasks.forward, model, ids), model, ids).total / MB
    for name, peak in peaks.items():
        if name != known.ORIGINAL or turns == "blocks" or "blocks" not in turns_at(n):
            rows.append(row("peak_memory", peak, setting=name))
        for control in {known.ORIGINAL, reference_chunk(name)} & peaks.keys():
            if name != known.ORIGINAL:
                rows.append(row("relative_memory", peak / peaks[control], setting=name, control=control))
        if name in COMPRESSED and PLAIN_STATES in peaks:
            saved = 100 * (1 - peak / peaks[PLAIN_STATES])
            rows.append(row("memory_saved", saved, setting=name, control=PLAIN_STATES))
    return rows


def turns_at(n: int) -> list[str]:
    return [turns for turns in ("blocks", "states") if len(group(n, turns)) > 1]


# %% tags=["hide-input", "remove-output"]
speeches = [speech.key for speech in sources.load_speeches("held_out")]
lengths = list(TRIED)
sweep = Sweep(
    "conversion/hyperparameters",
    target=target,
    profile=profile,
    parameters={
        "settings": known.parameters({name: SETTINGS[name] for names in TRIED.values() for name in names}),
        "rounds": ROUNDS,
        "states_weighed": STATES_WEIGHED,
        "layers": LAYERS,
        "keeps_freed_memory": keeps_freed_memory,
        "dtype": "float32",
        "batch": 1,
    },
    sources=[sources.pin_path(name) for name in ("smollm2", "speeches")],
)
passes = [
    {"phase": "prefill", "n": n, "turns": turns, "document": speeches[0]} for n in lengths for turns in turns_at(n)
]
costs = [sweep.measure(passes, cost, machine_bound=True), sweep.measure(passes, weigh, machine_bound=False)]
read_rows = sweep.measure(
    [
        {"n": n, "document": document, "setting": setting}
        for n, names in TRIED.items()
        for document in sources.evenly(speeches, settings["documents"][n])
        for setting in [known.ORIGINAL, *names]
    ],
    read,
    machine_bound=False,
)

# %% [markdown]
# Over the documents, which are the same for every setting at a length, each metric has a mean. What compression loses in
# accuracy is against plain states on the same documents. The original is timed with either group of settings, so it has a
# row of times for each.


# %% tags=["hide-input"]
def accuracy_drops(rows: pd.DataFrame, n: int) -> list[dict]:
    found = []
    for setting in COMPRESSED:
        plain, squeezed, names = documents.pairs(rows, "next_token_accuracy", PLAIN_STATES, setting)
        if names:
            lost = stats.paired_difference(plain, squeezed)
            where = {"n": n, "setting": setting, "control": PLAIN_STATES, "over": over("document", names)}
            found.append(row("accuracy_drop", lost, **where))
    return found


BY_DOCUMENT = ["perplexity_ratio", "top_1_agreement"]
drops = [found for n, part in read_rows.groupby("n", sort=False) for found in accuracy_drops(part, n)]
passed = pd.concat(costs, ignore_index=True).drop(columns="document")
table = pd.concat(
    [
        pd.DataFrame(documents.averages(read_rows)),
        passed.assign(
            turns=passed["turns"].where((passed["setting"] == known.ORIGINAL) & (passed["metric"] == "time"))
        ),
        pd.DataFrame(drops),
        read_rows[read_rows["metric"].isin(BY_DOCUMENT)],
    ],
    ignore_index=True,
)
table = configs.merge(table, on="setting", how="right")
result = sweep.publish(table)

# %% tags=["remove-input"]
KINDS = {"none": "no far text", "states": "states", "top_k": "top-k", "both": "both"}
MEAN = {"document": None}
long = lengths[-1]


def has(setting: str, n: int = long) -> bool:
    return setting in TRIED[n]


def own(metric: str, setting: str, n: int = long) -> pd.Series | None:
    """A setting's number by itself or beside the original, if it was measured."""
    rows = result.select(metric, setting=setting, n=n, **MEAN)
    rows = rows[rows["control"].isna() | (rows["control"] == "original")]
    return None if rows.empty else rows.iloc[0]


def value(metric: str, setting: str, n: int = long) -> float:
    found = own(metric, setting, n)
    return float("nan") if found is None else float(found["value"])


def beside(metric: str, setting: str, n: int = long) -> pd.Series | None:
    """A setting beside the control that the document would take for it."""
    rows = result.select(metric, setting=setting, n=n, **MEAN)
    rows = rows[rows["control"].notna() & (rows["control"] != "original")]
    return None if rows.empty else rows.iloc[0]


def longest(metric: str) -> int:
    """The longest texts that a metric was measured on, if any were."""
    lengths_of = result.select(metric)["n"]
    return int(lengths_of.max()) if len(lengths_of) else 0


def show(found: pd.Series | None, digits: int = 3) -> str:
    return "–" if found is None else figures.interval(found["value"], found["low"], found["high"], digits)


def shown(metric: str, setting: str, n: int = long, digits: int = 3) -> str:
    return show(own(metric, setting, n), digits)


points = pd.DataFrame(
    [
        {
            "setting": name,
            "kind": KINDS[SETTINGS[name].retrieval],
            **{end: gain[end] for end in ("low", "high")},
            "speedup": gain["value"],
            "ratio": value("perplexity_ratio", name),
            "top_1": value("top_1_agreement", name),
        }
        for gain in result.select("speedup", n=long).to_dict("records")
        for name in [gain["setting"]]
    ]
)
gains_and_costs = {p.setting: (p.speedup, p.ratio) for p in points.itertuples()}
on_front = stats.pareto_front({known.ORIGINAL: (1.0, 1.0), **gains_and_costs})
front = pd.DataFrame([(1.0, 1.0) if name == known.ORIGINAL else gains_and_costs[name] for name in on_front], on_front)
front = front.set_axis(["speedup", "ratio"], axis=1).rename_axis("setting").reset_index()
chosen = [name for name in on_front if name != known.ORIGINAL]
default = known.default(SETTINGS)


def moves(factor: str, column: str) -> float:
    """By how much a factor alone moves a number, from its least to its greatest."""
    values = points[points["setting"].isin(ONE_FACTOR[factor])][column]
    return float(values.max() - values.min()) if len(values) > 1 else 0.0


varied = [factor for factor in ONE_FACTOR if points["setting"].isin(ONE_FACTOR[factor]).sum() > 1]
quality_by, speed_by = (max(varied, key=lambda factor: moves(factor, column)) for column in ("ratio", "speedup"))


def in_words(name: str) -> str:
    return (
        f"`{name}`, {shown('speedup', name)} times as fast as the original at "
        f"{shown('perplexity_ratio', name, digits=4)} times its perplexity"
    )


ends = " to ".join(in_words(name) for name in dict.fromkeys([chosen[0], chosen[-1]])) if chosen else ""
figures.say(
    f"**At {long:,} tokens {len(chosen) or 'none'} of {len(points)} settings {'is' if len(chosen) == 1 else 'are'} on the "
    f"front of speed and quality{f': from {ends}' if len(chosen) > 1 else f': {ends}' if ends else ''}.** The converter's default, {in_words(default)}, "
    f"{'is on the front' if default in chosen else 'is not on it'}. Of the factors changed alone, over the ranges tried, "
    f"{quality_by} moves perplexity most, and {speed_by} moves speed most.",
    answer,
)
figures.say(claims.line(result), claimed)

chart = figures.figure(
    f"Quality against speed, {long:,} tokens",
    x="speedup of reading the prompt over the original (×)",
    y="perplexity relative to the original (×)",
    height=520,
)
chart.add_scatter(
    x=list(front["speedup"]), y=list(front["ratio"]), mode="lines", name="front",
    line={"color": "#7F7F7F", "width": 1.5, "shape": "hv"}, hoverinfo="skip",
)  # fmt: skip
paint = figures.colours(list(KINDS.values()))
for kind, part in points.groupby("kind", sort=False):
    chart.add_scatter(
        x=list(part["speedup"]), y=list(part["ratio"]), mode="markers", name=str(kind),
        marker={"size": 9, "color": paint[kind]},
        error_x={
            "type": "data", "symmetric": False, "color": paint[kind], "thickness": 1,
            "array": list((part["high"] - part["speedup"]).fillna(0)),
            "arrayminus": list((part["speedup"] - part["low"]).fillna(0)),
        },
        text=[
            f"{p.setting}<br>{figures.number(p.speedup)} × as fast<br>{figures.number(p.ratio, 4)} × the perplexity<br>"
            f"{figures.number(p.top_1)} % of first choices"
            for p in part.itertuples()
        ],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
chart.add_scatter(
    x=[1], y=[1], mode="markers", name="original", marker={"size": 11, "symbol": "star", "color": "#7F7F7F"},
    hovertemplate="original<extra></extra>",
)  # fmt: skip
for place, point in enumerate(front.itertuples()):
    chart.add_annotation(
        x=point.speedup, y=point.ratio, text=point.setting, showarrow=True, arrowwidth=1, arrowcolor="#7F7F7F",
        ax=25, ay=18 + 16 * (place % 2), xanchor="left", font={"size": 11},  # below the front there is room
    )  # fmt: skip
figures.show(chart.update_layout(legend={"orientation": "h", "y": -0.15, "yanchor": "top"}), "front", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## All settings

# %% tags=["remove-input"]
COLUMNS: dict[str, Callable[[str, int], str]] = {
    "speedup": lambda name, n: shown("speedup", name, n),
    "perplexity ratio": lambda name, n: shown("perplexity_ratio", name, n, digits=4),
    "top-1 agreement (%)": lambda name, n: shown("top_1_agreement", name, n),
    "next token right (%)": lambda name, n: shown("next_token_accuracy", name, n),
    "cosine of logits": lambda name, n: shown("cosine_similarity", name, n, digits=4),
    "KL (nats)": lambda name, n: shown("kl_divergence", name, n),
    "peak memory (MB)": lambda name, n: shown("peak_memory", name, n),
    "relative memory": lambda name, n: shown("relative_memory", name, n),
    "cache (MB)": lambda name, n: shown("cache_memory", name, n),
}
BRIEFLY = ["speedup", "perplexity ratio", "top-1 agreement (%)", "relative memory"]


def compare(names: list[str], n: int, caption: str, shown_columns: list[str] | None = None) -> None:
    """A line a setting, those that were measured at this length."""
    lines = [
        {"setting": f"{name} (default)" if name == default else name}
        | {title: COLUMNS[title](name, n) for title in shown_columns or COLUMNS}
        for name in names
        if has(name, n)
    ]
    if lines:
        figures.table(pd.DataFrame(lines), caption=f"{caption}, {n:,} tokens")


compare(chosen, long, "On the front, the fastest first", BRIEFLY)
MARGINS = [0.01, 0.03, 0.06, 0.1]
within = [stats.best_within(gains_and_costs, 1 + margin) for margin in MARGINS]
compare(
    [name for name in dict.fromkeys(within) if name], long,
    f"The fastest whose perplexity is within {', '.join(f'{100 * margin:g}' for margin in MARGINS)} % of the original's",
    BRIEFLY,
)  # fmt: skip
for n in lengths:
    compare(sorted(TRIED[n], key=lambda name: -value("speedup", name, n)), n, "All, the fastest first")
times = result.select("time", setting=known.ORIGINAL)
figures.table(
    pd.DataFrame(
        {
            "n": times["n"],
            "timed with": times["turns"].map({"blocks": "settings without states", "states": "states"}),
            "seconds": [show(line) for _, line in times.iterrows()],
            "peak memory (MB)": [value("peak_memory", known.ORIGINAL, n) for n in times["n"]],
            "perplexity": [value("perplexity", known.ORIGINAL, n) for n in times["n"]],
            "next token right (%)": [value("next_token_accuracy", known.ORIGINAL, n) for n in times["n"]],
        }
    ),
    caption="The original",
)
figures.show_provenance(result)

# %% [markdown]
# ## One factor at a time
#
# Each line of the first table goes through the values of one factor, all others held at the default's (for compression,
# at those of plain states). The range is from the least to the greatest number.

# %% tags=["remove-input"]
RANGES = {"speedup": "speedup", "ratio": "perplexity ratio", "top_1": "top-1 agreement (%)"}


def from_to(factor: str, column: str) -> str:
    values = points[points["setting"].isin(ONE_FACTOR[factor])][column]
    return f"{figures.number(values.min(), 4)} … {figures.number(values.max(), 4)}"


figures.table(
    pd.DataFrame(
        [
            {"factor": factor, "settings": ", ".join(name for name in ONE_FACTOR[factor] if has(name))}
            | {title: from_to(factor, column) for column, title in RANGES.items()}
            for factor in varied
        ]
    ),
    caption=f"What each factor moves, {long:,} tokens",
)
for factor in [factor for factor in varied if factor not in ("chunk size", "compression")]:
    compare(ONE_FACTOR[factor], long, factor.capitalize(), BRIEFLY)
figures.show_provenance(result)

# %% [markdown]
# Top-k is the one that can be turned continuously: more blocks bring a model nearer to the original, and each costs.

# %% tags=["remove-input"]
tops = [name for name in ONE_FACTOR["top-k"] if has(name)]
kept = {"perplexity_ratio": "perplexity", "speedup": "speed"}
rows = pd.concat([result.select(metric, n=long, **MEAN).assign(what=title) for metric, title in kept.items()])
rows = rows[rows["setting"].isin(tops)]
chart = figures.lines(
    rows, "top_k", group="what", title=f"By top-k, {long:,} tokens", x_title="blocks read exactly",
    y_title="relative to the original (×)", log_x=True,
)  # fmt: skip
figures.show(chart, "top-k")
figures.show_provenance(result)

# %% [markdown]
# ## Chunk size
#
# With retrieval of blocks the chunk size is also the window, of two chunks, and how often blocks are chosen anew. So a
# larger chunk reads more exactly, whatever it does to speed. Where the window is the whole text there is no row.

# %% tags=["remove-input"]
for n in lengths:
    for kind, names in BY_RETRIEVAL.items():
        if sum(has(name, n) for name in names) > 1:
            compare(names, n, f"Chunk size, {kind}", BRIEFLY)

sized = [name for name in BY_RETRIEVAL["top-16"] if has(name)]
titles = {
    "relative_speed": "Speed relative to the smallest chunk",
    "relative_memory": "Peak memory relative to the smallest chunk",
    "output_similarity": "Cosine similarity of logits",
}
for quantity, title in titles.items():
    measured = "cosine_similarity" if quantity == "output_similarity" else quantity
    rows = result.select(measured, n=long, **MEAN)
    rows = rows[rows["setting"].isin(sized) & (rows["control"].isna() | (rows["control"] != "original"))]
    chart = figures.lines(
        rows.assign(what=f"measured, {default}, n = {long:,}"), "chunk_size", group="what", title=title,
        x_title="chunk size (tokens)", log_x=True,
    )  # fmt: skip
    said = said_of_chunks[said_of_chunks["quantity"] == quantity]
    figures.add_claim(chart, said["chunk_size"], list(said["value"]), "claimed")
    chart.update_xaxes(tickvals=CHUNK_SIZES, ticktext=[str(size) for size in CHUNK_SIZES])
    figures.show(chart.update_layout(height=330), f"chunk-{quantity.replace('_', '-')}")
figures.show_provenance(result)

# %% [markdown]
# ## Compression
#
# Only states are compressed, so compression is measured where far text is read through states alone, against the same
# states uncompressed. What is saved is a share of the peak of reading the prompt; the cache, which holds keys and values
# of all tokens besides the states, stands beside it.

# %% tags=["remove-input"]
for n in lengths:
    lines = [
        {
            "compression factor": str(SETTINGS[name].compression_factor or "none"),
            "memory saved (%)": show(beside("memory_saved", name, n)),
            "change of speed (%)": show(beside("speed_impact", name, n)),
            "accuracy lost (points)": show(beside("accuracy_drop", name, n)),
            "perplexity ratio": shown("perplexity_ratio", name, n, digits=4),
            "cache (MB)": shown("cache_memory", name, n),
        }
        for name in COMPRESSED
        if has(name, n)
    ]
    if len(lines) > 1:
        figures.table(pd.DataFrame(lines), caption=f"Compression of states, {n:,} tokens")
squeezed_at = max((n for n in lengths if sum(has(name, n) for name in COMPRESSED) > 1), default=long)
squeezed = [name for name in COMPRESSED if has(name, squeezed_at)]
titles = {
    "memory_saved": "Peak memory saved",
    "speed_impact": "Change of speed",
    "accuracy_drop": "Next-token accuracy lost",
}
for quantity, title in titles.items():
    if not (n := longest(quantity)):
        figures.say(f"{title}: not measured in this profile.")
        continue
    chart = figures.lines(
        result.select(quantity, n=n).assign(what=f"measured, n = {n:,}"), "compression_factor", group="what",
        title=title, x_title="compression factor (0: none)",
    )  # fmt: skip
    said = said_of_compression[said_of_compression["quantity"] == quantity]
    figures.add_claim(chart, said["compression_factor"], list(said["value"]), "claimed")
    figures.show(chart.update_layout(height=330), f"compression-{quantity.replace('_', '-')}")
figures.show_provenance(result)

# %% [markdown]
# ## Reading


# %% tags=["remove-input"]
def change(metric: str, names: list[str], digits: int = 3) -> str:
    first, last = (figures.number(value(metric, name), digits) for name in (names[0], names[-1]))
    return f"from {first} to {last}"


sentences = []
if len(sized) > 1:
    speeds = result.select("relative_speed", n=long, setting=sized[-1]).iloc[0]
    slower = "slower" if speeds["high"] < 1 else "faster" if speeds["low"] > 1 else "not measurably faster or slower"
    closer = value("cosine_similarity", sized[-1]) > value("cosine_similarity", sized[0])
    sizes = [SETTINGS[name].chunk_size for name in (sized[0], sized[-1])]
    sentences.append(
        f"**Chunk size.** From chunks of {sizes[0]} to chunks of {sizes[1]} the cosine of logits goes "
        f"{change('cosine_similarity', sized, 4)} and the perplexity ratio {change('perplexity_ratio', sized, 4)}: larger "
        f"chunks are {'closer to the original, against what is stated' if closer else 'no closer, as is stated'}. They are "
        f"{slower}: {show(speeds)} times the speed. A chunk size sets how much is read exactly, and with it both numbers."
    )
for factor, what in {"local chunks": "local chunks", "sinks": "sink tokens", "top-k": "blocks"}.items():
    names = [name for name in ONE_FACTOR[factor] if has(name)]
    if len(names) > 1:
        sentences.append(
            f"**{factor.capitalize()}.** More {what} take the perplexity ratio {change('perplexity_ratio', names, 4)} and the "
            f"speedup {change('speedup', names)}."
        )
kinds = {name: value("perplexity_ratio", name) for name in ONE_FACTOR["retrieval"] if has(name)}
if len(kinds) > 1:
    nearest = min(kinds, key=lambda name: kinds[name])
    slow = [name for name in points.loc[points["high"] < 1, "setting"] if name in kinds]
    sentences.append(
        f"**Retrieval.** Of the kinds at the default's chunk size, `{nearest}` has the lowest perplexity, "
        f"{shown('perplexity_ratio', nearest, digits=4)} times the original's. "
        f"Slower than the original, by the whole of the interval: {', '.join(f'`{name}`' for name in slow) or 'none'}."
    )
if len(squeezed) > 1:
    most = squeezed[-1]
    weighed_at = longest("memory_saved")
    saves = (
        f"saves {show(beside('memory_saved', most, weighed_at))} % of the peak and "
        if weighed_at and has(most, weighed_at)
        else ""
    )
    share = 100 * value("cache_memory", most, squeezed_at) / value("cache_memory", squeezed[0], squeezed_at)
    sentences.append(
        f"**Compression.** At {squeezed_at:,} tokens, by {SETTINGS[most].compression_factor}, it {saves}changes the speed by "
        f"{show(beside('speed_impact', most, squeezed_at))} %, for {show(beside('accuracy_drop', most, squeezed_at))} points "
        f"of next-token accuracy. "
        f"The peak of a pass is that of weights, keys, values and one layer at work, none of which compression makes "
        f"smaller. Of the cache to decode with, states included, it leaves {figures.number(share)} %."
    )
missed = [name for name in SETTINGS if not has(name)]
short = [name for name in missed if any(has(name, n) for n in lengths)]
sentences.append(
    f"**Not measured at {long:,} tokens in this profile:** {', '.join(f'`{name}`' for name in missed) or 'none'}"
    + (f"; of these {len(short)} at a shorter length." if short else ".")
)
read_by = settings["documents"][long]
sentences.append(
    f"Quality at {long:,} tokens is that of {read_by} {'speech' if read_by == 1 else 'speeches'}; times are of "
    f"{ROUNDS} {'round' if ROUNDS == 1 else 'rounds'}; float32, batch of one."
)
figures.say("\n\n".join(sentences))

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - One model and few texts, so small differences between settings may turn round on others. Differences of many
#   settings on one text are not independent of one another: their order is surer than their size.
# - The front goes by the values in the table. Settings whose intervals of speed overlap may change places
#   on it.
# - Perplexity over all positions says little about a single far fact; [the passkey](passkey.ipynb) asks for one.
# - Fixed block size: try `block_size` with `top_k` so that their product stays the same. Which way does each number go?
# - No setting here is calibrated. Calibration changes states and leaves the others alone: which part of the front could
#   it move?
