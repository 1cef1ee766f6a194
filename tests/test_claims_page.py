"""Claims as they are shown: in a notebook, in the list with its filters, and without scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_claims import made_up, prefill

from bsbr.claims import Reading, distinct, judge
from bsbr.claims.rules import Rule, Source
from bsbr.show import claims
from bsbr.store import load, published, row
from bsbr.store.provenance import ROOT

NO_CLAIMS = "The documents state nothing about what is measured here."


@pytest.mark.parametrize("experiment", published())
def test_a_notebook_can_show_what_was_claimed_about_it(experiment: str) -> None:
    result = load(experiment)
    judged, line = claims.about(result), claims.line(result)
    if judged.empty:
        assert line == NO_CLAIMS
        return
    once = distinct(judged)
    assert "(../../book/claims.md)" in line and claims.tally(once) in line
    assert sum(int(word) for word in claims.tally(judged).split() if word.isdigit()) == len(judged)
    claims.table(result)
    assert claims.markup(judged).count("<tr data-") == len(judged)


def test_an_experiment_without_claims_says_so() -> None:
    result = made_up("group/name", row("noise", 1.0))
    assert claims.line(result) == NO_CLAIMS
    claims.table(result)


def test_tolerances_and_directions_are_said_in_words() -> None:
    sources = (Source("the formula", "a/b"),)
    assert claims.tolerance_in_words(Rule("", (), sources=sources, share=0.25, equal=0.05)) == (
        "25 % of the effect, equal within ±0.05"
    )
    assert (
        claims.tolerance_in_words(Rule("", (), sources=sources, relative=0.02, margin=0.15))
        == "2 % of the number, ±0.15"
    )
    assert claims.tolerance_in_words(Rule("", ())) == "–"
    assert claims.neutral_in_words(Rule("", (), sources=sources, neutral="standard")) == "standard attention"
    assert claims.neutral_in_words(Rule("", (), sources=sources, compare="ratio", proportional=True)) == (
        "1, in proportion to n"
    )


def test_markup_escapes_every_field() -> None:
    planted = "<script>&\"'</script>"
    texts = ["id", "document", "section", "mechanism", "conditions", "unit", "finding", "verdict", "reason", "rule",
             "experiment", "by", "repeats"]  # fmt: skip
    reading = Reading(planted, planted, verdict=planted, reason=planted, finding=planted)
    number = dict.fromkeys(texts, planted) | {
        "quantity": planted, "statement": "", "value": 1.0, "claimed": 1.0, "measured": 1.0, "low": 0.5, "high": 2.0,
        "placeholder": True, "beside": (reading,),
    }  # fmt: skip
    statement = number | {"quantity": "statement", "statement": planted}
    for link in ("", "../notebooks/{}.html"):
        markup = claims.markup(pd.DataFrame([number, statement]), link)
        assert "<script" not in markup and "&lt;script&gt;" in markup and "\"'" not in markup


def test_each_claim_and_each_rule_has_an_address() -> None:
    judged = judge()
    markup = claims.markup(judged, "../notebooks/{}.html")
    for claim in judged["id"]:
        assert f'<tr id="claim-{claim}"' in markup and f'href="#claim-{claim}"' in markup
    everything = claims.rules_markup(judged) + claims.words_markup()
    for rule in judged["rule"].unique():
        assert f'<tr id="{claims.anchor(rule)}">' in everything
    assert "<tr id=" not in claims.markup(judged)  # a notebook's page may show the same claim


def test_the_address_of_a_view_is_safe() -> None:
    assert claims.filtered(said="first", verdict="not measured yet") == "#said=first&verdict=not+measured+yet"


# -- In a browser ---------------------------------------------------------------------------------

VISIBLE = "() => [...document.querySelectorAll('tbody tr')].filter(row => !row.hidden).length"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The table, filter and script of the book's page, without the rest of it."""
    script = (ROOT / "book" / "_static" / "claims.js").as_uri()
    path = tmp_path / "claims.html"
    table = claims.markup(judge(), "{}")
    path.write_text(
        f'<!doctype html><meta charset="utf-8">{claims.filters()}{table}<script src="{script}"></script>',
        encoding="utf-8",
    )
    return path


