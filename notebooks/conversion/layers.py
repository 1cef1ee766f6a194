# %% [markdown]
# # Layers, heads and lengths
#
# Which layers and heads of a pretrained model suffer when they are converted, and what does it give to convert only
# some of the layers, or only what lies beyond some length?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

answer, claimed, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# The document on conversion converts every layer of `gpt2`, and names as future work "layer-wise conversion strategies
# that apply BSBR selectively to specific layers" and "hybrid attention mechanisms that dynamically switch between
# standard and BSBR attention". It gives no number for either. Of layers it says, in words, that similarity is higher for
# earlier ones and decreases in deeper ones. What it does state, twice, is the length from which a converted model is the
# faster, which is where a switch by length belongs. [Speed and memory](speed_and_memory.ipynb) has the verdict on it.

# %% tags=["hide-input"]
stated = claims.load("crossover_n")
stated = stated[stated["document"].str.contains("Conversion")]
figures.table(
    stated[["section", "quantity", "value", "unit"]],
    caption="Claimed: from which length a converted GPT-2 is the faster",
)

# %% [markdown]
# ## Method
#
# `SmolLM2-135M-Instruct` {cite:p}`benallal2025` reads State of the Union addresses, each from its first token. Layers are counted from zero. What
# is chosen is chosen on development speeches; what a choice costs is read on held-out ones, which had no part in it.
#
# - **Layers.** One layer alone is converted, all others keep full attention. Its sensitivity is the KL divergence of the
#   original's next-token distributions from those of the changed model, a mean over evenly spaced positions. The layers
#   before the changed one need not be read again, since nothing changes there.
# - **Heads.** Error of attention: the norm of the change of a head's outputs over the norm of its outputs, on the
#   original's own inputs, so that no head suffers for another. One pass tells it of every head. What the error does to
#   predictions takes a pass for each head, which is affordable with shorter texts, smaller chunks and some of the layers.
# - **Budget.** A number of layers is converted: the least sensitive, the most sensitive, or evenly spaced ones.
# - **Switch.** With `original_below` set, tokens at positions below it read everything before them, as in the original.
#   It goes by a token's position, so a longer text pays for its first part what the original pays.
#
# Time is that of prefill: one pass over $n$ tokens that fills the cache and gives the logits of the last. The original and
# its conversions take turns on the clock, and a speedup is the median of the ratios within a round, with a 95 % interval by
# order statistics. The number of converted layers decides the time, not which: one choice is timed.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from bsbr import convert, sources, stats
from bsbr.measure import machine, speed
from bsbr.store import Sweep, row, select
from bsbr.studies import documents, pretrained, scaling, sensitivity, similarity, tasks
from bsbr.studies import settings as known
from bsbr.studies.settings import TOP_16

SETTINGS = {
    "top-16": TOP_16,
    "neighbours": known.NEIGHBOURS,
    "top-8, small": replace(TOP_16, chunk_size=64, top_k=8, block_size=16),
    "top-2, tiny": replace(TOP_16, chunk_size=16, sink_tokens=8, top_k=2, block_size=8),
}
PROFILES = {
    "tiny": {
        "setting": "top-2, tiny", "layer_n": 64, "layer_documents": {"top-2, tiny": 2}, "tried": [0, 14, 29],
        "error_n": 80, "head_setting": "top-2, tiny", "head_n": 64, "head_layers": [29],
        "n": 64, "documents": 1, "choices": {"least": [2], "evenly": [2], "most": [2]}, "timed": [2],
        "below": {32: [0, 48], 64: [0, 48]}, "rounds": 2,
    },
    "quick": {
        "setting": "top-16", "layer_n": 1024, "layer_documents": {"top-16": 1}, "tried": None,
        "error_n": 2048, "head_setting": "top-8, small", "head_n": 512, "head_layers": [17],
        "n": 1024, "documents": 1, "choices": {"least": [20], "evenly": [20], "most": [20]}, "timed": [20],
        "below": {512: [0, 1024], 1024: [0, 1024]}, "rounds": 7,
    },
    "full": {
        "setting": "top-16", "layer_n": 2048, "layer_documents": {"top-16": 1, "neighbours": 1}, "tried": None,
        "error_n": 2048, "head_setting": "top-8, small", "head_n": 512, "head_layers": list(range(2, 30, 3)),
        "n": 2048, "documents": 1, "choices": {"least": [10, 20], "evenly": [20], "most": [20]}, "timed": [10, 20],
        "below": {512: [0, 1024], 1024: [0, 1024], 2048: [0, 1024]}, "rounds": 7,
    },
}  # fmt: skip
EVERY = 4  # positions: at each fourth the divergence is taken when one layer or head is converted
settings = PROFILES[profile]
best, TRIED, HEAD_LAYERS = (settings[name] for name in ("setting", "tried", "head_layers"))
BELOW, LONGEST, TIMED, ROUNDS = (settings[name] for name in ("below", "n", "timed", "rounds"))
device = machine.device(target)
keeps_freed_memory = machine.keep_freed_memory()
used = list(dict.fromkeys([best, *settings["layer_documents"], settings["head_setting"]]))
figures.table(known.frame({name: SETTINGS[name] for name in used}), caption="The settings (compression factor 0: none)")

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
def original() -> torch.nn.Module:
    return pretrained.load("SmolLM2", "float32", device)[0]


