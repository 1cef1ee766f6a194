"""How a contest of trained models is shown: who differs beyond the spread of seeds, what each costs, and the grid."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from bsbr.mechanisms import MECHANISMS
from bsbr.show import figures
from bsbr.show.captions import listed
from bsbr.store import Result, factor_columns, select
from bsbr.store.metrics import metric as registered

# By metric of a difference: the value of no difference, and whether more is better.
SENSE = {"loss_difference": (0.0, False), "perplexity_gain": (1.0, True)}
COSTS = {
    "parameters": "parameters (millions)",
    "flops": "GFLOPs of a pass",
    "state_bytes": "state (KB)",
    "training_speed": "tokens/s trained",
    "learning_rate": "learning rate",
}
SCALES = {"parameters": 1e-6, "flops": 1e-9, "state_bytes": 1e-3}
COMMON_NOUNS = ("Standard", "Linear", "Sliding", "Gated")  # a title begins with a capital; a name keeps it
NOT_COMPARED = "This profile trains a part of the grid and no fresh seeds: nothing is compared, as the full one does."


def is_compared(result: Result) -> bool:
    """Whether seeds were trained, so that there are means and differences; else there are runs of the grid alone."""
    return bool((result.table["metric"] == "diverged_runs").any())


def name_of(model: Hashable) -> str:
    """A mechanism's title within a sentence, or the name as it is."""
    if str(model) not in MECHANISMS:
        return str(model)
    title = MECHANISMS[str(model)].title
    return title[0].lower() + title[1:] if title.split()[0] in COMMON_NOUNS else title


def differing(result: Result, difference: str, *, factor: str = "mechanism", than: str = "", **where: Hashable) -> str:
    """One sentence: which models differ from the one they are compared with beyond the spread of seeds, which do not.

    Args:
        difference: the metric, such as `"accuracy_difference"`; whether more is better is known of each.
        factor: the column that names a model.
        than: what they are compared with; by default standard attention.
        where: the other factors of the rows, such as n; those that are not named are empty.
    """
    if not is_compared(result):
        return NOT_COMPARED
    than = than or name_of("standard")
    neutral, more_is_better = SENSE.get(difference, (0.0, True))
    rows = _rows(result, difference, factor, where)
    groups: dict[str, list[str]] = {"better": [], "worse": [], "same": [], "unknown": []}
    for found in rows.to_dict("records"):
        name = name_of(found[factor])
        if pd.isna(found["low"]):
            groups["unknown"].append(name)
        elif found["low"] <= neutral <= found["high"]:
            groups["same"].append(name)
        else:
            unit = {"points": " points", "nats": " nats", "×": " ×"}.get(str(found["unit"]), "")
            shown = figures.interval(found["value"], found["low"], found["high"])
            better = (found["value"] > neutral) == more_is_better
            groups["better" if better else "worse"].append(f"{name} ({shown}{unit})")
    parts = [
        f"{listed(names)} {'is' if len(names) == 1 else 'are'} {group} than {than}"
        for group, names in groups.items()
        if group in ("better", "worse") and names
    ]
    head = "; ".join(parts) or f"no model differs from {than}"
    tail = f"; {listed(groups['same'])} cannot be told from it" if groups["same"] and parts else ""
    open_ = f"; too few seeds for {listed(groups['unknown'])}" if groups["unknown"] else ""
    return f"Beyond the spread of seeds, {head}{tail}{open_}."


def beating(
    result: Result,
    metric: str,
    baseline: Hashable,
    *,
    factor: str = "mechanism",
    less: bool = False,
    models: Iterable[Hashable] = tuple(MECHANISMS),
    **where: Hashable,
) -> str:
    """One sentence: which models beat what needs no training, beyond the spread of seeds.

    Args:
        metric: of the quality, such as `"accuracy"`.
        baseline: the factor's value in the baseline's row, such as `"5-gram"`.
        less: whether less is better, as of perplexity.
        models: which are held against it.
    """
    if not is_compared(result):
        return NOT_COMPARED
    rows = _rows(result, metric, factor, where)
    level = float(rows.loc[rows[factor] == baseline, "value"].iloc[0])
    ahead: list[str] = []
    behind: list[str] = []
    open_: list[str] = []
    for found in rows[rows[factor].isin(list(models)) & rows["value"].notna()].to_dict("records"):
        low, high = (found["value"] if pd.isna(found[end]) else found[end] for end in ("low", "high"))
        wins, loses = (high < level, low > level) if less else (low > level, high < level)
        (ahead if wins else behind if loses else open_).append(name_of(found[factor]))
    sign = figures.number(level)
    unit = f" {registered(metric).unit}" if registered(metric).unit else ""
    parts = [f"{listed(ahead) or 'no model'} {'beats' if len(ahead) < 2 else 'beat'} {baseline} ({sign}{unit})"]
    parts += [f"{listed(behind)} {'does' if len(behind) == 1 else 'do'} not"] if behind and (ahead or open_) else []
    parts += [f"{listed(open_)} cannot be told from it"] if open_ else []
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def table(
    result: Result, qualities: Mapping[str, str], caption: str = "", *, factor: str = "mechanism", **where: Hashable
) -> None:
    """Display one line a model: its qualities, and beside them what it costs.

    Args:
        qualities: by metric what stands above its column.
        where: the other factors of the rows, such as n; those that are not named are empty.
    """
    columns = {**qualities, **COSTS}
    found = {name: _rows(result, name, factor, where) for name in columns}
    models = list(dict.fromkeys(model for rows in found.values() for model in rows[factor]))
    frame = pd.DataFrame({factor: models})
    for name, head in columns.items():
        scale = SCALES.get(name, 1.0)
        shown = {row[factor]: _shown(row, scale) for row in found[name].to_dict("records")}
        if shown:
            frame[head] = [shown.get(model, "–") for model in models]
    figures.table(frame, caption)


def runs(result: Result, metric: str) -> pd.DataFrame:
    """The rows of single runs, of the grid and of the seeds, with the learning rate as a number.

    In a table that was read back it is a word, since "all" stands in the same column.
    """
    rows = select(result.table, metric)
    rows = rows[rows["seed"].notna()]
    return rows.assign(learning_rate=pd.to_numeric(rows["learning_rate"]))


def grid(result: Result, seed: int, title: str, *, factor: str = "mechanism", **where: Hashable) -> go.Figure:
    """Validation loss by learning rate, one line a model; what diverged is left out.

    Args:
        seed: of the grid's runs.
        where: the other factors of the rows, such as n; those that are not named are empty.
    """
    rows = runs(result, "validation_loss")
    rows = _at(rows[rows["seed"] == seed], [factor, "learning_rate", "seed"], where)
    return figures.lines(rows, "learning_rate", group=factor, title=title, x_title="learning rate", log_x=True)


def _rows(result: Result, metric: str, factor: str, where: Mapping[str, Hashable]) -> pd.DataFrame:
    """The rows of one metric, one a model: all factors but the one that names models are given, or empty."""
    return _at(select(result.table, metric), [factor], where)


def _at(rows: pd.DataFrame, free: list[str], where: Mapping[str, Hashable]) -> pd.DataFrame:
    for name in factor_columns(rows):
        if name in where:
            rows = rows[(rows[name] == where[name]).fillna(False)]
        elif name not in free:
            rows = rows[rows[name].isna()]
    return rows


def _shown(row: Mapping[Any, Any], scale: float) -> str:
    if row["status"] != "ok":
        return str(row["status"]).replace("_", " ")
    value, low, high = (None if pd.isna(row[name]) else scale * row[name] for name in ("value", "low", "high"))
    return figures.interval(value, low, high)
