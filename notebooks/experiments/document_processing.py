# %% [markdown]
# # Document processing
#
# What does it cost to read a page of a whole document, and how well is the document told by then?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

answer, stated, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# Seconds a page, gigabytes and an accuracy, of BSBR and of standard attention; neither the documents nor the length of a
# page are named, nor what the accuracy is one of.

# %% tags=["hide-input"]
said = claims.load()
said = said[said["section"] == "Document Processing"]
by_mechanism = said.pivot(index="quantity", columns="mechanism", values="value").rename_axis(columns=None).reset_index()
figures.table(
    by_mechanism.assign(unit=list(said.drop_duplicates("quantity").sort_values("quantity")["unit"])), "Claimed"
)

# %% [markdown]
# ## Method
#
# A page is a fixed number of words, which the answer above names. Documents are whole: State of the Union addresses of the test part, at evenly spaced places in the
# order of their lengths, and the text of the Brown corpus of median length.
#
# - **Time**: one pass over all tokens of a document up to the last hidden states, which is what a classifier needs;
#   float32, one document at a time. The mechanisms take turns, document by document, seven rounds or more. Time a page of
#   all documents together is a round's time over their pages: a median of rounds, its interval two of them in order.
#   Speedups are medians of the ratios within a round.
# - **Memory**: what tensors hold at the worst moment of that pass, parameters included. Of all documents it is that of
#   the one that takes the most, since a machine must have it. Memory a page leaves the parameters out.
# - **Accuracy**: the genre of whole texts of the Brown corpus, by the models of the page [](../benchmarks/classification.ipynb),
#   which were trained on windows of its training part, at rates that were chosen there. They are trained alike, with fresh
#   seeds, and each reads the texts of the test part from their first word to the last.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import functools
from dataclasses import asdict, replace

import pandas as pd

from bsbr import MECHANISMS
from bsbr.measure import machine
from bsbr.show import learning as shown
from bsbr.sources.pins import pin_path
from bsbr.store import Sweep, row
from bsbr.studies import classifying, learning, pages, passes
from bsbr.studies.classifying import BASELINES
from bsbr.training.tasks import Classification

PROFILES = {
    "tiny": {"speeches": [0.0], "brown": [0.5], "seconds": 0.1, "chosen_at": 32, "trained": 64, "whole": 128},
    "quick": {"speeches": [0.0, 0.25], "brown": [0.5], "seconds": 8, "chosen_at": 512, "trained": 2048, "whole": 8192},
    "full": {
        "speeches": [0.0, 0.25, 0.5, 0.75, 1.0], "brown": [0.5], "seconds": 150, "chosen_at": 512, "trained": 2048, "whole": 8192,
    },
}  # fmt: skip
settings, plan = PROFILES[profile], classifying.PLANS[profile]
short, long, whole = (Classification("brown", settings[name]) for name in ("chosen_at", "trained", "whole"))
mechanisms = plan.mechanisms if profile == "tiny" else tuple(MECHANISMS)
configs = classifying.models(replace(plan, mechanisms=mechanisms), long)
read = [document for corpus in ("brown", "speeches") for document in pages.chosen(corpus, "test", settings[corpus])]
device = machine.device(target)
keeps_freed_memory = machine.keep_freed_memory()

# %% [markdown]
# ## Measuring


# %% tags=["hide-input", "remove-output"]
@functools.cache
def model_of(mechanism: str):
    return passes.model_of(**{**asdict(configs[mechanism]), "vocab_size": long.vocab_size}).to(device).eval()


def times() -> list[dict]:
    return pages.times({name: model_of(name) for name in mechanisms}, read, seconds=settings["seconds"])


def peaks() -> list[dict]:
    return pages.peaks({name: model_of(name) for name in mechanisms}, read)


def beaten(mechanism: str) -> list[dict]:
    return classifying.baseline(mechanism, whole)


