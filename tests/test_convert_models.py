"""Conversion of every supported architecture: what it promises, its settings, its calibration, its memory."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, architectures, converted, original, settings, tokens

from bsbr.conversion import ConversionConfig, attention, calibrate, convert, from_pretrained
from bsbr.conversion.converter import attention_modules, output_projection
from bsbr.conversion.memory import cache_bytes
from bsbr.conversion.reference import reference
from bsbr.conversion.states import Fit

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
    whole, first = (
        convert(model, ConversionConfig(chunk_size=8, sink_tokens=0, retrieval="none", layers=layers))
        for layers in (None, (0,))
    )
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
    (dict(local_chunks=2**31 + 1), "local_chunks: expected at most 2147483648, got 2147483649"),
    (dict(sink_tokens=33), "sink_tokens: expected a multiple of block_size=32, got 33"),
    (dict(chunk_size="128"), "chunk_size: expected a whole number, got '128'"),
    (dict(chunk_size=128.0), "chunk_size: expected a whole number, got 128.0"),
    (dict(top_k=True), "top_k: expected a whole number, got True"),
    (dict(top_k=None), "top_k: expected a whole number, got None"),
    (dict(original_below=float("nan")), "original_below: expected a whole number, got nan"),
    (dict(compression_factor="2", retrieval="states"), "compression_factor: expected a whole number, got '2'"),
    (dict(retrieval=["top_k"]), "retrieval: expected one of"),
    (dict(layers=()), "layers: expected one layer or more, got none"),
    (dict(layers="01"), "layers: expected numbers of layers, such as (0, 1), got '01'"),
    (dict(layers=3), "layers: expected numbers of layers, such as (0, 1), got 3"),
    (dict(layers=(0, "1")), "layers: expected a whole number, got '1'"),
    (dict(layers=(0, -1)), "layers: expected at least 0, got -1"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        ConversionConfig(**wrong)


def test_whole_numbers_of_other_kinds_are_kept_as_ints() -> None:
    config = ConversionConfig(chunk_size=np.int64(64), layers=np.arange(2))  # type: ignore[arg-type]
    assert config == ConversionConfig(chunk_size=64, layers=(0, 1))
    assert json.loads(json.dumps(asdict(config)))["layers"] == [0, 1]


@pytest.mark.parametrize("wrong", [{"chunk_size": 8}, "top_k", 128])
def test_only_a_config_is_taken_for_a_config(wrong: Any) -> None:
    with pytest.raises(ValueError, match="config: expected a ConversionConfig, got"):
        convert(original("llama"), wrong)


# -- What a converted model is given --------------------------------------------------------------


CHANGES: dict[str, Any] = {
    "the original": None,
    "another size": replace(CONFIGS["top-k"], top_k=3),
    "another retrieval": replace(CONFIGS["top-k"], retrieval="top_k_per_token"),
    "no retrieval": replace(CONFIGS["top-k"], retrieval="none"),
    "other layers": replace(CONFIGS["top-k"], layers=(1,)),
}


@architectures
@pytest.mark.parametrize("filled", CHANGES)
@pytest.mark.parametrize("used", [name for name in CHANGES if name != "the original"])
def test_a_cache_that_was_filled_otherwise_is_refused(kind: str, filled: str, used: str) -> None:
    model, ids = original(kind), tokens(1, 40)
    by, then = (model if CHANGES[name] is None else convert(model, CHANGES[name]) for name in (filled, used))
    cache = by(ids[:, :30], use_cache=True).past_key_values
    if filled == used:
        torch.testing.assert_close(then(ids[:, 30:], past_key_values=cache).logits, then(ids).logits[:, 30:])
        return
    with pytest.raises(ValueError, match=r"past_key_values: expected an? "):
        then(ids[:, 30:], past_key_values=cache)


@torch.no_grad()
@architectures
@settings
def test_a_cache_of_other_rows_is_refused(kind: str, name: str) -> None:
    model = converted(kind, name)
    for rows, others in ((3, 2), (2, 3), (1, 2)):
        cache = model(tokens(rows, 20), use_cache=True).past_key_values
        more = {"past_key_values": cache, "use_cache": True}
        said = f"past_key_values: expected a cache of {others} rows, as many as input_ids has, got one of {rows}"
        with pytest.raises(ValueError, match=said):
            model(tokens(others, 1), **more)
        with pytest.raises(ValueError, match=said):
            model.generate(tokens(others, 24), max_new_tokens=2, **more)


@torch.no_grad()
def test_a_cache_from_before_a_calibration_is_refused_and_a_copy_is_not() -> None:
    model, ids = convert(original("llama"), CONFIGS["both"]), tokens(1, 60)
    cache = model(ids[:, :40], use_cache=True).past_key_values
    calibrate(model, [tokens(1, 40)], steps=1)
    with pytest.raises(ValueError, match="past_key_values: expected a cache that this model has filled"):
        model(ids[:, 40:], past_key_values=cache)
    cache = copy.deepcopy(model(ids[:, :40], use_cache=True).past_key_values)
    torch.testing.assert_close(model(ids[:, 40:], past_key_values=cache).logits, model(ids).logits[:, 40:])
    cache.reset()
    torch.testing.assert_close(model(ids, past_key_values=cache).logits, model(ids).logits)


@architectures
@settings
def test_a_mask_that_does_not_cover_the_text_is_refused(kind: str, name: str) -> None:
    model, ids = converted(kind, name), tokens(2, 30)
    for shape in ((2, 29), (2, 1), (1, 30)):
        with pytest.raises(ValueError, match=r"attention_mask: expected \(2, 30\), .* got shape"):
            model(ids, attention_mask=torch.ones(shape, dtype=torch.int64))
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask: expected \(2, 31\), .* those in the cache included"):
        model(ids[:, :1], attention_mask=torch.ones(2, 1, dtype=torch.int64), past_key_values=cache)


@pytest.mark.parametrize("tied", [True, False])
@architectures
def test_a_vocabulary_that_grows_is_its_own(kind: str, tied: bool) -> None:
    model, ids = original(kind), tokens(1, 50)
    model.config.tie_word_embeddings = tied
    model = type(model)(model.config).eval().double()
    with torch.no_grad():
        before = model(ids).logits
        changed = convert(model, CONFIGS["top-k"])
        right = changed(ids).logits
        for grown in (copy.deepcopy(changed), changed):
            grown.resize_token_embeddings(103)
            found = grown(ids).logits
            assert found.shape[-1] == 103 == grown.config.vocab_size
            torch.testing.assert_close(found[..., :97], right)
            table, head = grown.get_input_embeddings().weight, grown.get_output_embeddings().weight
            assert (table is head) == tied
        assert torch.equal(model(ids).logits, before)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == 97
    model(ids, labels=ids).loss.backward()
    layer, theirs = (next(iter(attention_modules(m)[0].parameters())) for m in (changed, model))
    assert layer is theirs  # the rest is still shared


@architectures
def test_a_model_that_was_to_give_its_attentions_converts(kind: str, tmp_path: Any) -> None:
    model, ids = original(kind), tokens(1, 40)
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    changed = convert(model, CONFIGS["top-k"])
    assert model.config.output_attentions and not changed.config.output_attentions
    changed.save_pretrained(tmp_path)
    torch.testing.assert_close(from_pretrained(tmp_path)(ids).logits, changed(ids).logits)


# -- Calibration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [None, 2])
@pytest.mark.parametrize("retrieval", ["states", "both"])
def test_what_was_fitted_is_read_as_the_definition_says(retrieval: Any, factor: int | None) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, heads, 37, 8, dtype=torch.float64) for heads in (4, 2, 2))
    config = ConversionConfig(
        chunk_size=8, local_chunks=1, sink_tokens=3, retrieval=retrieval, top_k=1, compression_factor=factor
    )
    fit = Fit(4, 8).double()
    for parameter in fit.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    fast = attention.attend(q, k, v, config, 0.4, fit=fit)
    torch.testing.assert_close(fast, reference(q, k, v, config, 0.4, fit))


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
    states = convert(model, ConversionConfig(retrieval="states"))
    for documents, said in (
        ([tokens(1, 50)], "expected 384 tokens each or more, got 50 in the shortest"),
        ([], "expected one text or more to fit to, got none"),
        ([tokens(2, 400)], "expected tensors of token ids, .* got shape \\(2, 400\\)"),
        ([[1, 2, 3]], "expected tensors of token ids, .* got list"),
        ([torch.zeros(1, 400)], "expected tensors of token ids, .* of torch.float32"),
    ):
        with pytest.raises(ValueError, match=f"documents: {said}"):
            calibrate(states, documents)


@pytest.mark.parametrize("retrieval", ["states", "both"])
def test_no_fit_is_kept_that_is_worse_than_none(retrieval: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bsbr.conversion.calibration.LEARNING_RATE", 1e3)  # which Adam leaves far from where it began
    config = ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=4, retrieval=retrieval, top_k=1)
    for steps in (3, 40):
        model = convert(original("llama", torch.float32), config)
        found = calibrate(model, [tokens(1, 120)], steps=steps)
        assert all(pair is not None and pair[1] <= pair[0] for pair in found.error)
        assert all(p.isfinite().all() for m in attention_modules(model) for p in m.bsbr_fit.parameters())


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
            *(getattr(layer, "sums", None) or ()),
            *(getattr(layer, "states", None) or ()),
        ]
        held += sum(
            x.numel() * (4 if x is not layer.keys and x is not layer.values else x.itemsize)
            for x in kept
            if x is not None
        )
    assert held == cache_bytes(model, 50, CONFIGS[name])


def test_an_attention_that_no_one_set_is_told() -> None:
    model = original("llama")
    model.set_attn_implementation("bsbr")
    with pytest.raises(ValueError, match="attn_implementation: 'bsbr' is for converted models"):
        model(tokens(1, 9))
