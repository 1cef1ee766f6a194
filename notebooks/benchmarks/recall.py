# %% [markdown]
# # Recall
#
# Which mechanism remembers what it has read, and how many bytes of state does it take?

# %% tags=["remove-input"]
from bsbr.show import claims, figures, learning
from bsbr.show.captions import listed

answer, stated, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# No document says what a mechanism remembers; they speak of long context and of retrieval. What a model answers from a
# text hangs on it, and it can be measured by itself, small and exactly.
#
# ## Method
#
# **The task** is multi-query associative recall, as {cite:t}`arora2023` ("Zoology")
# define it. A row begins with pairs of a key and a value, drawn anew for each row. Then each key comes once more among
# tokens drawn at random, most of them soon and some late, and the model is to tell its value. Accuracy is over those places
# alone. Nothing can be learned by heart: what pairs a key with a value stands in the row only.
#
# **What it takes.** A value follows its key, so a model has to join neighbouring tokens first and can look the pair up
# after that: two steps. A short convolution of queries, keys and values does the first at once, and architectures with a
# small state are published with one {cite:p}`arora2023,yang2024`. So all mechanisms have one here, four tokens wide and without
# an activation. What becomes of each without it, in as many steps, is measured below, and what depth makes up for.
#
# **Equal terms.** All mechanisms read the same rows in the same order and have the same layers and width. Rows of training
# have as many pairs and tokens as the harder of the rows that lead this page; one model of each mechanism and seed is then
# asked at several numbers of pairs and two lengths. Chunks of `bsbr` and `gau` and the window of `sliding_window` are an eighth
# of the shorter one. The learning rate of each mechanism is chosen on validation data, from a grid that is widened if
# its end is best; then fresh seeds are trained. Intervals are Student's, over seeds. Other widths and depths, and models
# without the convolution, take the learning rates of the first. [How models are compared](../../book/fair.md) has the rules.
#
# **State** is what all layers keep in order to decode the next token after the shorter length, in float32. It grows with the
# length for `standard` and `hopfield`, by a matrix a chunk for `bsbr`, and not at all for the others.
#
# Much is smaller than in the paper, so that a run takes seconds: fewer tokens in the vocabulary and fewer rows. A
# mechanism that does not recall here may do so after more steps.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import functools

import pandas as pd

from bsbr import MECHANISMS, ModelConfig
from bsbr.measure import machine
from bsbr.store import NUMBERS, Sweep
from bsbr.studies import answers
from bsbr.studies.learning import Contest, chosen, hold
from bsbr.training import Settings
from bsbr.training.tasks import Recall

VOCABULARY, HEADS, LAYERS = 64, 2, 2
SHORT, LONG, CHUNK = 48, 60, 6
WIDTH, CONV = 64, 4
MODEL = {"hidden_dim": WIDTH, "num_layers": LAYERS, "short_conv": CONV}
WITHOUT = {**MODEL, "short_conv": 0}
REACH = LAYERS * (CHUNK - 1 + CONV - 1)  # tokens that sliding window can look back
EASY, HARD = {"pairs": 2, "n": SHORT}, {"pairs": 8, "n": SHORT}
ASKED = [EASY, {"pairs": 4, "n": SHORT}, HARD, {"pairs": 12, "n": SHORT}, {"pairs": 8, "n": LONG}]
PROFILES = {
    "tiny": {
        "steps": 3, "batch": 4, "evaluate_rows": 4, "rates": (3e-3,), "seeds": (1,), "mechanisms": 2, "test_rows": 20,
        "controls": ["bsbr"],
    },
    "quick": {"rates": (3e-3,), "seeds": (), "mechanisms": 1},
    "full": {},
}  # fmt: skip
settings = {
    "steps": 800, "batch": 64, "evaluate_rows": 256, "rates": (1.5e-3, 3e-3, 6e-3), "seeds": (1, 2, 3, 4, 5),
    "mechanisms": 7, "test_rows": 500, "widths": [32], "depths": [1], "controls": ["bsbr", "gau"],
    **PROFILES[profile],
}  # fmt: skip
mechanisms = list(MECHANISMS)[: settings["mechanisms"]]
device = str(machine.device(target))
GRID_SEED, EVEN = 0, f"chunks of {CHUNK}"
CHUNKS = {f"chunks of {size}": size for size in (CHUNK, CHUNK - 1)}
steps = settings["steps"]
whole = bool(settings["seeds"])  # else a part of the grid alone is trained

