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
from bsbr.store import Result, Sweep, load, over, row

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
    texts = {"over": over("document", ["a", "b"])}
    ends = {"low": value, "high": value + 1, "samples": 7}
    ratio = row("perplexity_ratio", value + 1 / 3, **ends, interval="bootstrap t of logs", **texts, **about)
    if n == 4096 and setting == "states":
        return [ratio, row("cell", None, status="out_of_memory", **about | {"phase": "prefill"})]
    return [
        ratio,
        row("perplexity_ratio", 99.0, **about | {"document": "one of them"}),
        row("top_1_agreement", 90 + value, **texts, **about),
        row("speedup", value + 2 / 3, **ends, interval="order statistics", **about | {"phase": "prefill"}),
        row("relative_memory", value / 2, **about | {"phase": "prefill"}),
        row("peak_memory", 1000 * value, **about | {"phase": "prefill"}),
        row("time", value, **about | {"phase": "prefill"}),
    ]


def speed_and_memory(setting: str, n: int) -> list[dict]:
    """Rows as `conversion/speed_and_memory` has them: settings by name, and the original among them."""
    if setting == "original":
        return [row("time", 1.0, phase="prefill", dtype="float32")]
    return [
        row("speedup", n / 1000, phase=phase, dtype=dtype)
        for phase, dtype in (("prefill", "float32"), ("decode", "float32"), ("decode", "bfloat16"))
    ]


def similarity(setting: str, n: int) -> list[dict]:
    """Rows as `conversion/similarity` has them: by kind of text, over more or fewer documents, part by part."""
    about = {"model": "SmolLM2", "dtype": "float32", "kind": "speech", "documents": "all", "position": None}
    value = 3.0 if setting == "top-16" else 9.0  # no reader can ask for what was calibrated
    return [
        row("perplexity_ratio", 100.0, **about | {"kind": "e-mail"}),
        row("perplexity_ratio", 100.0, **about | {"documents": "shared"}),
        row("perplexity_ratio", value, over=over("document", ["a", "b", "c"]), **about),
        row("perplexity_ratio", 100.0, **about | {"position": 256}),
        row("perplexity_ratio", 100.0, **about | {"model": "GPT-2"}),
        row("perplexity_ratio", 100.0, **about | {"documents": None, "document": "a"}),
    ]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Result]:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path / "data"))
    known = {"target": "cpu", "profile": "full"}
    sweep = Sweep("conversion/hyperparameters", parameters={}, **known)
    sizes = [(setting, n) for setting in SETTINGS for n in (1024, 4096) if (setting, n) != ("small", 1024)]
    cells = [{"setting": setting, "n": n} for setting, n in sizes]
    sweep.publish(sweep.measure(cells, hyperparameters, machine_bound=False))
    settings = {"top-16": asdict(SETTINGS["default"]), "top-16, calibrated": asdict(SETTINGS["default"])}
    sweep = Sweep("conversion/speed_and_memory", parameters={"settings": settings}, **known)
    cells = [{"setting": setting, "n": n} for setting in ("original", "top-16") for n in (4096, 8192)]
    sweep.publish(sweep.measure(cells, speed_and_memory, machine_bound=False))
    sweep = Sweep("conversion/similarity", parameters={"settings": settings}, **known)
    cells = [{"setting": setting, "n": 8192} for setting in settings]
    sweep.publish(sweep.measure(cells, similarity, machine_bound=False))
    return [load(f"conversion/{name}") for name in ("hyperparameters", "speed_and_memory", "similarity")]


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
    hyperparameters, speed, quality = (result.table for result in results)
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
                if number["source"] == 2:  # of perplexity, at the length of the whole context
                    assert (name, int(n), number["value"], number["over"]) == ("default", 8192, 3.0, "3 documents")
                    continue
                table = (mean[mean["setting"] == name], speed[speed["dtype"] == "float32"])[number["source"]]
                table = table[(table["n"] == int(n)) & table["metric"].isin([metric, "cell"])]
                line = table[table["phase"].isna() if phase is None else table["phase"] == phase].iloc[0]
                for bound in ("value", "low", "high"):
                    assert (number[bound] is None and pd.isna(line[bound])) or number[bound] == line[bound]
    shown = mean[mean["metric"].isin([metric for metric, _ in choose.QUANTITIES])]
    out_of_memory = [phase for _, phase in choose.QUANTITIES if phase == "prefill"]
    speeds = 2 + 1  # from the second table: at 8,192 tokens both, at 4,096 that of decoding
    assert set(quality["setting"]) == {"top-16", "top-16, calibrated"}
    assert counted == len(shown) + len(out_of_memory) + speeds + 1


