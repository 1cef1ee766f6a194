"""What the book cites stands in its bibliography, whole, and what stands there is cited."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import jupytext
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from pybtex.database import parse_file
from test_book import PAGES

ENTRIES = parse_file(str(ROOT / "book" / "references.bib")).entries
SOURCES = re.compile(r"https?://(?:[\w.]*\.)?(?:arxiv\.org|doi\.org|openreview\.net|aclanthology\.org)\b")


def prose() -> Iterator[tuple[str, str]]:
    """What each page says, by its name: its Markdown, or that of a notebook's cells."""
    for path in sorted((ROOT / "book").glob("*.md")):
        yield path.stem, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*/*.py")):
        cells = jupytext.read(path).cells
        yield path.stem, "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def cited(text: str) -> set[str]:
    """The keys of all citations: one or several a role, each perhaps with words in braces around it."""
    roles = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
    return {key.strip() for role in roles for key in re.sub(r"\{[^}]*\}", "", role).split(",")}


def test_the_search_for_citations_finds_them() -> None:
    assert cited("{cite:p}`a2020, b2021` and {cite:t}`{see}c2022{, section 3}`, not `d2023`") == {
        "a2020",
        "b2021",
        "c2022",
    }
    assert SOURCES.search("[x](https://www.arxiv.org/abs/1)") and SOURCES.search("<http://doi.org/1>")


def test_what_is_cited_is_in_the_bibliography_and_the_other_way_round() -> None:
    keys = {name: cited(text) for name, text in prose()}
    missing = {name: found - set(ENTRIES) for name, found in keys.items() if found - set(ENTRIES)}
    assert not missing
    assert set(ENTRIES) == set().union(*keys.values())


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_says_who_what_when_and_where(key: str) -> None:
    entry = ENTRIES[key]
    assert entry.persons["author"] and entry.fields["title"] and re.fullmatch(r"\d{4}", entry.fields["year"])
    assert entry.fields["url"].startswith("https://")
    if arxiv := re.fullmatch(r"arXiv:(\S+)", entry.fields.get("howpublished", "")):
        assert entry.fields["url"] == f"https://arxiv.org/abs/{arxiv[1]}"


def test_no_two_entries_have_the_same_authors_year_or_address_in_short() -> None:
    names = [([str(name) for name in e.persons["author"][0].last_names], e.fields["year"]) for e in ENTRIES.values()]
    assert all(names.count(name) == 1 for name in names)
    addresses = [entry.fields["url"] for entry in ENTRIES.values()]
    assert len(set(addresses)) == len(addresses)


def test_no_page_links_to_a_paper_past_the_bibliography() -> None:
    assert not [name for name, text in prose() if SOURCES.search(text)]


@pytest.mark.parametrize("page", PAGES)
def test_a_citation_leads_to_its_entry(site: Path, page: str) -> None:
    links = BeautifulSoup((site / f"{page}.html").read_text(encoding="utf-8"), "html.parser").select(
        ".bibtex-citation a"
    )
    entries = BeautifulSoup((site / "book" / "bibliography.html").read_text(encoding="utf-8"), "html.parser")
    for link in links:
        path, _, name = str(link["href"]).partition("#")
        assert path.endswith("bibliography.html")
        entry = entries.find(id=name)
        assert entry is not None and entry.find("a", class_="external")["href"] == ENTRIES[name[5:]].fields["url"]
        citing = {posixpath.normpath(posixpath.join("book", str(a["href"]))) for a in entry.find_all("a")}
        assert f"{page}.html" in citing