# %% [markdown]
# ## Measuring


# %% tags=["hide-input", "remove-output"]
def model(mechanism: str, hidden_dim: int, num_layers: int, short_conv: int, size: int = CHUNK) -> ModelConfig:
    return ModelConfig(
        mechanism, vocab_size=VOCABULARY, hidden_dim=hidden_dim, num_layers=num_layers,
        num_heads=HEADS, ff_dim=2 * hidden_dim, chunk_size=size, window_size=size, key_dim=hidden_dim, short_conv=short_conv or None,
    )  # fmt: skip


def recall(pairs: int, n: int) -> Recall:
    return Recall(pairs, n, VOCABULARY)


task = recall(**HARD)
training = Settings(
    steps=steps, batch=settings["batch"], warm_up=steps // 20, final_rate=0.1, evaluate_rows=settings["evaluate_rows"],
    seed=GRID_SEED, save_every=10_000,
)  # fmt: skip
tests = [recall(**asked) for asked in ASKED]
judge = functools.partial(
    answers.recalled, tasks=tests, rows=settings["test_rows"], ends=(CHUNK, REACH, 4 * CHUNK, SHORT, LONG)
)


def contest(factor: str, models: dict, rates: dict | None = None) -> Contest:
    return Contest(factor, models, task, training, settings["rates"], settings["seeds"], judge, chosen=rates)


sweep = Sweep(
    "benchmarks/recall",
    target=target,
    profile=profile,
    parameters={"vocab_size": VOCABULARY, "num_heads": HEADS, "dtype": "bfloat16"},
)
tables = [
    hold(sweep, contest("mechanism", {name: model(name, **MODEL) for name in mechanisms}), device=device, **MODEL)
]
narrow = [{**MODEL, "hidden_dim": width} for width in settings["widths"]]
deep = [{**MODEL, "num_layers": depth} for depth in settings["depths"]]
if whole:
    rates = chosen(tables[0], "mechanism")
    for sizes in (*narrow, *deep, WITHOUT):
        held = contest("mechanism", {name: model(name, **sizes) for name in mechanisms}, rates)
        tables.append(hold(sweep, held, device=device, **sizes))
    for name in settings["controls"]:
        models = {variant: model(name, **MODEL, size=size) for variant, size in CHUNKS.items()}
        held = contest("variant", models, {variant: rates.get(name) for variant in models})
        tables.append(hold(sweep, held, device=device, against=EVEN, mechanism=name, **MODEL))
    guesses = [{**row, **MODEL} for one in tests for row in answers.chances(one)]
    tables.append(pd.DataFrame(guesses))
result = sweep.publish(pd.concat(tables, ignore_index=True))


# %% tags=["remove-input"]
ENOUGH = 99  # % that count as recalled


def named(names: list) -> str:
    """`a, b and c`, mechanisms by their titles."""
    return listed(map(learning.name_of, names)) or "none"


def recalled(asked: dict, sizes: dict = MODEL) -> pd.DataFrame:
    """Accuracy over seeds, one row a mechanism."""
    where = {"learning_rate": None, "seed": None, "distance": None, "variant": None, **asked, **sizes}
    rows = result.select("accuracy", **where)
    return rows[rows["mechanism"].isin(list(MECHANISMS)) & (rows["status"] == "ok")]


def of(mechanism: str, asked: dict, sizes: dict = MODEL) -> str:
    rows = recalled(asked, sizes)
    rows = rows[rows["mechanism"] == mechanism]
    return f"{figures.interval(*rows[NUMBERS].iloc[0])} %" if len(rows) else "–"


