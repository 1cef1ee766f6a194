"""The page *Choose a setting* shows the published numbers and no others to a reader who chooses in a browser."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from IPython.display import HTML, Markdown

from bsbr import ConversionConfig
from bsbr.results import Result, Sweep, load, row

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "default": ConversionConfig(),
    "top-32": ConversionConfig(top_k=32),
    "both": ConversionConfig(retrieval="both", top_k=4),
    "states": ConversionConfig(retrieval="states"),
    "states, compressed": ConversionConfig(retrieval="states", compression_factor=8),
    "small": ConversionConfig(chunk_size=64, retrieval="none"),
}


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "book"))
    return importlib.import_module("choose")


def hyperparameters(setting: str, n: int) -> list[dict]:
    """Rows as `conversion/hyperparameters` has them; the long text was too long for states."""
    config = SETTINGS[setting]
    about = asdict(config) | {"compression_factor": config.compression_factor or 0, "phase": None, "document": None}
    for name in ("layers", "original_below"):
        del about[name]
    value = 1 + list(SETTINGS).index(setting) / 10 + n / 1e5
    ratio = row("perplexity_ratio", value + 1 / 3, low=value, high=value + 1, **about)
    if n == 4096 and setting == "states":
        return [ratio, row("cell", None, status="out_of_memory", **about | {"phase": "prefill"})]
    return [
        ratio,
        row("perplexity_ratio", 99.0, **about | {"document": "one of them"}),
        row("top_1_agreement", 90 + value, **about),
        row("speedup", value + 2 / 3, low=value, high=value + 1, **about | {"phase": "prefill"}),
        row("relative_memory", value / 2, **about | {"phase": "prefill"}),
        row("peak_memory", 1000 * value, **about | {"phase": "prefill"}),
        row("time", value, **about | {"phase": "prefill"}),
    ]


def speed_and_memory(rung: str, n: int) -> list[dict]:
    """Rows as `conversion/speed_and_memory` has them: settings by name, and the original among them."""
    if rung == "original":
        return [row("time", 1.0, phase="prefill", dtype="float32")]
    return [
        row("speedup", n / 1000, phase=phase, dtype=dtype)
        for phase, dtype in (("prefill", "float32"), ("decode", "float32"), ("decode", "bfloat16"))
    ]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Result]:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path / "data"))
    known = {"target": "cpu", "profile": "full", "code": []}
    sweep = Sweep("conversion/hyperparameters", parameters={}, **known)
    sizes = [(setting, n) for setting in SETTINGS for n in (1024, 4096) if (setting, n) != ("small", 1024)]
    sweep.publish(sweep.measure([{"setting": setting, "n": n} for setting, n in sizes], hyperparameters))
    rungs = {"top-16": asdict(SETTINGS["default"])}
    sweep = Sweep("conversion/speed_and_memory", parameters={"rungs": rungs}, **known)
    cells = [{"rung": rung, "n": n} for rung in ("original", "top-16") for n in (4096, 8192)]
    sweep.publish(sweep.measure(cells, speed_and_memory))
    return [load("conversion/hyperparameters"), load("conversion/speed_and_memory")]


# -- The data -------------------------------------------------------------------------------------


def embedded(choose: Any, results: list[Result]) -> Any:
    """The page's JSON as a browser reads it."""
    text = re.search(r'<script type="application/json">(.*?)</script>', choose.markup(choose.data(results)), re.DOTALL)
    assert text
    return json.loads(text[1])


def test_the_default_is_the_converters_own(choose: Any) -> None:
    own = asdict(ConversionConfig())
    assert {name: own[name] or 0 for name in choose.DEFAULT} == choose.DEFAULT
    assert set(own) - set(choose.DEFAULT) == {"layers", "original_below"}


def test_the_page_holds_the_numbers_of_the_tables(choose: Any, results: list[Result]) -> None:
    found = embedded(choose, results)
    hyperparameters, speed = (result.table for result in results)
    mean = hyperparameters[hyperparameters["document"].isna()]
    counted = 0
    for one in found["settings"]:
        config = eval(one["call"], {"ConversionConfig": ConversionConfig})
        (name,) = [name for name, known in SETTINGS.items() if same(known, config)]
        for n, numbers in one["numbers"].items():
            for number, (metric, phase) in zip(numbers, choose.QUANTITIES, strict=True):
                if number is None:
                    continue
                counted += 1
                table = (mean[mean["setting"] == name], speed[speed["dtype"] == "float32"])[number["source"]]
                table = table[(table["n"] == int(n)) & table["metric"].isin([metric, "cell"])]
                line = table[table["phase"].isna() if phase is None else table["phase"] == phase].iloc[0]
                for bound in ("value", "low", "high"):
                    assert (number[bound] is None and pd.isna(line[bound])) or number[bound] == line[bound]
    shown = mean[mean["metric"].isin([metric for metric, _ in choose.QUANTITIES])]
    out_of_memory = [phase for _, phase in choose.QUANTITIES if phase == "prefill"]
    speeds = 2 + 1  # from the second table: at 8,192 tokens both, at 4,096 that of decoding
    assert counted == len(shown) + len(out_of_memory) + speeds


