"""The book builds without a warning, needs no other host, and can be read in a browser, on a phone and in the dark."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import sphinxcontrib.katex
import yaml
from conftest import build

from bsbr import MECHANISMS, ModelConfig
from bsbr.store import published

ROOT = Path(__file__).resolve().parent.parent
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
RESULTS = [page for page in PAGES if page.removeprefix("notebooks/") in published()]
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}


def test_a_book_without_results_says_so(tmp_path: Path) -> None:
    pages = build(tmp_path / "book", BSBR_DATA=str(tmp_path / "data"))
    for page in ("book/index", "book/status"):
        assert "not measured yet" in (pages / f"{page}.html").read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("notebooks/")])
def test_a_results_page_without_a_run_says_so(site: Path, page: str) -> None:
    said = "Not measured yet." in (site / f"{page}.html").read_text(encoding="utf-8")
    assert said == (page not in RESULTS)


# -- The files ------------------------------------------------------------------------------------


LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}


class References(HTMLParser):
    """What a page loads by itself (scripts, styles, pictures, frames), and the links that a reader may follow."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag in LOADING and (target := found.get(LOADING[tag])):
            self.loaded.append(target)
        if tag == "a" and (target := found.get("href")):
            self.links.append(target)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_nothing_from_another_host(site: Path, page: str) -> None:
    outside = [url for url in References(site / f"{page}.html").loaded if re.match(r"(https?:)?//", url)]
    assert not outside


def test_no_stylesheet_reaches_another_host(site: Path) -> None:
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_site_lead_somewhere(site: Path, page: str) -> None:
    source = site / f"{page}.html"
    targets = {link.partition("#")[0] for link in References(source).links if not re.match(r"[a-z]+:", link)}
    missing = [target for target in targets if target and not (source.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", RESULTS)
def test_a_results_page_links_to_its_notebook_and_its_table(site: Path, page: str) -> None:
    links = References(site / f"{page}.html").links
    for name in (f"{Path(page).name}.py", f"{Path(page).name}.ipynb", f"{Path(page).name}.csv"):
        assert any(link.endswith(f"/{name}") and "_downloads" in link for link in links), f"no download of {name}"


def test_the_font_files_are_those_of_the_script_that_draws_formulas() -> None:
    folder = ROOT / "book" / "_static" / "katex"
    sheet = (folder / "katex.min.css").read_text(encoding="utf-8")
    assert f'"{sphinxcontrib.katex.katex_version}"' in sheet
    assert all((folder / font).exists() for font in re.findall(r"url\(([^)]+)\)", sheet))


# -- The drawing of the idea ----------------------------------------------------------------------


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "book"))
    return importlib.import_module("masks")


def test_the_readme_shows_the_current_drawing(masks: Any) -> None:
    drawn = (ROOT / "book" / "_static" / "masks.svg").read_text(encoding="utf-8")
    assert drawn == masks.pair() + "\n", "run: python book/masks.py"


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_drawn_masks_are_what_the_library_reads(masks: Any, name: str) -> None:
    """Token i reads token j where its map has a weight on it, with inputs that cancel nothing."""
    import torch

    from bsbr import mixers
    from bsbr.studies import attention_maps

    torch.manual_seed(0)
    sizes = {"hidden_dim": 8, "num_heads": 1, "key_dim": 8, "chunk_size": masks.CHUNK, "window_size": masks.WINDOW}
    mixer = mixers.make(ModelConfig(name, **sizes)).double()
    rotary = mixers.Rotary.at(torch.arange(masks.N)[None], mixer.rotary_dim, torch.float64)
    with torch.inference_mode():
        x = torch.randn(1, masks.N, 8, dtype=torch.float64)
        weights = attention_maps.of_mixer(mixer, x, rotary, positive=True)[0, 0]
    rule = masks.PANELS[name].rule
    for i in range(masks.N):
        for j in range(masks.N):
            assert bool(weights[i, j] != 0) == bool(rule(i, j)), f"token {i} reading token {j}"


# -- The pages in a browser -----------------------------------------------------------------------


