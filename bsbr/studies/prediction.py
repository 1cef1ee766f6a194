"""How well a trained model predicts text: perplexity, by position, and read on beyond the length it was trained at."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bsbr import stats
from bsbr.store import Row, over, row
from bsbr.training import Run, Settings
from bsbr.training.ngrams import Ngrams
from bsbr.training.settings import indices
from bsbr.training.tasks import Windows

FIRST = 32  # tokens of the first stretch; each further one ends at twice the position
AT_ONCE = 2048  # tokens that are read at once


def judge(run: Run, task: Windows, rows: int, far: Windows | None = None, far_rows: int = 0) -> list[Row]:
    """Rows of one language model's run on the test part: `perplexity`, and the same by position.

    `position` is where a stretch of the text ends, `read` how many tokens the model was given at once. The stretches
    of a text as long as in training have `read` too, so that a row without both is the one number of a run.

    Args:
        run: a language model.
        task: windows as long as in training.
        rows: of its test part, at most.
        far: windows of a longer text; None to leave them out.
        far_rows: of its test part, at most.
    """
    model = run.learner().model
    own = losses_by_position(model, task, rows)
    found = [row("perplexity", math.exp(own.mean())), *_by_position(own, task.n)]
    return found + (_by_position(losses_by_position(model, far, far_rows), far.n) if far else [])


def _by_position(losses: Float[Tensor, " n"], read: int) -> list[Row]:
    ends = stretches(read)
    starts = [0, *ends[:-1]]
    return [
        row("perplexity", math.exp(losses[start:end].mean()), position=end, read=read)
        for start, end in zip(starts, ends, strict=True)
    ]


def stretches(n: int) -> list[int]:
    """Where the stretches of a text of n tokens end: at 32, 64, 128 and so on, the last at n."""
    ends = []
    end = FIRST
    while end < n:
        ends.append(end)
        end *= 2
    return [*ends, n]


@torch.inference_mode()
def losses_by_position(model: nn.Module, task: Windows, rows: int) -> Float[Tensor, " n"]:
    """Mean cross-entropy in nats of the token at each place of the test part's windows, in float32.

    Args:
        model: a `TransformerLM`.
        task: the windows.
        rows: how many, at most.

    Raises:
        ValueError: no row is wanted.
    """
    count = min(rows, task.size("test"))
    if count < 1:
        raise ValueError(f"rows must be ≥ 1, but is {rows}")
    device, batch = next(model.parameters()).device, max(1, AT_ONCE // task.n)
    total = torch.zeros(task.n, dtype=torch.float64)
    for start in range(0, count, batch):
        found = task.rows("test", range(start, min(start + batch, count)))
        logits = model(found["input_ids"].to(device)).float()
        losses = F.cross_entropy(logits.transpose(1, 2), found["labels"].to(device), reduction="none")
        total += losses.double().sum(0).cpu()
    return total / count


# -- What counting alone predicts -----------------------------------------------------------------


def ngram(task: Windows, training: Settings, rows: int, *, order: int, seed: int, **cell: Hashable) -> list[Row]:
    """The `perplexity` of n-grams on the same rows of the test part, from the tokens that the run of a seed has read.

    Args:
        task: the windows.
        training: of the run.
        rows: of the test part, at most.
        order: 1 for unigrams.
        seed: of the run.
        cell: other factors, which change nothing.
    """
    counted = Ngrams(tokens_read(task, replace(training, seed=seed)), order, task.vocab_size)
    test = task.rows("test", range(min(rows, task.size("test"))))
    texts = torch.cat([test["input_ids"][:, :1], test["labels"]], 1).numpy()
    # A window's first token is given, as it is to a model.
    likely = np.concatenate([counted.probabilities(text)[1:] for text in texts])
    return [row("perplexity", float(np.exp(-np.log(likely).mean())))]


def tokens_read(task: Windows, training: Settings) -> np.ndarray:
    """The tokens of the training part that a run reads, each once, in the order of the text."""
    size = task.size("train")
    read = {number for step in range(1, training.steps + 1) for number in indices(step, training, size)}
    return task.rows("train", sorted(read))["input_ids"].reshape(-1).numpy()


def over_seeds(table: pd.DataFrame, factors: Iterable[str]) -> list[Row]:
    """Means over the seeds of rows of `perplexity`, one for each combination of the factors."""
    return [
        row(
            "perplexity",
            stats.normal_mean(part["value"]),
            over=over("seed", part["seed"]),
            **part[list(factors)].iloc[0],
        )
        for _, part in table.groupby(list(factors), sort=False)
    ]
