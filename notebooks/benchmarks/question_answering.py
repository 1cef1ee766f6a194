# %% [markdown]
# # Questions about a long text
#
# Which mechanism answers from a long text, and from how far back?

# %% tags=["remove-input"]
from bsbr.show import claims, figures, learning

answer, stated, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# One document states F1 scores of three mechanisms at three lengths; it names no data, no training and no kind of
# question. By its numbers all three answer about equally well, and `bsbr` loses least with length. Another repeats them
# and calls them placeholders.

# %% tags=["hide-input"]
said = claims.load("f1_score")
figures.table(
    said[["document", "mechanism", "conditions", "value", "unit"]].assign(document=said["document"].map(claims.short)),
    caption="Claimed: F1",
)

# %% [markdown]
# ## Method
#
# **The task.** Facts are hidden in a stretch of a real text of the Brown corpus: who of several people has which thing, such as
# "Clara owns a red cat." At the end one fact is asked for in other words: "Which animal is cared for by Clara?" The answer
# has two words, drawn anew for each text, so that nothing can be learned by heart; the other facts have the same form and
# other people, so that whoever finds a fact has not found the fact. Training, validation and test have texts of different
# documents.
#
# **Scores** are those of SQuAD {cite:p}`rajpurkar2016`: F1 is the overlap of words with the right answer, exact match
# the share of answers that are right word for word. The model writes its answer token by token, each the likeliest, until it ends
# the text.
#
# **Trivial answers** stand beside: a thing drawn from those that the text tells of, and the commonest answer of the training
# part. Who has learned what a thing is, and not whose, is as good as the first.
#
# **Training.** Small models learn to look something up only after many examples, so training begins with short texts, several
# questions each, and goes on with longer ones: the same rows in the same order for every mechanism. First weights are larger
# than this library's usual ones, as on the page about recall. Loss is on the answers
# alone. One model of each mechanism and seed reads all lengths. Its learning rate is chosen on validation texts of the
# shortest length in the table, and used for all; then fresh seeds are trained. Chunks of `bsbr` and `gau` and the window of
# `sliding_window` are an eighth of that length throughout. [How models are compared](../../book/fair.md) has the rules.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import functools

import pandas as pd

from bsbr import MECHANISMS, ModelConfig, sources
from bsbr.measure import machine
from bsbr.store import NUMBERS, Sweep, only
from bsbr.studies import answers
from bsbr.studies.learning import Contest, costs, hold
from bsbr.training import Settings
from bsbr.training.tasks import Questions, Stages
from bsbr.training.tokens import CORPORA

SIZES = {"hidden_dim": 128, "num_layers": 2, "num_heads": 2, "ff_dim": 256, "chunk_size": 64, "window_size": 64}
FACTS = {"people": 4, "kinds": 1, "forms": 1}
STAGES = [(2, 140, 500), (4, 240, 250), (4, 512, 50), (4, 1024, 20), (4, 2048, 8)]  # people, n, steps
START = 4  # first weights so many times the usual ones
GRID_SEED = 0
PROFILES = {
    "tiny": {
        "stages": [(2, 140, 2), (4, 240, 1)], "lengths": [256], "batch": 2, "rates": (2e-3,), "seeds": (1,), "rows": 4,
        "training_rows": 20, "evaluate_rows": 4, "mechanisms": 2,
    },
    "quick": {"mechanisms": 1, "rates": (2e-3,), "seeds": ()},
    "full": {},
}  # fmt: skip
settings = {
    "mechanisms": len(MECHANISMS), "stages": STAGES, "lengths": [512, 1024, 2048], "batch": 16,
    "rates": (1e-3, 2e-3, 4e-3), "seeds": (1, 2, 3), "rows": 200, "training_rows": 2000, "evaluate_rows": 128,
    **PROFILES[profile],
}  # fmt: skip
lengths, batch = settings["lengths"], settings["batch"]
shortest, longest = lengths[0], lengths[-1]
ENDS = tuple(end for end in (64, 128, 256, 512, 1024, 2048) if end <= longest)
mechanisms = list(MECHANISMS)[: settings["mechanisms"]]
device = str(machine.device(target))
whole = bool(settings["seeds"])  # else a part of the grid alone is trained

# %% [markdown]
# ## Measuring


# %% tags=["hide-input", "remove-output"]
def questions(n: int) -> Questions:
    return Questions(n, **FACTS)


def lesson(people: int, n: int) -> Questions:
    """Texts to train on, each with a question about every fact."""
    return Questions(n, **{**FACTS, "people": people}, asked=people * FACTS["kinds"])


models = {name: ModelConfig(name, **SIZES) for name in mechanisms}
tests = [questions(n) for n in lengths]
stages = settings["stages"]
steps = sum(count for _, _, count in stages)
task = Stages(tuple((count * batch, lesson(people, n)) for people, n, count in stages), tests[0])
training = Settings(
    steps=steps, batch=batch, warm_up=steps // 30, final_rate=0.1, evaluate_rows=settings["evaluate_rows"],
    seed=GRID_SEED, save_every=200,
)  # fmt: skip
judge = functools.partial(answers.answered, tasks=tests, rows=settings["rows"], ends=ENDS)
contest = Contest("mechanism", models, task, training, settings["rates"], settings["seeds"], judge, start=START)


