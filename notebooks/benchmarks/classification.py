# %% [markdown]
# # Classification
#
# Which mechanism tells documents apart: the genre of a text, the group of an e-mail?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

answer, stated, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# Accuracy by the length of the document, of three mechanisms. It falls with the length for all, and for standard attention
# by far the most. No document says which texts were classified, or by what model; the later version calls its table a
# placeholder.

# %% tags=["hide-input"]
said = claims.load("classification_accuracy").drop_duplicates(["mechanism", "n"])
by_length = said.pivot(index="n", columns="mechanism", values="value").rename_axis(columns=None).reset_index()
figures.table(by_length, caption="Claimed: accuracy in %, by n")

# %% [markdown]
# ## Method
#
# Two tasks with labels that people have given. **Genres**: the texts of the Brown corpus, of about the same length, in
# genres from news to romance. **Groups**: the e-mails of the SpamAssassin collection, spam and ham as they were collected.
# A model reads at most $n$ tokens; the mean of its last hidden states goes through one linear layer. It is trained on
# windows of the training part, drawn anew for each step, and judged on the first $n$ tokens of each document of the test
# part, in float32.
#
# Terms are equal, as [](../../book/fair.md) has it: all mechanisms read the same rows in the same order, and as many tokens
# in a step and in all. Each has its learning rate by the same grid, chosen by validation loss at the first length; at
# the other lengths of a task it is used as it is. Then come five fresh seeds, since a run takes less than a minute.
# Longer rows are fewer rows: at each length a run reads equally many tokens. A chunk, and a window too, is at
# most an eighth of what a row holds and at most the library's usual size.
#
# **What has to be beaten**: the commonest class of the training part, and a bag of words (logistic regression on tf–idf,
# its strength chosen on validation data), which learns from pieces of $n$ tokens of the training documents and is told
# the test documents as far as the models read them; of a document with many pieces it gets eight, evenly spaced. Their
# intervals are those of a share of the test documents; intervals of mechanisms are over seeds.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
from dataclasses import asdict, replace

import numpy as np
import pandas as pd

from bsbr.measure import machine
from bsbr.show import learning as shown
from bsbr.sources.pins import pin_path
from bsbr.store import Sweep
from bsbr.studies import classifying, learning, short_runs
from bsbr.studies.classifying import BASELINES, CORPORA
from bsbr.training.tasks import Classification
from bsbr.training.tokens import encoded

