"""How well BSBR predicts text by one of its options: models trained alike at each value, beside standard attention.

Texts, tokens, sizes and learning rates to choose from are those of the page on language modelling. Runs read less, so
that each value of the option can have a learning rate and seeds of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bsbr.config import ModelConfig
from bsbr.store import Row, Sweep, row
from bsbr.studies import learning, prediction, short_runs, variants
from bsbr.training import Run, Settings, evaluate
from bsbr.training.tasks import Windows, corpus_windows

CORPORA = ("brown", "speeches")
STANDARD = "standard"
CHUNKS = 8  # that a text holds at least, where BSBR is judged
CHUNK_SIZE = 128  # where the option is another one
NGRAMS = {"unigram": 1, "5-gram": 5}
QUALITIES = ("perplexity", "accuracy")
AT_ONCE = 2048  # tokens that are read at once


@dataclass(frozen=True)
class Plan:
    """How models are trained.

    Args:
        sizes: of the backbones.
        n: tokens of a text, in training and test.
        tokens: that a step reads.
        steps: updates of the weights.
        rates: the grid of learning rates.
        seeds: fresh ones; without any there is the short run alone.
        validation_tokens, test_tokens: that a run is looked at and judged on.
        short: steps of the short run, at the middle rate of the grid.
    """

    sizes: Mapping[str, Any]
    n: int = 2048
    tokens: int = 2048
    steps: int = 112
    rates: tuple[float, ...] = (5e-4, 1.5e-3, 4.5e-3)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    validation_tokens: int = 2**15
    test_tokens: int = 2**16
    short: int = 24

    @property
    def training(self) -> Settings:
        """How each run is trained."""
        return Settings(
            steps=self.steps,
            batch=self.tokens // self.n,
            warm_up=self.steps // 10,
            evaluate_rows=self.validation_tokens // self.n,
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """For the record of a table."""
        return {**self.sizes, "corpora": list(CORPORA), "n": self.n, "tokens": self.steps * self.tokens}


FULL = Plan({"hidden_dim": 128, "num_layers": 2, "num_heads": 4, "ff_dim": 256})
SMALL = {"hidden_dim": 32, "num_layers": 1, "num_heads": 2, "ff_dim": 32}
PLANS = {
    "tiny": Plan(SMALL, 1024, 1024, 2, (3e-3,), (1, 2, 3), 1024, 1024, 1),
    "quick": replace(FULL, seeds=()),
    "full": FULL,
}


def hold(
    sweep: Sweep, plan: Plan, factor: str, options: Mapping[int, Mapping[str, Any]], usual: int, *, device: str
) -> pd.DataFrame:
    """Train BSBR at each value of an option, and standard attention, and return all rows.

    They are those of `learning.hold` with the factors `mechanism`, n and, of BSBR alone, the option; differences to its
    usual value too, which then stands in `against`; the `perplexity` of n-grams that counted what each seed has read;
    and one short run. Of a value that is not trained there are rows of `perplexity` and `accuracy` that say why.

    Args:
        sweep: keeps the runs.
        plan: how they are trained.
        factor: the option's name, the column of its values.
        options: by value, what it sets of `ModelConfig`.
        usual: the value that others are held against, and that of the short run.
        device: `"cpu"`, or anything else for the GPU.
    """
    within = {value: one for value, one in options.items() if length_for(one) <= plan.n}
    held = contest(plan, factor, within)
    rate = plan.rates[len(plan.rates) // 2]
    tables = [short_runs.hold(sweep, held, usual, rate=rate, steps=plan.short, device=device, n=plan.n)]
    if plan.seeds:
        tables.append(learning.hold(sweep, held, device=device, against=STANDARD, n=plan.n))
        tables.append(learning.differences(tables[-1], held, usual, n=plan.n))
    tables = [_with_mechanism(table, factor) for table in tables]
    if plan.seeds:
        tables.append(ngrams(sweep, plan))
    absent = _too_long(plan, factor, options)
    if not plan.seeds:
        reasons = dict.fromkeys(QUALITIES, "the full profile trains the models that it takes")
        absent += variants.coming(factor, within, reasons, mechanism="bsbr", n=plan.n)
    return pd.concat([*tables, pd.DataFrame(absent)] if absent else tables, ignore_index=True)


def length_for(options: Mapping[str, Any]) -> int:
    """Tokens that a text must have for BSBR with these options to be judged on it."""
    return CHUNKS * int(options.get("chunk_size", CHUNK_SIZE))


def contest(plan: Plan, factor: str, options: Mapping[int, Mapping[str, Any]]) -> learning.Contest:
    """The models by value of the option, and standard attention by its name: trained alike, judged on the test part."""
    base = {**plan.sizes, "chunk_size": CHUNK_SIZE}
    models: dict[Any, ModelConfig] = {STANDARD: ModelConfig(STANDARD, **base)}
    models |= {value: ModelConfig("bsbr", **{**base, **one}) for value, one in options.items()}
    task = corpus_windows(plan.n, CORPORA)
    judging = functools.partial(judge, task=task, rows=plan.test_tokens // plan.n)
    return learning.Contest(factor, models, task, plan.training, plan.rates, plan.seeds, judging)


def judge(run: Run, task: Windows, rows: int) -> list[Row]:
    """`perplexity` and `accuracy`, the share of next tokens told right in %, of one run on the test part, in float32.

    Args:
        run: a language model.
        task: windows as long as in training.
        rows: of its test part, at most.
    """
    found = evaluate(run.learner(), task, "test", rows=rows, batch=max(1, AT_ONCE // task.n))
    return [row("perplexity", math.exp(found["loss"])), row("accuracy", 100 * found["accuracy"])]


def ngrams(sweep: Sweep, plan: Plan) -> pd.DataFrame:
    """Rows of `perplexity` of what needs no model, of each seed and over all."""
    task, rows = corpus_windows(plan.n, CORPORA), plan.test_tokens // plan.n
    tables = []
    for name, order in NGRAMS.items():
        counting = functools.partial(prediction.ngram, task, plan.training, rows, order=order)
        cells = [{"mechanism": name, "n": plan.n, "seed": seed} for seed in plan.seeds]
        tables.append(sweep.measure(cells, counting, machine_bound=False))
    table = pd.concat(tables, ignore_index=True)
    return pd.concat([table, pd.DataFrame(prediction.over_seeds(table, ["mechanism", "n"]))], ignore_index=True)


def _with_mechanism(table: pd.DataFrame, factor: str) -> pd.DataFrame:
    """Standard attention under `mechanism`, so that the option's column holds numbers alone."""
    standard = (table[factor].astype("string") == STANDARD).to_numpy(dtype=bool)
    values = pd.to_numeric(table[factor].mask(standard)).astype("Int64")
    return table.assign(mechanism=np.where(standard, STANDARD, "bsbr")).assign(**{factor: values})


def _too_long(plan: Plan, factor: str, options: Mapping[int, Mapping[str, Any]]) -> list[Row]:
    """Rows of the values that a text of the plan is too short for, each at the length that it would take."""
    rows = []
    for value, one in options.items():
        if (n := length_for(one)) > plan.n:
            size = one.get("chunk_size", CHUNK_SIZE)
            why = f"not measured: chunks of {size} take texts of {n:,} tokens, which cannot be afforded here"
            where: dict[str, Any] = {"mechanism": "bsbr", factor: value, "n": n}
            rows += [row(name, None, status="not_available", reason=why, **where) for name in QUALITIES]
    return rows
