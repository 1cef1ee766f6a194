"""Charts as the site draws them: told apart without colour, legible on light and dark, named, captioned."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import plotly.offline
import pydata_sphinx_theme
import pytest

from bsbr.show import captions, charts, figures, look
from bsbr.store.provenance import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import site_assets
import site_weight

PAGES = sorted((ROOT / "notebooks").glob("*/*.ipynb"))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def backgrounds() -> dict[str, str]:
    """What the theme has behind a page, by day and by night."""
    sheet = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static" / "styles"
    text = (sheet / "pydata-sphinx-theme.css").read_text(encoding="utf-8")
    found = {}
    for theme in ("light", "dark"):
        for rule in re.findall(rf"html\[data-theme=\"?{theme}\"?\][^{{]*\{{([^}}]*)\}}", text):
            if colour := re.search(r"--pst-color-background:(#[0-9a-f]{3,6})", rule):
                found[theme] = colour[1] if len(colour[1]) == 7 else "#" + "".join(2 * digit for digit in colour[1][1:])
    return found


def published() -> dict[str, dict[str, Any]]:
    """Every chart of the published pages, as JupyterLab has it."""
    found = {}
    for path in PAGES:
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                if description := output.get("data", {}).get(charts.MIME):
                    found[f"{path.stem}-{len(found)}"] = description
    return found


PUBLISHED = published()


def line(name: str, y: list[float], **more: Any) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines+markers", "name": name, "x": [1, 10], "y": y, "line": {}, **more}


def visible(traces: list[dict[str, Any]], **layout: Any) -> list[str]:
    found = charts.dressed({"data": traces, "layout": layout})
    return [trace["name"] for trace in found["data"] if trace["visible"]]


# -- Told apart -------------------------------------------------------------------------------------


def test_every_colour_stands_out_on_light_and_on_dark() -> None:
    assert set(backgrounds()) == {"light", "dark"}
    for theme, background in backgrounds().items():
        for colour in (*(style.colour for style in look.STYLES), look.GREY):
            assert contrast(colour, background) >= 3, (colour, theme)


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_two_lines_of_a_published_chart_look_alike(name: str) -> None:
    chart = charts.dressed(PUBLISHED[name])
    told = [trace for trace in chart["data"] if trace["type"] in ("scatter", "bar")]
    measured = [trace for trace in told if not look.is_reference(trace)]
    if any(trace["type"] == "scatter" and "markers" in trace["mode"] for trace in told):
        assert sum(trace["visible"] for trace in told) <= look.MOST
    for one, other in itertools.combinations(measured, 2):
        assert one["marker"]["color"] != other["marker"]["color"]
        if one["type"] == other["type"] == "bar":
            patterns = [trace["marker"]["pattern"] for trace in (one, other)]
            assert len({(pattern["shape"], pattern["solidity"]) for pattern in patterns}) == 2
            continue
        assert one["marker"]["symbol"] != other["marker"]["symbol"]
        if "lines" in one["mode"] and "lines" in other["mode"]:
            assert one["line"]["dash"] != other["line"]["dash"]
    claims = [trace for trace in told if look.is_reference(trace) and "markers" in trace["mode"]]
    assert len({(trace["marker"]["symbol"], trace["line"]["dash"]) for trace in claims}) == len(claims)


def test_a_mechanism_looks_the_same_in_every_chart() -> None:
    whole = [line(name, [1, 2]) for name in look.MECHANISM_STYLES]
    alone = charts.dressed({"data": [line("x", [0, 1]), whole[-1]], "layout": {}})["data"][1]
    among = charts.dressed({"data": whole, "layout": {}})["data"][-1]
    assert (alone["marker"], alone["line"]) == (among["marker"], among["line"])
    assert alone["line"]["color"] == figures.MECHANISM_COLOURS[alone["name"]]


# -- Seen at first ------------------------------------------------------------------------------------


def test_a_line_that_flattens_the_others_gives_way_first() -> None:
    traces = [line(str(i), [1.0 + i / 50, 1.1]) for i in range(3)]
    traces += [line("far", [1.0, 1.6]), *(line(str(i), [1.0 + i / 50, 1.1]) for i in range(3, 6))]
    assert visible(traces) == ["0", "1", "2", "3", "4", "5"]


def test_what_others_are_compared_with_stays_and_the_last_give_way() -> None:
    names = ["a", "b", "c", "d", "e", "f", "standard", "bsbr"]
    assert visible([line(name, [1, 2]) for name in names]) == ["a", "b", "c", "d", "standard", "bsbr"]


def test_two_claims_stay_beside_what_was_measured() -> None:
    claimed = {"line": {"color": look.GREY, "dash": "dot"}, "marker": {"symbol": "circle-open"}}
    traces = [line(str(i), [1, 2]) for i in range(6)] + [line(f"claimed {i}", [1, 2], **claimed) for i in range(3)]
    assert visible(traces) == ["0", "1", "2", "3", "claimed 0", "claimed 1"]


def test_a_notebook_says_what_is_seen_first_and_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    fig = figures.figure("Of eight", "n", "y")
    for i in range(8):
        fig.add_scatter(x=[1, 2], y=[i, i], name=f"line {i}", mode="lines+markers")
    shown: list[dict[str, Any]] = []
    place = type("Place", (), {"update": lambda self, bundle, raw: shown.append(bundle)})()
    figures.show(fig, "eight", place, finding="Nothing grows <much>.", first=["line 0", "line 7"])
    (bundle,) = shown
    assert "Nothing grows &lt;much&gt;." in bundle["text/html"]
    description = json.loads(re.search(r'chart-description">(.*?)</script>', bundle["text/html"])[1])  # type: ignore[index]
    assert [trace["name"] for trace in description["data"] if trace["visible"]] == ["line 0", "line 7"]


# -- In words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_chart_has_a_name_and_says_what_it_shows(name: str) -> None:
    text = charts.markup(PUBLISHED[name], "x")
    said = re.search(r"<figcaption[^>]*>(.*?)</figcaption>", text)
    title = re.search(r'<p class="chart-title"[^>]*>(.*?)</p>', text)
    assert said and title and title[1].strip()
    assert re.search(r"\d", said[1]) and said[1].endswith(".")
    assert not re.search(r"\b(None|nan|inf)\b|e[+-]\d\d| {2}|: ;|= [.,;:]", said[1]), said[1]
    assert 'role="img" aria-labelledby="chart-x-title chart-x-said"' in text


def test_the_ends_of_lines_are_said_with_their_intervals() -> None:
    axes = {"xaxis": {"title": {"text": "n (tokens)"}}, "yaxis": {"title": {"text": "Time (s)"}}}
    traces = [
        line("fast", [1, 2], customdata=["1 s", "2.00 (1.90–2.10) s"]),
        line("slow", [1, 5]),
        line("bsbr", [1, 3]),
    ]
    said = captions.finding({"data": traces, "layout": axes})
    assert said == "n = 10 tokens: least, fast 2.00 (1.90–2.10) s; most, slow 5; bsbr 3."


# -- Axes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_logarithmic_axis_says_whole_numbers(name: str) -> None:
    """Plotly of its own writes 2 and 5 between 10 and 100."""
    layout = charts.dressed(PUBLISHED[name])["layout"]
    for axis in (layout["xaxis"], layout["yaxis"]):
        if axis.get("type") == "log":
            assert 2 <= len(axis["tickvals"]) == len(axis["ticktext"])
            for value, text in zip(axis["tickvals"], axis["ticktext"], strict=True):
                digits, _, power = text.partition("10<sup>") if "<sup>" in text else (text.replace(",", ""), "", "")
                number = float(digits.replace("×", "") or 1) if digits.strip() else 1.0
                exponent = int(power.removesuffix("</sup>").replace("−", "-")) if power else 0
                assert number * 10.0**exponent == pytest.approx(value)


@pytest.mark.parametrize(
    ("low", "high"), [(1.01, 1.4), (0.02, 0.6), (3, 4e6), (64, 65536), (1e-9, 1e9), (5, 5), (999, 1001)]
)
def test_ticks_span_what_is_drawn(low: float, high: float) -> None:
    ticks = look.log_ticks(low, high)
    assert ticks[0] <= low * (1 + 1e-9) and 1 <= len(ticks) <= 12
    assert ticks == sorted(set(ticks))
    assert ticks[-1] >= high / (ticks[1] / ticks[0] if len(ticks) > 1 else 1) * (1 - 1e-9)


# -- On the site --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_published_page_gets_the_charts_of_today(path: Path) -> None:
    """Whatever drew them when they were measured."""
    before = path.read_text(encoding="utf-8")
    notebook = site_assets.read_notebook(before)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    made = [output["data"]["text/html"] for output in outputs if charts.MIME in output.get("data", {})]
    assert len(made) == before.count(f'"{charts.MIME}"')
    assert all(text.count('<figure class="chart">') == 1 and "Plotly.newPlot" not in text for text in made)


def test_the_sites_plotly_is_that_of_the_library_and_knows_no_other_host() -> None:
    bundle = (ROOT / "book" / "_static" / "plotly" / "plotly.min.js").read_text(encoding="utf-8")
    assert f"plotly.js (cartesian - minified) v{plotly.offline.get_plotlyjs_version()}" in bundle[:300]
    assert "https://cloud.plotly.com" in bundle  # or this test says nothing
    kept = site_assets.ADDRESS.sub("", bundle)
    assert set(re.findall(r"https?://([\w.-]+\.[a-z]{2,})", kept)) == {"www.w3.org"}


def test_scripts_wait_for_the_page_in_their_order() -> None:
    page = (
        '<script src="_static/documentation_options.js?v=1"></script><script src="_static/doctools.js?v=2"></script>'
        "<script>let a = 1</script>"
        '\n  <script defer src="_static/scripts/fontawesome.js?digest=3"></script>'
    )
    once = site_weight.let_scripts_wait(page)
    assert once == (
        '<script src="_static/documentation_options.js?v=1"></script>'
        '<script defer src="_static/doctools.js?v=2"></script>'
        "<script>let a = 1</script>"
    )
    assert site_weight.let_scripts_wait(once) == once
