"""The page on other tools: its code runs as it stands, in the order in which it stands, at a tiny size."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import MAKERS

from bsbr import TransformerLM

PAGE = (Path(__file__).resolve().parent.parent / "book" / "tools.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TRAIN, EVALUATE, ADAPT, CONVERTED, FOLDERS = CODE
TASK = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


WITHOUT = "lm-evaluation-harness is not installed here; `nox -s harness` runs this in an environment that has it"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three texts, and a question about how one of them goes on."""
    monkeypatch.chdir(tmp_path)
    for name in ("my-texts", "my-tasks"):
        (tmp_path / name).mkdir()
    for name in ("one", "two", "three"):
        (tmp_path / "my-texts" / f"{name}.txt").write_text(f"The beginning of {name} is like any other.\n" * 40)
    question = {"question": "The beginning of one is like any", "choices": ["qqqq", "other"], "answer": 1}
    (tmp_path / "my-tasks" / "last_word.jsonl").write_text((json.dumps(question) + "\n") * 3)
    (tmp_path / "my-tasks" / "last_word.yaml").write_text(TASK[0])
    torch.manual_seed(0)
    return tmp_path


def test_the_page_trains_adapts_and_loads(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(TRAIN, names)
    assert TransformerLM.from_pretrained("my-model").config.mechanism == names["config"].backbone["mechanism"]
    capsys.readouterr()
    exec(ADAPT, names)
    assert "adapter_model.safetensors" in {path.name for path in (here / "my-adapter").iterdir()}
    assert capsys.readouterr().out.splitlines()[-1].startswith("['The beginning of"), "what it was trained on"
    exec(FOLDERS, names)


def test_the_page_evaluates_a_trained_and_a_converted_model(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason=WITHOUT)
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    names: dict[str, Any] = {}
    exec(TRAIN, names)
    capsys.readouterr()
    exec(EVALUATE, names)
    assert float(capsys.readouterr().out.splitlines()[-1]) == 1, "it was trained on texts that end with this word"
    llama = MAKERS["llama"]()
    llama.resize_token_embeddings(len(names["tokenizer"]))
    names |= {"my_llama": llama, "my_tokenizer": names["tokenizer"]}
    exec(CONVERTED, names)
    assert float(capsys.readouterr().out.splitlines()[-1]) in (0, 1), "the same question three times"