def words(asked: dict) -> str:
    return f"{asked['pairs']} pairs among {asked['n']} tokens"


def by(factor: str, frames: list[pd.DataFrame], title: str, x_title: str, name: str) -> None:
    """A line a mechanism along one factor."""
    figures.show(figures.lines(pd.concat(frames), factor, title=title, x_title=x_title, log_x=True), name)


best = learning.runs(result, "validation_accuracy")
best = best[(best["seed"] == GRID_SEED) & (best["hidden_dim"] == WIDTH) & (best["num_layers"] == LAYERS)]
best = best[best["short_conv"] == CONV]
if not whole:
    found = [f"{learning.name_of(row.mechanism)} {figures.number(row.value)} %" for row in best.itertuples()]
    figures.say(f"**Recalled on validation data, {words(HARD)}: {', '.join(found)}.** {learning.NOT_COMPARED}", answer)
    figures.show(figures.bars(best, "mechanism", group="learning_rate", title="Recalled"), "recall", main_chart)
else:
    easy, hard = recalled(EASY), recalled(HARD)
    able = list(easy.loc[easy["value"] >= ENOUGH, "mechanism"])
    unable = list(easy.loc[easy["value"] < ENOUGH, "mechanism"])
    found = ", ".join(f"{learning.name_of(name)} {of(name, HARD)}" for name in hard["mechanism"])
    figures.say(
        f"**{words(EASY)} are recalled to {ENOUGH} % or more by {named(able)}; not by {named(unable)}.** "
        f"{learning.differing(result, 'accuracy_difference', **EASY, **MODEL)} {words(HARD)}: {found}. "
        f"{learning.differing(result, 'accuracy_difference', **HARD, **MODEL)}",
        answer,
    )
    points = []
    for sizes in (*narrow, MODEL):
        kept = result.select("state_bytes", variant=None, **sizes).set_index("mechanism")["value"]
        rows = recalled(HARD, sizes)
        points.append(rows.assign(state=rows["mechanism"].map(kept) / 1000))
    chart = figures.lines(
        pd.concat(points), "state", title=f"Recall against state: {words(HARD)}",
        x_title="kB that all layers keep, at several widths", log_x=True,
    )  # fmt: skip
    for name in (answers.ANY_VALUE, answers.OWN_VALUE):
        level = result.value("accuracy", mechanism=name, **HARD, **MODEL)
        chart.add_hline(y=level, line={"dash": "dot", "width": 1, "color": "#7F7F7F"}, annotation_text=name)
    figures.show(chart, "state", main_chart)
figures.say(claims.line(result), stated)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## By pairs and length, and what it costs
#
# Two guesses need no model: any value, and one of the values of the row, which a model can learn that knows what is a value
# and not whose.

# %% tags=["remove-input"]
if whole:
    short = [recalled(asked) for asked in ASKED if asked["n"] == SHORT]
    by("pairs", short, f"Recalled by number of pairs, among {SHORT} tokens", "pairs", "pairs")
    rows = pd.concat([recalled(asked).assign(asked=words(asked)) for asked in ASKED])
    figures.table(figures.pivot(rows, "asked", "mechanism"), "Recalled, in %, over seeds")
    for asked in (EASY, HARD):
        said = learning.beating(result, "accuracy", answers.OWN_VALUE, **asked, **MODEL)
        figures.say(f"{words(asked)}: {said[0].lower()}{said[1:]}")
    learning.table(result, {"validation_accuracy": "recalled, validation (%)"}, f"Costs at {SHORT} tokens", **MODEL)
figures.show(learning.grid(result, GRID_SEED, "Validation loss by learning rate, one run each", **MODEL), "rates")
top = best.groupby("mechanism", sort=False)["value"].max()
figures.say(
    f"Best of any learning rate, on validation data of {words(HARD)}: "
    + ", ".join(f"{learning.name_of(name)} {figures.number(value)} %" for name, value in top.items())
    + "."
)
figures.show_provenance(result)

