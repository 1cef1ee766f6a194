"""The pages as people use them: by keyboard, with a screen reader, on a phone, on paper, by search.

Some pages of each kind are looked at; `nox -s pages` looks at all of them.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from test_book import PAGES, RESULTS, SCREENS, Visit

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import find
import readable

SAMPLE = [  # each costs some seconds
    ("book/index", "desktop", "light"),
    ("book/choose", "phone", "light"),
    ("book/api", "phone", "dark"),
    ("notebooks/conversion/similarity", "phone", "dark"),
]
ALL_LOOKS = [(screen, theme) for screen in SCREENS for theme in ("light", "dark")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "looked_at" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-page")
        found = [(page, *look) for page in PAGES for look in ALL_LOOKS]
        metafunc.parametrize("looked_at", found if every else SAMPLE, ids="-".join, indirect=True, scope="module")


@pytest.fixture(scope="module")
def looked_at(request: pytest.FixtureRequest, browser: Any, site: Path) -> Iterator[Visit]:
    page, screen, theme = request.param
    with Visit(browser, site, page, screen, theme) as visit:
        visit.page.wait_for_timeout(300)
        yield visit


# -- What a screen reader finds, and a keyboard reaches -------------------------------------------


@pytest.fixture(scope="session")
def axe() -> str:
    """The rules of axe-core, as a script."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("axe-playwright-python is not installed")
    return Path(found.submodule_search_locations[0], "axe.min.js").read_text(encoding="utf-8")


def test_axe_finds_nothing(looked_at: Visit, axe: str) -> None:
    tab = looked_at.page
    tab.evaluate(axe)
    found = tab.evaluate("axe.run(document, { preload: false })")
    said = [
        f"{rule['id']} ({rule['impact']}): {rule['help']}, at {node['target'][0]}: {node['html'][:160]}"
        for rule in found["violations"]
        for node in rule["nodes"][:3]
    ]
    assert not said, "\n".join(said)


def test_a_page_complains_of_nothing_and_asks_no_one(looked_at: Visit) -> None:
    assert not looked_at.problems and not looked_at.outside


FOCUS = """() => {
  const at = document.activeElement;
  if (!at || at === document.body) return null;
  const box = at.getBoundingClientRect(), style = getComputedStyle(at);
  let opacity = 1;
  for (let one = at; one; one = one.parentElement) opacity *= Number(getComputedStyle(one).opacity);
  const ring = (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0) || style.boxShadow !== "none";
  const seen = box.width > 0 && box.height > 0 && opacity > 0.1 && style.visibility === "visible";
  const inside = at.closest("article") ? !at.closest(".plotly-graph-div, .map-explorer") : false;
  return { what: at.outerHTML.slice(0, 120), ring, seen, inside };
}"""
STOPS = 60


def test_each_stop_of_the_keyboard_can_be_seen(looked_at: Visit) -> None:
    tab = looked_at.page
    tab.evaluate("document.querySelector('article.bd-article').setAttribute('tabindex', '-1')")
    tab.evaluate("document.querySelector('article.bd-article').focus({ preventScroll: true })")
    stops = []
    for _ in range(STOPS):
        tab.keyboard.press("Tab")
        stop = tab.evaluate(FOCUS)
        if stop is None:
            break
        stops.append(stop)
    assert stops
    unseen = [stop["what"] for stop in stops if stop["inside"] and not (stop["seen"] and stop["ring"])]
    assert not unseen, "\n".join(unseen)


# -- Tables ---------------------------------------------------------------------------------------


def test_a_table_that_scrolls_says_so_and_keeps_its_first_column(looked_at: Visit) -> None:
    wide = looked_at.page.evaluate(
        """() => {
        const wide = (box) => box.scrollWidth > box.clientWidth + 1;
        return [...document.querySelectorAll('.table-box')].filter(wide).map((box) => {
          const cell = box.querySelector('tbody tr > :first-child');
          const before = cell.getBoundingClientRect();
          box.scrollLeft = box.scrollWidth;
          const after = cell.getBoundingClientRect();
          const hint = box.nextElementSibling;
          return { moved: Math.abs(after.left - before.left), share: after.width / box.clientWidth,
                   told: hint.matches('.scroll-hint') && !hint.hidden,
                   name: box.getAttribute('aria-label'), stop: box.tabIndex };
        })}"""
    )
    if looked_at.name in RESULTS and looked_at.width < 500:
        assert wide  # or this test says nothing
    for box in wide:
        assert box["told"] and box["name"] and box["stop"] == 0, box
        assert box["moved"] <= 12 and box["share"] < 0.6, box  # from within its box to the edge of it


