"""What is kept of a converted model, and what is made of other files; the command line."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import forking
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, ROUNDING, TOKENS, architectures, converted, original, settings, tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

import bsbr.conversion
from bsbr.conversion import convert, from_pretrained
from bsbr.conversion.__main__ import main

# -- Files ----------------------------------------------------------------------------------------


@architectures
@settings
def test_a_saved_model_comes_back(kind: str, name: str, tmp_path: Path) -> None:
    model, ids = converted(kind, name, torch.float32), tokens(1, 50)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert type(again) is type(model) and not again.training
    assert {n: p.tolist() for n, p in again.named_parameters()} == {n: p.tolist() for n, p in model.named_parameters()}
    torch.testing.assert_close(again(ids).logits, model(ids).logits, **ROUNDING)


def test_a_saved_model_comes_back_from_many_files(tmp_path: Path) -> None:
    model, ids = converted("llama", "calibrated", torch.float32), tokens(1, 50)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    torch.testing.assert_close(from_pretrained(str(tmp_path))(ids).logits, model(ids).logits, **ROUNDING)


@architectures
def test_transformers_alone_does_not_read_a_saved_model_unawares(kind: str, tmp_path: Path) -> None:
    converted(kind, "calibrated", torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"this model was converted, load it with bsbr\.conversion\.from_pretrained"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    plain, ids = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval(), tokens(1, 50)
    torch.testing.assert_close(plain(ids).logits, original(kind, torch.float32)(ids).logits, **ROUNDING)


def test_a_folder_is_converted_as_a_model_is(tmp_path: Path) -> None:
    model, ids = original("gpt_neox", torch.float32), tokens(1, 50)
    model.save_pretrained(tmp_path)
    expected = convert(model, CONFIGS["top-k"])(ids).logits
    for name in (tmp_path, str(tmp_path)):
        torch.testing.assert_close(bsbr.convert(name, CONFIGS["top-k"])(ids).logits, expected, **ROUNDING)


def test_what_cannot_be_loaded_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (tmp_path / "nowhere", "./nowhere", "a/b/c", "nowhere.gguf"):
        with pytest.raises(FileNotFoundError, match=r"model: .*(nowhere|a/b/c)"):
            convert(name)
    with pytest.raises(OSError, match=r"model: 'gpt2-of-nowhere' could not be loaded: .* network"):
        convert("gpt2-of-nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        convert(tmp_path)
    original("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected a converted model, .* use convert"):
        from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"has no model\.safetensors; its weights have to be safetensors"):
        convert(tmp_path)


@pytest.mark.parametrize("kind", ["bert", "martian"])
def test_other_architectures_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ValueError, match=f"architecture among gpt2, gpt_neox, llama, .*, got '{kind}'"):
        convert(tmp_path)


def test_encoders_are_refused() -> None:
    bert = BertLMHeadModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9))
    with pytest.raises(ValueError, match="got 'bert'"):
        convert(bert)
    crossed = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, add_cross_attention=True, **TOKENS))
    with pytest.raises(ValueError, match="with cross-attention to an encoder"):
        convert(crossed)


# -- Files of other kinds, and damaged ones -------------------------------------------------------


def saved(folder: Path, name: str = "calibrated", kind: str = "llama", **how: Any) -> Any:
    """A converted model, and a folder in which it was saved."""
    model = converted(kind, name, torch.float32)
    model.save_pretrained(folder, **how)
    return model


def change_config(folder: Path, **changes: Any) -> None:
    kept = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(kept | changes), encoding="utf-8")


@pytest.mark.parametrize("how", [{}, {"variant": "fp16"}, {"max_shard_size": "15KB"},
                                 {"variant": "fp16", "max_shard_size": "15KB"}])  # fmt: skip
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "qwen3"])
def test_a_variant_comes_back_from_a_subfolder(kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    model, ids = saved(tmp_path / "one", kind=kind, **how), tokens(1, 50)
    variant = {"variant": how["variant"]} if "variant" in how else {}
    for again in (from_pretrained(tmp_path / "one", **variant), from_pretrained(tmp_path, subfolder="one", **variant)):
        torch.testing.assert_close(again(ids).logits, model(ids).logits, **ROUNDING)
    if variant:
        with pytest.raises(OSError, match=r"has no model\.safetensors"):
            from_pretrained(tmp_path / "one")


@pytest.mark.parametrize("name", ["top-k", "calibrated"])
def test_every_weight_keeps_the_precision_it_was_saved_in(name: str, tmp_path: Path) -> None:
    model = converted("llama", name, torch.float32).bfloat16()
    model.lm_head.float()
    model.model.layers[1].mlp.float()
    for how in ({}, {"max_shard_size": "15KB"}):
        model.save_pretrained(tmp_path, **how)
        for precision in ({}, {"dtype": "auto"}):
            again = dict(from_pretrained(tmp_path, **precision).named_parameters())
            assert {n: p.dtype for n, p in again.items()} == {n: p.dtype for n, p in model.named_parameters()}
            assert all(torch.equal(again[name], parameter) for name, parameter in model.named_parameters())
        asked = from_pretrained(tmp_path, dtype=torch.float32)
        assert {p.dtype for p in asked.parameters()} == {torch.float32}


@pytest.mark.parametrize("lost, said", [
    ("log_gate", "lacks model.layers.1.self_attn.bsbr_fit.log_gate"),
    ("centre", "lacks model.layers.1.self_attn.bsbr_fit.centre"),
    ("shape", "has in another shape model.layers.1.self_attn.bsbr_fit.centre"),
    ("more", "has beside it model.layers.0.self_attn.bsbr_fit.centre"),
])  # fmt: skip
def test_a_calibration_is_whole_or_refused(lost: str, said: str, tmp_path: Path) -> None:
    saved(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    centre = "model.layers.1.self_attn.bsbr_fit.centre"
    if lost == "shape":
        kept[centre] = kept[centre][:2].clone()
    elif lost == "more":
        kept[centre.replace("1", "0")] = kept[centre].clone()
    else:
        del kept[centre.replace("centre", lost)]
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"folder: expected a calibration of every converted layer, .* {said}"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("kept, said", [
    ({"chunk_size": 8, "magic": 1}, "config.bsbr: expected chunk_size, .*, got 'magic' among them"),
    ({"chunk_size": "8"}, "config.bsbr: chunk_size: expected a whole number, got '8'"),
    ([8], r"config.bsbr: expected a table of chunk_size, .*, got \[8\]"),
    ({"layers": [5]}, r"layers: expected numbers from 0 to 1, got \[5\]"),
])  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(kept: Any, said: str, tmp_path: Path) -> None:
    saved(tmp_path, "top-k")
    change_config(tmp_path, bsbr=kept)
    with pytest.raises(ValueError, match=said):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("asked", ["kernels-community/flash-attn", "flash_attention_2", "eager", "martian"])
def test_no_file_decides_by_which_code_attention_is_computed(name: str, asked: str, tmp_path: Path) -> None:
    model, ids = saved(tmp_path, "top-k"), tokens(1, 50)
    change_config(tmp_path, **{name: asked, "output_attentions": True})
    again = from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, model(ids).logits, **ROUNDING)
    plain = bsbr.conversion.load(tmp_path)
    assert plain.config._attn_implementation == "sdpa" and not plain.config.output_attentions
    assert bsbr.conversion.load(tmp_path, attn_implementation="eager").config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", 7, "..", "model.bin"]
)
def test_shards_lie_beside_their_index(shard: Any, tmp_path: Path) -> None:
    saved(tmp_path / "one", max_shard_size="15KB")
    index = tmp_path / "one" / "model.safetensors.index.json"
    kept = json.loads(index.read_text(encoding="utf-8"))
    first = sorted(set(kept["weight_map"].values()))[0]
    (tmp_path / "one" / first).rename(tmp_path / "model.safetensors")
    kept["weight_map"] = {name: shard if file == first else file for name, file in kept["weight_map"].items()}
    index.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(OSError, match=r"has an index that names .*, which is no safetensors file beside it"):
        from_pretrained(tmp_path / "one")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', "version https://git-lfs.github.com/spec/v1"])
def test_an_index_that_is_none_is_told(content: str, tmp_path: Path) -> None:
    saved(tmp_path, max_shard_size="15KB")
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(OSError, match="is not an index of shards"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>", b"version https://git-lfs.github.com/spec/v1", bytes(100)])
def test_weights_that_are_none_are_told(content: bytes, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(OSError, match="could not be loaded"):
        from_pretrained(tmp_path)


def test_neither_foreign_code_nor_pickle_is_loaded_when_asked_for(tmp_path: Path) -> None:
    saved(tmp_path)
    for wrong in ({"trust_remote_code": True}, {"use_safetensors": False}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected .* leave it out"):
            bsbr.conversion.load(tmp_path, **wrong)
    assert bsbr.conversion.load(tmp_path, trust_remote_code=False, use_safetensors=True)


# -- The command line -----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A GPT-2 with a tokenizer, as someone might have it on disk."""
    words = {"<unk>": 0, **{f"w{i}": i for i in range(1, 97)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path / "model")
    original("gpt2", torch.float32).save_pretrained(tmp_path / "model")
    for i in (1, 2):
        words = tokens(1, 90, seed=i)[0].tolist()
        (tmp_path / f"{i}.txt").write_text(" ".join(f"w{word}" for word in words))
    return tmp_path


SMALL = ["--chunk-size", "8", "--sink-tokens", "4", "--retrieval", "states"]


def test_the_command_converts_calibrates_and_saves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [str(folder / f"{i}.txt") for i in (1, 2)]
    out = folder / "out"
    code = main([str(folder / "model"), "--out", str(out), *SMALL, "--layers", "1", "--texts", *texts])
    said = capsys.readouterr()
    assert code == 0, said.err
    for part in ("Converted: 1 of 2 layers.", "bytes a token", "On held-out text: perplexity", "chunk_size=8"):
        assert part in said.out
    again = from_pretrained(out)
    assert list(again.config.bsbr["layers"]) == [1]
    assert any(module.bsbr_fit is not None for module in again.modules() if hasattr(module, "bsbr_fit"))
    assert bsbr.conversion.load_tokenizer(out)("w5 w6")["input_ids"] == [5, 6]


@pytest.mark.parametrize("extra, said", [
    (["--chunk-size", "0"], "chunk_size: expected at least 1, got 0"),
    (["--layers", "7"], "layers: expected numbers from 0 to 1, got [7]"),
    (["--texts", "nowhere.txt"], "nowhere.txt"),
])  # fmt: skip
def test_the_command_says_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], extra: list[str], said: str
) -> None:
    assert main([str(folder / "model"), "--out", str(folder / "out"), *extra]) == 1
    assert said in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_the_command_overwrites_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder / "model"), "--out", str(folder)]) == 1
    assert "--out: expected a new or empty folder" in capsys.readouterr().err
    assert main([str(folder / "nowhere"), "--out", str(folder / "out")]) == 1
    assert "convert: model: expected a folder" in capsys.readouterr().err