def guess(n: int) -> list[dict]:
    return answers.guessed(questions(n), settings["rows"], settings["training_rows"])


def cost(mechanism: str, n: int) -> list[dict]:
    return costs(models[mechanism], questions(n), None, "mean", device)


sweep = Sweep(
    "benchmarks/question_answering",
    target=target,
    profile=profile,
    parameters={**SIZES, **FACTS, "dtype": "bfloat16"},
    sources=[sources.pin_path(corpus) for corpus in CORPORA],
)
tables = [
    hold(sweep, contest, device=device),
    sweep.measure([{"n": n} for n in lengths], guess, machine_bound=False),
    sweep.measure([{"mechanism": name, "n": n} for name in models for n in lengths], cost, machine_bound=False),
]
result = sweep.publish(pd.concat(tables, ignore_index=True))


# %% tags=["remove-input"]
def scores(metric: str, n: int) -> pd.DataFrame:
    """One row a mechanism or baseline, over seeds."""
    given = {"learning_rate": None, "seed": None, "distance": None} if whole else {}
    return result.select(metric, n=n, **given)


def shown(metric: str, n: int, mechanism: str) -> str:
    rows = scores(metric, n)
    return figures.interval(*only(rows, metric, mechanism=mechanism)[NUMBERS])


def trivial(n: int) -> str:
    return f"{answers.ANY_THING} {shown('f1', n, answers.ANY_THING)} %"


if not whole:
    tried = learning.runs(result, "validation_accuracy")
    found = [f"{learning.name_of(row.mechanism)} {figures.number(row.value)} %" for row in tried.itertuples()]
    figures.say(
        f"**Tokens of the answers told right on validation texts of {shortest} tokens, one run each: "
        f"{', '.join(found)}; F1 of {trivial(shortest)}.** {learning.NOT_COMPARED}",
        answer,
    )
    figures.show(figures.bars(tried, "mechanism", group="learning_rate", title="Answers"), "f1", main_chart)
else:
    beaten = {n: learning.beating(result, "f1", answers.ANY_THING, n=n) for n in lengths}
    found = [f"{learning.name_of(name)} {shown('f1', longest, name)} %" for name in mechanisms]
    figures.say(
        f"**F1 at {longest:,} tokens: {', '.join(found)}; {trivial(longest)}.** {beaten[longest]} "
        + " ".join(f"At {n:,} tokens: {learning.differing(result, 'f1_difference', n=n)}" for n in lengths),
        answer,
    )
    rows = pd.concat([scores("f1", n) for n in lengths])
    chart = figures.lines(rows, "n", title="F1 by length of the text", x_title="n (tokens)", log_x=True)
    stated_f1 = said[~said["placeholder"]]
    for name, part in stated_f1.groupby("mechanism", sort=False):
        at = [claims.conditions(text)["n"] for text in part["conditions"]]
        figures.add_claim(chart, at, list(part["value"]), f"claimed, {name}")
    figures.show(chart.update_yaxes(range=[0, 100]), "f1", main_chart)
figures.say(claims.line(result), stated)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## Scores and costs

# %% tags=["remove-input"]
for n in lengths if whole else ():
    learning.table(
        result, {"f1": "F1 (%)", "exact_match": "exact match (%)"}, f"Texts of {n:,} tokens, over seeds", n=n
    )
    figures.say(beaten[n])
figures.show_provenance(result)

# %% [markdown]
# ## How far back
#
# The same answers by how many tokens lie between the fact and the question.

# %% tags=["remove-input"]
if whole:
    rows = result.select("f1", learning_rate=None, seed=None, n=longest)
    rows = rows[rows["distance"].notna()]
    chart = figures.lines(
        rows, "distance", title=f"F1 by distance of the fact, texts of {longest:,} tokens", log_x=True,
        x_title="tokens back, at most",
    )  # fmt: skip
    figures.show(chart, "distance")
    near, far = (rows[rows["distance"] == end].set_index("mechanism") for end in (rows["distance"].min(), longest))
    both = [name for name in mechanisms if name in near.index and name in far.index]
    figures.say(
        f"F1 where the fact lies up to {rows['distance'].min()} tokens back, and in the farthest class: "
        + "; ".join(
            f"{learning.name_of(name)} {figures.interval(*near.loc[name, NUMBERS])} % and "
            f"{figures.interval(*far.loc[name, NUMBERS])} %"
            for name in both
        )
        + "."
    )

# %% [markdown]
# ## Training

# %% tags=["remove-input"]
figures.show(learning.grid(result, GRID_SEED, "Validation loss by learning rate, one run each"), "rates")
if whole:
    learning.table(result, {"validation_loss": "validation loss (nats)"}, f"At {shortest} tokens, over seeds")
figures.say(
    f"Steps of {batch} texts: "
    + ", ".join(f"{count} with {people} people in {n:,} tokens" for people, n, count in stages)
    + ". Sizes: "
    + ", ".join(f"{name} {value}" for name, value in SIZES.items())
    + "."
)
figures.show_provenance(result)

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - Facts of one form, small models and minutes of training. No document says what its questions were.
# - The models have read little English: they answer because they look up, not because they understand.
# - How many facts does a text bear before a mechanism with a fixed state mixes them up? Try `people` and `kinds`.
# - Do the forms in which the thing stands before the person take longer to learn? Try `forms`.
