"""Markup that stands in data is shown as it is: no page takes it for its own."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import IPython.display
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from bsbr.claims.rules import Source
from bsbr.show import claims, figures, map_explorer
from bsbr.store import Result, files, load, provenance, published, row, table
from bsbr.store.compare import compare
from bsbr.store.provenance import ROOT

PLANTED = "<b onload=x></script><!-- <script>x()</script><img src=x onerror=x()>"
PAGES = ["index", "choose", "status", "comparison", "parallel", "claims"]


class Live(HTMLParser):
    """What a browser would take for markup of the data's: its elements, and anything that could end a script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.data = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.data = tag == "script" and ("type", "application/json") in attributes
        if any(name.startswith("on") or (name, value) == ("src", "x") for name, value in attributes):
            self.found.append(self.get_starttag_text() or tag)

    def handle_data(self, data: str) -> None:
        if (self.data and "<" in data) or (self.lasttag == "script" and data == "x()"):
            self.found.append(data)

    def handle_comment(self, data: str) -> None:
        self.found.append(data)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is displayed from now on, as HTML."""
    pages: list[str] = []
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")  # as MyST, which builds the book

    def display(*things: Any, raw: bool = False, **_: Any) -> None:
        for thing in things:
            if raw:
                pages.append(thing["text/html"])
            else:
                is_html = isinstance(thing, IPython.display.HTML)
                pages.append(thing.data if is_html else markdown.render(thing.data))

    for module in (IPython.display, figures, claims, map_explorer):
        monkeypatch.setattr(module, "display", display)
    return pages


def live(pages: list[str]) -> list[str]:
    return [found for page in pages for found in Live(page).found]


def planted(value: Any) -> Any:
    """A record whose every text, at any depth, begins with markup."""
    if isinstance(value, dict):
        return {name: planted(one) for name, one in value.items()}
    if isinstance(value, list):
        return [planted(one) for one in value]
    return PLANTED + value if isinstance(value, str) else value


def plant(data: Path) -> None:
    """The published results with markup in every text: of all rows where it chooses none, else of rows beside them."""
    for name in published():
        path = table.published_folder("cpu", "full") / name
        rows = pd.read_csv(path.with_suffix(".csv"), keep_default_na=False)
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        for column in {"unit", "over", "reason"} & set(rows):  # a table from before has not all of them
            rows[column] = rows[column].where(rows[column] == "", rows[column].astype(str) + PLANTED)
        more = rows.head(3).copy()
        for column in table.factor_columns(rows):
            if (pd.to_numeric(rows[column], errors="coerce").isna() & (rows[column] != "")).any():  # words
                more[column] = PLANTED
        out = data / "results" / "cpu" / "full" / name
        text = pd.concat([rows, more]).to_csv(index=False, lineterminator="\n")
        files.write_whole(out.with_suffix(".csv"), text)
        record = planted(record) | {"table_sha256": provenance.sha256(text)}
        files.write_whole(out.with_suffix(".json"), json.dumps(record))


def cells(page: str) -> Iterator[str]:
    text = (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")
    for cell in re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield re.sub(r"^:\w+:.*\n", "", cell, flags=re.MULTILINE)


def test_the_search_finds_markup() -> None:
    for harmful in (PLANTED, f"<p>{PLANTED}", f'<script type="application/json">"{PLANTED}"</script>', "<i onclick=x>"):
        assert Live(harmful).found
    assert not Live('<a href="#"><img src="data:"> 1 &lt; 2</a><script type="application/json">{"a": 1}</script>').found


def test_no_page_shows_markup_of_its_data(shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path)
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))
    one = load("benchmarks/inference_time")
    files.write_whole(
        table.journal_folder("cpu", "quick") / f"{one.experiment}.comparison.csv", compare(one, one).to_csv(index=False)
    )
    for ending in (".csv", ".json"):
        path = table.published_folder("cpu", "quick") / f"{one.experiment}{ending}"
        files.write_whole(path, one.path.with_suffix(ending).read_bytes())
    monkeypatch.syspath_prepend(str(ROOT / "book"))
    for page in PAGES:
        names: dict[str, Any] = {}
        before = len(shown)
        for cell in cells(page):
            exec(cell, names)
        assert len(shown) > before and not live(shown[before:]), page
    assert sum("onerror" in page for page in shown) > 5  # it was there, as text


def test_what_is_shown_of_a_table_is_text(shown: list[str]) -> None:
    rows = [row("time", None, status="not_available", reason=f"not measured yet: {PLANTED}", n=1, mechanism=PLANTED)]
    rows.append(row("time", 2.0, n=2, mechanism=PLANTED))
    found = table.tidy(pd.DataFrame(rows)).assign(unit=PLANTED)
    figures.table(found.assign(**{PLANTED: PLANTED}), caption=PLANTED)
    figures.table(figures.pivot(found, "n", "mechanism"))
    figures.say(figures.missing(Result("a/b", "cpu", "full", found, {}, Path("b.csv"))))
    figures.say(f"**{PLANTED}** <small>{PLANTED}</small> 1 < 2")
    figures.show(figures.lines(found, "n", title=PLANTED))
    figures.show(figures.bars(found, "n", group="mechanism"))
    level = {8: {0: np.zeros((1, 8, 8), dtype=np.uint8)}}
    map_explorer.show(map_explorer.Maps({PLANTED: level, "other": level}), "maps", layer=0, head=0, n=8)
    assert len(shown) == 7 and not live(shown)
    assert "<small>" in shown[3] and "1 &lt; 2" in shown[3]


def test_what_is_shown_of_a_setting_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book"))
    number = {"value": 1.0, "shown": PLANTED, "over": PLANTED, "source": 0}
    setting = {"fields": {"retrieval": PLANTED}, "label": PLANTED, "call": PLANTED, "numbers": {64: [number, None]}}
    found = {"quantities": [{"title": PLANTED, "unit": PLANTED}] * 2, "pages": [PLANTED], "settings": [setting]}
    assert not live([importlib.import_module("choose").markup(found)])


def test_what_is_shown_of_the_rules_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    book = claims.rules()
    source = Source(PLANTED, PLANTED, baseline=PLANTED)
    numbers = [replace(rule, name=rule.name + PLANTED, why=PLANTED, sources=(source,)) for rule in book.numbers]
    words = [replace(word, meaning=PLANTED, unavailable=PLANTED) for word in book.words]
    stated = claims.load().assign(**dict.fromkeys(("document", "section", "conditions", "unit", "statement"), PLANTED))
    monkeypatch.setattr(claims, "load", lambda: stated)
    monkeypatch.setattr(claims, "rules", lambda: replace(book, numbers=tuple(numbers), words=tuple(words)))
    judged = pd.DataFrame({"rule": [numbers[0].name]})
    assert not live([claims.rules_markup(judged), claims.words_markup()])