def test_the_module_runs_as_a_command(folder: Path) -> None:
    command = [sys.executable, "-m", "bsbr.conversion", str(folder / "model"), "--out", str(folder / "out"), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Loading ") and done.stderr == ""


def test_a_stopped_run_blocks_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [str(folder / "model"), "--out", str(folder / "out"), *SMALL]
    before = sorted(folder.iterdir())

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # after the weights are written
        patched.setattr(PreTrainedTokenizerFast, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            main(command)
        assert sorted(folder.iterdir()) == before
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # a kill cleans up nothing
        with pytest.raises(KeyboardInterrupt):
            main(command)
    assert not (folder / "out").exists() and sorted(folder.iterdir()) != before
    assert main(command) == 0
    assert sorted(folder.iterdir()) == sorted([*before, folder / "out"])
    assert from_pretrained(folder / "out").config.bsbr["chunk_size"] == 8


KILLED = """
import os, sys
from bsbr.conversion.__main__ import main
print("ready", flush=True)
for _ in sys.stdin:
    if not (pid := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(sys.argv[1:]))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_ten_kills_at_random_leave_what_was_saved_whole_or_absent(folder: Path) -> None:
    """The moments are drawn anew each time. Runs are forked from a process that has loaded PyTorch, to save time."""
    out, before = folder / "out", sorted(folder.iterdir())
    chance, ended = random.Random(time.time_ns()), []
    with forking(KILLED, str(folder / "model"), "--out", str(out), *SMALL) as fork:

        def run(seconds: float | None) -> dict[str, bytes]:
            """What lies there when the run has ended, by itself or by a kill."""
            shutil.rmtree(out, ignore_errors=True)
            ended.append(fork("", seconds))
            return {path.name: path.read_bytes() for path in out.iterdir()} if out.exists() else {}

        begin = time.perf_counter()
        whole = run(None)
        length = time.perf_counter() - begin
        while ended.count(-signal.SIGKILL) < 10:
            assert run(chance.uniform(0, length)) in ({}, whole)
            if ended[-1] == 0:  # it was through before its kill
                length *= 0.7
        assert run(None) == whole and {"config.json", "model.safetensors", "tokenizer.json"} <= whole.keys()
    assert set(ended) == {0, -signal.SIGKILL}
    assert sorted(folder.iterdir()) == sorted([*before, out])


def test_of_two_runs_into_one_folder_the_second_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, out = [str(folder / "model"), "--out", str(folder / "out"), *SMALL], folder / "out"
    save = PreTrainedTokenizerFast.save_pretrained

    def another_run_is_faster(self: Any, place: Path) -> None:
        out.mkdir()
        (out / "config.json").write_text("the other's")
        save(self, place)

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", another_run_is_faster)
    assert main(command) == 1
    assert "--out: another run has filled" in capsys.readouterr().err
    assert [path.read_text() for path in out.iterdir()] == ["the other's"]
    assert not [path for path in folder.iterdir() if "partial" in path.name]


def test_what_a_living_run_is_saving_is_left_alone(folder: Path) -> None:
    living, gone = (folder / f".out.{pid}.partial" for pid in (os.getppid(), 999_999_999))
    for partial in (living, gone):
        partial.mkdir()
    assert main([str(folder / "model"), "--out", str(folder / "out"), *SMALL]) == 0
    assert living.is_dir() and not gone.exists()


def test_an_empty_folder_is_filled_and_a_new_one_made_with_those_above_it(folder: Path) -> None:
    (folder / "empty").mkdir()
    for out in (folder / "empty", folder / "new" / "below"):
        assert main([str(folder / "model"), "--out", str(out), *SMALL]) == 0
        assert (out / "config.json").is_file() and [
            path.name for path in out.parent.iterdir() if "partial" in path.name
        ] == []


@pytest.mark.parametrize("content, said", [
    (b"\xff\xfe\x00", "--texts: expected text in UTF-8, got other bytes in"),
    (b"", "documents: expected tensors of token ids"),
    (b"w5 w6 w7", "documents: expected 24 tokens each or more, got 3 in the shortest"),
])  # fmt: skip
def test_a_text_that_cannot_be_read_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    (folder / "bad.txt").write_bytes(content)
    asked = [str(folder / "model"), "--out", str(folder / "out"), *SMALL, "--texts", str(folder / "bad.txt")]
    assert main(asked) == 1
    assert said in capsys.readouterr().err