PROFILES = {
    "tiny": {"genres": [64], "groups": [512]},
    "quick": {"genres": [512], "groups": []},
    "full": {"genres": [512, 1024, 2048], "groups": [512]},
}
settings, plan = PROFILES[profile], classifying.PLANS[profile]
plans = {"genres": plan, "groups": replace(plan, steps=plan.steps // 2)}
SHORT = {"rate": 1e-3, "steps": 2 if profile == "tiny" else 16}
tasks = {task: [Classification(CORPORA[task], n) for n in lengths] for task, lengths in settings.items()}
QUALITIES = {"accuracy": "accuracy (%)", "macro_f1": "macro F1 (%)"}

# %% tags=["remove-input"]
mails = [len(ids) for ids in encoded(CORPORA["groups"], "test")]
covered = 100 * np.mean([length <= PROFILES["full"]["groups"][0] for length in mails])
parts = [f"{classifying.chunk(one)} tokens at n = {one.n:,} ({task})" for task in tasks for one in tasks[task]]
figures.say(
    f"E-mails are read at one length, {PROFILES['full']['groups'][0]} tokens: {covered:.0f} % of those of the test part are no "
    f"longer. The median one has {np.median(mails):.0f}. Steps have at most {plan.tokens:,} tokens. There are "
    f"{plans['genres'].steps} of them for genres and {plans['groups'].steps} for groups, where there are fewer to tell apart. "
    f"Chunks and windows have {', '.join(parts)}."
)

# %% [markdown]
# ## Measuring


# %% tags=["hide-input", "remove-output"]
def beaten(mechanism: str, task: str, n: int) -> list[dict]:
    return classifying.baseline(mechanism, Classification(CORPORA[task], n))


sweep = Sweep(
    "benchmarks/classification",
    target=target,
    profile=profile,
    parameters={**asdict(plan), **settings, "dtype": "bfloat16", "judged in": "float32"},
    sources=[pin_path(corpus) for corpus in CORPORA.values()],
)
cells = [{"mechanism": name, "task": task, "n": one.n} for task in tasks for one in tasks[task] for name in BASELINES]
tables = [sweep.measure(cells, beaten, machine_bound=False)]
easiest = tasks["genres"][0]
short = classifying.contest(plan, easiest)
device = machine.device(target).type
tables.append(short_runs.hold(sweep, short, "bsbr", **SHORT, device=device, task="genres", n=easiest.n))
for task, lengths in tasks.items() if plan.seeds else ():
    rates = None
    for one in lengths:
        contest = classifying.contest(plans[task], one, chosen=rates)
        tables.append(learning.hold(sweep, contest, device=device, task=task, n=one.n))
        rates = rates or learning.chosen(tables[-1], "mechanism")
result = sweep.publish(pd.concat(tables, ignore_index=True))

# %% tags=["remove-input"]
compared = shown.is_compared(result)
lengths = settings["genres"]
first, last = lengths[0], lengths[-1]
SUMMARY = {"learning_rate": None, "seed": None}


def level(metric: str, mechanism: str, task: str = "genres", n: int = last) -> str:
    found = result.select(metric, mechanism=mechanism, task=task, n=n, **SUMMARY).iloc[0]
    return figures.interval(found["value"], found["low"], found["high"])


def summary(metric: str, task: str = "genres", mechanisms: bool = False) -> pd.DataFrame:
    rows = result.select(metric, task=task, **SUMMARY)
    return rows[~rows["mechanism"].isin(BASELINES)] if mechanisms else rows


def beating(task: str, n: int) -> str:
    """Which beat what needs no training; and a warning where none has learned anything."""
    said = [shown.beating(result, "accuracy", name, task=task, n=n) for name in BASELINES]
    learned = classifying.has_learned(result.table, task=task, n=n)
    return " ".join([*said, *([] if learned else [classifying.NOTHING_LEARNED])])


floor = (
    f"A bag of words tells {level('accuracy', classifying.WORDS)} % of the texts of the test part by their first {last:,} "
    f"tokens, the commonest genre is right for {level('accuracy', classifying.MAJORITY)} %."
)
if compared:
    rows = summary("accuracy", mechanisms=True)
    rows = rows[rows["n"] == last].dropna(subset="value")
    best = rows.loc[rows["value"].idxmax(), "mechanism"]
    others = " and ".join(
        f"{level('accuracy', other)} % by {shown.name_of(other)}" for other in ("standard", "bsbr") if other != best
    )
    figures.say(
        f"**Of what was trained alike here, {shown.name_of(best)} tells most genres at {last:,} tokens: "
        f"{level('accuracy', best)} % of the texts, against {others}.** {floor} "
        f"{shown.differing(result, 'accuracy_difference', task='genres', n=last)} {beating('genres', last)}",
        answer,
    )
else:
    figures.say(f"{floor} {shown.NOT_COMPARED}", answer)
figures.say(claims.line(result), stated)


def by_n(metric: str, title: str, rows: pd.DataFrame):
    chart = figures.lines(rows, "n", title=title, x_title="n (tokens)", log_x=True)
    for name in BASELINES:
        chart.update_traces(line_dash="dash", selector={"name": name})
    return chart


chart = by_n("accuracy", "Genres told right, by the tokens that are read", summary("accuracy"))
figures.show(chart, "accuracy", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## Genres

# %% tags=["remove-input"]
for n in lengths:
    if compared:
        figures.say(
            f"**{n:,} tokens.** {shown.differing(result, 'accuracy_difference', task='genres', n=n)} {beating('genres', n)}"
        )
    shown.table(result, QUALITIES, f"Genres at n = {n:,}: what each tells, and what it costs", task="genres", n=n)
figures.show_provenance(result)

# %% tags=["remove-input"]
if compared:
    rows = summary("accuracy_difference")
    chart = figures.bars(
        rows.assign(n=[f"n = {n:,}" for n in rows["n"]]), "mechanism", group="n",
        title="Accuracy less that of standard attention, paired by seed",
    )  # fmt: skip
    figures.show(chart, "difference")
    costs = result.select("flops", task="genres", n=last).set_index("mechanism")["value"]
    rows = summary("accuracy", mechanisms=True)
    rows = rows[rows["n"] == last]
    chart = figures.lines(
        rows.assign(cost=[costs[name] / 1e9 for name in rows["mechanism"]]), "cost",
        title=f"Accuracy against operations, n = {last:,}", x_title="GFLOPs of a pass over a document",
    )  # fmt: skip
    figures.show(chart, "cost")
    figures.show_provenance(result)

# %% [markdown]
# ## Groups of e-mails

# %% tags=["remove-input"]
for one in tasks["groups"]:
    where = {"task": "groups", "n": one.n}
    if compared:
        figures.say(f"{shown.differing(result, 'accuracy_difference', **where)} {beating('groups', one.n)}")
    both = pd.concat([summary(metric, "groups") for metric in QUALITIES])
    both = both.assign(metric=both["metric"].map(QUALITIES))
    figures.table(figures.pivot(both, "mechanism", "metric"), f"Groups of e-mails at n = {one.n:,}")
if not tasks["groups"]:
    figures.say("This profile leaves them out.")
figures.show_provenance(result)

# %% [markdown]
# ## Learning rates

# %% tags=["remove-input"]
for task, lengths_of in settings.items():
    if compared and lengths_of and len(plan.rates) > 1:
        chart = shown.grid(
            result,
            seed=0,
            title=f"Validation loss by learning rate: {task}, n = {lengths_of[0]:,}",
            task=task,
            n=lengths_of[0],
        )
        figures.show(chart, f"grid-{task}")
figures.say(shown.short_run(result))
figures.show_provenance(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
if compared:
    documents = int(result.select("accuracy", mechanism=classifying.WORDS, task="genres", n=last)["samples"].iloc[0])
    found = result.select("accuracy", mechanism="standard", task="genres", **SUMMARY)
    falls = [float(found[found["n"] == n]["value"].iloc[0]) for n in (first, last)]
    spread = result.select("accuracy", mechanism="standard", task="genres", n=last)
    spread = spread[spread["seed"].notna()]
    wide = float((spread["high"] - spread["low"]).mean() / 2)
    stated_fall = by_length["standard"].iloc[0] - by_length["standard"].iloc[-1]
    figures.say(
        f"**Does accuracy fall with the length?** Standard attention tells {figures.number(falls[0])} % at {first:,} tokens "
        f"and {figures.number(falls[1])} % at {last:,}; the documents have it fall by {stated_fall:g} points. "
        f"A longer beginning of a text holds all that a shorter one does.\n\n"
        f"**How much is chance?** Intervals of mechanisms are over seeds: they say what training again would change, on these "
        f"texts. The test part has {documents} of them, and that makes the accuracy of one trained model uncertain by "
        f"±{figures.number(wide, 2)} points, were it to be told of all such texts (95 %, Clopper and Pearson).\n\n"
        f"**Small data.** A run reads {plan.tokens * plan.steps:,} tokens in windows of {len(encoded('brown', 'train'))} training texts, "
        f"and begins from random weights, which know no word. How mechanisms compare once a model knows the language is "
        f"another question."
    )
else:
    figures.say(shown.NOT_COMPARED)

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - Rates are chosen at the first length of a task. Would another rate serve a mechanism better at the last? Give
#   `contest` no `chosen` there, and compare.
# - A mean over positions forgives a mechanism that reads only nearby tokens. Take `pooling="last"`, and the last state has to
#   carry the whole text.
