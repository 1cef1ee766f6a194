"""The small GPT-2: it learns, it survives being stopped, and it is read back as it was trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bsbr import sources
from bsbr.store.artefact import RECORD
from bsbr.training import checkpoints, small_gpt2

WORDS = ["the", "state", "of", "union", "is", "strong", "and", "people", "these", "states", "are", "many"]


def speech(seed: int) -> sources.Speech:
    chosen = torch.randint(len(WORDS), (1500,), generator=torch.Generator().manual_seed(seed))
    return sources.Speech(str(seed), 1790 + seed, "", "", " ".join(WORDS[i] for i in chosen))


@pytest.fixture(autouse=True)
def made_up_speeches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSBR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "load_speeches", lambda split=None: [speech(i) for i in ((9,) if split else range(4))])


def train() -> Path:
    return small_gpt2.train("tiny", quiet=True)


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("record.json", RECORD)}


def test_the_loss_falls() -> None:
    folder = train()
    record = small_gpt2.record("tiny")
    assert record["loss"] < math.log(512) - 0.5 and record["steps"] == 20 and record["tokens"] == 20 * 2 * 512
    assert list(sources.cache_folder().iterdir()) == [folder]


def test_what_is_trained_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train()
    monkeypatch.setattr(small_gpt2, "training_texts", stop)
    assert train() == folder


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files(train())
    monkeypatch.setenv("BSBR_CACHE", str(tmp_path / "other"))
    written = checkpoints.write

    def write_and_stop(*arguments: Any) -> None:
        written(*arguments)
        stop()

    monkeypatch.setattr(checkpoints, "write", write_and_stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train()
    monkeypatch.setattr(checkpoints, "write", written)
    assert files(train()) == whole


@pytest.mark.parametrize("damage", ["cut short", "missing", "altered"])
def test_a_damaged_one_is_trained_again(damage: str) -> None:
    whole = files(folder := train())
    weights = folder / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        content = weights.read_bytes()
        weights.write_bytes(content[:-50] if damage == "cut short" else content[:-1] + b"x")
    with pytest.raises(sources.SourceError, match="not trained yet, or damaged"):
        small_gpt2.record("tiny")
    assert files(train()) == whole


def test_the_folder_is_any_hugging_face_folder() -> None:
    folder = train()
    model, tokenizer = small_gpt2.load(folder)
    auto: list[Any] = [kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)]
    text = "The state of the union: café, 1790.\n"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == text and torch.equal(auto[1](text, return_tensors="pt")["input_ids"], ids)
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, auto[0].eval()(ids).logits)
    assert model.config.n_positions == 512 and model.dtype == torch.float32 and not model.training
    assert small_gpt2.evaluate(model, tokenizer) == pytest.approx(small_gpt2.record("tiny")["loss"], abs=1e-5)


def test_texts_of_the_split_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    split = sources.read_pin("speeches").split or {}
    keys = [*split["held_out"][:1], *split["development"][:1], *split["samples"][:1], "a", "b", "c"]
    speeches = [sources.Speech(key, 1790, "", "", f"text of {key}") for key in keys]
    monkeypatch.setattr(sources, "load_speeches", lambda split=None: speeches)
    assert small_gpt2.training_texts(9) == ["text of a", "text of b", "text of c"]
    assert small_gpt2.training_texts(2) == ["text of a", "text of b"]


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"profile: expected one of \['full', 'tiny'\], got 'quick'"):
        small_gpt2.train("quick")
    with pytest.raises(sources.SourceError, match="is not trained yet"):
        small_gpt2.record("full")