def ids_of(document: str, n: int) -> torch.Tensor:
    return documents.ids_of(document, pretrained.load("SmolLM2", "float32", device)[1], n, device)


def tried(layers: Sequence[int] | None) -> list[int]:
    """The layers that are tried: those that are named, or all."""
    return list(range(original().config.num_hidden_layers) if layers is None else layers)


def measure_layers(phase: str, setting: str, n: int, document: str) -> list[dict]:
    """What converting one layer alone does to the predictions, for each layer that is tried."""
    layers = tried(TRIED)
    config = replace(SETTINGS[setting], layers=tuple(layers))
    found = sensitivity.layer_sensitivity(original(), ids_of(document, n), config, EVERY)
    return [row("kl_divergence", value, layer=layer) for layer, value in zip(layers, found.tolist(), strict=True)]


def measure_errors(phase: str, setting: str, n: int, document: str, layers: Sequence[int] | None = None) -> list[dict]:
    """How far each head's outputs are from the original's, on the original's inputs."""
    layers = tried(layers)
    config = replace(SETTINGS[setting], layers=tuple(layers))
    found = sensitivity.attention_error(original(), ids_of(document, n), config)
    return by_head("attention_error", layers, found)


def measure_heads(phase: str, setting: str, n: int, document: str) -> list[dict]:
    """What converting one head alone does to the predictions, and the error of its outputs."""
    layers = tried(HEAD_LAYERS)
    config = replace(SETTINGS[setting], layers=tuple(layers))
    found = sensitivity.head_sensitivity(original(), ids_of(document, n), config, EVERY)
    return by_head("kl_divergence", layers, found) + measure_errors(phase, setting, n, document, layers)


def by_head(metric: str, layers: Sequence[int], found: torch.Tensor) -> list[dict]:
    return [
        row(metric, value, layer=layer, head=head)
        for layer, values in zip(layers, found.tolist(), strict=True)
        for head, value in enumerate(values)
    ]


# %% tags=["hide-input", "remove-output"]
development = [speech.key for speech in sources.load_speeches("development")]
sweep = Sweep(
    "conversion/layers",
    target=target,
    profile=profile,
    parameters={
        "settings": known.parameters({name: SETTINGS[name] for name in used}),
        **{name: settings[name] for name in ("tried", "head_layers", "n", "timed", "below", "rounds")},
        "every": EVERY,
        "batch": 1,
        "dtype": "float32",
        "keeps_freed_memory": keeps_freed_memory,
    },
    sources=[sources.pin_path(name) for name in ("smollm2", "speeches")],
)
read_by = [(name, document) for name, count in settings["layer_documents"].items() for document in development[:count]]
layer_cells, error_cells = (
    [{"phase": phase, "setting": name, "n": n, "document": document} for name, document in read_by]
    for phase, n in (("layers", settings["layer_n"]), ("heads", settings["error_n"]))
)
head_cell = {"phase": "heads", "setting": settings["head_setting"], "n": settings["head_n"], "document": development[0]}
layers_measured = sweep.measure(layer_cells, measure_layers, machine_bound=False)
heads_measured = [
    sweep.measure(error_cells, measure_errors, machine_bound=False),
    sweep.measure([head_cell], measure_heads, machine_bound=False),
]