def same(a: ConversionConfig, b: ConversionConfig) -> bool:
    """Whether two settings read the same."""
    names = ["chunk_size", "local_chunks", "sink_tokens", "retrieval", "compression_factor"]
    names += ["top_k"] * a.retrieves_blocks + ["block_size"] * (a.retrieval == "top_k")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def test_the_converters_default_comes_first(choose: Any, results: list[Result]) -> None:
    found = embedded(choose, results)
    assert found["settings"][0]["fields"] == {name: v for name, v in choose.DEFAULT.items() if v != 0}
    assert found["length"] == 4096
    assert (found["chunk_size"], found["retrieval"]) == ([64, 128], ["none", "states", "top_k", "both"])


def test_what_ran_out_of_memory_says_so(choose: Any, results: list[Result]) -> None:
    wanted = choose.fields(asdict(SETTINGS["states"]))
    (states,) = [one for one in embedded(choose, results)["settings"] if one["fields"] == wanted]
    shown = [number and number["shown"] for number in states["numbers"]["4096"]]
    assert shown == ["out of memory", None, "out of memory", "out of memory", "1.67 (1.34–2.34)", None]


def test_a_page_without_results_says_how_to_measure_them(
    choose: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))
    parts = choose.parts()
    assert [type(part) for part in parts] == [HTML, HTML]
    for part, experiment in zip(parts, choose.EXPERIMENTS, strict=True):
        assert "Not measured yet" in part.data
        assert f"<code>nox -s reproduce -- --target cpu --profile full {experiment}</code>" in part.data


@pytest.mark.usefixtures("results")
def test_a_page_with_results_says_where_they_come_from(choose: Any) -> None:
    chooser, *origins = choose.parts()
    assert isinstance(chooser, HTML) and "choose.js" in chooser.data
    assert [type(part) for part in origins] == [Markdown, Markdown]
    for part, experiment in zip(origins, choose.EXPERIMENTS, strict=True):
        assert f"(../data/results/cpu/full/{experiment}.csv)" in part.data


# -- In a browser ---------------------------------------------------------------------------------


@pytest.fixture
def page(choose: Any, results: list[Result], tmp_path: Path) -> Path:
    """The chooser and its script, without the rest of the page."""
    script = (ROOT / "book" / "_static" / "choose.js").as_uri()
    path = tmp_path / "choose.html"
    body = choose.markup(choose.data(results))
    path.write_text(f'<!doctype html><meta charset="utf-8">{body}<script src="{script}"></script>', encoding="utf-8")
    return path


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Any]:
    tab = browser.new_page()
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto(page.as_uri())
    yield tab
    tab.close()
    assert not problems


def shown(tab: Any) -> dict[str, list[str]]:
    """The table as it stands there: a row's cells by its title, the head's by an empty one."""
    lines = tab.evaluate("[...document.querySelector('table').rows].map(r => [...r.cells].map(c => c.textContent))")
    return {title: cells for title, *cells in lines}


SPEED, DECODE, _, PEAK, PERPLEXITY, _ = range(6)


def line(choose: Any, tab: Any, quantity: int) -> list[str]:
    return shown(tab)[list(choose.QUANTITIES.values())[quantity]]


def test_a_reader_chooses_and_reads(choose: Any, tab: Any) -> None:
    assert shown(tab)[""] == ["4,096 tokens"]
    assert line(choose, tab, SPEED) == ["1.71 (1.04–2.04) ×"]
    tab.get_by_label("retrieval").select_option("both")
    assert line(choose, tab, SPEED) == ["1.91 (1.24–2.24) ×"]
    assert line(choose, tab, PEAK) == ["1,241 MB"]
    assert line(choose, tab, DECODE) == ["not measured"]
    assert 'retrieval="both", local_chunks=2, sink_tokens=32, top_k=4)' in tab.locator("pre").inner_text()
    tab.get_by_label("retrieval").select_option("states")
    assert tab.get_by_label("other settings").locator("option").all_inner_texts() == [
        "local chunks 2, sink tokens 32, no compression",
        "local chunks 2, sink tokens 32, compression factor 8",
    ]
    assert line(choose, tab, SPEED) == ["out of memory"]
    assert line(choose, tab, PERPLEXITY) == ["1.67 (1.34–2.34) ×"]


