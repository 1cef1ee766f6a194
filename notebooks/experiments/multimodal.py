# %% [markdown]
# # Text and images
#
# Which mechanism tells what an emoji is, from its words, from its picture, or from both?

# %% tags=["remove-input"]
from bsbr.show import claims, figures, learning

answer, stated, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# One document has accuracies of standard attention and of BSBR on text, on images and on both: BSBR ahead in all three, both
# of them less accurate on images than on text, and least on both together. It names neither task nor data nor size.
#
# ## Method
#
# An emoji has a name with keywords, a picture, and belongs to one group of emoji, which is to be told. Words are read as
# tokens, as in all experiments here. A picture is read as tokens too: halved, cut into squares, and each square told as
# the nearest one in a book of squares, which is made from the training part. So the models are those of all other pages,
# with a linear layer over the mean of what they come to; nothing in them is made for pictures. Of both, the words come
# first.
#
# Emoji are divided into training, validation and test part by a pinned rule; those that differ in gender only stay
# together, and those that differ in skin tone are left out. Each mechanism has a learning rate of its own for each input,
# chosen on validation data from one grid, and then fresh seeds. Numbers are of the test part: emoji that no training has
# seen, as Twitter draws them, whose pictures are trained on, and as Google does, whose are not. Intervals are over seeds,
# and differences to standard attention are taken seed by seed: see [how models are compared](../../book/fair.md).
#
# Chunks of `bsbr` and `gau`, and the window of `sliding_window`, are an eighth of a typical row, but two tokens at least.
# With one update, as everywhere here, `hopfield` is standard attention, and shows that equals come out equal.
#
# What takes no such model stands beside: the commonest group, a bag of words and logistic regression on single pixels. Their
# intervals are those of a share of the test part's emoji.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import pandas as pd

from bsbr import MECHANISMS, sources
from bsbr.show.pictures import gallery
from bsbr.store import NUMBERS, Sweep, only
from bsbr.studies import learning as contests
from bsbr.studies import pictures
from bsbr.studies.pictures import INPUTS, PIXELS, SEEN, UNSEEN, WORDS
from bsbr.training.tasks.pictures import as_read
from bsbr.training.tokens import CORPORA

SIZES = {"hidden_dim": 128, "num_layers": 2, "num_heads": 4, "ff_dim": 256}
SMALL = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "ff_dim": 16}
STEPS, RATES = dict.fromkeys(INPUTS, 200), (3e-4, 1e-3, 3e-3)
PLANS = {
    "tiny": pictures.Plan(SMALL, 4, dict.fromkeys(STEPS, 2), (1e-3,), (1,), ("standard", "bsbr")),
    "quick": pictures.Plan(SIZES, 16, STEPS, RATES[1:2], (), ("standard", "bsbr")),
    "full": pictures.Plan(SIZES, 16, STEPS, RATES, (1, 2, 3, 4, 5)),
}
plan = PLANS[profile]
inputs = ["text", "image"] if profile == "quick" else list(INPUTS)

# %% [markdown]
# ## Measuring

# %% tags=["hide-input", "remove-output"]
sweep = Sweep(
    "experiments/multimodal",
    target=target,
    profile=profile,
    parameters={**plan.sizes, "batch": plan.batch, "steps": dict(plan.steps), "precision": "bfloat16"},
    sources=[sources.pin_path(name) for name in (*CORPORA, "emoji", "emoji_google")],
)
tables = []
for name in inputs:
    cells = [{"mechanism": baseline, "input": name} for baseline in pictures.BASELINES[name]]
    tables.append(contests.hold(sweep, pictures.contest(plan, name), device=target, input=name))
    tables.append(sweep.measure(cells, pictures.baseline, machine_bound=False))
result = sweep.publish(pd.concat(tables, ignore_index=True))
compared = learning.is_compared(result)

# %% tags=["remove-input"]
BY = {"text": "words", "image": "picture", "joint": "words and picture"}


def accuracies(vendor: str | None = None) -> pd.DataFrame:
    """Of the test part: means over seeds, and what takes no model."""
    return result.select("accuracy", vendor=vendor, seed=None, learning_rate=None)


def level(mechanism: str, name: str, vendor: str | None = None) -> str:
    found = only(accuracies(vendor), "accuracy", mechanism=mechanism, input=name)
    return f"{figures.interval(*found[NUMBERS])} %"


def best(name: str) -> str:
    """The mechanism of the highest mean."""
    rows = accuracies()
    rows = rows[(rows["input"] == name) & rows["mechanism"].isin(MECHANISMS)]
    return rows.loc[rows["value"].idxmax(), "mechanism"]


no_model = (
    f"A bag of words tells {level(WORDS, 'text')} by words, single pixels tell {level(PIXELS, 'image')} by the picture."
)
if compared:
    ahead = [f"{level(best(name), name)} by {BY[name]} ({learning.name_of(best(name))})" for name in inputs]
    differing = [f"By {BY[name]}: {learning.differing(result, 'accuracy_difference', input=name)}" for name in inputs]
    figures.say(
        f"**Of emoji that they have not seen, the best tell {', '.join(ahead)}.** {no_model}\n\n{' '.join(differing)}",
        answer,
    )
else:
    figures.say(f"{learning.NOT_COMPARED} {no_model}", answer)