@pytest.mark.parametrize("page", PAGES)
def test_every_table_has_a_caption_and_no_cell_leaks(site: Path, page: str) -> None:
    soup = parsed(site / f"{page}.html")
    for table in soup.select("article table"):
        caption = table.find("caption", recursive=False)
        assert caption is not None and caption.get_text(strip=True)
        assert "`" not in caption.get_text()
        assert not [cell for cell in table.select("th") if not cell.get_text(strip=True)]
        leaks = [cell for cell in table.select("td, th") if cell.get_text(strip=True) in readable.LEAKS]
        assert not leaks
        rows = [row.find_all(["td", "th"], recursive=False) for row in table.select("tbody tr")]
        wide = max(map(len, rows), default=0)
        full = [row for row in rows if len(row) == wide]
        said = [[cell.get_text(strip=True) or cell.find("img", alt=True) for cell in row] for row in full]
        empty = [i for i in range(wide) if said and not any(row[i] for row in said)]
        assert not empty, f"column {empty} of {caption.get_text(strip=True)!r} is empty"


@functools.lru_cache
def parsed(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


PLAIN = """
<section id="a"><h1>A</h1><p>The answer.</p>
<section id="m"><h2>Method<a class="headerlink" href="#m">#</a></h2><p>How.</p></section>
<section id="r"><h2>Results</h2><div class="cell"><div class="cell_output"><div>
<div class="table-box"><p><strong>Of `top-16`</strong></p>
<table><thead><tr><th>x</th><th></th></tr></thead><tbody><tr><td>None</td><td>1</td></tr></tbody></table></div></div>
<div><table><thead><tr><th>x</th></tr></thead><tbody><tr><td>2</td></tr></tbody></table></div><p><small>Measured</small></p></div></div>
</section><section id="more"><h2>More</h2><table><tbody><tr><td>3</td></tr></tbody></table></section>
<section id="reading"><h2>Reading</h2><p>So.</p></section></section>"""


def test_a_results_page_opens_with_its_first_table_and_folds_the_rest() -> None:
    soup = BeautifulSoup(PLAIN, "html.parser")
    readable.tables(soup)
    readable.fold(soup)
    first, second, third = soup.find_all("table")
    assert str(first.caption) == "<caption><span><strong>Of <code>top-16</code></strong></span></caption>"
    assert [str(cell) for cell in first.find_all(["th", "td"])] == [
        '<th scope="col">x</th>', "<td></td>", '<th scope="row">–</th>', "<td>1</td>",
    ]  # fmt: skip
    assert first.parent["aria-label"] == "Of top-16" and first.parent["tabindex"] == "0"
    assert first.find_parent("details") is None
    assert second.find_parent("details").summary.get_text() == "More of this: 1 table"
    assert third.find_parent("details").summary.get_text() == "More1 table"
    assert soup.find(id="m").details.summary.h2.get_text() == "Method#"
    assert soup.find("small", string="Measured").find_parent("details") is None
    assert soup.find(id="reading").details is None


def test_an_address_opens_what_is_folded(browser: Any, site: Path) -> None:
    page = site / "notebooks" / "conversion" / "similarity.html"
    tab = browser.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("details.fold[open]").count() == 0
    tab.evaluate("location.hash = 'method'")
    tab.wait_for_function("document.querySelector('#method > details').open")
    tab.close()


# -- On paper -------------------------------------------------------------------------------------


def test_the_printed_list_of_claims_has_all_rows_and_columns(browser: Any, site: Path) -> None:
    tab = browser.new_page(viewport={"width": 718, "height": 1000})  # A4 within its margins
    tab.goto((site / "book" / "claims.html").as_uri())
    tab.emulate_media(media="print")
    seen = tab.evaluate(
        """() => [...document.querySelectorAll('.claims-table tbody tr')].map((row) => {
          const cells = [...row.cells].map((cell) => cell.getBoundingClientRect());
          return cells.every((box) => box.width > 0 && box.height > 0 && box.right <= innerWidth + 1);
        })"""
    )
    assert len(seen) > 500 and all(seen)
    tab.close()


# -- Found and cited ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("licence", "Cite it, and its licence"),
        ("license", "Cite it, and its licence"),
        ("install", "BSBR"),
        ("should I use it", "BSBR"),
        ("how is time measured", "How things are measured"),
        ("add a mechanism", "Extend it"),
        ("generate", "API reference: TransformerLM.generate"),
        ("power_law", "API reference: stats.power_law"),
    ],
)
def test_search_finds_it_from_the_disk(browser: Any, site: Path, query: str, page: str) -> None:
    tab = browser.new_page()
    tab.goto((site / "search.html").as_uri() + f"?q={query}")
    results = tab.locator("#search-results li")
    results.first.wait_for(timeout=5000)
    first = [results.nth(i).locator("a").inner_text() for i in range(min(3, results.count()))]
    assert any(one.startswith(page) for one in first), first
    assert tab.locator("#search-results li mark").count() > 0 and tab.locator("#search-results li p").count() > 0
    results.first.locator("a").click()
    tab.wait_for_selector("article.bd-article h1")
    tab.close()


