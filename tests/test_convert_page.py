"""The page on conversion: its code runs as it stands, for someone with a folder and nothing else."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bsbr.conversion import ConversionConfig
from bsbr.conversion.loading import SUPPORTED

PAGE = (Path(__file__).resolve().parent.parent / "book" / "conversion.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
WORDS = ["<unk>", "In", "the", "beginning", *(f"word{i}" for i in range(60))]
TOKENS = dict(vocab_size=len(WORDS), bos_token_id=None, eos_token_id=None, pad_token_id=0)
MAKERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=512, **TOKENS)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            **TOKENS,
        )
    ),
}


def make(kind: str, folder: Path) -> None:
    """Save a model of that kind with its tokenizer."""
    torch.manual_seed(0)
    MAKERS[kind]().save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)


@pytest.fixture(params=MAKERS)
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which `my-model` is a model with its tokenizer."""
    make(request.param, tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_of_the_page_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(CODE[0], names)
    assert capsys.readouterr().out.startswith("In the beginning ")
    again, prompt = names["model"], names["prompt"]
    assert again.config.bsbr["chunk_size"] == 128  # type: ignore[attr-defined]
    assert again(prompt).logits.shape == (1, 3, len(WORDS))  # type: ignore[operator]
    assert len(CODE[0].strip().splitlines()) <= 11  # "ten lines", and a blank one

    small = ConversionConfig(chunk_size=8, sink_tokens=0, retrieval="states")
    names["model"] = names["convert"]("my-model", small)  # type: ignore[operator]
    names["documents"], names["held_out"] = [torch.randint(60, (1, 40))], [torch.randint(60, (1, 40))]
    exec(CODE[1], names)
    assert len(capsys.readouterr().out.split()) == 3


def test_the_page_names_what_there_is() -> None:
    assert all(f"`{kind}`" in PAGE for kind in SUPPORTED)
    table = PAGE.partition("## The setting")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [field.name for field in fields(ConversionConfig)]
    for field in fields(ConversionConfig):
        said = re.search(rf"^\| `{field.name}` \| `?(.*?)`? \|", table, re.MULTILINE)
        assert said and said[1].strip('"') == str(field.default)
