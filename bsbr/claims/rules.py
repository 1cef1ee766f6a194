"""The rules by which claims are judged: data in `data/claims_rules.toml`, read against its schema.

What each field means stands in the schema beside it. `judge` and `words` do what the rules say.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jsonschema

from bsbr.store.metrics import METRICS
from bsbr.store.provenance import ROOT

PATH = ROOT / "data" / "claims_rules.toml"
SCHEMA = ROOT / "data" / "claims_rules.schema.json"
Factors = Mapping[str, Any]


class RulesError(ValueError):
    """The file of rules is not what its schema says."""


@dataclass(frozen=True)
class Source:
    """Where a number comes from."""

    whose: str
    experiment: str
    baseline: str = ""
    models: Mapping[str, Factors] = field(default_factory=dict)
    mechanisms: tuple[str, ...] = ()
    factors: Factors = field(default_factory=dict)
    against: str = ""
    sized: bool = False
    target: str = ""

    @property
    def label(self) -> str:
        return f"{self.whose}, {self.baseline}" if self.baseline else self.whose

    def is_for(self, mechanism: str) -> bool:
        return not self.mechanisms or mechanism in self.mechanisms

    def model(self, mechanism: str) -> Factors:
        """What stands in the table for a mechanism."""
        return self.models.get(mechanism, {"mechanism": mechanism} if mechanism else {})


@dataclass(frozen=True)
class Rule:
    """How the claims of some quantities are judged."""

    name: str
    quantities: tuple[str, ...]
    where: str = ""
    sources: tuple[Source, ...] = ()
    compare: Literal["stated", "ratio", "growth", "difference"] = "stated"
    scale: Literal["", "ratio"] = ""
    metric: str = ""
    against: str = ""
    factors: Factors = field(default_factory=dict)
    neutral: float | Literal["standard"] | None = None
    share: float = 0
    relative: float = 0
    margin: float = 0
    equal: float = 0
    proportional: bool = False
    complement: bool = False
    longest: int = 0
    interval: bool = False
    reach: str = ""
    base: Factors = field(default_factory=dict)
    unavailable: str = ""
    why: str = ""

    def is_for(self, claim: Mapping[str, Any]) -> bool:
        place = f"{claim['document']}: {claim['section']}"
        return claim["quantity"] in self.quantities and bool(re.search(self.where, place))

    @property
    def experiments(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(source.experiment for source in self.sources))


@dataclass(frozen=True)
class Part:
    """One thing that must hold for a claim in words."""

    experiment: str
    metric: str
    where: Factors
    over: Factors | None = None
    minus: Factors | None = None
    from_one: bool = False
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    neutral: float | None = None
    interval: bool = False
    sized: bool = False
    along: str = ""
    order: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    trend: Literal["", "rises", "falls", "changes"] = ""
    every_at_least: float | None = None
    best: Literal["", "least", "most"] = ""
    at: Any = None
    within: float = 1


@dataclass(frozen=True)
class Word:
    """How claims in words, or of what is best, are judged: all parts have to hold."""

    claims: tuple[str, ...]
    meaning: str
    parts: tuple[Part, ...] = ()
    beside: tuple[Part, ...] = ()
    unavailable: str = ""

    @property
    def name(self) -> str:
        return self.claims[0]

    @property
    def experiments(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.experiment for part in (*self.parts, *self.beside)))


@dataclass(frozen=True)
class Rules:
    """The whole file."""

    mechanisms: tuple[str, ...]
    plain: Factors
    documents: Mapping[str, str]
    sizes: Mapping[str, Factors]
    models: Mapping[str, Mapping[str, Factors]]
    numbers: tuple[Rule, ...]
    words: tuple[Word, ...]

    def finds(self, claim: Mapping[str, Any]) -> Rule | Word | None:
        """What judges a claim: the words that name its id, else the first rule that is for it."""
        for word in self.words:
            if claim["id"] in word.claims or claim["repeats"] in word.claims:
                return word
        return next((rule for rule in self.numbers if rule.is_for(claim)), None)

    def metric(self, claim: Mapping[str, Any]) -> str:
        """The metric that a claimed number is held against."""
        rule = self.finds(claim)
        return (rule.metric if isinstance(rule, Rule) else "") or claim["quantity"]

    @property
    def experiments(self) -> set[str]:
        both: tuple[Rule | Word, ...] = (*self.numbers, *self.words)
        return {name for rule in both for name in rule.experiments}


@functools.cache
def rules() -> Rules:
    """The project's rules, read once.

    Raises:
        RulesError: the file is not what its schema says, or names something that it does not define.
    """
    return read(PATH)


def read(path: Path, schema: Path = SCHEMA) -> Rules:
    """The rules of a file (see `rules`)."""
    text = path.read_text(encoding="utf-8")
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesError(f"{path.name}: {error}") from None
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
    for wrong in sorted(validator.iter_errors(found), key=lambda wrong: [str(step) for step in wrong.absolute_path]):
        raise RulesError(f"{path.name}{_place(list(wrong.absolute_path), found, text)}: {wrong.message}")
    return _Reader(path.name, text, found).rules()


def _place(steps: list[Any], found: Mapping[str, Any], text: str) -> str:
    """Which rule, source or word it is, and in which line it begins."""
    if len(steps) < 2:
        return ""
    kind, at = steps[0], steps[1]
    entry = found[kind][at]
    name = entry.get("name") or (entry.get("claims") or [""])[0] if kind in ("rule", "word") else at
    opening = {"rule": f'name = "{name}"', "word": f'claims = ["{name}"', "source": f'"{name}" ='}.get(kind, str(name))
    line = next((number for number, line in enumerate(text.splitlines(), start=1) if line.startswith(opening)), 0)
    inner = "".join(f", {step if isinstance(step, str) else step + 1}" for step in steps[2:])
    return f", line {line}, {kind} {name!r}{inner}"


class _Reader:
    """From plain data to rules, with a sentence for a name that leads nowhere."""

    def __init__(self, file: str, text: str, found: Mapping[str, Any]) -> None:
        self.file, self.text, self.found = file, text, found

    def rules(self) -> Rules:
        sources = {name: self._source(name, entry) for name, entry in self.found["source"].items()}
        return Rules(
            mechanisms=tuple(self.found["mechanisms"]),
            plain=self.found["plain"],
            documents=self.found["documents"],
            sizes=self.found["sizes"],
            models=self.found["models"],
            numbers=tuple(self._rule(at, entry, sources) for at, entry in enumerate(self.found["rule"])),
            words=tuple(self._word(at, entry) for at, entry in enumerate(self.found["word"])),
        )

    def _source(self, name: str, entry: Mapping[str, Any]) -> Source:
        models = self._known(["source", name], "models", entry.get("models"), self.found["models"])
        self._metric(["source", name], entry.get("against"))
        return Source(**{**entry, "models": models or {}, "mechanisms": tuple(entry.get("mechanisms", ()))})

    def _rule(self, at: int, entry: Mapping[str, Any], sources: Mapping[str, Source]) -> Rule:
        for name in ("metric", "against", "reach"):
            self._metric(["rule", at], entry.get(name))
        if "sources" in entry and "metric" not in entry:
            for quantity in entry["quantities"]:
                self._metric(["rule", at], quantity)
        named = tuple(self._known(["rule", at], "sources", name, sources) for name in entry.get("sources", ()))
        return Rule(**{**entry, "quantities": tuple(entry["quantities"]), "sources": named})

    def _word(self, at: int, entry: Mapping[str, Any]) -> Word:
        parts, beside = (
            tuple(self._part(["word", at], part) for part in entry.get(name, ())) for name in ("parts", "beside")
        )
        return Word(tuple(entry["claims"]), entry["meaning"], parts, beside, entry.get("unavailable", ""))

    def _part(self, place: list[Any], entry: Mapping[str, Any]) -> Part:
        self._metric(place, entry["metric"])
        renamed = {{"from": "start", "to": "end"}.get(name, name): value for name, value in entry.items()}
        return Part(**{**renamed, "order": tuple(entry.get("order", ()))})

    def _metric(self, place: list[Any], name: str | None) -> None:
        self._known(place, "metric", name, METRICS)

    def _known(self, place: list[Any], what: str, name: str | None, known: Mapping[str, Any]) -> Any:
        if name is not None and name not in known:
            raise RulesError(f"{self.file}{_place(place, self.found, self.text)}: {what} {name!r} is not known")
        return None if name is None else known[name]