def same(a: ConversionConfig, b: ConversionConfig) -> bool:
    """Whether two settings read the same."""
    names = ["chunk_size", "local_chunks", "sink_tokens", "retrieval", "compression_factor"]
    names += ["top_k"] * a.retrieves_blocks + ["block_size"] * (a.retrieval == "top_k")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def test_the_converters_default_comes_first(choose: Any, results: list[Result]) -> None:
    found = embedded(choose, results)
    assert found["settings"][0]["fields"] == {name: v for name, v in choose.DEFAULT.items() if v != 0}
    assert found["length"] == 4096
    assert found["settings"][0]["label"].endswith("block size 32 (the default)")
    assert [one for one in found["settings"][1:] if "default" in one["label"]] == []
    assert list(found["retrievals"]) == ["none", "states", "top_k", "both"]


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
    assert [type(part) for part in parts] == [HTML, HTML, HTML]
    for part, experiment in zip(parts, choose.EXPERIMENTS, strict=True):
        assert "Not measured yet" in part.data
        assert f"<code>nox -s reproduce -- --target cpu --profile full {experiment}</code>" in part.data


@pytest.mark.usefixtures("results")
def test_a_page_with_results_says_where_they_come_from(choose: Any) -> None:
    chooser, *origins = choose.parts()
    assert isinstance(chooser, HTML) and "choose.js" in chooser.data
    assert [type(part) for part in origins] == [Markdown, Markdown, Markdown]
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
    """The table as it stands there: a row's cells by its title, the head's by `what`."""
    lines = tab.evaluate("[...document.querySelector('table').rows].map(r => [...r.cells].map(c => c.textContent))")
    return {title: cells for title, *cells in lines}


SPEED, DECODE, _, PEAK, PERPLEXITY, _ = range(6)


def choose_setting(tab: Any, *words: str) -> None:
    """Choose the one setting whose label has these words."""
    options = tab.get_by_label("setting").locator("option")
    (label,) = [label for label in options.all_inner_texts() if all(word in label for word in words)]
    tab.get_by_label("setting").select_option(label=label)


def line(choose: Any, tab: Any, quantity: int) -> list[str]:
    return shown(tab)[list(choose.QUANTITIES.values())[quantity]]


def test_a_reader_chooses_and_reads(choose: Any, tab: Any) -> None:
    assert shown(tab)["what"] == ["4,096 tokens"]
    assert line(choose, tab, SPEED) == ["1.71 (1.04–2.04) ×"]
    choose_setting(tab, "top k 4")
    assert line(choose, tab, SPEED) == ["1.91 (1.24–2.24) ×"]
    assert line(choose, tab, PEAK) == ["1,241 MB"]
    assert line(choose, tab, DECODE) == ["not measured with this setting"]
    assert 'retrieval="both", local_chunks=2, sink_tokens=32, top_k=4)' in tab.locator("pre").inner_text()
    choose_setting(tab, "sink tokens 32, no compression")
    assert line(choose, tab, SPEED) == ["out of memory"]
    assert line(choose, tab, PERPLEXITY) == ["1.67 (1.34–2.34) ×, over 2 documents"]


def test_the_settings_stand_in_groups(choose: Any, results: list[Result], tab: Any) -> None:
    groups = tab.locator("optgroup").evaluate_all("all => all.map(one => [one.label, one.children.length])")
    assert groups == [
        [choose.RETRIEVALS[name], count] for name, count in (("none", 1), ("states", 2), ("top_k", 2), ("both", 1))
    ]
    assert sum(count for _, count in groups) == len(choose.data(results)["settings"])


