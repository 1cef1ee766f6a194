"""How to cite the project and what its licence is, from `CITATION.cff`, and how fresh its results are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from bsbr.store import ResultError, load, published
from bsbr.store.provenance import ROOT


def citation() -> dict[str, Any]:
    """What `CITATION.cff` says."""
    return dict(yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8")))


def authors(cited: Mapping[str, Any]) -> list[str]:
    """Their names, people with the family name last."""
    return [
        author.get("name") or " ".join(filter(None, (author.get("given-names"), author.get("family-names"))))
        for author in cited["authors"]
    ]


def newest() -> str:
    """The day on which the newest published number was measured, as `2026-11-25`; nothing where there is none."""
    ends = []
    for target in ("cpu", "gpu"):
        for name in published(target):
            try:
                ends.append(str(load(name, target).provenance["ended"])[:10])
            except ResultError:
                continue
    return max(ends, default="")


def bibtex(cited: Mapping[str, Any], day: str) -> str:
    """An entry for BibTeX; the year is that of the release, or else of the newest result."""
    year = str(cited.get("date-released") or day)[:4]
    fields = {
        "author": " and ".join("{" + name + "}" for name in authors(cited)),
        "title": "{" + cited["title"] + "}",
        "version": cited["version"],
        "year": year,
        "url": cited.get("repository-code") or cited.get("url") or "",
        "note": f"Results measured up to {day}" if day else "",
    }
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items() if value)
    return f"@software{{bsbr,\n{lines}}}"


def in_words(cited: Mapping[str, Any], day: str) -> str:
    """Authors, version, licence and the day of the newest number, for the foot of each page."""
    found = [", ".join(authors(cited)), f"version {cited['version']}", f"{cited['license']} licence"]
    return " · ".join([*found, f"results up to {day}"] if day else found)
