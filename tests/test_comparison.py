"""The page *Your run beside the published one* shows what the runner compared, and nothing in the data can harm it."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bsbr.store import Sweep, files, load, row
from bsbr.store.compare import compare
from bsbr.store.provenance import ROOT
from bsbr.store.table import journal_folder

PLANTED = "</script><img src=x onerror=\"document.title='harmed'\">"
NAMES = ["plain", PLANTED]


def measure(n: int, name: str) -> list[dict[str, Any]]:
    return [row("parameters", 10.0 * n), row("time", 0.5 * n)]


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path / "data"))
    monkeypatch.syspath_prepend(str(ROOT / "book"))
    return importlib.import_module("comparison")


@pytest.fixture
def run(comparison: Any) -> Any:
    """A published table of which the run here found two numbers otherwise, and measured not all."""
    for profile, sizes in (("full", range(1, 151)), ("quick", range(1, 121))):
        sweep = Sweep("toys/a", target="cpu", profile=profile, parameters={})
        cells = [{"n": n, "name": name} for n in sizes for name in NAMES]
        sweep.publish(sweep.measure(cells, measure, machine_bound=False))
    published, here = load("toys/a"), load("toys/a", "cpu", "quick")
    for position in (0, 4):
        here.table.loc[position, "value"] += 1
    files.write_whole(
        journal_folder("cpu", "quick") / "toys/a.comparison.csv", compare(published, here).to_csv(index=False)
    )
    return comparison


def test_without_a_run_the_page_says_so(comparison: Any) -> None:
    (said,) = comparison.parts()
    assert "No run was made here yet" in said.data


def test_the_page_has_every_number_of_the_comparison(run: Any) -> None:
    text = re.search(r'<script type="application/json">(.*?)</script>', run.markup(run.comparisons()), re.DOTALL)
    assert text
    found = json.loads(text[1])
    assert len(found["rows"]) == 2 * 2 * 150
    by_verdict = pd.Series([line[found["fields"].index("verdict")] for line in found["rows"]]).value_counts()
    assert by_verdict.to_dict() == {"not compared": 240, "reproduced": 238, "not measured here": 120, "drifted": 2}
    first = dict(zip(found["fields"], found["rows"][0], strict=True))
    assert (first["published"], first["here"]) == ([10.0, "10.0"], [11.0, "11.0"])
    assert first["kind"] == "no clock touches it"


def test_the_summary_counts_and_shows_what_stands_in_the_data_as_text(run: Any) -> None:
    assert "| toys/a | cpu, quick | 238 | 2 | 240 | 120 |" in run.summary(run.comparisons())
    assert "<" not in run.figures.literal(PLANTED) and "|" not in run.figures.literal("a|b").replace("\\|", "")


# -- In a browser ---------------------------------------------------------------------------------


@pytest.fixture
def page(browser: Any, run: Any, tmp_path: Path) -> Iterator[Any]:
    """The table alone, as it stands in the built page."""
    script = ROOT / "book" / "_static" / "comparison.js"
    markup = run.markup(run.comparisons()).replace("../_static/comparison.js", script.as_uri())
    place = tmp_path / "comparison.html"
    place.write_text(f'<!doctype html><meta charset="utf-8"><title>fine</title>{markup}', encoding="utf-8")
    context = browser.new_context()
    visited = context.new_page()
    problems: list[str] = []
    visited.on("pageerror", lambda error: problems.append(str(error)))
    visited.goto(place.as_uri())
    yield visited
    assert not problems and visited.title() == "fine"
    context.close()


def rows(page: Any) -> list[list[str]]:
    return [line.locator("th, td").all_inner_texts() for line in page.locator("tbody tr").all()[:10]]


def test_a_reader_filters_sorts_and_shares(page: Any) -> None:
    assert page.locator("output").inner_text() == "600 of 600"
    assert page.locator("tbody tr").count() == 200
    page.get_by_role("button", name="Show more").click()
    assert page.locator("tbody tr").count() == 400
    page.locator("select[name=verdict]").select_option("drifted")
    assert page.locator("output").inner_text() == "2 of 600"
    assert {line[5] for line in rows(page)} == {"drifted"}
    link = page.url
    assert link.endswith("#verdict=drifted")
    page.locator("select[name=verdict]").select_option("reproduced")
    page.get_by_role("button", name="here").click()
    page.get_by_role("button", name="here").click()
    assert rows(page)[0][4] == "1,200"
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("here")
    page.locator("input[name=text]").fill("N=7 plain")
    assert all("n=7" in line[2] for line in rows(page))
    page.goto("about:blank")
    page.goto(link)
    assert page.locator("output").inner_text() == "2 of 600"


def test_markup_in_the_data_is_shown_as_it_is(page: Any) -> None:
    page.locator("input[name=text]").fill("onerror")
    assert page.locator("output").inner_text() == "300 of 600"
    assert PLANTED in rows(page)[0][2]
    assert page.locator("tbody img").count() == 0