# %% [markdown]
# The layers are put in order by their mean sensitivity over the development speeches.


# %% tags=["hide-input", "remove-output"]
def order_of(rows: pd.DataFrame) -> tuple[int, ...]:
    """The layers, least sensitive first."""
    by_layer = select(rows, "kl_divergence", phase="layers", setting=best).groupby("layer")["value"].mean()
    return tuple(int(layer) for layer in by_layer.sort_values(kind="stable").index)


ORDER = order_of(layers_measured)  # what is read below depends on it, and so does whether it is kept


def chosen_layers(chosen: str, converted: int) -> tuple[int, ...]:
    choices = {"least": ORDER[:converted], "most": ORDER[len(ORDER) - converted :]}
    return tuple(choices[chosen]) if chosen in choices else tuple(sources.evenly(sorted(ORDER), converted))


def conversion(chosen: str = "all", converted: int = 0, original_below: int = 0) -> object:
    layers = None if chosen == "all" else chosen_layers(chosen, converted)
    return convert(original(), replace(SETTINGS[best], layers=layers, original_below=original_below))


@functools.lru_cache(maxsize=1)
def original_reading(document: str, n: int) -> similarity.Reading:
    return similarity.read(original(), ids_of(document, n), layers=False)


def measure_quality(phase: str, setting: str, n: int, document: str, **how: object) -> list[dict]:
    """A partly converted model's reading of one text beside the original's."""
    before = original_reading(document, n)
    found = similarity.compare(before, similarity.read(conversion(**how), before.ids[None], layers=False))
    return [
        row("perplexity_ratio", found.perplexity_ratio),
        row("top_1_agreement", found.agreement[1]),
        row("kl_divergence", found.kl),
    ]


def measure_speed(setting: str, n: int, document: str) -> list[dict]:
    """Time the original and its conversions in turn: those with a switch and, at the longest length, the budgets."""
    hows = [{"original_below": below} for below in BELOW[n]]
    if n == LONGEST:
        hows += [{"chosen": "least", "converted": converted} for converted in TIMED]
    models = {known.ORIGINAL: original(), **{str(how): conversion(**how) for how in hows}}
    passes = {name: tasks.generate_prefill_task(model, ids_of(document, n)) for name, model in models.items()}
    taken = speed.interleave(passes, min_rounds=ROUNDS, max_rounds=ROUNDS)
    rows = [row("time", stats.median(taken[known.ORIGINAL]), phase="switch", setting=known.ORIGINAL)]
    for how in hows:
        where = {"phase": "budget" if "chosen" in how else "switch", **how}
        rows.append(row("time", stats.median(taken[str(how)]), **where))
        rows.append(row("speedup", stats.ratio(taken[known.ORIGINAL], taken[str(how)]), **where))
    return rows


# %% tags=["hide-input", "remove-output"]
count = original().config.num_hidden_layers
held_out = sources.evenly([speech.key for speech in sources.load_speeches("held_out")], settings["documents"])
everything = {"chosen": "all", "converted": count}
choices = [{"chosen": name, "converted": k} for name, counts in settings["choices"].items() for k in counts]
budget_cells = [
    {"phase": "budget", "setting": best, "n": settings["n"], "document": document, **choice}
    for document in held_out
    for choice in [*choices, everything]
]
switch_cells = [
    {"phase": "switch", "setting": best, "n": n, "document": document, "original_below": below}
    for n, belows in BELOW.items()
    for document in (held_out if n == settings["n"] else held_out[:1])
    for below in belows
    if (n, below) != (settings["n"], 0)  # that is the budget of all layers
]
speed_cells = [{"setting": best, "n": n, "document": held_out[0]} for n in BELOW]
quality = sweep.measure([*budget_cells, *switch_cells], measure_quality, machine_bound=False)
timed = sweep.measure(speed_cells, measure_speed, machine_bound=True)

# %% [markdown]
# To convert all layers is one end of both: of the budget and, with no switch, of the switch. From the speedups with no
# switch follows the length from which the conversion stays faster.