sweep = Sweep(
    "experiments/document_processing",
    target=target,
    profile=profile,
    parameters={**asdict(plan), **settings, "dtype": "float32", "keeps_freed_memory": keeps_freed_memory},
    sources=[pin_path("brown"), pin_path("speeches")],
)
tables = [
    sweep.measure([{}], times, machine_bound=True),
    sweep.measure([{}], peaks, machine_bound=False),
    sweep.measure([{"mechanism": name} for name in BASELINES], beaten, machine_bound=False),
]
if plan.seeds:
    # Rates as on the page on classification, whose grid is found trained. One seed is enough to choose them.
    grid = replace(classifying.contest(plan, short), seeds=plan.seeds[:1])
    rates = learning.chosen(learning.hold(sweep, grid, device=device.type), "mechanism")
    contest = classifying.contest(plan, long, chosen=rates, judged=whole)
    tables.append(learning.hold(sweep, contest, device=device.type))
else:
    reason = f"not measured yet: the {profile} profile trains no models to judge"
    absent = [row("accuracy", None, status="not_available", reason=reason, mechanism=name) for name in mechanisms]
    tables.append(pd.DataFrame(absent))
result = sweep.publish(pd.concat(tables, ignore_index=True))

# %% tags=["remove-input"]
compared = shown.is_compared(result)
together = {name: None for name in ("document", "n", "learning_rate", "seed") if name in result.table}
longest = max(read, key=lambda document: document.pages)
shortest = min(read, key=lambda document: document.pages)


def number_of(metric: str, mechanism: str, scale: float = 1, digits: int = 3) -> str:
    found = result.select(metric, mechanism=mechanism, **together).iloc[0]
    return figures.interval(*(scale * found[name] for name in ("value", "low", "high")), digits)


extent = (
    f"{len(read)} whole documents of {figures.number(shortest.pages, 2)} to {figures.number(longest.pages, 2)} pages of "
    f"{pages.WORDS} words"
)
cost = (
    f"To read {extent}, BSBR takes {number_of('time', 'bsbr', 1000)} ms a page and standard attention "
    f"{number_of('time', 'standard', 1000)} ms: it is {number_of('speedup', 'bsbr')} times as fast. At its peak it holds "
    f"{number_of('peak_memory', 'bsbr')} MB, standard attention {number_of('peak_memory', 'standard')} MB."
)
if compared:
    told = (
        f"Of the whole texts of the test part BSBR tells the genre of {number_of('accuracy', 'bsbr')} %, standard attention of "
        f"{number_of('accuracy', 'standard')} %. {shown.differing(result, 'accuracy_difference')} "
        + " ".join(shown.beating(result, "accuracy", name) for name in BASELINES)
    )
    if not classifying.has_learned(result.table, document=None):
        told += f" {classifying.NOTHING_LEARNED}"
else:
    told = shown.NOT_COMPARED
figures.say(f"**{cost}** {told}", answer)
figures.say(claims.line(result), stated)

by_document = result.select("time")
by_document = by_document[by_document["document"].notna()]
milliseconds = by_document.assign(**{name: 1000 * by_document[name] for name in ("value", "low", "high")}, unit="ms")
time_chart = figures.lines(
    milliseconds, "n", title="Time a page, by the length of the document", x_title="tokens of the whole document",
    y_title="ms a page", log_x=True,
)  # fmt: skip
if compared:
    overall = result.select("time", **together).set_index("mechanism")["value"]
    quality = result.select("accuracy", **together)
    quality = quality[quality["mechanism"].isin(overall.index)]
    chart = figures.lines(
        quality.assign(cost=[1000 * overall[name] for name in quality["mechanism"]]), "cost",
        title="Genres of whole texts told right, against the time of a page", x_title="ms a page, all documents",
    )  # fmt: skip
    for name in BASELINES:
        found = result.value("accuracy", mechanism=name, **together)
        chart.add_hline(y=found, line={"color": "#7F7F7F", "width": 1, "dash": "dash"}, annotation_text=name)
    figures.show(chart, "cost", main_chart)
