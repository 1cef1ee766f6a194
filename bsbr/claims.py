"""What the seeds stated: the documents this project set out to check, one number a row of `data/claims.csv`."""

from __future__ import annotations

import re

import pandas as pd

from bsbr.provenance import ROOT

PATH = ROOT / "data" / "claims.csv"
TEXT = ["document", "section", "quantity", "mechanism", "conditions", "unit"]


def load(*quantities: str) -> pd.DataFrame:
    """The claims about these quantities (all of them if none is named), in the order of the documents.

    Returns:
        `document`, `section`, `quantity` (a metric's name), `mechanism`, `conditions` such as `n=1024`, `value`,
        `unit`, `placeholder` (whether the document itself says that its number stands in for a missing one), and `n`
        where the conditions give it. An empty `value` is one that the document states as out of memory.

    Raises:
        ValueError: no claim is about one of the quantities.
    """
    claims = pd.read_csv(PATH, keep_default_na=False, na_values={"value": [""]}, dtype=dict.fromkeys(TEXT, "string"))
    known = claims["quantity"].unique()
    for quantity in quantities:
        if quantity not in known:
            raise ValueError(f"no claim is about {quantity!r}; the claims are about {', '.join(known)}")
    claims["n"] = claims["conditions"].map(_n).astype("Int64")
    return claims[claims["quantity"].isin(quantities or known)].reset_index(drop=True)


def short(document: str) -> str:
    """A document's name for a table's head or a legend: `Benchmarks (0.1.1)`, `Model Conversion`."""
    return document.removeprefix("BSBR ").removeprefix("Research ").split(":")[0]


def _n(conditions: str) -> int | None:
    found = re.search(r"\bn=(\d+)(?![\d.])", conditions)
    return int(found[1]) if found else None