def test_a_search_for_nothing_says_so(browser: Any, site: Path) -> None:
    tab = browser.new_page()
    tab.goto((site / "search.html").as_uri() + "?q=xylophone")
    tab.get_by_text("Nothing for “xylophone”").wait_for(timeout=5000)
    assert tab.locator("#search-results li").count() == 0
    tab.close()


QUESTIONS = {  # what a new user asks on the landing page: the links to follow, and what stands where they lead
    "How do I install it?": ([], "pip install nox"),
    "Is it worth it at 2,000 tokens?": ([], "at 2,048"),
    "What does it cost?": (["choose a length and a setting"], "Peak memory of reading the prompt"),
    "How was this measured?": (["How things are measured"], "What is timed."),
    "How do I repeat this number?": (["More about that"], "nox -s reproduce -- inference_time"),
    "How do I train on my own texts?": (["The tutorial"], "python -m bsbr.training my-texts"),
    "How do I add my mechanism?": (["how to add"], "One file in bsbr/attention/"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_first_question_is_answered_within_two_clicks(browser: Any, site: Path, question: str) -> None:
    links, answer = QUESTIONS[question]
    assert len(links) <= 2
    tab = browser.new_page()
    tab.goto((site / "book" / "index.html").as_uri())
    for words in links:
        tab.locator("article.bd-article a", has_text=words).first.click()
    tab.locator("article.bd-article", has_text=answer).first.wait_for(timeout=5000)
    tab.close()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_it_is_and_who_made_it(site: Path, page: str) -> None:
    soup = parsed(site / f"{page}.html")
    described = soup.find("meta", attrs={"name": "description"})["content"]
    assert 20 < len(described) <= 202 and described == soup.find("meta", property="og:description")["content"]
    assert soup.find("meta", property="og:title")["content"]
    assert soup.find("link", rel="icon")
    foot = soup.select_one("footer.bd-footer-content").get_text(" ", strip=True)
    for part in ("BSBR contributors", "version 0.", "MIT licence", "How to cite", "Changelog"):
        assert part in foot
    assert not re.search(r'href="[^"]*/(issues|edit|blob)/', str(soup))  # no button to a repository that nobody named


def test_the_sections_that_are_searched_lead_somewhere(site: Path) -> None:
    sections = find.unpacked((site / "_static" / "search_data.js").read_text(encoding="utf-8"))
    assert {section[0].partition("#")[0] for section in sections} >= {f"{page}.html" for page in PAGES}
    for address, *_ in sections:
        page, _, anchor = address.partition("#")
        assert not anchor or f'id="{anchor}"' in (site / page).read_text(encoding="utf-8"), address
