"""The charts of the built pages in a browser: by keyboard, by finger, on paper, and asking nobody for anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fontTools.ttLib import TTFont
from test_book import RESULTS, Visit

# One page of each kind of chart: lines, bars, points with names, maps of heads, the explorer of attention maps.
KINDS = [
    f"notebooks/{name}"
    for name in (
        "benchmarks/inference_time", "benchmarks/memory", "conversion/hyperparameters", "conversion/layers",
        "experiments/attention_maps",
    )
]  # fmt: skip
MAPS = KINDS[-1]
CHARTS = "document.querySelectorAll('.plotly-graph-div')"


OVERPRINTED = """() => {
  const found = [];
  for (const chart of document.querySelectorAll('.plotly-graph-div')) {
    const whole = chart.getBoundingClientRect();
    if (!whole.width) continue;
    const texts = [...chart.querySelectorAll('.main-svg text')]
      .filter((text) => text.textContent.trim() && text.checkVisibility());
    const boxes = texts.map((text) => [text.textContent, text.getBoundingClientRect()]).filter(([, box]) => box.width);
    for (const [text, box] of boxes) {
      const across = box.left < whole.left - 2 || box.right > whole.right + 2;
      if (across || box.top < whole.top - 2 || box.bottom > whole.bottom + 2)
        found.push(`${chart.id}: ${text} is cut`);
    }
    boxes.forEach(([text, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 2 && down > 3) found.push(`${chart.id}: ${text} and ${other}`);
    }));
    const after = chart.nextElementSibling.getBoundingClientRect();
    const drawing = chart.querySelector('.main-svg').getBoundingClientRect();
    if (after.height && drawing.bottom > after.top + 1) found.push(`${chart.id}: the drawing covers what follows`);
  }
  return found;
}"""


@pytest.fixture(scope="module", params=KINDS, ids=lambda page: page.rsplit("/", 1)[-1])
def visit(request: pytest.FixtureRequest, browser: Any, site: Path) -> Iterator[Visit]:
    with Visit(browser, site, request.param) as visit:
        visit.page.wait_for_timeout(500)
        yield visit


def test_nothing_in_a_chart_is_printed_over_something_else(visit: Visit) -> None:
    assert visit.page.evaluate(OVERPRINTED) == []


def test_no_button_of_any_chart_asks_another_host(visit: Visit) -> None:
    page = visit.page
    assert page.locator("figure.chart").count() > 0
    assert page.locator(".modebar-btn, .modebar").count() == 0
    buttons, choices = page.locator(".chart-controls button"), page.locator(".map-controls select")
    assert buttons.count() + choices.count() > 0
    for button in buttons.all():
        button.click()
    for choice in choices.all():
        for value in choice.evaluate("select => [...select.options].map(option => option.value)"):
            choice.select_option(value=value)
            page.wait_for_timeout(50)
    for chart in page.locator(".plotly-graph-div").all():
        chart.scroll_into_view_if_needed()
        chart.click(position={"x": 150, "y": 100})
        chart.dblclick(position={"x": 150, "y": 100})
    page.wait_for_timeout(300)
    assert not visit.outside and not visit.problems


def test_charts_wait_until_they_are_seen(browser: Any, site: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 500})
    page = context.new_page()
    page.goto((site / f"{KINDS[0]}.html").as_uri())
    last = page.locator(".plotly-graph-div").last
    page.wait_for_timeout(1500)
    assert last.locator(".main-svg").count() == 0
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    last.scroll_into_view_if_needed()
    last.locator(".main-svg").first.wait_for(timeout=5000)
    context.close()


@pytest.mark.parametrize("page", RESULTS)
def test_no_script_keeps_a_page_from_being_seen(site: Path, page: str) -> None:
    text = (site / f"{page}.html").read_text(encoding="utf-8")
    blocking = [script for script in re.findall(r"<script[^>]* src=[^>]*>", text) if "defer" not in script]
    assert all("documentation_options.js" in script for script in blocking)
    assert len(text) < 1e6


def test_a_keyboard_shows_lines_and_changes_the_scale(browser: Any, site: Path) -> None:
    with Visit(browser, site, KINDS[0]) as visit:
        page = visit.page
        figure = page.locator("figure.chart").first
        lines = figure.locator(".scatterlayer .trace")
        before = lines.count()
        figure.locator(".chart-title").evaluate("title => { title.tabIndex = -1; title.focus(); }")
        reached = []
        for _ in range(figure.locator(".chart-controls button").count()):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.textContent"))
            style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert style != "none", f"{reached[-1]} has the focus, and nobody sees it"
        assert reached == figure.locator(".chart-controls button").all_text_contents()
        assert reached[-2:] == ["log scale", "linear scale"]
        page.keyboard.press("Enter")
        page.wait_for_timeout(100)
        assert figure.locator(".plotly-graph-div").evaluate("chart => chart._fullLayout.yaxis.type") == "linear"
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Space")
        page.wait_for_timeout(100)
        assert lines.count() > before
        assert figure.locator(".chart-controls button:has(svg)[aria-pressed=false]").count() == 0


@pytest.mark.parametrize("page", [KINDS[0], MAPS], ids=["lines", "maps"])
def test_a_finger_on_a_chart_moves_the_page_and_not_the_chart(browser: Any, site: Path, page: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab = context.new_page()
    tab.goto((site / f"{page}.html").as_uri())
    chart = tab.locator(".plotly-graph-div").first
    chart.scroll_into_view_if_needed()
    chart.locator(".main-svg").first.wait_for(timeout=10_000)
    tab.wait_for_timeout(500)
    ranges = f"[...{CHARTS}][0]._fullLayout.xaxis.range"
    before, box = (tab.evaluate("scrollY"), tab.evaluate(ranges)), chart.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + min(box["height"] / 2, 300)
    session = context.new_cdp_session(tab)
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for step in range(1, 11):
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y - 20 * step}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.wait_for_timeout(500)
    assert tab.evaluate("scrollY") > before[0] + 100
    assert tab.evaluate(ranges) == before[1]
    context.close()


@pytest.mark.parametrize("page", KINDS, ids=lambda page: page.rsplit("/", 1)[-1])
def test_nothing_is_printed_over_something_else_on_a_phone(browser: Any, site: Path, page: str) -> None:
    with Visit(browser, site, page, "phone") as visit:
        visit.page.wait_for_timeout(500)
        assert visit.page.evaluate(OVERPRINTED) == []


def test_paper_has_every_chart_in_dark_ink(browser: Any, site: Path) -> None:
    with Visit(browser, site, KINDS[2], theme="dark") as visit:
        page = visit.page
        ink = f"[...{CHARTS}].map(chart => getComputedStyle(chart.querySelector('.xtick text')).fill)"
        light = page.evaluate(ink)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert set(page.evaluate(ink)) == {"rgb(34, 40, 50)"}
        assert page.evaluate(f"Math.max(...[...{CHARTS}].map(chart => chart._fullLayout.width))") <= 640
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert page.evaluate(ink) == light


def test_a_reader_chooses_among_attention_maps(browser: Any, site: Path) -> None:
    with Visit(browser, site, MAPS) as visit:
        page = visit.page
        explorer = page.locator(".map-explorer")
        page.locator(".map-note", has_text="Layer").wait_for(timeout=10_000)
        loaded = page.locator("head script[src*='/_maps/']").evaluate_all("found => found.map(one => one.src)")
        assert len(loaded) == 1, f"only the layer that is shown is loaded: {loaded}"
        seen = [explorer.locator(".plotly-graph-div").screenshot()]
        for choice in ("layer", "head", "length"):
            explorer.locator(f"select[name={choice}]").select_option(index=0)
            explorer.locator(f"select[name={choice}]").select_option(index=1)
            page.wait_for_timeout(500)
            seen.append(explorer.locator(".plotly-graph-div").screenshot())
        assert len(set(seen)) == len(seen)
        assert not visit.problems and not visit.outside


def test_the_site_has_no_source_maps_and_one_small_font_of_icons(site: Path) -> None:
    static = site / "_static"
    assert not list(static.rglob("*.map")) and not (static / "scripts" / "fontawesome.js").exists()
    fonts = [
        file for file in (static / "vendor" / "fontawesome").rglob("*") if file.suffix in (".woff", ".woff2", ".ttf")
    ]
    assert len(fonts) == 1 and fonts[0].stat().st_size < 10_000
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < 15e6


@pytest.mark.parametrize("page", ["book/index", KINDS[0]])
def test_every_icon_of_a_page_is_in_the_font(browser: Any, site: Path, page: str) -> None:
    (font,) = (site / "_static" / "vendor" / "fontawesome").rglob("*.woff")
    has = set(TTFont(font).getBestCmap())
    with Visit(browser, site, page) as visit:
        icons = visit.page.evaluate(
            """() => [...document.querySelectorAll('body *')]
              .flatMap((one) => ['::before', '::after'].map((part) => getComputedStyle(one, part).content))
              .flatMap((content) => [...content].map((letter) => letter.codePointAt(0)))
              .filter((code) => code >= 0xe000 && code < 0xf900)"""
        )
        assert icons and set(icons) <= has
        named = visit.page.locator("[class*='fa-']").evaluate_all(
            "found => found.map(icon => getComputedStyle(icon, '::before').content)"
        )
        assert named and not {"none", "normal"} & set(named)
        loaded = visit.page.evaluate(
            "[...document.fonts].filter(font => font.status == 'loaded').map(font => font.family)"
        )
        assert any("Awesome" in family for family in loaded)
