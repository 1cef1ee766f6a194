"""Every claim against the published tables, by the rules.

Seconds and bytes that belong to another machine are not held against this one's. Where a number does not travel, what
is judged is a number that does and that follows from the document's own table: the ratio to standard attention in the
same row, or the growth from the first row.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from bsbr import stats
from bsbr.claims import words
from bsbr.claims.loading import conditions, in_unit, load
from bsbr.claims.readings import Reading
from bsbr.claims.rules import Rule, Rules, Source, Word, rules
from bsbr.claims.tables import AbsentError, Table, UnjudgedError
from bsbr.claims.verdicts import BASE, LATER, NEVER, OPEN, Tolerance, verdict
from bsbr.stats import Estimate
from bsbr.store import Result, published
from bsbr.store import load as load_result
from bsbr.store.metrics import METRICS

Claim = Mapping[str, Any]


def judge(result: Result | None = None, *, target: str = "cpu", profile: str = "full") -> pd.DataFrame:
    """Claims with what was measured and a verdict.

    Args:
        result: the claims about what this result measures, by it alone, whether published or not; by default all
            claims, by all that is published for `target` and `profile`.

    Returns:
        The claims of `load()`, in order, with `claimed` (the number that is judged: the stated one, or the ratio,
        growth or difference that follows from it), `measured`, `low` and `high` (95 % interval), `finding` (what was
        found, of a claim in words), `verdict` (one of `VERDICTS`), `reason` (where there is no verdict on the number
        itself), `rule` (its name), `experiment` (the one that decided, or will), `by` (whose code, and against which
        standard attention) and `beside` (a tuple of the `Reading`s of the other sources).
    """
    stated, rulebook = load(), rules()
    if result is None:
        names = [name for name in published(target, profile) if name in rulebook.experiments]
        results = [load_result(name, target, profile) for name in names]
    else:
        results = [result]
    found = _Judge(stated, rulebook, {each.experiment: Table(each, rulebook) for each in results})
    judged = [found.judge(claim, result.experiment if result else "") for claim in found.claims]
    kept = [at for at, entry in enumerate(judged) if entry]
    columns = [
        "claimed",
        "measured",
        "low",
        "high",
        "finding",
        "verdict",
        "reason",
        "rule",
        "experiment",
        "by",
        "beside",
    ]
    return stated.iloc[kept].reset_index(drop=True).join(pd.DataFrame([judged[at] for at in kept], columns=columns))


def distinct(judged: pd.DataFrame) -> pd.DataFrame:
    """Each statement once: without those that repeat another that is there too."""
    return judged[~judged["repeats"].isin(set(judged["id"])) | judged["repeats"].eq("")]


class _Judge:
    """The claims, and the result tables to hold them against."""

    def __init__(self, stated: pd.DataFrame, rulebook: Rules, tables: dict[str, Table]) -> None:
        self.rules, self.tables = rulebook, tables
        self.claims = [
            {str(name): None if pd.isna(value) else value for name, value in claim.items()}
            for claim in stated.astype(object).to_dict("records")
        ]
        self.by_key = {self._key(claim): claim for claim in self.claims}
        self.series: dict[tuple[str, ...], list[Claim]] = defaultdict(list)
        for claim in self.claims:
            self.series[self._key(claim)[:4]].append(claim)

    @staticmethod
    def _key(claim: Claim, mechanism: str | None = None) -> tuple[str, ...]:
        place = (claim["document"], claim["section"], claim["quantity"], mechanism or claim["mechanism"])
        return (*place, claim["conditions"].partition(", out of memory")[0])

    def judge(self, claim: Claim, only: str = "") -> dict[str, Any]:
        """One claim's verdict; nothing where `only` names an experiment that does not measure it."""
        rule = self.rules.finds(claim)
        assert rule is not None  # checked when the claims were loaded
        readings = self._words(rule, claim) if isinstance(rule, Word) else self._numbers(rule, claim)
        readings = [reading for reading in readings if only in ("", reading.experiment)]
        if not readings:
            return {}
        first, *beside = readings
        entry = {name: value for name, value in vars(first).items() if name != "label"}
        return {**entry, "rule": rule.name, "by": first.label, "beside": tuple(beside)}

    def _words(self, word: Word, claim: Claim) -> list[Reading]:
        if word.unavailable:
            return [Reading("", "", verdict=NEVER, reason=word.unavailable)]
        size = self.rules.documents.get(claim["document"], "")
        stated = math.nan if claim["value"] is None else float(claim["value"])
        parts = [parts for parts in (word.parts, word.beside) if parts]
        return [replace(words.read(each, self.tables, size), claimed=stated) for each in parts]

    def _numbers(self, rule: Rule, claim: Claim) -> list[Reading]:
        sources = [source for source in rule.sources if source.is_for(claim["mechanism"])]
        if not sources:
            return [Reading("", "", verdict=NEVER, reason=rule.unavailable)]
        return [self._reading(rule, source, claim) for source in sources]

    def _reading(self, rule: Rule, source: Source, claim: Claim) -> Reading:
        reading = Reading(source.label, source.experiment)
        try:
            base = self._base(rule, claim)
            reading = replace(reading, claimed=self._claimed(rule, claim, base))
            found = self._measured(rule, source, claim, base)
            reading = reading.with_number(found)
            neutral = self._neutral(rule, source, claim, base)
            result = verdict(
                reading.claimed,
                found,
                Tolerance(rule.share, rule.relative, rule.margin, rule.equal),
                neutral=neutral,
                ratio=rule.compare in ("ratio", "growth") or rule.scale == "ratio",
                interval=rule.interval,
            )
            why = ""
            if result == OPEN:
                why = (
                    "measured without an interval" if found.low is None else "the interval is wider than the tolerance"
                )
            return replace(reading, verdict=result, reason=why)
        except UnjudgedError as why_not:
            return replace(reading, verdict=why_not.verdict, reason=why_not.reason)

    # -- What is claimed --

    def _base(self, rule: Rule, claim: Claim) -> Claim | None:
        """The claim that this one is judged relative to, or None if it is judged as it stands."""
        own = {"mechanism": claim["mechanism"], "quantity": claim["quantity"], **conditions(claim["conditions"])}
        if rule.base and all(own.get(name) == value for name, value in rule.base.items()):
            raise UnjudgedError(BASE, "so by construction: the numbers beside it are relative to it")
        if claim["value"] is None:
            raise UnjudgedError(NEVER, "where memory runs out belongs to the machine")
        if rule.compare == "stated":
            return None
        standard = self.by_key.get(self._key(claim, "standard"))
        if rule.compare != "growth" and claim["mechanism"] != "standard" and standard and standard["value"] is not None:
            return standard
        first = self.series[self._key(claim)[:4]][0]
        if first is claim:
            raise UnjudgedError(BASE, "the numbers beside it are judged relative to it")
        return first

    def _claimed(self, rule: Rule, claim: Claim, base: Claim | None) -> float:
        unit = METRICS[self.rules.metric(claim)].unit  # cancels out of a ratio
        own = in_unit(float(claim["value"]), claim["unit"], unit)
        if base is None:
            return own
        other = in_unit(float(base["value"]), base["unit"], unit)
        if rule.compare == "difference":
            return own - other
        over_standard = rule.compare == "ratio" and base["mechanism"] != claim["mechanism"]
        above, below = (other, own) if over_standard else (own, other)
        return above / below if below else math.nan

    # -- What was measured --

    def _measured(self, rule: Rule, source: Source, claim: Claim, base: Claim | None) -> Estimate:
        table = self.tables.get(source.experiment)
        if table is None or source.target not in ("", table.target):
            later = UnjudgedError(LATER, f"{source.experiment} will measure it")
            raise UnjudgedError(NEVER, rule.unavailable) if rule.unavailable else later
        try:
            return self._number(table, rule, source, claim, base)
        except AbsentError as absent:
            if rule.reach and self._reached(table, rule, source, claim):
                raise UnjudgedError("contradicted", absent.reason) from None
            raise

    def _reached(self, table: Table, rule: Rule, source: Source, claim: Claim) -> bool:
        """Whether a crossover was looked for as far as it is claimed."""
        where = {**self._factors(rule, source, claim), "n": "*"}
        return any((row["n"] or 0) >= claim["value"] for row in table.matching(rule.reach, where))

    def _number(self, table: Table, rule: Rule, source: Source, claim: Claim, base: Claim | None) -> Estimate:
        metric, size = self.rules.metric(claim), self._size(source, claim)

        def find(which: Claim, name: str = metric) -> Estimate:
            return table.find(name, self._factors(rule, source, which), size, rule.longest)

        if base is None:
            return stats.complement(find(claim)) if rule.complement else find(claim)
        to_standard = base["mechanism"] != claim["mechanism"]
        against = source.against or (rule.against if not source.baseline else "")
        if to_standard and against and table.rows[against]:
            return find(claim, against)
        own, other = find(claim), find(base)
        if rule.compare == "difference":
            return stats.independent_difference(own, other)
        above, below = (other, own) if rule.compare == "ratio" and to_standard else (own, other)
        if not below.value:
            raise UnjudgedError(NEVER, "what it is relative to measured zero")
        return stats.independent_ratio(above, below)

    def _factors(self, rule: Rule, source: Source, claim: Claim) -> dict[str, Any]:
        named = conditions(claim["conditions"])
        return {**source.factors, **rule.factors, **source.model(claim["mechanism"]), **named}

    def _size(self, source: Source, claim: Claim) -> str:
        return self.rules.documents.get(claim["document"], "") if source.sized else ""

    # -- What would be no effect --

    def _neutral(self, rule: Rule, source: Source, claim: Claim, base: Claim | None) -> tuple[float, float] | None:
        if rule.compare == "difference":
            return 0.0, 0.0
        if base is not None:
            grown = rule.proportional and base["n"] != claim["n"] and None not in (base["n"], claim["n"])
            middle = claim["n"] / base["n"] if grown else 1.0
            return middle, middle
        if rule.neutral != "standard":
            return None if rule.neutral is None else (float(rule.neutral), float(rule.neutral))
        standard = self.by_key.get(self._key(claim, "standard"))
        if standard is None or standard is claim or standard["value"] is None:
            return None
        stated = self._claimed(rule, standard, None)
        try:
            return stated, self._number(self.tables[source.experiment], rule, source, standard, None).value
        except UnjudgedError:
            return None