# %% [markdown]
# ## How far back
#
# The same models, by how many tokens lie between a value and where it is to be told.

# %% tags=["remove-input"]
if whole:
    rows = result.select("accuracy", learning_rate=None, seed=None, variant=None, **EASY, **MODEL)
    rows = rows[rows["distance"].notna() & (rows["status"] == "ok")]
    chart = figures.lines(
        rows, "distance", title=f"Recalled by distance: {words(EASY)}", x_title="tokens back, at most", log_x=True
    )
    figures.show(chart, "distance")
    chance = result.value("accuracy", mechanism=answers.ANY_VALUE, **EASY, **MODEL)
    far = rows[(rows["mechanism"] == "sliding_window") & (rows["distance"] > REACH)]
    found = [
        f"{figures.interval(*(row[end] for end in NUMBERS))} % up to {row['distance']}"
        for row in far.to_dict("records")
    ]
    figures.say(
        f"{LAYERS} layers with a window of {CHUNK} and a convolution of {CONV} reach {REACH} tokens back. Of values more than "
        f"{REACH} tokens back, sliding window recalls {', '.join(found) or 'none that was measured'}, where any "
        f"value drawn at random is right in {figures.number(chance)} %."
    )

# %% [markdown]
# ## Why some do not
#
# What may lack is the right learning rate, which the grid above shows; the joining of neighbours, which the convolution does; layers;
# or the state, which grows with the width. Each is changed by itself, at the learning rates that were chosen above.

# %% tags=["remove-input"]
if whole:
    changed = {
        f"{LAYERS} layers, width {WIDTH}, convolution": MODEL,
        "without convolution": WITHOUT,
        **{f"{sizes['num_layers']} layer": sizes for sizes in deep},
        **{f"width {sizes['hidden_dim']}": sizes for sizes in narrow},
    }
    for asked in (EASY, HARD):
        rows = pd.concat([recalled(asked, sizes).assign(changed=name) for name, sizes in changed.items()])
        figures.table(figures.pivot(rows, "mechanism", "changed"), f"Recalled, in %, {words(asked)}, over seeds")
    figures.say(
        f"Of {words(EASY)}, less than {ENOUGH} % are recalled by {named(unable)}. [Yang et al.](https://arxiv.org/abs/2406.06484) "
        f"have DeltaNet recall nearly everything on a larger task of this kind, with a convolution: here it recalls {of('deltanet', EASY)} of "
        f"{words(EASY)} and {of('deltanet', HARD)} of {words(HARD)} with it, and {of('deltanet', EASY, WITHOUT)} and "
        f"{of('deltanet', HARD, WITHOUT)} without, after as many steps."
    )

# %% [markdown]
# ## Chunks of an odd size
#
# Pairs have a period of two tokens, so chunks of an even size never part a key from its value. An odd size does.

# %% tags=["remove-input"]
if whole:
    rows = result.select("accuracy", learning_rate=None, seed=None, distance=None, **HARD, **MODEL)
    rows = rows[rows["variant"].notna()]
    figures.table(figures.pivot(rows, "mechanism", "variant"), f"Recalled, in %, {words(HARD)}, over seeds")
    for name in settings["controls"]:
        said = learning.differing(
            result, "accuracy_difference", factor="variant", than=EVEN, mechanism=name, **HARD, **MODEL
        )
        figures.say(f"{MECHANISMS[name].title}: {said[0].lower()}{said[1:]}")

# %% [markdown]
# ## Limits and exercises
#
# - Rows are short and the vocabulary is small. Zoology goes to rows, numbers of pairs and a vocabulary many times as large.
# - Hopfield retrieval in one step is softmax attention. Does a second step help? Try `num_steps`.
# - Which window would sliding window need, and how many layers, to recall all? Calculate it first.
# - `bsbr` reads earlier chunks through states that are weighted alike for all tokens of a chunk. What does `top_k` change?
