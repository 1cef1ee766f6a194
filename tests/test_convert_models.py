"""Conversion of every supported architecture, and what is kept of it: files, calibration, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from transformers.utils import logging as transformers_logging

import bsbr.convert
from bsbr.convert import ConversionConfig, attention, calibrate, convert, from_pretrained, least_sensitive
from bsbr.convert.__main__ import main
from bsbr.convert.converter import attention_modules, output_projection
from bsbr.convert.memory import cache_bytes

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

TOKENS = dict(vocab_size=97, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.5)
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256) | TOKENS
LLAMA_LIKE = SIZES | dict(intermediate_size=48, num_key_value_heads=2)
DROPOUTS = dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
MAKERS: dict[str, Any] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **TOKENS, **DROPOUTS)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=48, **SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA_LIKE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=8, **LLAMA_LIKE)),
    "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(no_rope_layer_interval=2, **LLAMA_LIKE)),
}
CONFIGS = {
    "top-k": ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=4, top_k=2, block_size=4),
    "both": ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=3, retrieval="both", top_k=1),
    "calibrated": ConversionConfig(
        chunk_size=8, local_chunks=1, sink_tokens=3, retrieval="states", compression_factor=2, layers=(1,)
    ),
}
ROUNDING = dict(rtol=1e-4, atol=1e-4)  # weights from a file lie elsewhere in memory, and are summed in another order
architectures = pytest.mark.parametrize("kind", MAKERS)
settings = pytest.mark.parametrize("name", CONFIGS)


def original(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    return MAKERS[kind]().eval().to(dtype)


def tokens(batch: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 97, (batch, n), generator=torch.Generator().manual_seed(seed))


def converted(kind: str, name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A converted model; where it is called calibrated, with numbers as a calibration might leave them."""
    model = convert(original(kind, dtype), CONFIGS[name])
    if name == "calibrated":
        calibrate(model, [tokens(1, 40)], steps=2)
    return model


# -- Every architecture ---------------------------------------------------------------------------


@architectures
@pytest.mark.parametrize("retrieval", ["none", "states", "top_k", "top_k_per_token", "both"])
def test_with_one_chunk_it_is_the_original(kind: str, retrieval: Any) -> None:
    model, ids = original(kind), tokens(2, 48)
    config = ConversionConfig(chunk_size=48, local_chunks=1, sink_tokens=4, retrieval=retrieval, block_size=4)
    torch.testing.assert_close(convert(model, config)(ids).logits, model(ids).logits, rtol=0, atol=0)


@architectures
@settings
def test_no_token_sees_the_future(kind: str, name: str) -> None:
    model, ids = converted(kind, name), tokens(1, 45)
    before = model(ids).logits
    for t in (1, 8, 16, 29, 44):
        changed = torch.cat([ids[:, :t], tokens(1, 45 - t, seed=t)], dim=1)
        assert torch.equal(model(changed).logits[:, :t], before[:, :t])


@architectures
@settings
def test_decoding_agrees_with_reading_again(kind: str, name: str) -> None:
    model, ids = converted(kind, name), tokens(2, 45)
    out = model(ids[:, :20], use_cache=True)
    logits = [out.logits]
    for t in range(20, 45):
        out = model(ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), model(ids).logits)


@architectures
@settings
def test_beams_and_padded_rows_agree_with_reading_again(kind: str, name: str) -> None:
    model, ids = converted(kind, name), tokens(2, 30)
    mask = torch.ones_like(ids)
    mask[1, :11] = 0
    how = dict(attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None, num_beams=2)
    cached, read_again = (model.generate(ids, use_cache=use, **how) for use in (True, False))
    assert torch.equal(cached, read_again)
    alone = model.generate(ids[1:, 11:], **how | {"attention_mask": mask[1:, 11:]})
    assert torch.equal(cached[1:, 11:], alone)


@architectures
def test_sampling_repeats_with_its_seed(kind: str) -> None:
    model, ids = converted(kind, "both"), tokens(1, 30)
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(model.generate(ids, max_new_tokens=12, do_sample=True, eos_token_id=None))
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


