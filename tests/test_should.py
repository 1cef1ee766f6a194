"""The page *Should I use it?*: ten questions, each with a number from the store, or the word that there is none yet."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bsbr.store import MissingResultError, load, published
from bsbr.store.provenance import ROOT

sys.path.insert(0, str(ROOT / "book"))
import should

QUESTIONS = {  # what a reader asks, and a metric of the experiment whose number stands in the answer
    "Is it faster at 2,000 tokens?": ("speedup", {"mechanism": "bsbr", "n": 2048, "phase": "prefill"}),
    "Is it faster on a long text?": ("speedup", {"mechanism": "bsbr", "phase": "prefill"}),
    "What does a decoded token cost?": ("time_per_token", {"mechanism": "bsbr", "phase": "decode"}),
    "What does it cost in memory?": ("peak_memory", {"mechanism": "bsbr", "phase": "inference"}),
    "Does it train as fast?": ("training_speed", {"mechanism": "bsbr"}),
    "Does it predict text as well?": ("perplexity_gain", {}),
    "Does it forget a name?": ("accuracy", {"mechanism": "bsbr"}),
    "What does a converted model keep?": ("perplexity_ratio", {"setting": "top-16"}),
    "What does conversion bring?": ("speedup", {"setting": "top-16"}),
    "Does a converted model still find what was said long ago?": ("retrieval_accuracy", {"setting": "original"}),
}


def test_all_questions_are_answered_once() -> None:
    assert [question.asked for question in should.QUESTIONS] == list(QUESTIONS)


@pytest.mark.parametrize("question", should.QUESTIONS, ids=lambda question: question.asked)
def test_an_answer_has_a_number_of_the_store(question: should.Question) -> None:
    said = should.section(question)
    assert f"(../notebooks/{question.experiment}.ipynb)" in said
    if question.experiment not in published():
        assert should.MISSING in said
        return
    metric, where = QUESTIONS[question.asked]
    values = load(question.experiment).select(metric, **where)["value"].dropna()
    shown = {should.number(value) for value in values} | {should.number(value, 2) for value in values}
    assert shown & set(re.findall(r"[\d.,]+\d|\d", said)), said


def test_what_no_run_has_measured_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))
    with pytest.raises(MissingResultError):
        load("benchmarks/memory")
    assert should.answers().count(should.MISSING) == len(should.QUESTIONS)


def test_it_says_no_where_the_interval_is_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    result = load("benchmarks/inference_time")

    def slow(low: float, high: float) -> str:
        table: Any = result.table.copy()
        own = (table["metric"] == "speedup") & (table["mechanism"] == "bsbr") & (table["n"] == 2048)
        table.loc[own, ["value", "low", "high"]] = [(low + high) / 2, low, high]
        return should.at_2k(replace(result, table=table))

    assert slow(0.5, 0.7).startswith("**No**")
    assert slow(0.9, 1.2).startswith("It cannot be told")
    assert slow(1.2, 1.4).startswith("**Yes**")


def test_the_best_mechanism_is_the_one_with_the_lowest_published_number() -> None:
    matter = should.MATTERS[0]
    rows = should.plain(load(matter.experiment).table)
    rows = should.select(rows, matter.metric, n=4096, **matter.where).dropna(subset="value")
    lowest = rows.loc[rows["value"].idxmin()]
    said = should.best(load(matter.experiment), matter, 4096)
    assert said.startswith(f"**{should.shown.name_of(lowest['mechanism'])}** {should.number(lowest['value'])}")


def test_only_what_cannot_be_told_from_the_best_is_as_good() -> None:
    result = load("benchmarks/inference_time")

    def said(low: float) -> str:
        table = result.table.copy()
        here = (table["metric"] == "time") & (table["n"] == 4096) & (table["phase"] == "prefill")
        table = table[here & (table["batch"] == 1) & (table["size"] == "256x2x4") & (table["mode"] == "eager")]
        table = table[table["mechanism"].isin(["bsbr", "standard"])].copy()
        for name, numbers in {"bsbr": (1.0, 0.9, 1.1), "standard": (2.0, low, 2.5)}.items():
            table.loc[table["mechanism"] == name, ["value", "low", "high"]] = numbers
        return should.best(replace(result, table=table), should.MATTERS[0], 4096)

    assert said(1.05) == "**BSBR** 1.00, as good: standard attention"
    assert said(1.2) == "**BSBR** 1.00; standard attention 2.00"


def test_each_thing_that_matters_leads_to_its_page_and_what_is_not_there_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = should.choices()
    assert all(f"(../notebooks/{matter.experiment}.ipynb)" in table for matter in should.MATTERS)
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))
    assert should.choices().count("Not measured yet") == len(should.MATTERS) * len(should.CHOICE_LENGTHS)