figures.say(claims.line(result), stated)
rows = accuracies()
chart = figures.bars(
    rows.assign(told=[f"by {BY[name]}" for name in rows["input"]]), "told", group="mechanism",
    title="Emoji told right", x_title="",
)  # fmt: skip
figures.show(chart, "accuracy", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## What is read
#
# An emoji of each group, of the validation part: as each vendor draws it, and what a model is given of that.

# %% tags=["remove-input"]
heads = [f"{vendor.title()}{what}" for vendor in (SEEN, UNSEEN) for what in ("", ", as read")]
gallery(
    {
        f"{emoji.words} ({emoji.group})": [
            found(emoji, vendor) for vendor in (SEEN, UNSEEN) for found in (sources.load_picture, as_read)
        ]
        for emoji in pictures.examples()
    },
    heads,
)
pins = [sources.read_pin(name) for name in ("emoji", "emoji_google")]
figures.say(
    f"A row has {', '.join(f'{pictures.typical_length(name)} tokens for {BY[name]}' for name in INPUTS)}, by the median of "
    f"the training part; chunks and windows have {', '.join(str(pictures.chunk_size(name)) for name in INPUTS)}.\n\n"
    f"<small>{'; '.join(f'{pin.title}: {pin.package} {pin.version}, {pin.licence}' for pin in pins)}. On white; as read, "
    f"they are changed by this project.</small>"
)

# %% [markdown]
# ## By words, by the picture, by both


# %% tags=["remove-input"]
def of_input(name: str) -> None:
    figures.say(f"**By {BY[name]}.**")
    if compared:
        beaten = [learning.beating(result, "accuracy", baseline, input=name) for baseline in pictures.BASELINES[name]]
        differing = learning.differing(result, "accuracy_difference", input=name)
        figures.say(" ".join([differing, *beaten]))
    caption = "Test part: mean over seeds and 95 % interval, and what each model costs"
    learning.table(result, {"accuracy": "accuracy (%)", "macro_f1": "macro F1 (%)"}, caption, input=name)
    grid = learning.grid(result, 0, f"By {BY[name]}: the grid of learning rates", input=name)
    figures.show(grid, f"grid-{name}")


for name in inputs:
    of_input(name)
figures.show_provenance(result)

# %% [markdown]
# ## Drawn by others
#
# The same emoji of the test part as Google draws them. No model, and no book of squares, has seen a picture of Google's.


# %% tags=["remove-input"]
def by_vendor(name: str) -> None:
    drawn = pd.concat([accuracies(vendor).assign(drawn=f"by {(vendor or SEEN).title()}") for vendor in (None, UNSEEN)])
    drawn = drawn[(drawn["input"] == name) & drawn["mechanism"].isin(set(accuracies(UNSEEN)["mechanism"]))]
    title = f"Told right by {BY[name]}, by who draws it"
    figures.show(figures.bars(drawn, "mechanism", group="drawn", title=title), f"vendor-{name}")
    if compared:
        where = {"input": name, "vendor": UNSEEN}
        figures.say(learning.differing(result, "accuracy_difference", **where))
        learning.table(result, {"accuracy": "accuracy (%)", "macro_f1": "macro F1 (%)"}, title, **where)


for name in inputs:
    if name != "text":
        by_vendor(name)
figures.show_provenance(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
sizes = ", ".join(f"{name} {value:,}" for name, value in plan.sizes.items())
steps = ", ".join(f"{plan.steps[name]:,} for {BY[name]}" for name in inputs)
how = f"Sizes: {sizes}; steps of {plan.batch} emoji, {steps}; bfloat16."


def apart(mechanism: str, names: tuple[str, str]) -> int:
    """1 where the first input's interval is above the second's, −1 below, 0 where they meet or one is not there."""
    first, second = (only(accuracies(), "accuracy", mechanism=mechanism, input=name)[NUMBERS] for name in names)
    return int(first["low"] > second["high"]) - int(first["high"] < second["low"])


def helped(other: str) -> str:
    found = {name: apart(name, ("joint", other)) for name in plan.mechanisms}
    groups = {
        sign: ", ".join(learning.name_of(name) for name in found if found[name] == sign) or "no mechanism"
        for sign in (1, 0, -1)
    }
    return (
        f"Both together tell more than {BY[other]} alone with {groups[1]}; less with {groups[-1]}; intervals meet with "
        f"{groups[0]}."
    )


if compared:
    lost = [
        only(accuracies(), "accuracy", mechanism=name, input="image")["value"]
        - only(accuracies(UNSEEN), "accuracy", mechanism=name, input="image")["value"]
        for name in plan.mechanisms
    ]
    figures.say(
        f"**Does a second kind of input help?** {helped('text')} {helped('image')}\n\n"
        f"**Another hand.** By the picture alone, models lose {figures.number(min(lost))} to {figures.number(max(lost))} "
        f"points of accuracy where Google has drawn it; single pixels tell {level(PIXELS, 'image', UNSEEN)} then.\n\n{how}"
    )
else:
    figures.say(how)

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - Few emoji and few steps: models that were made for pictures, or have seen many, tell more. Raise `STEPS`.
# - The order of patches is that of reading. What changes if they come column by column?
# - A row is short, so a mechanism whose strength are long texts shows it elsewhere.
