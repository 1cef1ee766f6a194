"""Costs of whole documents: a page is a page, whichever document it stands in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from bsbr import ModelConfig, TransformerLM
from bsbr.measure import speed
from bsbr.store import Row
from bsbr.studies import pages
from bsbr.training.tokens import Document

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_dim": 16, "num_layers": 1, "num_heads": 2, "ff_dim": 16}
READ = [pages.Whole("short", 250, (1, 2, 3) * 20), pages.Whole("long", 1000, (4, 5) * 100)]


def models(*names: str) -> dict[str, TransformerLM]:
    torch.manual_seed(0)
    return {name: TransformerLM(ModelConfig(name, **SIZES, chunk_size=16, window_size=16)).eval() for name in names}


def value(rows: list[Row], metric: str, mechanism: str, document: str | None = None) -> float:
    (found,) = (
        row["value"]
        for row in rows
        if (row["metric"], row["mechanism"], row.get("document")) == (metric, mechanism, document)
    )
    return float(found)


def test_documents_are_chosen_by_their_place_among_the_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [50, 10, 40, 20, 30]
    texts = tuple(Document(f"d{length}", "", "word " * (length // 2)) for length in lengths)
    monkeypatch.setattr(pages, "documents", lambda corpus, part: texts)
    monkeypatch.setattr(pages, "encoded", lambda corpus, part: tuple(np.arange(length) for length in lengths))
    found = pages.chosen("speeches", "test", [0, 0.5, 1])
    assert [document.key for document in found] == ["d10", "d30", "d50"]
    assert found[2].ids == tuple(range(50)) and found[2].words == 25 and found[2].pages == 0.05
    with pytest.raises(ValueError, match=r"shares must lie in \[0, 1\]"):
        pages.chosen("speeches", "test", [1.5])
    with pytest.raises(ValueError, match="choose each another of the 5 documents"):
        pages.chosen("speeches", "test", [0.5, 0.51])


def test_the_time_of_a_page_is_a_rounds_time_over_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = np.array([1.0, 1.1, 0.9, 1.0, 1.2, 1.0, 1.0])
    seconds = {"standard short": 1.0, "standard long": 8.0, "bsbr short": 0.5, "bsbr long": 1.0}

    def interleave(tasks: Mapping[str, speed.Task], *, seconds: float) -> dict[str, Any]:
        for task in tasks.values():
            task.run(task.prepare())
        return {name: rounds * seconds_of[name] for name in tasks}

    seconds_of = seconds
    monkeypatch.setattr(speed, "interleave", interleave)
    rows = pages.times(models("standard", "bsbr"), READ, seconds=1)
    assert value(rows, "time", "standard", "short") == pytest.approx(1 / 0.5)
    assert value(rows, "time", "bsbr", "long") == pytest.approx(1 / 2)
    assert value(rows, "time", "standard") == pytest.approx(9 / 2.5)
    assert value(rows, "speedup", "bsbr", "long") == pytest.approx(8)
    assert value(rows, "speedup", "bsbr") == pytest.approx(9 / 1.5)
    assert all(row["samples"] == len(rounds) and row["interval"] for row in rows)


def test_the_memory_of_all_documents_is_that_of_the_one_that_takes_the_most() -> None:
    kinds = models("standard", "bsbr")
    rows = pages.peaks(kinds, READ)
    for name, model in kinds.items():
        parameters = 4 * sum(p.numel() for p in model.parameters())
        for document in READ:
            peak = value(rows, "peak_memory", name, document.key)
            added = value(rows, "memory_per_page", name, document.key) * document.pages
            assert peak * 1e6 == pytest.approx(added * 1e6 + parameters)
            assert added * 1e6 > 4 * len(document.ids) * 16  # one hidden state a token
        assert value(rows, "peak_memory", name) == value(rows, "peak_memory", name, "long")
    gain = value(rows, "memory_relative", "bsbr")
    assert gain == pytest.approx(value(rows, "peak_memory", "standard") / value(rows, "peak_memory", "bsbr"))
