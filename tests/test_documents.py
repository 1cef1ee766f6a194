"""Averages say what they are over, and stand beside each other only if they are over the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch

from bsbr import sources, stats
from bsbr.conversion import ConversionConfig, convert
from bsbr.store import row
from bsbr.studies import documents, pretrained, settings

EASY, HARD = 10.0, 40.0
ALL = [f"{kind} {i}" for kind in ("easy", "hard") for i in range(7)]


def perplexity(document: str, setting: str) -> float:
    """A conversion costs 5 % on every document; some documents are much harder than others."""
    return (EASY if document.startswith("easy") else HARD) * (1.05 if setting != "original" else 1.0)


def table(read: dict[str, list[str]]) -> pd.DataFrame:
    rows = []
    for setting, items in read.items():
        for document in items:
            where = {"n": 8, "setting": setting, "document": document}
            rows.append(row("perplexity", perplexity(document, setting), **where))
            if setting != "original":
                ratio = perplexity(document, setting) / perplexity(document, "original")
                rows.append(row("perplexity_ratio", ratio, **where))
    return pd.DataFrame(rows)


def found(rows: list[dict[str, Any]], name: str, **where: object) -> dict[str, Any]:
    (one,) = [r for r in rows if r["metric"] == name and all(r.get(k) == v for k, v in where.items())]
    return one


def test_no_setting_looks_better_for_having_read_easier_documents() -> None:
    rows = table({"original": ALL, "top-16": ALL, "neighbours": [name for name in ALL if name.startswith("easy")]})
    means = documents.averages(documents.over_all_and_shared(rows))
    for which, count in (("all", 14), ("shared", 7)):
        original = found(means, "perplexity", setting="original", documents=which)
        assert original["samples"] == count and original["over"].startswith(f"{count} documents ")
        for setting in ("top-16", "neighbours"):
            if (which, setting) == ("all", "neighbours"):
                assert not [r for r in means if r["setting"] == setting and r["documents"] == which]
                continue
            one = found(means, "perplexity", setting=setting, documents=which)
            assert one["over"] == original["over"]
            assert one["value"] / original["value"] == pytest.approx(1.05)
            ratio = found(means, "perplexity_ratio", setting=setting, documents=which)
            assert ratio["value"] == pytest.approx(one["value"] / original["value"])


def test_where_all_have_read_the_same_there_is_one_average() -> None:
    rows = documents.over_all_and_shared(table({"original": ALL, "top-16": ALL}))
    assert set(rows["documents"]) == {"all"} and len(rows) == 3 * len(ALL)


def test_averages_are_those_of_the_statistics() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    names = {"kl_divergence": stats.mean(values), "retrieval_accuracy": stats.share(5, 7)}
    rows = pd.DataFrame(
        [row(name, value, trial=i, document=f"d{i % 3}", rung=None) for name in names for i, value in enumerate(values)]
    )
    for one in documents.averages(rows, "trial", without=["document"]):
        estimate = names[one["metric"]]
        assert (one["value"], one["low"], one["high"]) == (estimate.value, estimate.low, estimate.high)
        assert one["interval"] == estimate.interval and one["over"].startswith("7 trials ")
        assert "document" not in one and "rung" not in one and "trial" not in one


def test_too_few_documents_have_no_interval() -> None:
    (one,) = documents.averages(table({"original": ALL[:3]}))
    assert one["low"] is None and one["interval"] == "" and one["samples"] == 3


def test_a_document_that_comes_twice_is_refused() -> None:
    rows = table({"original": ALL[:2]})
    with pytest.raises(ValueError, match="each once"):
        documents.averages(pd.concat([rows, rows]))


def test_deviations_are_between_documents_and_say_which() -> None:
    (one,) = documents.deviations(table({"original": ALL}))
    assert one["statistic"] == "standard deviation" and one["over"].startswith("14 documents ")
    assert one["value"] == pytest.approx(np.std([perplexity(name, "original") for name in ALL], ddof=1))
    assert documents.deviations(table({"original": ALL[:1]})) == []


def test_pairs_are_of_the_same_documents() -> None:
    rows = table({"original": ALL, "top-16": ALL[3:]})
    first, second, items = documents.pairs(rows, "perplexity", "top-16", "original")
    assert items == sorted(ALL[3:]) and first / second == pytest.approx(np.full(11, 1.05))
    assert documents.pairs(rows, "perplexity", "original", "absent")[2] == []


def test_the_gap_that_is_closed() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.uniform(0.1, 0.2, 8)
    left = gaps * rng.uniform(0.3, 0.5, 8)
    rows = pd.DataFrame(
        row("perplexity_ratio", float(np.exp(gap)), setting=name, document=f"d{i}")
        for name, values in {"states": gaps, "calibrated": left}.items()
        for i, gap in enumerate(values)
    )
    (one,) = documents.gap_closed(rows, "states", "calibrated", n=8)
    wanted = stats.gap_closed(gaps, left)
    assert one["value"] == pytest.approx(wanted.value) and one["low"] == pytest.approx(wanted.low)
    assert (one["setting"], one["n"], one["interval"]) == ("calibrated", 8, "Fieller")
    assert documents.gap_closed(rows, "states", "absent") == []


# -- Reading --------------------------------------------------------------------------------------


class Words:
    """A tokenizer of one token a word."""

    def __call__(self, text: str, **_: object) -> dict[str, Any]:
        return {"input_ids": torch.arange(len(text.split()))[None]}


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    speeches = [sources.Speech(str(i), 1790 + i, "", "", "word " * (10 + i)) for i in range(2)]
    monkeypatch.setattr(sources, "load_speeches", lambda split=None: speeches)
    monkeypatch.setattr(sources, "load_emails", lambda split=None: [sources.Email("mail", "ham", "a b c")])
    documents._texts.cache_clear()
    documents._joined.cache_clear()
    yield
    documents._texts.cache_clear()


@pytest.mark.usefixtures("texts")
def test_the_first_tokens_of_a_document() -> None:
    assert documents.ids_of("1", Words(), 4).shape == (1, 4)
    assert documents.ids_of("mail", Words()).shape == (1, 3)
    with pytest.raises(ValueError, match="mail has only 3 tokens, 4 are needed"):
        documents.ids_of("mail", Words(), 4)
    with pytest.raises(ValueError, match="got 'letter'"):
        documents.ids_of("letter", Words())


@pytest.mark.usefixtures("texts")
def test_speeches_one_after_the_other() -> None:
    assert documents.joined_ids(Words(), 15).shape == (1, 15)
    with pytest.raises(ValueError, match="have only 21 tokens, 22 are needed"):
        documents.joined_ids(Words(), 22)


# -- Settings -------------------------------------------------------------------------------------


def test_the_default_is_the_converters_own() -> None:
    assert settings.SETTINGS[settings.default(settings.SETTINGS)] == ConversionConfig()
    with pytest.raises(ValueError, match="default"):
        settings.default({"local": settings.SETTINGS["local"]})


def test_columns_hold_what_a_setting_uses() -> None:
    lines = settings.frame(settings.SETTINGS).set_index("setting")
    assert pd.isna(lines.loc["states", "top_k"]) and pd.isna(lines.loc["both", "block_size"])
    assert lines.loc["fine states", "compression_factor"] == 8 and lines.loc["top-16", "compression_factor"] == 0
    made = {name: ConversionConfig(**kept) for name, kept in settings.parameters(settings.SETTINGS).items()}
    assert made == settings.SETTINGS


# -- Models ---------------------------------------------------------------------------------------


def test_a_calibration_is_made_once_and_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BSBR_CACHE", str(tmp_path))
    model = tiny_models.MAKERS["llama"]().eval()
    texts = [torch.randint(3, 97, (1, 64), generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    monkeypatch.setattr(pretrained, "load", lambda name: (model, None))
    monkeypatch.setattr(pretrained, "development", lambda name: texts)
    config = ConversionConfig(chunk_size=8, local_chunks=2, sink_tokens=2, retrieval="states")
    fit = {"speeches": 2, "tokens": 48, "steps": 3}
    first = pretrained.calibrated("llama", config, **fit)
    plain = convert(model, config)
    with torch.inference_mode():
        assert not torch.equal(first(texts[0]).logits, plain(texts[0]).logits)
        monkeypatch.setattr(pretrained, "development", None)  # what was made is not made again
        assert torch.equal(pretrained.calibrated("llama", config, **fit)(texts[0]).logits, first(texts[0]).logits)
    assert pretrained.seconds_to_calibrate("llama", config, **fit) > 0
    assert len(list(tmp_path.iterdir())) == 1
