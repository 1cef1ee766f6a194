# %% [markdown]
# # Convergence
#
# How fast does each mechanism learn: by tokens, by seconds and by operations? How near does it come to its best in how
# many epochs, and is its training stable?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

answer, stated, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# Two documents state epochs until convergence, a final loss and a validation accuracy for BSBR, standard and linear
# attention, without naming data, task or model, and say in words that BSBR converges about as fast as standard
# attention and trains stably. Levels belong to data, so what is held against them are differences: the ratio of epochs,
# the difference of losses and of accuracies.
#
# ## Method
#
# Each mechanism learns to predict the next token of a small part of the Brown corpus, many times over, so that it comes
# to a best and passes it. The validation part is looked at several times an epoch. Everything else is as the page [How
# models are compared](../../book/fair.md) says: the same rows in the same order for all, a learning rate of its own for
# each from one grid, chosen by the validation loss at the end, and then fresh seeds at that rate.
#
# - **Epochs to converge**: until the validation loss is first within a hundredth of the least that this run ever has,
#   on straight lines between looks.
# - **Final loss** and **accuracy**: of the next token, on validation data, at the last look.
# - **Operations**: of the matrix products of forward and backward passes, the product with the vocabulary included.
# - **Seconds**: of training, looks included, on this machine.
# - **Diverged**: loss or gradient became no number, or the loss ended above where it began.
#
# Chunks and windows hold an eighth of the text.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input", "remove-output"]
import functools

import pandas as pd

from bsbr import MECHANISMS, ModelConfig, sources
from bsbr.measure import machine
from bsbr.show import learning as shown
from bsbr.store import Sweep
from bsbr.studies import convergence, learning, short_runs
from bsbr.training import Settings
from bsbr.training.tasks import Windows, corpus_windows

CORPUS = "brown"
PROFILES = {
    "tiny": {
        "n": 64, "hidden_dim": 32, "ff_dim": 64, "num_heads": 2, "windows": 8, "validation_windows": 4, "batch": 4,
        "epochs": 4, "mechanisms": ["standard", "bsbr"], "rates": [3e-3], "seeds": [1, 2, 3], "short_steps": 2,
    },
    "quick": {"seeds": []},
    "full": {},
}  # fmt: skip
settings = {
    "n": 256, "hidden_dim": 128, "num_layers": 2, "num_heads": 4, "ff_dim": 256, "windows": 256,
    "validation_windows": 48, "batch": 4, "epochs": 8, "looks": 2, "mechanisms": list(MECHANISMS),
    "rates": [5e-4, 1.5e-3, 4.5e-3], "seeds": [1, 2, 3, 4, 5], "short_rate": 1.5e-3, "short_steps": 64, **PROFILES[profile],
}  # fmt: skip
n, steps_an_epoch = settings["n"], settings["windows"] // settings["batch"]
sizes = {name: settings[name] for name in ("hidden_dim", "num_layers", "num_heads", "ff_dim")}
chunk = n // 8

# %% [markdown]
# ## Measuring


# %% tags=["hide-input", "remove-output"]
whole = corpus_windows(n, (CORPUS,))
tokens = {"train": settings["windows"] * n + 1, "validation": settings["validation_windows"] * n + 1}
task = Windows({part: whole.streams[part][:most] for part, most in tokens.items()}, n, sources=whole.sources)
training = Settings(
    steps=settings["epochs"] * steps_an_epoch,
    batch=settings["batch"],
    warm_up=steps_an_epoch,
    evaluate_every=steps_an_epoch // settings["looks"],
)
contest = learning.Contest(
    "mechanism",
    {name: ModelConfig(name, **sizes, chunk_size=chunk, window_size=chunk) for name in settings["mechanisms"]},
    task,
    training,
    rates=tuple(settings["rates"]),
    seeds=tuple(settings["seeds"]),
    judge=functools.partial(convergence.judge, epoch=settings["windows"] * n, n=n),
)
sweep = Sweep(
    "benchmarks/convergence",
    target=target,
    profile=profile,
    parameters={**sizes, "chunk_size": chunk, "window_size": chunk, "corpus": CORPUS, "near": convergence.NEAR},
    sources=[sources.pin_path(CORPUS)],
)
device = machine.device(target).type
of_few_steps = {"rate": settings["short_rate"], "steps": settings["short_steps"], "device": device}
tables = [short_runs.hold(sweep, contest, "bsbr", **of_few_steps)]
if contest.seeds:
    tables.append(learning.hold(sweep, contest, device=device))
