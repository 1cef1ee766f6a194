"""Looking a number up in the published tables: one row, or a sentence that says which row there is not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pandas as pd

from bsbr import stats
from bsbr.claims.rules import Rules, RulesError
from bsbr.claims.verdicts import LATER, NEVER
from bsbr.stats import Estimate
from bsbr.store import Result, factor_columns

ANY = "*"


class UnjudgedError(Exception):
    """Why a claim has no verdict on its number."""

    def __init__(self, verdict: str, reason: str) -> None:
        super().__init__(reason)
        self.verdict, self.reason = verdict, reason


class AbsentError(UnjudgedError):
    """The row is there and says why it has no number."""


class Table:
    """A result table by metric, as plain dictionaries: hundreds of claims look up a few rows each."""

    def __init__(self, result: Result, rules: Rules) -> None:
        self.experiment, self.target, self.rules = result.experiment, result.target, rules
        self.factors = set(factor_columns(result.table))
        self.parameters = result.provenance.get("parameters", {})
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in result.table.astype(object).where(result.table.notna(), None).to_dict("records"):
            self.rows[row["metric"]].append({str(name): value for name, value in row.items()})

    def find(self, metric: str, wanted: Mapping[str, Any], size: str = "", longest: int = 0) -> Estimate:
        """The number with these factors, all others being empty or plain.

        Args:
            size: the size of the models, where it matters.
            longest: take the longest range of lengths of those that begin here or later.

        Raises:
            UnjudgedError: there is no such row, or it has no number.
            RulesError: more than one row matches.
        """
        rows = self.matching(metric, wanted, size, free=("n_from", "n_to") if longest else ())
        if longest:
            rows = [row for row in rows if (row["n_from"] or 0) >= longest]
        if longest and rows:
            ends = max((row["n_to"] or 0, row["n_from"] or 0) for row in rows)
            rows = [row for row in rows if (row["n_to"] or 0, row["n_from"] or 0) == ends]
        if not rows:
            raise self._missing(metric, wanted, size)
        if len(rows) > 1:
            raise RulesError(
                f"{len(rows)} rows of {self.experiment} match {metric} at {_words(wanted)}: name a factor more"
            )
        return self._number(rows[0])

    def along(self, factor: str, metric: str, wanted: Mapping[str, Any], size: str = "") -> dict[Any, Estimate]:
        """The numbers at each value of a factor, in the order in which they stand."""
        rows = [row for row in self.matching(metric, wanted, size, free=(factor,)) if row.get(factor) is not None]
        found = {row[factor]: self._number(row) for row in rows}
        if len(found) < len(rows):
            raise RulesError(f"a value of {factor} has several {metric} in {self.experiment} at {_words(wanted)}")
        if len(found) < 2:
            raise self._missing(f"{metric} along {factor}", wanted, size)
        return found

    def matching(
        self, metric: str, wanted: Mapping[str, Any], size: str = "", free: tuple[str, ...] = ()
    ) -> list[dict[str, Any]]:
        if size and "size" in self.factors:
            wanted = {**wanted, "size": size}
        elif size and not self.is_of(size):
            return []
        if "mechanism" not in self.factors:  # a table about bsbr alone
            wanted = {factor: value for factor, value in wanted.items() if (factor, value) != ("mechanism", "bsbr")}
        if any(factor not in self.factors and value not in ("", ANY) for factor, value in wanted.items()):
            return []
        return [row for row in self.rows[metric] if self._matches(row, wanted, free)]

    def _matches(self, row: Mapping[str, Any], wanted: Mapping[str, Any], free: tuple[str, ...]) -> bool:
        for factor in self.factors:
            value = row[factor]
            if factor in free and factor not in wanted:
                continue
            if factor not in wanted:
                if value is not None and value != self.rules.plain.get(factor):
                    return False
            elif wanted[factor] != ANY and value != wanted[factor] and not (value is None and wanted[factor] == ""):
                return False
        return True

    def is_of(self, size: str) -> bool:
        """Whether the models of the whole table have the size, by what its record says."""
        return all(self.parameters.get(name) == value for name, value in self.rules.sizes[size].items())

    def _missing(self, metric: str, wanted: Mapping[str, Any], size: str) -> UnjudgedError:
        at = _words({**wanted, **({"size": size} if size else {})})
        return UnjudgedError(LATER, f"{self.experiment} has no {metric}{' at ' if at else ''}{at} yet")

    def _number(self, row: Mapping[str, Any]) -> Estimate:
        if row["value"] is None or pd.isna(row["value"]):
            reason = row["reason"] or row["status"].replace("_", " ")
            later = reason.startswith(LATER)  # a row that keeps the place of a number to come
            raise AbsentError(LATER if later else NEVER, reason)
        return stats.from_rows([row])[0]


def _words(factors: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in factors.items() if value not in ("", ANY))
