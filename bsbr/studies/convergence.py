"""How fast a run has learned, off its curve: epochs until it is near its best, loss by tokens, seconds and FLOPs."""

from __future__ import annotations

from collections.abc import Sequence

from bsbr.config import ModelConfig
from bsbr.store import Row, row
from bsbr.studies.learning import is_of_here
from bsbr.studies.operations import count_passes
from bsbr.training import Run

NEAR = 0.01  # of the best validation loss: what counts as converged


def judge(run: Run, epoch: int, n: int) -> list[Row]:
    """Rows of one language model's run, all of them about its validation part.

    `final_loss` and `accuracy` of the last look; `epochs_to_converge`; and at each look, with the factor `tokens`,
    `validation_loss`, `validation_accuracy`, `training_flops` and the `training_time` so far, if this machine trained.

    Args:
        run: that has looked at the validation part more than once.
        epoch: tokens of the training part.
        n: tokens of a row.
    """
    looks = run.curve[run.curve["validation_loss"].notna()]
    last, config = run.record["validation"], ModelConfig(**run.record["model"])
    epochs = epochs_to_converge(list(looks["tokens"] / epoch), list(looks["validation_loss"]))
    rows = [
        row("final_loss", last["loss"]),
        row("accuracy", 100 * last["accuracy"]),
        row("epochs_to_converge", epochs),
    ]
    operations, timed = flops_of_a_row(config, n), is_of_here(run)
    for look in looks.to_dict("records"):
        tokens = int(look["tokens"])
        rows.append(row("validation_loss", look["validation_loss"], tokens=tokens))
        rows.append(row("validation_accuracy", 100 * look["validation_accuracy"], tokens=tokens))
        rows.append(row("training_flops", operations * tokens / n, tokens=tokens))
        if timed:
            rows.append(row("training_time", look["seconds"], tokens=tokens))
    return rows


def epochs_to_converge(epochs: Sequence[float], losses: Sequence[float], near: float = NEAR) -> float:
    """When a loss first came within a share of its least value, on straight lines between the looks.

    Args:
        epochs: at which the loss was looked at, rising.
        losses: what it was.
        near: how much above the least counts as there.

    Raises:
        ValueError: there is no look, or not one loss for each.
    """
    if not epochs or len(epochs) != len(losses):
        raise ValueError(f"losses must be one for each of one look or more, got {len(losses)} for {len(epochs)}")
    wanted = (1 + near) * min(losses)
    at = next(i for i, loss in enumerate(losses) if loss <= wanted)
    if at == 0:
        return epochs[0]
    share = (losses[at - 1] - wanted) / (losses[at - 1] - losses[at])
    return epochs[at - 1] + share * (epochs[at] - epochs[at - 1])


def flops_of_a_row(config: ModelConfig, n: int) -> int:
    """Operations that training spends on a row of n tokens: matrix products forward and backward, the head's too."""
    return sum(count_passes(config, n)) + 3 * 2 * n * config.hidden_dim * config.vocab_size