class Visit:
    """A page opened from the disk, as a reader opens it, with what it complained of and what it asked for."""

    def __init__(self, browser: Any, site: Path, page: str, screen: str = "desktop", theme: str = "light") -> None:
        self.name = page
        self.width, height = SCREENS[screen]
        self.context = browser.new_context(
            viewport={"width": self.width, "height": height}, color_scheme=theme, has_touch=screen == "phone"
        )
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self._note)
        self.page.goto((site / f"{page}.html").as_uri())
        self.page.wait_for_function("!document.querySelector('meta[http-equiv=refresh]')")  # the entry leads on
        self.page.evaluate("document.querySelectorAll('details.fold').forEach((one) => (one.open = true))")
        self.page.evaluate("window.Charts && Charts.all().then(() => true)")  # else they are drawn when they are seen

    def _note(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.outside.append(request.url)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture(scope="module", params=[(page, screen) for page in PAGES for screen in SCREENS], ids="-".join)
def visit(request: pytest.FixtureRequest, browser: Any, site: Path) -> Iterator[Visit]:
    """Each page on each screen, opened once for all the tests that look at it."""
    page, screen = request.param
    with Visit(browser, site, page, screen) as visit:
        visit.page.wait_for_timeout(200)
        yield visit


def test_a_page_complains_of_nothing(visit: Visit) -> None:
    assert not visit.problems


def test_a_page_asks_no_other_machine_for_anything(visit: Visit) -> None:
    assert not visit.outside


def test_a_page_does_not_scroll_sideways(visit: Visit) -> None:
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= visit.width


def test_formulas_are_drawn(visit: Visit) -> None:
    formulas = visit.page.locator("span.math, div.math")
    assert visit.page.locator("span.math .katex-html, div.math .katex-html").count() >= formulas.count()
    assert visit.page.locator(".katex-error").count() == 0


def test_no_formula_is_left_as_source(visit: Visit) -> None:
    """A line of a formula that Markdown takes for a list, for example, never reaches KaTeX."""
    text = visit.page.evaluate(
        """() => {
          const article = document.querySelector('article.bd-article').cloneNode(true);
          article.querySelectorAll('code, pre, script, style, .katex, .plotly-graph-div').forEach(e => e.remove());
          return article.textContent;
        }"""
    )
    assert not re.findall(r"\$\$|\\[a-z]+", text)


def test_charts_are_drawn_within_their_column(visit: Visit) -> None:
    charts = visit.page.locator(".plotly-graph-div").all()
    assert charts or visit.name not in RESULTS, "a results page has at least one chart"
    column = visit.page.locator("article.bd-article").bounding_box()
    for chart in charts:
        chart.scroll_into_view_if_needed()
        assert chart.locator(".trace, .heatmaplayer image, .hm").count() > 0
        box = chart.bounding_box()
        assert box["width"] > 200 and box["height"] > 150
        assert box["x"] >= column["x"] - 1 and box["x"] + box["width"] <= column["x"] + column["width"] + 1


def test_formulas_have_their_own_fonts(browser: Any, site: Path) -> None:
    with Visit(browser, site, "book/idea") as visit:
        assert visit.page.locator("div.math .katex-html").count() > 3
        visit.page.evaluate("document.fonts.ready.then(() => true)")
        fonts = visit.page.evaluate("[...document.fonts].filter(f => f.status == 'loaded').map(f => f.family)")
        assert any("KaTeX" in font for font in fonts)


@pytest.mark.parametrize("page", RESULTS)
def test_hovering_over_a_chart_shows_a_number(browser: Any, site: Path, page: str) -> None:
    with Visit(browser, site, page) as visit:
        point = visit.page.locator(".plotly-graph-div .point").first
        point.scroll_into_view_if_needed()
        point.hover(force=True)
        visit.page.locator(".hoverlayer .hovertext").first.wait_for(timeout=3000)


def contrast(visit: Visit, selector: str) -> float:
    """WCAG contrast ratio of an element's text against the page's ground."""
    return visit.page.locator(selector).first.evaluate(
        """element => {
          const rgb = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
          const light = (c) => c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const style = getComputedStyle(element);
          const text = element instanceof SVGElement ? style.fill : style.color;
          const [a, b] = [text, getComputedStyle(document.body).backgroundColor].map(rgb).map(light);
          return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        }"""
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", ["book/index", *RESULTS])
def test_text_and_charts_can_be_read_by_day_and_night(browser: Any, site: Path, page: str, theme: str) -> None:
    with Visit(browser, site, page, theme=theme) as visit:
        assert visit.page.evaluate("document.documentElement.dataset.theme") == theme
        assert contrast(visit, "article.bd-article p") > 4.5
        if page in RESULTS:
            visit.page.wait_for_timeout(300)
            assert contrast(visit, ".plotly-graph-div .xtick text") > 4.5
            assert contrast(visit, ".plotly-graph-div .ytitle, .plotly-graph-div .ytick text") > 4.5


def test_charts_change_colour_with_the_theme(browser: Any, site: Path) -> None:
    with Visit(browser, site, RESULTS[0], theme="light") as visit:
        visit.page.evaluate("document.documentElement.dataset.theme = 'dark'")
        visit.page.wait_for_timeout(400)
        assert contrast(visit, ".plotly-graph-div .xtick text") > 4.5
        assert not visit.problems


def test_a_reader_finds_the_way(browser: Any, site: Path) -> None:
    """From the entry, through the side bar, by the next link, and by search."""
    with Visit(browser, site, "index") as visit:
        visit.page.wait_for_url(f"**/{TOC['root']}.html")
        visit.page.locator(".bd-sidebar-primary a", has_text="The idea").click()
        visit.page.wait_for_url("**/book/idea.html")
        visit.page.locator("a.right-next").click()
        visit.page.wait_for_url("**/book/method.html")
        visit.page.goto((site / "search.html").as_uri() + "?q=causality")
        visit.page.locator("#search-results a", has_text="The idea").first.wait_for(timeout=5000)
        assert not visit.problems
        assert not visit.outside


def test_the_headline_numbers_lead_to_the_pages_that_measured_them(browser: Any, site: Path) -> None:
    with Visit(browser, site, "book/index") as visit:
        cards = visit.page.locator("a.card-number")
        assert cards.count() >= 2
        cards.first.click()
        visit.page.wait_for_url("**/notebooks/**")


def test_a_phone_opens_the_side_bar(browser: Any, site: Path) -> None:
    with Visit(browser, site, "book/index", "phone") as visit:
        link = visit.page.locator(".bd-sidebar-primary a:visible", has_text="The idea")
        assert link.count() == 0
        visit.page.locator("button.primary-toggle:visible").first.click()
        link = visit.page.locator("a:visible", has_text="How things are measured").first
        link.click()
        visit.page.wait_for_url("**/book/method.html")