@architectures
def test_a_model_can_be_trained(kind: str) -> None:
    model = converted(kind, "both").train()
    model(tokens(1, 40), labels=tokens(1, 40)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# -- Settings -------------------------------------------------------------------------------------


def test_layers_that_are_left_out_keep_full_attention() -> None:
    model, ids = original("llama"), tokens(2, 60)
    whole, first, none = (
        convert(model, ConversionConfig(chunk_size=8, sink_tokens=0, retrieval="none", layers=layers))
        for layers in (None, (0,), ())
    )
    assert torch.equal(none(ids).logits, model(ids).logits)
    assert not torch.equal(first(ids).logits, whole(ids).logits)
    assert torch.equal(first.model(ids, output_hidden_states=True).hidden_states[1],
                       whole.model(ids, output_hidden_states=True).hidden_states[1])  # fmt: skip
    with pytest.raises(ValueError, match=r"layers: expected numbers from 0 to 1, got \[2\]"):
        convert(model, ConversionConfig(layers=(0, 2)))


def test_a_short_text_is_read_by_the_original_attention() -> None:
    model, ids = original("gpt2"), tokens(1, 60)
    sparse = convert(model, ConversionConfig(chunk_size=8, sink_tokens=0, retrieval="none", original_below=40))
    torch.testing.assert_close(sparse(ids).logits[:, :40], model(ids).logits[:, :40])
    assert not torch.allclose(sparse(ids).logits[:, 40:], model(ids).logits[:, 40:])


def test_all_directions_are_no_compression() -> None:
    ids, model = tokens(1, 60), original("llama")
    config = dict(chunk_size=8, sink_tokens=0, retrieval="states")
    plain, one, four = (
        convert(model, ConversionConfig(compression_factor=factor, **config))(ids).logits for factor in (None, 1, 4)
    )
    assert torch.equal(plain, one)
    assert not torch.allclose(plain, four)


@pytest.mark.parametrize("wrong, said", [
    (dict(compression_factor=2), "compression_factor: expected None with retrieval='top_k'"),
    (dict(compression_factor=0, retrieval="states"), "compression_factor: expected at least 1, got 0"),
    (dict(original_below=-1), "original_below: expected at least 0, got -1"),
    (dict(sink_tokens=33), "sink_tokens: expected a multiple of block_size=32, got 33"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ConversionConfig(**wrong)


# -- Calibration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [None, 2])
@pytest.mark.parametrize("retrieval", ["states", "both"])
def test_what_was_fitted_is_read_as_the_definition_says(retrieval: Any, factor: int | None) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, heads, 37, 8, dtype=torch.float64) for heads in (4, 2, 2))
    config = ConversionConfig(
        chunk_size=8, local_chunks=1, sink_tokens=3, retrieval=retrieval, top_k=1, compression_factor=factor
    )
    fit = attention.Fit(4, 8).double()
    for parameter in fit.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    fast = attention.attend(q, k, v, config, 0.4, fit=fit)
    torch.testing.assert_close(fast, attention.reference(q, k, v, config, 0.4, fit))


def test_calibrating_brings_attention_nearer_to_the_original() -> None:
    model = convert(
        original("llama", torch.float32), ConversionConfig(chunk_size=16, sink_tokens=4, retrieval="states")
    )
    said: list[str] = []
    found = calibrate(model, [tokens(1, 128), tokens(1, 140, seed=1)], [tokens(1, 128, seed=2)], report=said.append)
    assert len(said) == len(found.error) == 2
    assert all(pair is not None and pair[1] < pair[0] for pair in found.error)
    assert found.original_perplexity and found.perplexity_before and found.perplexity_after
    assert found.gap_closed is not None


@architectures
def test_the_error_that_is_fitted_is_that_of_the_projected_heads(kind: str) -> None:
    for module in attention_modules(original(kind)):
        matrix = output_projection(module)
        project = next(getattr(module, name) for name in ("o_proj", "c_proj", "dense") if hasattr(module, name))
        heads = torch.randn(3, matrix.shape[0], dtype=matrix.dtype)
        torch.testing.assert_close(heads @ matrix, project(heads) - project(torch.zeros_like(heads)))


def test_calibration_that_cannot_be_is_refused() -> None:
    model = original("llama")
    with pytest.raises(ValueError, match="expected a converted model"):
        calibrate(model, [tokens(1, 50)])
    with pytest.raises(ValueError, match="expected retrieval 'states' or 'both', got 'top_k'"):
        calibrate(convert(model), [tokens(1, 50)])
    with pytest.raises(ValueError, match="documents: expected 384 tokens each or more, got 50 in the shortest"):
        calibrate(convert(model, ConversionConfig(retrieval="states")), [tokens(1, 50)])


def test_the_least_sensitive_layers_are_chosen() -> None:
    model, config = original("gpt2"), CONFIGS["top-k"]
    chosen = least_sensitive(model, [tokens(1, 60)], 1, config)
    other = (1 - chosen[0],)
    exact = model(tokens(1, 60)).logits.log_softmax(-1)
    divergence = {
        layers: torch.nn.functional.kl_div(
            convert(model, ConversionConfig(**vars(config) | {"layers": layers}))(tokens(1, 60)).logits.log_softmax(-1),
            exact,
            log_target=True,
            reduction="sum",
        )
        for layers in (chosen, other)
    }
    assert divergence[chosen] < divergence[other]
    with pytest.raises(ValueError, match="budget: expected 1 to 2 layers, got 3"):
        least_sensitive(model, [tokens(1, 60)], 3, config)


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


def test_transformers_reads_a_saved_model_as_the_original(tmp_path: Path) -> None:
    converted("gpt2", "calibrated", torch.float32).save_pretrained(tmp_path)
    plain, ids = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), tokens(1, 50)
    torch.testing.assert_close(plain(ids).logits, original("gpt2", torch.float32)(ids).logits, **ROUNDING)


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
    with pytest.raises(OSError, match=r"could not be loaded: .*model\.safetensors"):
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


# -- Memory ---------------------------------------------------------------------------------------


@architectures
@settings
def test_the_cache_takes_the_memory_that_is_stated(kind: str, name: str) -> None:
    model = converted(kind, name)
    cache = model(tokens(1, 49), use_cache=True).past_key_values
    cache = model(tokens(1, 1), past_key_values=cache, use_cache=True).past_key_values
    held = 0
    for layer in cache.layers:
        kept = [
            layer.keys,
            layer.values,
            *(getattr(layer, "meta", None) or ()),
            *(getattr(layer, "states", None) or ()),
        ]
        held += sum(
            x.numel() * (4 if x is not layer.keys and x is not layer.values else x.itemsize)
            for x in kept
            if x is not None
        )
    assert held == cache_bytes(model, 50, CONFIGS[name])


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
    code = main([str(folder / "model"), "--out", str(out), *SMALL, "--layer-budget", "1", "--texts", *texts])
    said = capsys.readouterr()
    assert code == 0, said.err
    for part in ("Converted: 1 of 2 layers.", "bytes a token", "On held-out text: perplexity", "chunk_size=8"):
        assert part in said.out
    again = from_pretrained(out)
    assert len(again.config.bsbr["layers"]) == 1
    assert any(module.bsbr_fit is not None for module in again.modules() if hasattr(module, "bsbr_fit"))
    assert bsbr.convert.load_tokenizer(out)("w5 w6")["input_ids"] == [5, 6]


@pytest.mark.parametrize("extra, said", [
    (["--chunk-size", "0"], "chunk_size: expected at least 1, got 0"),
    (["--layer-budget", "1"], "--layer-budget: expected --texts beside it"),
    (["--layer-budget", "1", "--layers", "0"], "--layer-budget: expected without --layers"),
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
    command = [sys.executable, "-m", "bsbr.convert", str(folder / "model"), "--out", str(folder / "out"), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Loading ") and done.stderr == ""
