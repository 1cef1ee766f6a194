# %% [markdown]
# # Retrieval
#
# What does the work in BSBR: reading the own chunk, the states of earlier chunks, or the choice among them? And what would
# another kind of retrieval bring?

# %% tags=["remove-input"]
from bsbr.show import figures

answer, main_chart, second_chart, origin = (figures.reserve(what) for what in ("answer", "chart", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# No document takes the mechanism apart. They say that retrieval lets a chunk read what matters of the whole text, and that
# states keep enough of it; neither was measured by itself.
#
# ## Method
#
# BSBR reads the own chunk exactly, keeps a state for each earlier one, and mixes these by a choice that is made once a chunk
# ([](../../book/idea.md)). Each variant changes one of these parts and leaves all else as it is:
#
# - **no retrieval**: the own chunk alone. What retrieval brings at all is the distance to this.
# - **equal weights**: the mean of all earlier states. Without a choice there are no meta queries and no meta keys.
# - **choice by token**: each token has a meta query and weighs the states for itself; its time grows with the square of the
#   text's length.
# - **best few**: only the states of the chunks that score highest are mixed.
# - **best few, read exactly**: the tokens of those chunks join the softmax of the own chunk, and no states are made. Their scores
#   are raised by that of the chunk, so that the choice is learned.
#
# Standard attention stands beside them. Terms are those of [How models are compared](../../book/fair.md): equal rows in equal
# order, a learning rate of its own for each from the same grid, then fresh seeds; differences are taken seed by seed, to
# standard attention and to BSBR as the documents have it. Chunks hold an eighth of the text.
#
# - **Language**: perplexity on Brown texts and State of the Union addresses, trained and judged as on the page about [language
#   modelling](../benchmarks/language_modeling).
# - **Recall**: values to be told when their keys come again, trained and asked as on the page about [recall](../benchmarks/recall),
#   with chunks of an even and of an odd size: pairs have a period of two tokens, and an odd chunk parts some of them. The odd
#   size takes the learning rates of the even one.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import functools

import pandas as pd

from bsbr import sources
from bsbr.measure import machine
from bsbr.show import learning as shown
from bsbr.store import NUMBERS, Sweep, only
from bsbr.studies import answers, learning, prediction
from bsbr.studies.retrieval import TOP, VARIANTS, models
from bsbr.training import Settings
from bsbr.training.tasks import Recall, Stages, corpus_windows

SHARE, SEED = 8, 0  # chunks of a text; the grid's seed
SIZES = {
    "language": {"hidden_dim": 256, "num_layers": 2, "num_heads": 4, "ff_dim": 512},
    "recall": {"hidden_dim": 64, "num_layers": 2, "num_heads": 1, "ff_dim": 128, "key_dim": 64},
}
VOCABULARY, START = 128, 5  # of recall: tokens there are, and how many times the usual first weights are
STAGES = [(2, 8, 900), (4, 16, 150), (8, 32, 100), (4, 64, 50), (16, 64, 50), (16, 120, 30)]  # pairs, n, steps
PROFILES = {
    "tiny": {
        "sizes": {**SIZES, "language": {"hidden_dim": 32, "num_layers": 1, "num_heads": 2, "ff_dim": 32}},
        "n": {"language": 64, "recall": 64}, "language_tokens": 128, "language_steps": 3, "language_rates": (3e-3,),
        "test_tokens": 256, "validation_tokens": 256, "stages": [(8, 64, 4)], "batch": 16, "rates": (2e-3,),
        "validation_rows": 4, "test_rows": 20, "seeds": (1,),
        "variants": ("standard", "bsbr", f"best {TOP}, read exactly"),
    },
    "quick": {"tasks": ("recall",), "variants": ("bsbr",), "rates": (2e-3,), "seeds": ()},
    "full": {},
}  # fmt: skip
settings = {
    "tasks": ("language", "recall"), "variants": tuple(VARIANTS), "sizes": SIZES, "n": {"language": 512, "recall": 64},
    "language_tokens": 2048, "language_steps": 256, "language_rates": (1e-3, 3e-3, 9e-3), "test_tokens": 2**16,
    "validation_tokens": 2**15, "stages": STAGES, "batch": 64, "rates": (1e-3, 2e-3, 4e-3), "validation_rows": 256,
    "test_rows": 500, "seeds": (1, 2, 3), **PROFILES[profile],
}  # fmt: skip
PAIRS, HARD = (2, 4, 8, 16), 8  # that are asked for, and those that learning rates are chosen by
CORPORA = ("brown", "speeches")
seeds, whole = settings["seeds"], bool(settings["seeds"])  # without seeds a part of the grid alone is trained
chunks = {task: n // SHARE for task, n in settings["n"].items()}
ODD = chunks["recall"] - 1
WHERE = {  # what tells the rows of one task from those of another
    "language": {"task": "language", "n": settings["n"]["language"], "chunk_size": chunks["language"]},
    "recall": {"task": "recall", "n": settings["n"]["recall"], "chunk_size": chunks["recall"]},
    "odd": {"task": "recall", "n": settings["n"]["recall"], "chunk_size": ODD},
}

# %% [markdown]
# ## Measuring


# %% tags=["hide-input", "remove-output"]
def variants(task: str) -> dict:
    return models(settings["variants"], **settings["sizes"][task], chunk_size=chunks[task], window_size=chunks[task])


def language() -> learning.Contest:
    n, steps = settings["n"]["language"], settings["language_steps"]
    task = corpus_windows(n, CORPORA)
    training = Settings(
        steps=steps, batch=settings["language_tokens"] // n, warm_up=steps // 10, seed=SEED,
        evaluate_rows=settings["validation_tokens"] // n,
    )  # fmt: skip
    judge = functools.partial(prediction.judge, task=task, rows=settings["test_tokens"] // n)
    return learning.Contest("variant", variants("language"), task, training, settings["language_rates"], seeds, judge)


def pairs(count: int, n: int) -> Recall:
    return Recall(count, n, VOCABULARY)


def recall(chosen: dict | None = None) -> learning.Contest:
    n, configs = settings["n"]["recall"], variants("recall")
    if chosen is not None:  # standard attention has no chunks: its runs are the same
        odd = models(settings["variants"], **settings["sizes"]["recall"], chunk_size=ODD, window_size=ODD)
        configs = {name: configs[name] if name == "standard" else odd[name] for name in configs}
    stages = tuple((steps * settings["batch"], pairs(count, length)) for count, length, steps in settings["stages"])
    steps = sum(steps for *_, steps in settings["stages"])
    training = Settings(
        steps=steps, batch=settings["batch"], warm_up=steps // 30, final_rate=0.1, seed=SEED, save_every=10_000,
        evaluate_rows=settings["validation_rows"],
    )  # fmt: skip
    judge = functools.partial(answers.recalled, tasks=[pairs(count, n) for count in PAIRS], rows=settings["test_rows"])
    task = Stages(stages, pairs(HARD, n))
    return learning.Contest(
        "variant", configs, task, training, settings["rates"], seeds, judge, chosen=chosen, start=START
    )


sweep = Sweep(
    "experiments/retrieval",
    target=target,
    profile=profile,
    parameters={**settings["sizes"], "vocabulary": VOCABULARY, "dtype": "bfloat16", "judged in": "float32", "top": TOP},
    sources=[sources.pin_path(name) for name in CORPORA],
)
device = str(machine.device(target))
tables = []


def hold(contest: learning.Contest, name: str) -> pd.DataFrame:
    """All rows of a contest, with differences to both standard attention and BSBR."""
    table = learning.hold(sweep, contest, device=device, **WHERE[name])
    tables.append(table)
    if whole:
        tables.append(learning.differences(table, contest, "bsbr", **WHERE[name]))
    return table


if "language" in settings["tasks"]:
    hold(language(), "language")
if "recall" in settings["tasks"]:
    even = hold(recall(), "recall")
    if whole:
        hold(recall(learning.chosen(even, "variant")), "odd")
result = sweep.publish(pd.concat(tables, ignore_index=True))


# %% tags=["remove-input"]
QUALITY = {"language": "perplexity", "recall": "accuracy", "odd": "accuracy"}
DIFFERENCE = {"language": "perplexity_gain", "recall": "accuracy_difference", "odd": "accuracy_difference"}
TITLES = {
    "language": f"Language, {WHERE['language']['n']:,} tokens in chunks of {chunks['language']}",
    "recall": f"Recall of {HARD} pairs among {WHERE['recall']['n']} tokens, chunks of {chunks['recall']}",
    "odd": f"the same with chunks of {ODD}",
}
SUMMARY = {"learning_rate": None, "seed": None}
ASKED = {name: {**where, "pairs": HARD} if where["task"] == "recall" else where for name, where in WHERE.items()}
held = [name for name in WHERE if name.replace("odd", "recall") in settings["tasks"]]


def means(name: str) -> pd.DataFrame:
    """Qualities over seeds, one row a variant."""
    rows = result.select(QUALITY[name], **SUMMARY, **ASKED[name])
    return rows[rows["position"].isna()] if "position" in rows else rows


def of(variant: str, name: str) -> str:
    return figures.interval(*only(means(name), QUALITY[name], variant=variant)[NUMBERS])


def to_bsbr(name: str) -> str:
    return shown.differing(
        result, DIFFERENCE[name], factor="variant", than=shown.name_of("bsbr"), against="bsbr", **ASKED[name]
    )


def to_standard(name: str) -> str:
    return shown.differing(result, DIFFERENCE[name], factor="variant", **ASKED[name])


if whole:
    first, *others = (f"{TITLES[name][0].upper()}{TITLES[name][1:]}: {to_bsbr(name)}" for name in held)
    figures.say(f"**{first}** {' '.join(others)}", answer)
    for name, place in (("language", main_chart), ("recall", second_chart)):
        both = [means(one) for one in held if WHERE[one]["task"] == name]
        rows = pd.concat(both).assign(variant=lambda frame: frame["variant"].map(shown.name_of))
        rows["chunks"] = [f"chunks of {size}" for size in rows["chunk_size"]]
        chart = figures.bars(rows, "variant", group="chunks", title=TITLES[name].split(", chunks")[0], x_title="")
        figures.show(chart, f"{name}-quality", place)
else:
    tried = shown.runs(result, "validation_accuracy")
    found = [f"{shown.name_of(row.variant)} {figures.number(row.value)} %" for row in tried.itertuples()]
    figures.say(
        f"**{TITLES['recall']}, on validation data, one run each: {', '.join(found)}.** {shown.NOT_COMPARED}", answer
    )
    figures.show(figures.bars(tried, "variant", group="learning_rate", title="Recalled"), "recall-quality", main_chart)
    figures.say("", second_chart)
figures.say(figures.provenance_line(result), origin)


# %% [markdown]
# ## Language
#
# Beside each perplexity stands what the variant costs. A gain is standard attention's perplexity over this one's, seed by seed;
# above one predicts better. By position: the later a token, the more chunks there are before it, and the more retrieval has
# to give.


# %% tags=["remove-input"]
def costs(name: str, qualities: dict[str, str]) -> None:
    shown.table(result, qualities, f"{TITLES[name]}, over seeds", factor="variant", **WHERE[name])


if whole and "language" in held:
    costs("language", {"perplexity": "perplexity", "perplexity_gain": "standard's over this"})
    figures.say(f"{to_standard('language')} {to_bsbr('language')}")
    rows = result.select("perplexity", **SUMMARY, **WHERE["language"]).dropna(subset="position")
    chart = figures.lines(
        rows.assign(variant=rows["variant"].map(shown.name_of)), "position", group="variant", log_x=True,
        title="Perplexity by position", x_title="position (tokens), end of a stretch",
    )  # fmt: skip
    figures.show(chart, "position")
else:
    figures.say(shown.NOT_COMPARED)
figures.show_provenance(result)

# %% [markdown]
# ## Recall

# %% tags=["remove-input"]
if whole:
    for name in ("recall", "odd"):
        rows = result.select("accuracy", **SUMMARY, **WHERE[name]).dropna(subset="pairs")
        rows = rows.assign(pairs=[f"{count} pairs" for count in rows["pairs"]])
        figures.table(figures.pivot(rows, "variant", "pairs"), f"Recalled in %, chunks of {WHERE[name]['chunk_size']}")
        figures.say(f"{HARD} pairs. {to_standard(name)} {to_bsbr(name)}")
    costs("recall", {"validation_accuracy": f"recalled of {HARD} pairs, validation (%)"})
    found = answers.chances(pairs(HARD, WHERE["recall"]["n"]))
    guesses = ", ".join(f"{one['mechanism']} {figures.number(one['value'])} %" for one in found)
    figures.say(f"By guessing, {HARD} pairs: {guesses}.")
else:
    figures.say(shown.NOT_COMPARED)
figures.show_provenance(result)

# %% [markdown]
# ## Learning rates

# %% tags=["remove-input"]
for name in [one for one in held if one != "odd"]:
    chart = shown.grid(
        result, SEED, f"{TITLES[name]}: validation loss by learning rate", factor="variant", **WHERE[name]
    )
    figures.show(chart, f"grid-{name}")
figures.show_provenance(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
WORD = {"language": "perplexity", "recall": "recalled in %", "odd": "recalled in %"}
STEPS = {
    "no retrieval": "without retrieval",
    "equal weights": "with the mean of all states",
    "bsbr": "with a choice by each chunk, which is BSBR",
    "choice by token": "with a choice by each token",
    f"best {TOP}": f"with the states of the best {TOP} chunks alone",
    f"best {TOP}, read exactly": f"with the best {TOP} chunks read exactly",
    "standard": "with all read exactly, which is standard attention",
}
STEPS = {name: words for name, words in STEPS.items() if name in settings["variants"]}
if whole:
    for name in held:
        steps = "; ".join(f"{words} {of(variant, name)}" for variant, words in STEPS.items())
        figures.say(f"**{TITLES[name]}**, {WORD[name]}: {steps}.")
    kept = {name: result.value("state_bytes", variant=name, **WHERE["language"]) for name in STEPS}
    listed = ", ".join(f"{shown.name_of(name)} {figures.number(size / 1000)} kB" for name, size in kept.items())
    figures.say(
        f"**What is kept.** After {WHERE['language']['n']:,} tokens all layers keep, in float32: {listed}. Exact reading needs "
        f"every key and value, as standard attention does; what it saves is time."
    )
else:
    figures.say(shown.NOT_COMPARED)

# %% [markdown]
# ## Questions to a long text
#
# Models that answer from a long text take so much training (see [](../benchmarks/question_answering)) that the variants are not
# trained for it here. Recall asks for the same skill, to find by content what stands far back, and takes a fraction of it.

# %% [markdown]
# ## Limits and exercises
#
# - Small models, short texts and few chunks: a choice has little to choose from. What changes in longer texts?
# - The formula's state is linear in the tokens of a chunk. Nothing here says what a better encoder of chunks would bring.
# - How many chunks should be read exactly? Try `TOP` in `bsbr/studies/retrieval.py`.
