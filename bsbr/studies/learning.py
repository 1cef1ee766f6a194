"""Contests: models trained alike on one task, each at a learning rate of its own, and then with fresh seeds.

The rules are those of the page "How models are compared": the rate is chosen on validation data from a grid that is
the same for all, which is widened where the best is at its end; intervals are over seeds; differences are paired by
seed, since equal seeds read equal rows in equal order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Hashable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import pandas as pd
import torch

from bsbr import stats
from bsbr.config import ModelConfig
from bsbr.model import TransformerLM
from bsbr.store import Part, Row, Sweep, factor_columns, over, row, select, tidy
from bsbr.store import machine as here
from bsbr.studies import variants
from bsbr.studies.operations import count_passes
from bsbr.studies.starts import fit_from
from bsbr.training import Classifier, LanguageModel, Run, Settings, fit
from bsbr.training.settings import Task

T = TypeVar("T")
Asking = Generator[list[Part], list[pd.DataFrame], T]  # yields what is to be measured next, and is sent its tables
WIDENINGS = 2  # of a grid, at most
LAST = 0.1  # share of the steps whose mean loss says how a run ended
BYTES = 4  # of a number of the decoding state, in float32
RISEN = 1.05  # times its first loss: a run that ends above has diverged, though its numbers are finite
# What is said of a quality against another model's, over the same seeds.
DIFFERENCES = {
    "accuracy": "accuracy_difference",
    "macro_f1": "macro_f1_difference",
    "f1": "f1_difference",
    "exact_match": "exact_match_difference",
    "loss": "loss_difference",
    "final_loss": "loss_difference",
}


@dataclass(frozen=True)
class Contest:
    """Models that are trained alike on one task.

    Args:
        factor: the column that names a model, such as `"mechanism"`, `"variant"` or `"chunk_size"`.
        models: for each of its values a backbone; its vocabulary is set to the task's.
        task: what is learned, or for each value of the factor a task of its own.
        training: how. `learning_rate` is replaced; `seed` is that of the grid's runs.
        rates: the grid of learning rates, the same for all.
        seeds: of the runs at the chosen rate, none of them the grid's. Without any there are the grid's runs alone:
            nothing is widened, judged or compared, as where a part of a grid is measured again.
        judge: rows of one trained run on the test part, without the factors of the cell. It is called for the seeds
            only. A function or `functools.partial` whose content can be seen (`store.fingerprint`).
        classes: of a classifier; None for a language model.
        pooling: of a classifier, see `training.Classifier`.
        start: how many times as large the first matrices of a language model are, see `starts.fit_from`.
        chosen: rates by value of the factor that were chosen elsewhere, at a shorter length; then there is no grid.

    Raises:
        ValueError: there is no model or no rate, a rate or a seed comes twice, a seed is the grid's, or rates were
            chosen for no seeds.
    """

    factor: str
    models: Mapping[Any, ModelConfig]
    task: Task | Mapping[Any, Task]
    training: Settings
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    judge: Callable[[Run], list[Row]]
    classes: int | None = None
    pooling: str = "mean"
    chosen: Mapping[Any, float] | None = None
    start: float = 1.0

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models must name one or more, but is empty")
        if self.chosen is None and not self.rates:
            raise ValueError("rates must have one or more, or chosen must name a rate for each model; both are empty")
        if len(set(self.rates)) < len(self.rates) or min(self.rates, default=1.0) <= 0:
            raise ValueError(f"rates must be positive, each once, but are {self.rates}")
        if len(set(self.seeds)) < len(self.seeds) or self.training.seed in self.seeds:
            raise ValueError(
                f"seeds must be fresh: each once, and not the grid's, which is {self.training.seed}; got {self.seeds}"
            )
        if self.chosen is not None and not self.seeds:
            raise ValueError("seeds must have one or more where the rates are chosen already, but is empty")

    def task_of(self, name: Any) -> Task:
        """The task of a model."""
        return self.task[name] if isinstance(self.task, Mapping) else self.task


def hold(
    sweep: Sweep, contest: Contest, *, device: str, against: Any = "standard", **factors: Hashable
) -> pd.DataFrame:
    """Train all models of a contest, and return all rows. What was trained before is taken from where it is kept.

    Each row has the contest's factor and `factors`. With `learning_rate` and `seed`, of each run: `validation_loss`,
    `validation_accuracy`, `largest_gradient`, `diverged`, `training_time`, `training_speed`, and of those with fresh
    seeds what the judge says. With neither: the `learning_rate` that was chosen; means over the seeds, with Student's
    interval; differences to `against` and `perplexity_gain`, paired by seed; the share of `diverged_runs` at the
    chosen rate; and costs: `parameters`, `flops` of a forward pass and `state_bytes`, for the n tokens of a row.
    `diverged_runs` of the grid and the seeds together has the learning rate "all".

    Args:
        sweep: keeps each run as a cell that depends on its own model alone.
        contest: what is trained.
        device: `"cpu"`, or anything else for the GPU.
        against: the model that others are compared with; it must be one of them if there are seeds.
        factors: of every row, such as n and task.

    Raises:
        ValueError: `against` is none of the models.
    """
    if contest.seeds and against not in contest.models:
        raise ValueError(f"against must be one of {', '.join(map(str, contest.models))}, but is {against!r}")
    held = [_hold_one(contest, name, device, factors) for name in contest.models]
    table = pd.concat(_side_by_side(sweep, held), ignore_index=True)
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "learning_rate", "seed"])))
    rows = _summary(table, contest, against, factors) if contest.seeds else []
    return tidy(pd.concat([table, pd.DataFrame(rows)], ignore_index=True) if rows else table)


def chosen(table: pd.DataFrame, factor: str) -> dict[Any, float]:
    """The learning rates that `hold` chose, by model, for another length; without those whose runs all diverged."""
    rows = select(table, "learning_rate")
    found = rows[rows["status"] == "ok"]
    return {name: float(rate) for name, rate in zip(found[factor], found["value"], strict=True)}


# -- Runs -----------------------------------------------------------------------------------------


def train(
    config: ModelConfig,
    task: Task,
    training: Settings,
    classes: int | None,
    pooling: str,
    device: str,
    judge: Callable[[Run], list[Row]] | None,
    /,  # a factor of a cell may be called task, too
    *,
    learning_rate: float,
    seed: int,
    start: float = 1.0,
    **cell: Hashable,
) -> list[Row]:
    """The rows of one run: the measuring function of a cell, whose other factors change nothing."""
    settings = replace(training, learning_rate=learning_rate, seed=seed)
    if start == 1:
        run = fit(config, task, settings, classes=classes, pooling=pooling, device=device, quiet=True)
    else:
        run = fit_from(start, config, task, settings, device=device)
    return [*rows_of(run), *(judge(run) if judge and run.record["diverged"] is None else [])]


def rows_of(run: Run) -> list[Row]:
    """What any run has to say of itself: its last look at the validation part, its gradients, and what it took.

    Seconds are of training and looking together. They belong to the machine that trained, so a run that was kept from
    another one has none here.
    """
    record, curve = run.record, run.curve
    gone, last = record["diverged"], record["validation"]
    rows = []
    for name, scale in {"loss": 1, "accuracy": 100}.items():
        if gone is None and last is not None:
            rows.append(row(f"validation_{name}", scale * last[name]))
        else:
            why = f"diverged in step {gone}" if gone else "validation was not looked at"
            rows.append(row(f"validation_{name}", None, status="not_available", reason=why))
    rows.append(row("diverged", float(has_diverged(run))))
    if len(curve):
        rows.append(row("largest_gradient", float(curve["gradient_norm"].max())))
    seconds = {"training_time": record["seconds"], "training_speed": record["tokens"] / record["seconds"]}
    elsewhere = "" if is_of_here(run) else f"trained on another machine: {record['machine']['cpu']}"
    for name, value in seconds.items():
        if elsewhere:
            rows.append(row(name, None, status="not_available", reason=elsewhere))
        else:
            rows.append(row(name, value))
    return rows


def is_of_here(run: Run) -> bool:
    """Whether this machine trained it, with as many threads."""
    own, this = (
        [found[name] for name in ("cpu", "threads", "gpu")] for found in (run.record["machine"], here.describe())
    )
    return own == this


def has_diverged(run: Run) -> bool:
    """Whether loss or gradient became no number, or the loss of the last tenth of the steps is above the first one."""
    losses = run.curve["loss"]
    if run.record["diverged"] is not None or losses.empty:
        return True
    return bool(losses.tail(max(1, round(LAST * len(losses)))).mean() > RISEN * losses.iloc[0])


def costs(
    config: ModelConfig, task: Task, classes: int | None, pooling: str, device: str, /, **cell: Hashable
) -> list[Row]:
    """What a model costs beside its quality, for as many tokens as a row of the task has.

    `parameters`, the head's too; `flops` of the layers in a forward pass; `state_bytes` that all layers keep, in
    float32, after that many tokens to decode the next.
    """
    config = _of_task(config, task)
    n = task.rows("validation", [0])["input_ids"].shape[1]
    kept = variants.state_size_of_all_layers(variants.prefilled(config, n, device))
    return [
        row("parameters", parameters(config, classes, pooling)),
        row("flops", count_passes(config, n).forward),
        row("state_bytes", BYTES * kept),
    ]


def parameters(config: ModelConfig, classes: int | None = None, pooling: str = "mean") -> int:
    """Trainable numbers of a model with its head."""
    with torch.device("meta"):
        model = TransformerLM(config)
        learner = LanguageModel(model) if classes is None else Classifier(model, classes, pooling)
    return sum(p.numel() for p in learner.parameters())


def with_parameters(config: ModelConfig, wanted: int) -> ModelConfig:
    """The same model with its feed-forward layers so wide that it has `wanted` parameters, as nearly as widths allow.

    All else stays: hidden_dim and heads, which are what a mechanism works with.

    Raises:
        ValueError: not even a width of one leaves so few.
    """
    one, two = (parameters(replace(config, ff_dim=width)) for width in (1, 2))
    width = 1 + round((wanted - one) / (two - one))
    if width < 1:
        raise ValueError(f"wanted must be ≥ {one}, what the rest of the model has, but is {wanted}; lower hidden_dim")
    return replace(config, ff_dim=width)


def _of_task(config: ModelConfig, task: Task) -> ModelConfig:
    return ModelConfig(**{**asdict(config), "vocab_size": task.vocab_size})


def _side_by_side(sweep: Sweep, held: list[Asking[pd.DataFrame]]) -> list[pd.DataFrame]:
    """What each returns; what all of them ask for next, which none of the others waits for, is measured together."""
    returned: dict[int, pd.DataFrame] = {}
    asked: dict[int, list[Part]] = {number: next(one) for number, one in enumerate(held)}
    while asked:
        tables = iter(sweep.measure_all([part for parts in asked.values() for part in parts]))
        for number, parts in list(asked.items()):
            try:
                asked[number] = held[number].send([next(tables) for _ in parts])
            except StopIteration as end:
                returned[number] = end.value
                del asked[number]
    return [returned[number] for number in range(len(held))]


def _hold_one(contest: Contest, name: Any, device: str, factors: Mapping[str, Hashable]) -> Asking[pd.DataFrame]:
    """All runs of one model, its costs and the rate that was chosen for it."""
    where = {contest.factor: name, **factors}
    config, task = contest.models[name], contest.task_of(name)
    what = config, task, contest.training, contest.classes, contest.pooling, device
    costing = functools.partial(costs, config, task, contest.classes, contest.pooling, device)
    first = [Part([where], costing, machine_bound=False)]
    tables: list[pd.DataFrame] = []

    def trained(pairs: list[tuple[float, int]], judge: Callable[[Run], list[Row]] | None) -> Asking[pd.DataFrame]:
        cells = [{**where, "learning_rate": rate, "seed": seed} for rate, seed in pairs]
        training = functools.partial(train, *what, judge, start=contest.start)
        # Its quality is the same beside others, and of its seconds none are told then.
        *before, table = yield [*first, Part(cells, training, machine_bound=True, exclusive=False)]
        first.clear()
        tables[:] = [*before, *tables, table]
        return table

    if contest.chosen is not None:
        rate = contest.chosen.get(name)
    else:
        rate = yield from _choose(lambda rates: trained([(one, contest.training.seed) for one in rates], None), contest)
    if contest.seeds or len(contest.rates) > 1:
        why: Row = {} if rate else {"status": "not_available", "reason": "every run of the grid diverged"}
        tables.append(pd.DataFrame([row("learning_rate", rate, **why, **where)]))
    if rate and contest.seeds:
        yield from trained([(rate, seed) for seed in contest.seeds], contest.judge)
    if first:  # no rate is known to train at
        tables = [*(yield first), *tables]
    return pd.concat(tables, ignore_index=True)


def _choose(trained: Callable[[list[float]], Asking[pd.DataFrame]], contest: Contest) -> Asking[float | None]:
    """The rate with the least validation loss among the runs that did not diverge; None if all did."""
    losses: dict[float, float] = {}
    wanted = sorted(contest.rates)
    for widened in range(WIDENINGS + 1):
        table = yield from trained(wanted)
        diverged, loss = (_by_rate(table, metric) for metric in ("diverged", "validation_loss"))
        losses |= {rate: math.inf if diverged.get(rate, 1) else loss.get(rate, math.inf) for rate in wanted}
        rates = sorted(losses)
        best = min(rates, key=lambda rate: losses[rate])  # the least rate where all diverged
        if len(rates) < 2 or best not in (rates[0], rates[-1]) or not contest.seeds or widened == WIDENINGS:
            break
        neighbour = rates[1] if best == rates[0] else rates[-2]
        wanted = [float(f"{best * best / neighbour:.3g}")]
    return best if math.isfinite(losses[best]) else None


def _by_rate(table: pd.DataFrame, metric: str) -> dict[float, float]:
    rows = select(table, metric)
    rows = rows[rows["status"] == "ok"]
    return {float(rate): float(value) for rate, value in zip(rows["learning_rate"], rows["value"], strict=True)}


# -- What the runs come to ------------------------------------------------------------------------


def differences(table: pd.DataFrame, contest: Contest, against: Any, **factors: Hashable) -> pd.DataFrame:
    """Differences as `hold` has them, to another model of the contest, whose name stands in the column `against`.

    Args:
        table: what `hold` returned.
        contest: what was trained.
        against: the model that others are compared with.
        factors: those that `hold` was given.

    Raises:
        ValueError: `against` is none of the models.
    """
    if against not in contest.models:
        raise ValueError(f"against must be one of {', '.join(map(str, contest.models))}, but is {against!r}")
    rows = []
    for (metric, extra), found in _by_seed(table, contest, factors).items():
        for name in contest.models:
            if name != against:
                where = {contest.factor: name, **factors, **dict(extra), "against": against}
                rows += _against(metric, found.get(name, {}), found.get(against, {}), where)
    return pd.DataFrame(rows)


Quality = tuple[str, tuple[tuple[str, Hashable], ...]]  # a metric, and the factors that the judge gave it


def _summary(table: pd.DataFrame, contest: Contest, against: Any, factors: Mapping[str, Hashable]) -> list[Row]:
    """Means over seeds, differences by seed, and how many runs diverged."""
    rows: list[Row] = []
    for (metric, extra), found in _by_seed(table, contest, factors).items():
        for name in contest.models:
            where = {contest.factor: name, **factors, **dict(extra)}
            if own := found.get(name):
                rows.append(row(metric, stats.normal_mean(list(own.values())), over=over("seed", own), **where))
            else:
                why = "no run at the chosen learning rate gave this number"
                rows.append(row(metric, None, status="not_available", reason=why, **where))
            if name != against:
                rows += _against(metric, found.get(name, {}), found.get(against, {}), where)
    return rows + _diverged(table, contest, factors)


def _against(metric: str, own: dict[int, float], other: dict[int, float], where: Row) -> list[Row]:
    """The difference, or the gain in perplexity, over the seeds that both have; nothing for other metrics."""
    name = "perplexity_gain" if metric == "perplexity" else DIFFERENCES.get(metric)
    if name is None:
        return []
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return [row(name, None, status="not_available", reason="no seed gave both numbers", **where)]
    mine, theirs = [own[seed] for seed in seeds], [other[seed] for seed in seeds]
    if name == "perplexity_gain":
        found = stats.normal_mean([b / a for a, b in zip(mine, theirs, strict=True)])
    else:
        found = stats.paired_difference(mine, theirs, normal=True)
    return [row(name, found, over=over("seed", seeds), **where)]


def _by_seed(
    table: pd.DataFrame, contest: Contest, factors: Mapping[str, Hashable]
) -> dict[Quality, dict[Any, dict[int, float]]]:
    """The numbers of the runs with fresh seeds: by metric and the judge's factors, then by model, then by seed."""
    own = {contest.factor, *factors, "learning_rate", "seed"}
    extras = sorted(set(factor_columns(table)) - own)
    rows = table[table["seed"].isin(contest.seeds) & (table["status"] == "ok") & (table["metric"] != "diverged")]
    found: dict[Quality, dict[Any, dict[int, float]]] = {}
    for record in rows.to_dict("records"):
        extra = tuple((name, record[name]) for name in extras if pd.notna(record[name]))
        models = found.setdefault((record["metric"], extra), {})
        models.setdefault(record[contest.factor], {})[int(record["seed"])] = float(record["value"])
    return found


def _diverged(table: pd.DataFrame, contest: Contest, factors: Mapping[str, Hashable]) -> list[Row]:
    """The share of runs that diverged: of the seeds at the chosen rate, and of all."""
    rows: list[Row] = []
    flags = select(table, "diverged")
    for name in contest.models:
        where = {contest.factor: name, **factors}
        own = flags[flags[contest.factor] == name]
        seeds = own[own["seed"].isin(contest.seeds)]
        names = [f"rate {rate:g}, seed {seed}" for rate, seed in zip(own["learning_rate"], own["seed"], strict=True)]
        if len(seeds):
            found = stats.share(int(seeds["value"].sum()), len(seeds))
            rows.append(row("diverged_runs", found, over=over("seed", seeds["seed"]), **where))
        if len(own):
            found = stats.share(int(own["value"].sum()), len(own))
            rows.append(row("diverged_runs", found, over=over("run", names), learning_rate="all", **where))
    return rows