result = sweep.publish(pd.concat(tables, ignore_index=True))


# %% tags=["remove-input"]
def curve(metric: str, along: str) -> pd.DataFrame:
    """Means over the seeds of one metric at each look, with another one at the same look beside it."""
    rows = result.select(metric, seed=None).dropna(subset="tokens")
    if along == "tokens":
        return rows
    other = result.select(along, seed=None).dropna(subset="tokens")
    return rows.merge(
        other[["mechanism", "tokens", "value"]].rename(columns={"value": along}), on=["mechanism", "tokens"]
    )


def draw(metric: str, along: str, title: str, x_title: str, place: object = None) -> None:
    rows = curve(metric, along)
    if rows.empty or rows[along].isna().all():
        figures.say(f"*{title}: the seconds of these runs were another machine's, and are not shown.*")
        return
    chart = figures.lines(rows, along, title=title, x_title=x_title)
    for line in chart.data:
        line.error_y.visible = False  # dozens of looks; intervals stand in the table
        line.mode = "lines"
    figures.show(chart, f"{metric}-{along}", place)


if shown.is_compared(result):
    loss, accuracy = (shown.differing(result, f"{quality}_difference") for quality in ("loss", "accuracy"))
    epochs = result.select("epochs_to_converge", seed=None).dropna(subset="value")
    times = ", ".join(
        f"{shown.name_of(found.mechanism)} {figures.interval(found.value, found.low, found.high)}"
        for found in epochs.itertuples()
    )
    gone = result.select("diverged_runs", learning_rate="all")
    diverged = [shown.name_of(found.mechanism) for found in gone[gone["value"] > 0].itertuples()]
    figures.say(
        f"**Final loss: {loss}** Next-token accuracy: {accuracy} Epochs until the "
        f"validation loss is near its best: {times}. Runs that diverged: "
        f"{'some of ' + ', '.join(diverged) if diverged else 'none, at any learning rate of the grid'}.",
        answer,
    )
    draw("validation_loss", "tokens", "Validation loss by tokens read", "tokens", main_chart)
else:
    figures.say(shown.NOT_COMPARED, answer)
    figures.say(shown.short_run(result), main_chart)
figures.say(claims.line(result), stated)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## Curves
#
# Means over the seeds. A mechanism that learns more from a token is not the better one if a token costs it more: so the
# same losses stand by seconds and by operations.

# %% tags=["remove-input"]
if shown.is_compared(result):
    draw("validation_accuracy", "tokens", "Next-token accuracy on validation by tokens read", "tokens")
    draw("validation_loss", "training_time", "Validation loss by seconds of training", "seconds")
    draw("validation_loss", "training_flops", "Validation loss by operations", "FLOPs")
else:
    figures.say(shown.NOT_COMPARED)

# %% [markdown]
# ## What each comes to, and what it costs

# %% tags=["remove-input"]
if shown.is_compared(result):
    qualities = {
        "epochs_to_converge": "epochs to converge",
        "final_loss": "final loss (nats)",
        "loss_difference": "against standard (nats)",
        "accuracy": "accuracy (%)",
        "accuracy_difference": "against standard (points)",
    }
    shown.table(result, qualities, "Means over fresh seeds with 95 % intervals; differences are paired by seed")
else:
    figures.say(shown.NOT_COMPARED)
figures.show_provenance(result)

# %% [markdown]
# ## Learning rates and stability
#
# The grid is the same for all. Where the best rate is at an end of it, it is widened for that mechanism. The norm of the
# gradient is the largest of a run before clipping; it is mostly that of the first steps.

# %% tags=["remove-input"]
if shown.is_compared(result):
    figures.show(shown.grid(result, training.seed, "Validation loss at the end, by learning rate"), "grid")
    shown.table(
        result,
        {"largest_gradient": "largest gradient norm", "diverged_runs": "diverged at the chosen rate (%)"},
        "Stability: means over fresh seeds, and the share of runs that diverged",
    )
    figures.table(
        figures.pivot(result.select("diverged_runs", learning_rate="all"), "mechanism", "learning_rate"),
        "Share of all runs that diverged, grid and seeds together, in %",
    )
figures.say(shown.short_run(result))
figures.show_provenance(result)

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - A few minutes of one small model on a small text: what holds for a large one may differ. Change `windows` and `epochs`
#   and see which of the differences stay.
# - The learning rate falls along a cosine to zero at the last epoch, so convergence is also the schedule's. What changes
#   with `final_rate=1.0`?
# - Epochs are counted on validation loss. Which mechanism is first to have learned the training part by heart?
