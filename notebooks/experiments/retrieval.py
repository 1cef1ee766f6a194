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
# - **corrected states**: a chunk's tokens are written to its state one after another by the delta rule, each correcting what the
#   state recalls at its key, instead of being summed. The state is not linear in the keys any more.
# - **one normaliser**: earlier chunks enter the softmax of the own chunk, each for as much as its tokens, instead of being added to
#   what that reads.
#
# The last two have the parameters of BSBR; what their arithmetic and their states come to stands in the tables, beside the qualities.
#
# Standard attention stands beside them. Terms are those of [How models are compared](../../book/fair.md): equal rows in equal
# order, a learning rate of its own for each from the same grid, then fresh seeds; differences are taken seed by seed, to
# standard attention and to BSBR as the documents have it. Chunks hold an eighth of the text. All models have a [short
# convolution](../../book/mechanisms.md#a-short-convolution-and-several-mechanisms-in-one-model) of queries, keys and values.
#
# - **Language**: perplexity on Brown texts and State of the Union addresses, of models as large as on the page about [language
#   modelling](../benchmarks/language_modeling), trained and judged as there at its shortest length; only the convolution is new.
# - **Recall**: values to be told when their keys come again, by the models of the page about [recall](../benchmarks/recall), trained
#   and asked as there, with chunks of an even and of an odd size: pairs have a period of two tokens, and an odd chunk parts some of
#   them. The odd size takes the learning rates of the even one.

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
from bsbr.training.tasks import Recall, corpus_windows

SHARE, SEED, CONV = 8, 0, 4  # chunks of a text; the grid's seed; width of the short convolution
VOCABULARY = 64  # tokens that recall has
PAIRS, HARD = (2, 4, 8, 12), 8  # that are asked for, and those that are trained and that learning rates are chosen by
CORPORA = ("brown", "speeches")
SIZES = {
    "language": {"hidden_dim": 128, "num_layers": 2, "num_heads": 4, "ff_dim": 256, "key_dim": 64},
    "recall": {"hidden_dim": 64, "num_layers": 2, "num_heads": 2, "ff_dim": 128, "key_dim": 64},
}
PROFILES = {
    "tiny": {
        "sizes": {**SIZES, "language": {"hidden_dim": 32, "num_layers": 1, "num_heads": 2, "ff_dim": 32}},
        "n": {"language": 64, "recall": 48}, "steps": {"language": 3, "recall": 4}, "language_tokens": 128, "batch": 16,
        "rates": {"language": (3e-3,), "recall": (3e-3,)}, "seeds": {"language": (1,), "recall": (1,)},
        "test_tokens": 256, "validation_tokens": 256, "validation_rows": 4, "test_rows": 20,
        "variants": ("standard", "bsbr", f"best {TOP}, read exactly", "corrected states", "one normaliser"),
    },
    "quick": {
        "tasks": ("recall",), "variants": ("bsbr",), "rates": {"recall": (3e-3,)}, "seeds": {"recall": ()},
    },
    "full": {},
}  # fmt: skip
settings = {
    "tasks": ("language", "recall"), "variants": tuple(VARIANTS), "sizes": SIZES, "n": {"language": 512, "recall": 48},
    "steps": {"language": 480, "recall": 800}, "language_tokens": 2048, "batch": 64,
    "rates": {"language": (5e-4, 1.5e-3, 4.5e-3), "recall": (1.5e-3, 3e-3, 6e-3)},
    "seeds": {"language": (1, 2, 3), "recall": (1, 2, 3, 4, 5)}, "test_tokens": 2**16, "validation_tokens": 2**15,
    "validation_rows": 256, "test_rows": 500, **PROFILES[profile],
}  # fmt: skip
steps, seeds = settings["steps"], settings["seeds"]
whole = bool(seeds["recall"])  # without seeds a part of the grid alone is trained
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
def variants(task: str, size: int) -> dict:
    sizes = settings["sizes"][task]
    return models(settings["variants"], **sizes, chunk_size=size, window_size=size, short_conv=CONV)


def language() -> learning.Contest:
    n = settings["n"]["language"]
    task = corpus_windows(n, CORPORA)
    training = Settings(
        steps=steps["language"], batch=settings["language_tokens"] // n, warm_up=steps["language"] // 10, seed=SEED,
        evaluate_rows=settings["validation_tokens"] // n,
    )  # fmt: skip
    judge = functools.partial(prediction.judge, task=task, rows=settings["test_tokens"] // n)
    configs = variants("language", chunks["language"])
    rates = settings["rates"]["language"]
    return learning.Contest("variant", configs, task, training, rates, seeds["language"], judge)


def pairs(count: int, n: int) -> Recall:
    return Recall(count, n, VOCABULARY)


def recall(chosen: dict | None = None) -> learning.Contest:
    n, configs = settings["n"]["recall"], variants("recall", chunks["recall"])
    if chosen is not None:  # standard attention has no chunks: its runs are the same
        odd = variants("recall", ODD)
        configs = {name: configs[name] if name == "standard" else odd[name] for name in configs}
    training = Settings(
        steps=steps["recall"], batch=settings["batch"], warm_up=steps["recall"] // 20, final_rate=0.1, seed=SEED,
        save_every=10_000, evaluate_rows=settings["validation_rows"],
    )  # fmt: skip
    judge = functools.partial(answers.recalled, tasks=[pairs(count, n) for count in PAIRS], rows=settings["test_rows"])
    rates = settings["rates"]["recall"]
    return learning.Contest(
        "variant", configs, pairs(HARD, n), training, rates, seeds["recall"], judge, chosen=chosen
    )  # fmt: skip


sweep = Sweep(
    "experiments/retrieval",
    target=target,
    profile=profile,
    parameters={
        **settings["sizes"], "short_conv": CONV, "vocabulary": VOCABULARY, "dtype": "bfloat16", "judged in": "float32",
        "top": TOP,
    },
    sources=[sources.pin_path(name) for name in CORPORA],
)  # fmt: skip
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
    "corrected states": "with a choice by each chunk, of states that the delta rule makes",
    "one normaliser": "with one normaliser for the states and the own chunk",
    f"best {TOP}, read exactly": f"with the best {TOP} chunks read exactly",
    "standard": "with all read exactly, which is standard attention",
}
STEPS = {name: words for name, words in STEPS.items() if name in settings["variants"]}
if whole:
    for name in held:
        told = "; ".join(f"{words} {of(variant, name)}" for variant, words in STEPS.items())
        figures.say(f"**{TITLES[name]}**, {WORD[name]}: {told}.")
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
# - One encoder of chunks stands beside the sum. It has nothing to learn of its own; one that reads a chunk by attention would.
# - With one normaliser a chunk enters by a score and is still read linearly. What if its values were averaged by positive weights, too?
# - How many chunks should be read exactly? Try `TOP` in `bsbr/studies/retrieval.py`.