else:
    figures.show(time_chart, "time", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## Time

# %% tags=["remove-input"]
if compared:
    figures.show(time_chart, "time")
lengths = {document.key: f"{document.key}: {document.pages:.1f} pages" for document in read}
by_document = by_document.assign(document=by_document["document"].map(lengths))
figures.table(
    figures.pivot(by_document, "document", "mechanism", scale=1000), "Milliseconds a page, median and 95 % interval"
)
gains = result.select("speedup")
gains = gains.assign(document=gains["document"].map(lengths).fillna("all together"))
figures.table(figures.pivot(gains, "document", "mechanism"), "Times as fast as standard attention, same round")
figures.show_provenance(result)

# %% [markdown]
# ## Memory

# %% tags=["remove-input"]
for metric, caption in {
    "peak_memory": "Peak memory in MB, parameters included",
    "memory_per_page": "MB a page at the peak, parameters left out",
    "memory_relative": "Standard attention's peak over this one's",
}.items():
    rows = result.select(metric)
    rows = rows.assign(document=rows["document"].map(lengths).fillna("all, one after the other"))
    figures.table(figures.pivot(rows, "document", "mechanism"), caption)
figures.show_provenance(result)

# %% [markdown]
# ## Accuracy

# %% tags=["remove-input"]
if compared:
    qualities = {"accuracy": "accuracy (%)", "macro_f1": "macro F1 (%)"}
    shown.table(result, qualities, f"Genres of whole texts; operations and state are for {long.n:,} tokens")
    figures.say(
        f"The models were trained on windows of {long.n:,} tokens, and whole texts are longer: what a mechanism makes of "
        f"positions that it has not been trained on is part of the result."
    )
figures.say(figures.missing(result))
figures.show_provenance(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
fastest = {}
for document in (shortest, longest):
    own = result.select("time", document=document.key)
    fastest[document.key] = own.loc[own["value"].idxmin(), "mechanism"]
gain = {
    document.key: result.value("speedup", document=document.key, mechanism="bsbr") for document in (shortest, longest)
}


def page_of(mechanism: str, document: pages.Whole) -> str:
    return figures.number(1000 * result.value("time", document=document.key, mechanism=mechanism))


claimed = {name: by_mechanism.set_index("quantity")[name] for name in ("bsbr", "standard")}
ratio = {quantity: claimed["standard"][quantity] / claimed["bsbr"][quantity] for quantity in ("time", "peak_memory")}
figures.say(
    f"**A page has no cost of its own.** Standard attention takes {page_of('standard', shortest)} ms for a page of the "
    f"shortest document and {page_of('standard', longest)} ms for a page of the longest; BSBR takes "
    f"{page_of('bsbr', shortest)} and {page_of('bsbr', longest)} ms, {figures.number(gain[shortest.key])} and "
    f"{figures.number(gain[longest.key])} times as fast in the same rounds. What was claimed, "
    f"{ratio['time']:.3g} times, names no length. The fastest for the shortest document is "
    f"{shown.name_of(fastest[shortest.key])}, for the longest {shown.name_of(fastest[longest.key])}.\n\n"
    f"**Memory.** Claimed are {ratio['peak_memory']:.3g} times the memory for standard attention. Measured for the longest "
    f"document: {number_of('memory_relative', 'bsbr')} times. PyTorch's fused kernel never stores the matrix of scores, so "
    f"memory of standard attention grows with the tokens and not with their square."
)

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - The models are small and their tokenizer has few tokens, so a page holds more of them than with a larger vocabulary.
# - Speeches have no accuracy here: there are too few of them for models that begin from random weights.
# - A classifier could read pages apart and average what it is told of each: constant cost a page, with any mechanism.
#   What would that lose?