# %% tags=["hide-input"]
def end_of_both(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a fully converted model at the longest length, under the other phase's factors as well."""
    here = rows[rows["n"] == settings["n"]]
    budgets = here[(here["phase"] == "budget") & (here["converted"] == count)]
    switches = here[(here["phase"] == "switch") & (here["original_below"] == 0)]
    as_switch = budgets.drop(columns=["chosen", "converted"]).assign(phase="switch", original_below=0)
    as_budget = switches.drop(columns="original_below").assign(phase="budget", **everything)
    return pd.concat([as_switch, as_budget], ignore_index=True)


timed = timed.drop(columns="document")
qualities, times = (pd.concat([rows, end_of_both(rows)], ignore_index=True) for rows in (quality, timed))
SWITCH, BUDGET = ({"phase": phase, "setting": best} for phase in ("switch", "budget"))
crossing = scaling.crossover(times, "speedup", {**SWITCH, "original_below": 0})
derived = pd.DataFrame([*documents.averages(layers_measured), *documents.averages(qualities), crossing])
result = sweep.publish(pd.concat([layers_measured, *heads_measured, qualities, times, derived], ignore_index=True))

# %% tags=["remove-input"]
MEAN = {"document": None, "head": None}
longest = LONGEST
by_layer = result.select("kl_divergence", phase="layers", **MEAN)
own = by_layer[by_layer["setting"] == best].set_index("layer")["value"].sort_values()
half = stats.fewest_for_share(own, 50)


def at(metric: str, **where: object) -> str:
    """A mean, or a time, with its interval if it has one."""
    found = result.select(metric, **where, **MEAN).iloc[0]
    return figures.interval(found["value"], found["low"], found["high"], 3 if metric != "perplexity_ratio" else 4)


def budget(metric: str, chosen: str, converted: int) -> str:
    chosen = "least" if metric == "speedup" and chosen != "all" else chosen
    return at(metric, n=longest, chosen=chosen, converted=converted, **BUDGET)


def listed(items: Sequence) -> str:
    shown = [str(item) for item in items]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' if number != 1 else ''}"


def change(ratio: float) -> str:
    """Of perplexity, in %."""
    return f"{100 * (ratio - 1):+.2f} %".replace("-", "−")


def recommended() -> str:
    found = result.select("crossover_n", **SWITCH).iloc[0]
    if found["status"] != "ok":
        return f"From which length on the conversion is the faster cannot be told here: {found['reason']}."
    if found["value"] == np.inf:
        return f"Up to n = {max(BELOW):,} the conversion is never the faster for good, so that a switch has nowhere to lie."
    if found["value"] <= min(BELOW):
        return (
            f"The conversion is the faster from the shortest measured length on, n = {min(settings['below']):,}, so that "
            f"a switch gains no time."
        )
    roughly = float(f"{found['value']:.2g}")
    return (
        f"The conversion is the faster from about n = {roughly:,.0f} on: with `original_below` there, shorter texts are "
        f"read as by the original, and none of them would have been faster otherwise."
    )


k = max(TIMED)
figures.say(
    f"**Of {counted(len(own), 'layer')} converted one at a time by `{best}`, half of the divergence comes from the {half} "
    f"most sensitive. With the {k} least sensitive of the model's {count} converted, it reads {longest:,} tokens "
    f"{budget('speedup', 'least', k)} times as fast as the original at {budget('perplexity_ratio', 'least', k)} times its "
    f"perplexity; with all, {budget('speedup', 'all', count)} times as fast at "
    f"{budget('perplexity_ratio', 'all', count)} times.** The {k} most sensitive would take it to "
    f"{budget('perplexity_ratio', 'most', k)} times. {recommended()}",
    answer,
)
figures.say(claims.line(result), claimed)

LEGEND_BELOW = {"legend": {"orientation": "h", "y": -0.25, "yanchor": "top"}, "height": 460}
chart = figures.lines(
    by_layer, "layer", group="setting", x_title="the one layer that is converted",
    title=f"KL divergence from the original when one layer is converted, {settings['layer_n']:,} tokens",
    log_y=True,
)  # fmt: skip
figures.show(chart.update_layout(LEGEND_BELOW), "layers", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## Layers

# %% tags=["remove-input"]
each = result.select("kl_divergence", phase="layers", head=None)
each = each[each["document"].notna()]
readings = [f"{r}, {d.split('_')[0]}" for r, d in zip(each["setting"], each["document"], strict=True)]
each = each.assign(reading=readings, value=each["value"] * 1000)
figures.table(
    figures.pivot(each, "layer", "reading"),
    caption="KL divergence (thousandths of a nat) when one layer is converted, by setting and year of the speech",
)
figures.show_provenance(result)


def ranks_agree(a: pd.Series, b: pd.Series) -> str:
    return figures.number(stats.rank_correlation(a.astype(float), b.astype(float)), 2)


wide = each.pivot(index="layer", columns=["setting", "document"], values="value")
spread = own.max() / own.min() if own.min() > 0 else np.inf
sentences = [
    f"Most sensitive under `{best}`, and together {figures.number(stats.share_of_largest(own, half))} % of the sum over layers: "
    f"{listed(own.index[::-1][:half])}. The most sensitive layer has "
    f"{figures.number(spread)} times the divergence of the least sensitive, layer {own.index[0]}. The rank correlation of "
    f"sensitivity with depth is {ranks_agree(own, pd.Series(own.index, own.index))}; layers that suffered more the "
    f"deeper they lie would have it at one."
]
if wide[best].shape[1] > 1:
    first, second = (wide[best].iloc[:, i] for i in (0, 1))
    sentences.append(
        f"The orders that two speeches give the layers have a rank correlation of {ranks_agree(first, second)}."
    )
for name in settings["layer_documents"]:
    if name != best:
        sentences.append(
            f"The order under `{name}`, which reads no far text, and that under `{best}` have a rank correlation of "
            f"{ranks_agree(wide[name].iloc[:, 0], wide[best].iloc[:, 0])} on the same speech."
        )
figures.say(" ".join(sentences))

# %% [markdown]
# ## Heads
#
# The error of attention, for every head.


# %% tags=["remove-input"]
def head_map(metric: str, setting: str, n: int) -> pd.DataFrame:
    """Layers down, heads across; a mean over documents."""
    rows = result.select(metric, phase="heads", setting=setting, n=n)
    return rows.groupby(["layer", "head"])["value"].mean().unstack("head")


def show_heads(values: pd.DataFrame, name: str, title: str, unit: str, powers: Sequence[int], height: int) -> None:
    """A map of heads, with a logarithmic scale of colours: a few heads are far above all others."""
    fig = figures.figure(title, "head", "layer", height=height)
    ticks = [10.0**power for power in powers]
    fig.add_heatmap(
        z=np.log10(values.to_numpy(float).clip(ticks[0], None)),
        x=[str(head) for head in values.columns],
        y=[str(layer) for layer in values.index],
        customdata=[[figures.number(value) for value in line] for line in values.to_numpy(float)],
        hovertemplate=f"layer %{{y}}, head %{{x}}: %{{customdata}} {unit}<extra></extra>",
        colorscale="Cividis",
        colorbar={
            "title": {"text": unit},
            "tickvals": list(powers),
            "ticktext": [f"{tick:g}" for tick in ticks],
        },
    )
    fig.update_xaxes(type="category", showgrid=False)
    fig.update_yaxes(type="category", showgrid=False, autorange="reversed")
    figures.show(fig, name)


errors = head_map("attention_error", best, settings["error_n"])
show_heads(
    errors, "heads", f"Error of attention by {best}, {settings['error_n']:,} tokens", "%", range(-1, 3), 700
)  # fmt: skip
flat = errors.stack().sort_values(ascending=False)
figures.table(
    pd.DataFrame(
        [{"layer": layer, "head": head, "error of attention (%)": value} for (layer, head), value in flat[:10].items()]
    ),
    caption="The ten heads that suffer most",
)
MUCH = 20  # % of error: a head of which much is lost
errors_by_layer = errors.mean(axis=1)
shared = errors_by_layer.index.intersection(own.index)
figures.say(
    f"The median head has an error of {figures.number(flat.median())} %, the worst one of {figures.number(flat.iloc[0])} %; "
    f"{int((flat > MUCH).sum())} of {len(flat)} heads are above {MUCH:g} %. Whether predictions suffer where "
    f"attention does is told by the rank correlation of a layer's mean error with its sensitivity: "
    f"{ranks_agree(errors_by_layer[shared], own[shared])}."
)
figures.show_provenance(result)

# %% [markdown]
# One head converted at a time, by what it does to predictions.

# %% tags=["remove-input"]
small = (settings["head_setting"], settings["head_n"])
divergences, small_errors = head_map("kl_divergence", *small), head_map("attention_error", *small)
show_heads(
    divergences, "one-head", f"KL divergence when one head is converted by {small[0]}, {small[1]:,} tokens", "nats",
    range(-7, -2), 240 + 28 * len(divergences),
)  # fmt: skip
order = divergences.stack().sort_values(ascending=False)
tenth = max(1, round(len(order) / 10))
figures.say(
    f"Of {len(order)} heads in {counted(len(divergences), 'layer')}, the tenth that matters most holds "
    f"{figures.number(stats.share_of_largest(order, tenth))} % of the sum of divergences; the first is head "
    f"{order.index[0][1]} of layer {order.index[0][0]}. The rank correlation of a head's divergence with the error of its "
    f"outputs, in the same text and setting, is {ranks_agree(divergences.stack(), small_errors.stack())}."
)
figures.show_provenance(result)

# %% [markdown]
# ## Under a budget

# %% tags=["remove-input"]
COLUMNS = {
    "perplexity_ratio": "perplexity relative to the original",
    "top_1_agreement": "top-1 agreement (%)",
    "kl_divergence": "KL (nats)",
}
NAMES = {"least": "least sensitive", "evenly": "evenly spaced", "most": "most sensitive", "all": "all"}
timed_counts = [*TIMED, count]
figures.table(
    pd.DataFrame(
        [
            {
                "layers converted": choice["converted"],
                "chosen": NAMES[choice["chosen"]],
                **{title: budget(metric, **choice) for metric, title in COLUMNS.items()},
                "speedup of prefill": budget("speedup", **choice) if choice["converted"] in timed_counts else "–",
            }
            for choice in sorted([*choices, everything], key=lambda choice: choice["converted"])
        ]
    ),
    caption=f"{longest:,} tokens of {len(held_out)} held-out speech{'es' if len(held_out) > 1 else ''}, by {best}",
)


def point(where: dict, timed_as: dict) -> tuple[float, float]:
    ratio = result.select("perplexity_ratio", n=longest, **where, **MEAN).iloc[0]["value"]
    return result.value("speedup", n=longest, **timed_as), ratio


trade: dict[str, dict[str, tuple[float, float]]] = {NAMES[name]: {"0": (1.0, 1.0)} for name in settings["choices"]}
for choice in choices:
    if choice["converted"] in timed_counts:
        where = {**BUDGET, **choice}
        trade[NAMES[choice["chosen"]]][str(choice["converted"])] = point(where, {**where, "chosen": "least"})
trade["switched by length"] = {known.ORIGINAL: (1.0, 1.0)}
for below in sorted(BELOW[longest], reverse=True):
    where = {**SWITCH, "original_below": below}
    trade["switched by length"][f"from {below:,}" if below else "all"] = point(where, where)
for name in settings["choices"]:
    trade[NAMES[name]][str(count)] = point({**BUDGET, **everything}, {**BUDGET, **everything})
chart = figures.figure(
    f"Which layers, or which positions, to convert: {longest:,} tokens",
    "speedup of prefill over the original", "perplexity relative to the original",
)  # fmt: skip
paint = figures.colours(list(trade))
for name, points in trade.items():
    chart.add_scatter(
        x=[x for x, _ in points.values()], y=[y for _, y in points.values()], name=name, mode="lines+markers",
        line={"color": paint[name], "width": 2}, marker={"size": 8}, text=list(points),
        hovertemplate="%{fullData.name}, %{text}: %{y:.4f} × perplexity, %{x:.2f} × as fast<extra></extra>",
    )  # fmt: skip
figures.show(chart.update_layout(LEGEND_BELOW), "budget")
figures.show_provenance(result)

# %% tags=["remove-input"]
ratios = {
    name: result.select("perplexity_ratio", n=longest, chosen=name, converted=k, **BUDGET, **MEAN).iloc[0]["value"]
    for name in settings["choices"]
    if k in settings["choices"][name]
}
whole_ratio = result.select("perplexity_ratio", n=longest, **everything, **BUDGET, **MEAN).iloc[0]["value"]
sentences = [
    f"The {k} least sensitive layers are {listed(sorted(ORDER[:k]))}. Converting them changes perplexity by "
    f"{change(ratios.pop('least'))}; "
    + "; ".join(f"as many that are {NAMES[name]}, by {change(value)}" for name, value in ratios.items())
    + f"; all, by {change(whole_ratio)}."
]
seconds = {c: result.value("time", n=longest, chosen="least", converted=c, **BUDGET) for c in TIMED}
before = result.value("time", n=longest, phase="switch", setting=known.ORIGINAL)
after = result.value("time", n=longest, **everything, **BUDGET)
if after < before:
    shares = [
        f"{counted(c, 'layer')}, {figures.number(100 * c / count, 2)} % of them, "
        f"{figures.number(100 * (before - took) / (before - after), 2)} %"
        for c, took in seconds.items()
    ]
    sentences.append(f"Of the time that all layers save together: {'; '.join(shares)}.")
else:
    sentences.append(f"At {longest:,} tokens converting saves no time, so neither does a part of it.")
figures.say(" ".join(sentences))

# %% [markdown]
# ## Switching by length

# %% tags=["remove-input"]
for metric, caption in {
    "speedup": "Speedup of prefill over the original",
    "perplexity_ratio": "Perplexity relative to the original",
    "top_1_agreement": "Top-1 agreement (%)",
}.items():
    rows = result.select(metric, **SWITCH, **MEAN).sort_values(["original_below", "n"])
    rows = rows.assign(
        length=[f"n = {n:,}" for n in rows["n"]],
        switch=[f"original below {below:,}" if below else "no switch" for below in rows["original_below"]],
    )
    rows = rows.sort_values("n", kind="stable")
    figures.table(
        figures.pivot(rows, "length", "switch", digits=3 if metric == "speedup" else 4),
        caption=caption,
    )
figures.show_provenance(result)

# %% tags=["remove-input"]
rows = result.select("perplexity_ratio", **SWITCH, **MEAN)
covered = rows[rows["original_below"] >= rows["n"]]
quick_rows = result.select("speedup", **SWITCH)
covered_speed = quick_rows[quick_rows["original_below"] >= quick_rows["n"]]["value"]
sentences = [
    f"**Up to the switch the conversion is the original.** Where the text is no longer than the switch, perplexity differs "
    f"from the original's by {figures.number(100 * (covered['value'] - 1).abs().max(), 2)} % at most, and the speedup, "
    f"which should be one, is at least {figures.number(covered_speed.min())} and at most "
    f"{figures.number(covered_speed.max())}."
    if len(covered)
    else ""
]
for below in BELOW[longest]:
    if 0 < below < longest:
        where = {"n": longest, **SWITCH}
        sentences.append(
            f"**Beyond it, the switch costs time and saves loss.** At {longest:,} tokens with the first {below:,} read as "
            f"the original does, prefill is {at('speedup', **where, original_below=below)} times as fast and not "
            f"{at('speedup', **where, original_below=0)} times, at {at('perplexity_ratio', **where, original_below=below)} "
            f"times the original's perplexity and not {at('perplexity_ratio', **where, original_below=0)} times."
        )
sentences.append(f"**Where to put it.** {recommended()}")
figures.say("\n\n".join(filter(None, sentences)))

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - One model, and few speeches: there are no intervals over documents. Which layers are sensitive belongs to the model;
#   `bsbr.studies.sensitivity.least_sensitive` finds them for another.
# - Layers were tried one at a time. What two of them do together need not be the sum; the budget shows what many do.
# - The map of single heads is of small chunks and a short text, so its numbers are not those of the longer text. The
#   converter takes whole layers: what a choice of heads would give is not measured.
# - The switch by length is timed for prefill. In decoding, each new token beyond it reads what its conversion reads,
#   whatever the switch.
# - Convert the least sensitive layers with fewer blocks and the others with more. Is it better than one setting for all?