def test_each_number_leads_to_the_page_that_measured_it(choose: Any, tab: Any) -> None:
    links = tab.locator("td a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    pages = [f"../notebooks/{choose.EXPERIMENTS[source]}.html" for source in (0, 1, 0, 0, 0, 0)]
    assert links == pages


def test_the_code_to_copy_is_python_that_makes_the_setting(tab: Any) -> None:
    choose_setting(tab, "compression factor 8")
    code = tab.locator("pre").inner_text()
    compile(code, "page", "exec")
    (made,) = re.findall(r"config = (.*)", code)
    assert eval(made, {"ConversionConfig": ConversionConfig}) == SETTINGS["states, compressed"]


def test_between_measured_lengths_nothing_is_estimated(choose: Any, tab: Any) -> None:
    tab.get_by_label("length in tokens").fill("3000")
    assert shown(tab)["what"] == ["1,024 tokens", "4,096 tokens"]
    assert line(choose, tab, SPEED) == ["1.68 (1.01–2.01) ×", "1.71 (1.04–2.04) ×"]
    assert tab.get_by_role("status").inner_text() == (
        "3,000 tokens: not measured with this setting. Nearest measured: 1,024 and 4,096 tokens."
    )
    tab.get_by_label("length in tokens").fill("100000")
    assert shown(tab)["what"] == ["8,192 tokens"]
    assert line(choose, tab, PERPLEXITY) == ["3.00 ×, over 3 documents"]


def test_what_was_measured_at_another_length_only_stands_in_its_place(choose: Any, tab: Any) -> None:
    tab.get_by_label("length in tokens").fill("8192")
    assert line(choose, tab, PEAK) == ["not measured; after 4,096 tokens 1,041 MB"]
    links = tab.locator("tbody tr").nth(PEAK).locator("a")
    assert links.count() == 1 and links.get_attribute("href") == f"../notebooks/{choose.EXPERIMENTS[0]}.html"


@pytest.mark.parametrize("typed", ["12.5", "0", "-5", "abc", "1e3", ""])
def test_what_is_no_length_is_answered_in_words(tab: Any, typed: str) -> None:
    before, length = shown(tab), tab.get_by_label("length in tokens")
    length.fill(typed)
    word = f"“{typed}” is not" if typed else "A length is"
    said = f"{word} a whole number of tokens from 1 on. Still shown: 4,096 tokens."
    for _ in range(2):  # also once the reader has gone on: nothing is changed behind their back
        assert tab.get_by_role("status").inner_text() == said and shown(tab) == before
        assert length.input_value() == typed and length.get_attribute("aria-invalid") == "true"
        length.blur()
    length.fill("1,024")
    assert shown(tab)["what"] == ["1,024 tokens"] and length.get_attribute("aria-invalid") is None
    assert tab.get_by_role("status").inner_text() == ""


def test_each_measured_setting_can_be_reached(choose: Any, results: list[Result], tab: Any) -> None:
    for one in choose.data(results)["settings"]:
        group = choose.RETRIEVALS[one["fields"]["retrieval"]]
        option = tab.locator(f'optgroup[label="{group}"] option', has_text=re.compile(f"^{re.escape(one['label'])}$"))
        tab.get_by_label("setting").select_option(value=option.get_attribute("value"))
        assert one["call"] in tab.locator("pre").inner_text()


def test_the_keyboard_is_enough(tab: Any) -> None:
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.name") == "stop"
    tab.keyboard.press("ArrowRight")
    assert shown(tab)["what"] == ["8,192 tokens"] and tab.get_by_label("length in tokens").input_value() == "8192"
    assert tab.locator("input[name=stop]").get_attribute("aria-valuetext") == "8,192 tokens"
    seen = []
    for _ in range(2):
        tab.keyboard.press("Tab")
        seen.append(tab.evaluate("document.activeElement.name"))
    assert seen == ["n", "setting"]
    for _ in range(2):
        before = tab.locator("pre").inner_text()
        tab.keyboard.press("ArrowDown")
        assert tab.locator("pre").inner_text() != before


def test_a_link_opens_with_its_choice(choose: Any, browser: Any, page: Path, tab: Any) -> None:
    tab.get_by_label("length in tokens").fill("1024")
    choose_setting(tab, "compression factor 8")
    other = browser.new_page()
    other.goto(tab.url)
    assert shown(other) == shown(tab)
    assert other.locator("pre").inner_text() == tab.locator("pre").inner_text()
    other.evaluate("location.hash = '#retrieval=both'")
    other.wait_for_function("document.querySelector('pre').textContent.includes('both')")
    assert shown(other)["what"] == ["4,096 tokens"]
    other.close()


@pytest.mark.parametrize(
    "fragment",
    ["#", "#nonsense", "#n=-5", "#n=x&retrieval=magic", "#chunk_size=7&top_k=%3Cb%3E", "#n=1e999&sink_tokens="],
)
def test_a_link_that_makes_no_sense_opens_as_at_first(browser: Any, page: Path, tab: Any, fragment: str) -> None:
    other = browser.new_page()
    other.goto(page.as_uri() + fragment)
    said = other.get_by_role("status").inner_text()
    assert ("not" in said) == ("=" in fragment)  # what it gets wrong is told
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