def test_each_number_leads_to_the_page_that_measured_it(choose: Any, tab: Any) -> None:
    links = tab.locator("td a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    pages = [f"../notebooks/{choose.EXPERIMENTS[source]}.html" for source in (0, 1, 0, 0, 0, 0)]
    assert links == pages


def test_the_code_to_copy_is_python_that_makes_the_setting(tab: Any) -> None:
    tab.get_by_label("retrieval").select_option("states")
    tab.get_by_label("other settings").select_option(label="local chunks 2, sink tokens 32, compression factor 8")
    code = tab.locator("pre").inner_text()
    compile(code, "page", "exec")
    (made,) = re.findall(r"config = (.*)", code)
    assert eval(made, {"ConversionConfig": ConversionConfig}) == SETTINGS["states, compressed"]


def test_between_measured_lengths_nothing_is_estimated(choose: Any, tab: Any) -> None:
    tab.get_by_label("length in tokens").fill("3000")
    assert shown(tab)[""] == ["1,024 tokens", "4,096 tokens"]
    assert line(choose, tab, SPEED) == ["1.68 (1.01–2.01) ×", "1.71 (1.04–2.04) ×"]
    assert tab.get_by_role("status").inner_text() == (
        "3,000 tokens: not measured with this setting. Nearest measured: 1,024 and 4,096 tokens."
    )
    tab.get_by_label("length in tokens").fill("100000")
    assert shown(tab)[""] == ["8,192 tokens"]
    assert line(choose, tab, PERPLEXITY) == ["not measured"]
    tab.get_by_label("length in tokens").fill("0")
    tab.get_by_label("length in tokens").blur()
    assert tab.get_by_label("length in tokens").input_value() == "100000"


def test_a_combination_that_was_not_measured_says_so(choose: Any, tab: Any) -> None:
    tab.get_by_label("chunk size").select_option("64")
    assert tab.get_by_role("status").inner_text() == 'No setting with chunk size 64 and retrieval "top_k" was measured.'
    assert {cell for title, cells in shown(tab).items() if title for cell in cells} == {"not measured"}
    assert not tab.locator("pre").is_visible()
    tab.reload()
    assert "chunk size 64" in tab.get_by_role("status").inner_text()
    tab.get_by_label("retrieval").select_option("none")
    assert 'retrieval="none"' in tab.locator("pre").inner_text()


def test_the_keyboard_is_enough(tab: Any) -> None:
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.name") == "stop"
    tab.keyboard.press("ArrowRight")
    assert shown(tab)[""] == ["8,192 tokens"]
    assert tab.locator("input[name=stop]").get_attribute("aria-valuetext") == "8,192 tokens"
    seen = []
    for _ in range(4):
        tab.keyboard.press("Tab")
        seen.append(tab.evaluate("document.activeElement.name"))
    assert seen == ["n", "chunk_size", "retrieval", "rest"]


def test_a_link_opens_with_its_choice(choose: Any, browser: Any, page: Path, tab: Any) -> None:
    tab.get_by_label("length in tokens").fill("1024")
    tab.get_by_label("retrieval").select_option("states")
    tab.get_by_label("other settings").select_option(index=1)
    other = browser.new_page()
    other.goto(tab.url)
    assert shown(other) == shown(tab)
    assert other.locator("pre").inner_text() == tab.locator("pre").inner_text()
    other.evaluate("location.hash = '#retrieval=both'")
    other.wait_for_function("document.querySelector('pre').textContent.includes('both')")
    assert shown(other)[""] == ["4,096 tokens"]
    other.close()


@pytest.mark.parametrize(
    "fragment",
    ["#", "#nonsense", "#n=-5", "#n=x&retrieval=magic", "#chunk_size=7&top_k=%3Cb%3E", "#n=1e999&sink_tokens="],
)
def test_a_link_that_makes_no_sense_opens_as_at_first(browser: Any, page: Path, tab: Any, fragment: str) -> None:
    other = browser.new_page()
    other.goto(page.as_uri() + fragment)
    assert shown(other) == shown(tab)
    assert other.locator("pre").inner_text() == tab.locator("pre").inner_text()
    other.close()


def test_without_scripts_all_of_it_stands_there(choose: Any, results: list[Result], browser: Any, page: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    lines = sum(len(one["numbers"]) for one in choose.data(results)["settings"])
    assert tab.locator("tbody tr:visible").count() == lines
    assert tab.locator("tbody tr:visible", has_text="4,096").first.is_visible()
    assert not tab.locator("form").is_visible()
    context.close()
