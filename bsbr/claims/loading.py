"""What the documents under test state, one claim a row of `data/claims.csv`, and how many claims each section holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from bsbr.claims.rules import Rule, Rules, rules
from bsbr.store.metrics import METRICS
from bsbr.store.provenance import ROOT

PATH = ROOT / "data" / "claims.csv"
COUNTS = ROOT / "data" / "claims_counts.csv"
COLUMNS = [
    "id", "document", "section", "quantity", "mechanism", "conditions", "value", "unit", "placeholder", "repeats",
    "statement",
]  # fmt: skip
TEXT = [name for name in COLUMNS if name not in ("value", "placeholder")]
STATEMENT = "statement"  # the quantity of a claim in words
# The unit in which a claim is judged, over the unit in which it is stated.
UNITS = {("MiB", "MB"): 1.048576, ("%", "points"): 1.0, ("", "%"): 100.0}


class ClaimsError(ValueError):
    """A row of `claims.csv` is not what it should be."""


def load(*quantities: str) -> pd.DataFrame:
    """The claims about these quantities (all of them if none is named), in the order of the documents.

    Returns:
        `id`, which never changes; `document`, `section`, `quantity` (`statement` for a claim in words, whose paraphrase
        stands in `statement`), `mechanism`, `conditions` such as `n=1024`, `value`, `unit`, `placeholder` (whether the
        document itself says that its number stands in for a missing one), `repeats` (the id of the claim that this one
        states once more, such as a speedup beside its two times), and `n` where the conditions give it. A number
        without a `value` is one that the document states as out of memory.

    Raises:
        ClaimsError: a row of the file is wrong, by line.
        ValueError: no claim is about one of the quantities.
    """
    claims = read(PATH, rules())
    known = claims["quantity"].unique()
    for quantity in quantities:
        if quantity not in known:
            raise ValueError(f"no claim is about {quantity!r}; the claims are about {', '.join(known)}")
    return claims[claims["quantity"].isin(quantities or known)].reset_index(drop=True)


def read(path: Path, rulebook: Rules) -> pd.DataFrame:
    """The claims of a file, checked against the rules that will judge them (see `load`)."""
    claims = pd.read_csv(path, keep_default_na=False, dtype="string")
    if list(claims.columns) != COLUMNS:
        raise ClaimsError(
            f"{path.name}, line 1: the columns must be {', '.join(COLUMNS)}, not {', '.join(map(str, claims))}"
        )
    for line, claim in enumerate(claims.to_dict("records"), start=2):
        if wrong := _what_is_wrong({str(name): str(value) for name, value in claim.items()}, rulebook):
            raise ClaimsError(f"{path.name}, line {line}: {wrong}")
    _check_ids(claims, path)
    claims["value"] = pd.to_numeric(claims["value"].replace("", None)).astype("float64")
    claims["placeholder"] = claims["placeholder"] == "True"
    claims["n"] = claims["conditions"].map(lambda text: conditions(text).get("n")).astype("Int64")
    return claims


def _what_is_wrong(claim: dict[str, str], rulebook: Rules) -> str:
    """What is the matter with a row, in words; nothing if it is fit."""
    words = claim["quantity"] == STATEMENT
    if not re.fullmatch(r"[a-z0-9-]+", claim["id"]):
        return f"id must be lower-case letters, digits and hyphens, not {claim['id']!r}"
    if claim["mechanism"] and claim["mechanism"] not in rulebook.mechanisms:
        return f"mechanism must be one of {', '.join(rulebook.mechanisms)}, not {claim['mechanism']!r}"
    if claim["placeholder"] not in ("True", "False"):
        return f"placeholder must be True or False, not {claim['placeholder']!r}"
    if words != bool(claim["statement"]):
        return "a claim in words has the quantity 'statement' and its paraphrase in the column statement; no other has"
    try:
        float(claim["value"] or "nan")
    except ValueError:
        return f"value must be a number or empty, not {claim['value']!r}"
    if not words and not claim["value"] and "out of memory" not in claim["conditions"]:
        return "value is empty, which only a number stated as out of memory may be"
    rule = rulebook.finds(claim)
    if rule is None:
        return f"no rule is for quantity {claim['quantity']!r} of {claim['document']}: {claim['section']}; add one"
    as_it_is = isinstance(rule, Rule) and rule.sources and rule.compare in ("stated", "difference")
    if as_it_is and not fits(claim["unit"], METRICS[name := rulebook.metric(claim)].unit):
        return f"unit {claim['unit']!r} cannot be held against {METRICS[name].unit!r}, the unit of {name}"
    return ""


def _check_ids(claims: pd.DataFrame, path: Path) -> None:
    first = claims["repeats"].eq("")
    known = set(claims.loc[first, "id"])
    twice = claims["id"].duplicated()
    lost = ~first & ~claims["repeats"].isin(known)
    for wrong, what in (
        (twice, "id {id!r} stands further up already"),
        (lost, "repeats {repeats!r}, which is no claim that stands for itself"),
    ):
        if wrong.any():
            at = int(wrong.to_numpy().argmax())
            raise ClaimsError(f"{path.name}, line {at + 2}: {what.format(**claims.iloc[at])}")


def fits(stated: str, judged: str) -> bool:
    return stated == judged or (stated, judged) in UNITS or not stated


def in_unit(value: float, stated: str, judged: str) -> float:
    """A stated number in the unit in which it is judged: MiB in MB, a share of 1 in %."""
    return value * UNITS.get((stated, judged), 1.0)


def counts() -> pd.DataFrame:
    """How many claims each table and list of the documents holds.

    Returns:
        `document`, `section`, `numbers` (written there in digits), `settings` (those of them that only say under what
        conditions: lengths, sizes, versions), `words` (claims made in words, such as `quadratic` or a key finding), and
        `claims`, which is numbers − settings + words.
    """
    return pd.read_csv(COUNTS)


def short(document: str) -> str:
    """A document's name for a table's head or a legend: `Benchmarks (0.1.1)`, `Model Conversion`."""
    return document.removeprefix("BSBR ").removeprefix("Research ").split(":")[0]


def title(quantity: str) -> str:
    """A quantity in words: its metric's title, or its name."""
    return METRICS[quantity].title.lower() if quantity in METRICS else quantity.replace("_", " ")


def conditions(text: str) -> dict[str, Any]:
    """The factors that a claim's conditions name.

    >>> conditions("n=64..1024"), conditions("chunk_size=32"), conditions("stated as linear")
    ({'n_from': 64, 'n_to': 1024}, {'chunk_size': 32}, {})
    """
    found: dict[str, Any] = {}
    for name, value in re.findall(r"(\w+)=([^,]+)", text):
        start, dots, end = value.partition("..")
        if dots:
            found |= {f"{name}_from": int(start), f"{name}_to": int(end)}
        else:
            found[name] = int(value) if value.isdigit() else value
    return found