def test_the_list_can_be_filtered_and_the_view_has_an_address(browser: Any, page: Path) -> None:
    judged = judge()
    tab = browser.new_page()
    tab.goto(page.as_uri())
    assert tab.evaluate(VISIBLE) == len(judged) and tab.locator("form").is_visible()
    tab.select_option("select[name=mechanism]", "gau")
    assert tab.evaluate(VISIBLE) == (judged["mechanism"] == "gau").sum()
    tab.select_option("select[name=verdict]", "not measured yet")
    wanted = ((judged["mechanism"] == "gau") & (judged["verdict"] == "not measured yet")).sum()
    assert tab.evaluate(VISIBLE) == wanted
    assert tab.locator("output").inner_text().endswith(f"{wanted}, of {len(judged)} in all")
    assert tab.url.endswith("#mechanism=gau&verdict=not+measured+yet")
    tab.reload()
    assert tab.evaluate(VISIBLE) == wanted and tab.locator("select[name=mechanism]").input_value() == "gau"
    tab.goto("about:blank")
    tab.goto(page.as_uri() + claims.filtered(said="first", verdict="cannot be measured here"))
    assert tab.evaluate(VISIBLE) == (distinct(judged)["verdict"] == "cannot be measured here").sum()
    tab.goto(page.as_uri() + "#verdict=unheard+of")
    assert tab.evaluate(VISIBLE) == len(judged)
    tab.get_by_label("words").fill("cosine gau")
    texts = tab.locator("tbody tr").evaluate_all("rows => rows.map(row => [row.textContent.toLowerCase(), row.hidden])")
    assert all(hidden == ("cosine" not in text or "gau" not in text) for text, hidden in texts)
    tab.close()


def test_the_list_is_turned_page_by_page_and_printed_whole(browser: Any, page: Path) -> None:
    tab = browser.new_page()
    tab.goto(page.as_uri())
    tab.add_style_tag(path=str(ROOT / "book" / "_static" / "tables.css"))
    count, rows = len(judge()), tab.locator("tbody tr:visible")
    first = rows.first.inner_text()
    assert rows.count() == 25 and tab.locator("output").inner_text() == f"1–25 of {count}"
    assert tab.get_by_role("button", name="Previous").is_disabled()
    tab.get_by_role("button", name="Next").press("Enter")
    assert tab.locator("output").inner_text() == f"26–50 of {count}" and rows.first.inner_text() != first
    tab.evaluate("location.hash = 'claim-mc-kl-rare'")
    tab.locator("#claim-mc-kl-rare").wait_for()
    tab.emulate_media(media="print")
    assert rows.count() == count
    tab.close()


def test_a_claims_address_shows_it_whatever_the_filter(browser: Any, page: Path) -> None:
    tab = browser.new_page()
    tab.goto(page.as_uri() + "#mechanism=gau")
    tab.evaluate("location.hash = 'claim-mc-kl-rare'")
    tab.wait_for_function("!document.getElementById('claim-mc-kl-rare').hidden")
    assert tab.evaluate(VISIBLE) == len(judge())
    box = tab.locator("#claim-mc-kl-rare").bounding_box()
    assert box and 0 <= box["y"] < tab.viewport_size["height"]
    tab.close()


def test_without_scripts_all_of_it_stands_there(browser: Any, page: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("tbody tr:visible").count() == len(judge())
    assert not tab.locator("form").is_visible()
    context.close()


def test_a_reading_of_ours_is_shown_beside_theirs() -> None:
    judged = claims.about(made_up("benchmarks/inference_time", prefill("speedup", 0.6, mechanism="bsbr", n=512)))
    shown = claims.markup(judged[judged["id"] == "b12-inference-time-time-bsbr-n-512"])
    assert "the formula" in shown and "unfused standard" in shown
