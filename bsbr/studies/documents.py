"""The texts that models read, and what is said of several of them together.

An average is over documents, trials or the like. It says over which, and two averages stand beside each other only if
they are over the same: `over_all_and_shared` sees to it where some settings have read more than others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from bsbr import sources, stats
from bsbr.store import MEASURED, Row, over, row

# -- Reading --------------------------------------------------------------------------------------


@functools.cache
def _texts() -> dict[str, str]:
    texts: list[sources.Speech | sources.Email] = [*sources.load_speeches(), *sources.load_emails("held_out")]
    return {text.key: text.text for text in texts}


def ids_of(
    document: str, tokenizer: Any, n: int | None = None, device: torch.device | str = "cpu"
) -> Int[Tensor, "1 n"]:
    """The first n tokens of a speech or an e-mail, or all of them.

    Args:
        document: its key.

    Raises:
        ValueError: there is no such document, or it has fewer tokens.
    """
    if document not in _texts():
        raise ValueError(f"document: expected the key of a speech or of a held-out e-mail, got {document!r}")
    ids = tokenizer(_texts()[document], return_tensors="pt", verbose=False)["input_ids"]
    if n is not None and ids.shape[1] < n:
        raise ValueError(f"document: {document} has only {ids.shape[1]} tokens, {n} are needed")
    return ids[:, :n].to(device)


def joined_ids(tokenizer: Any, n: int, device: torch.device | str = "cpu") -> Int[Tensor, "1 n"]:
    """The first n tokens of the held-out speeches, one after the other, with memory of their own.

    Raises:
        ValueError: they have fewer.
    """
    ids = _joined(tokenizer)
    if ids.shape[1] < n:
        raise ValueError(f"n: the held-out speeches have only {ids.shape[1]} tokens, {n} are needed")
    return ids[:, :n].clone().to(device)


@functools.lru_cache(maxsize=1)
def _joined(tokenizer: Any) -> Int[Tensor, "1 n"]:
    text = "\n\n".join(speech.text for speech in sources.load_speeches("held_out"))
    return tokenizer(text, return_tensors="pt", verbose=False)["input_ids"]


# -- Averages -------------------------------------------------------------------------------------


def _share(values: Sequence[float]) -> stats.Estimate:
    return stats.share(sum(value > 0 for value in values), len(values))


# By metric, where it is not the mean. The ratio of two geometric means is the geometric mean of the ratios.
AVERAGES: dict[str, Callable[[Any], stats.Estimate]] = {
    "perplexity": stats.geometric_mean,
    "perplexity_ratio": stats.geometric_mean,
    "retrieval_accuracy": _share,
}


def averages(rows: pd.DataFrame, item: str = "document", *, without: Sequence[str] = ()) -> list[Row]:
    """Each metric's average over items, for each combination of the other factors.

    Perplexities and their ratios have geometric means, passkeys found a share of trials, all else an arithmetic mean.

    Args:
        rows: of a table, one an item; those without an item or a number are left out.
        item: the factor that is averaged over.
        without: factors that follow from the item.

    Raises:
        ValueError: an item comes twice among rows that are alike in all else.
    """
    return [
        row(name, AVERAGES.get(name, stats.mean)(values), over=over(item, items), **where)
        for name, where, items, values in _groups(rows, item, without)
    ]


def deviations(rows: pd.DataFrame, item: str = "document", *, without: Sequence[str] = ()) -> list[Row]:
    """The standard deviation between items, where there are two or more: rows with `statistic`."""
    return [
        row(name, stats.deviation(values), samples=len(values), over=over(item, items), statistic=STANDARD, **where)
        for name, where, items, values in _groups(rows, item, without)
        if len(values) > 1
    ]


STANDARD = "standard deviation"


def over_all_and_shared(rows: pd.DataFrame, among: str = "setting", item: str = "document") -> pd.DataFrame:
    """The rows to average, once or twice, told apart by the factor `documents`.

    `"all"`: of those that have read every item, over all of them. `"shared"`, where not all have: of each, over the
    items that all have read.

    Args:
        rows: of one group that is to be compared, one an item.
        among: the factor whose values are compared.
    """
    read = {name: set(part[item].dropna()) for name, part in rows.groupby(among, sort=False)}
    every, shared = set.union(*read.values()), set.intersection(*read.values())
    whole = [name for name, items in read.items() if items == every]
    found = [rows[rows[among].isin(whole)].assign(documents="all")]
    if len(whole) < len(read) and shared:
        found.append(rows[rows[item].isin(shared)].assign(documents="shared"))
    return pd.concat(found, ignore_index=True)


def pairs(
    rows: pd.DataFrame, name: str, first: Hashable, second: Hashable, *, among: str = "setting", item: str = "document"
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Hashable]]:
    """A metric's values under two settings on the items that both have read, and those items.

    Args:
        rows: in which an item has at most one number of that metric for a setting.
    """
    wide = rows[rows["metric"] == name].pivot(index=item, columns=among, values="value")
    if not {first, second} <= set(wide):
        return np.array([]), np.array([]), []
    both = wide[wide[first].notna() & wide[second].notna()]
    return both[first].to_numpy(float), both[second].to_numpy(float), list(both.index)


def gap_closed(
    rows: pd.DataFrame, before: Hashable, after: Hashable, *, among: str = "setting", **where: Any
) -> list[Row]:
    """How much of the gap in mean log-likelihood to the original is closed from one setting to another: at most a row.

    Args:
        rows: of one group, with a `perplexity_ratio` for each document and setting.
        where: the row's other factors.
    """
    first, second, items = pairs(rows, "perplexity_ratio", before, after, among=among)
    if not items or np.log(first).mean() == 0:
        return []
    closed = stats.gap_closed(np.log(first), np.log(second))
    factors: dict[str, Any] = {among: after, **where}
    return [row("gap_closed", closed, over=over("document", items), **factors)]


def _groups(
    rows: pd.DataFrame, item: str, without: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any], list[Hashable], list[float]]]:
    rows = rows[rows[item].notna() & rows["value"].notna()]
    factors = [str(name) for name in rows.columns if name not in (*MEASURED, item, *without)]
    for key, part in rows.groupby(["metric", *factors], dropna=False, sort=False):
        values: list[Any] = list(key[1:])
        where = {name: value for name, value in zip(factors, values, strict=True) if pd.notna(value)}
        yield str(key[0]), where, list(part[item]), [float(value) for value in part["value"]]
