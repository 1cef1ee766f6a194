"""What a converted model promises: the original up to the window, strict causality, one result however it is read."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.utils import logging as transformers_logging

from bsbr.conversion import ConversionConfig, attention, convert
from bsbr.conversion.blocks import block_sums
from bsbr.conversion.reference import reference

transformers_logging.set_verbosity_error()

SETTINGS = {
    "local": ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=0, retrieval="none"),
    "local and sinks": ConversionConfig(chunk_size=8, local_chunks=2, sink_tokens=3, retrieval="none"),
    "states": ConversionConfig(chunk_size=8, local_chunks=2, sink_tokens=3, retrieval="states"),
    "states, no sinks": ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=0, retrieval="states"),
    "top-k": ConversionConfig(chunk_size=8, local_chunks=2, sink_tokens=4, top_k=3, block_size=4),
    "top-k, no sinks": ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=0, top_k=2, block_size=8),
    "top-k, long sinks": ConversionConfig(chunk_size=4, local_chunks=1, sink_tokens=12, top_k=2, block_size=2),
    "top-k per token": ConversionConfig(
        chunk_size=8, local_chunks=2, sink_tokens=4, retrieval="top_k_per_token", top_k=2, block_size=4
    ),
    "both": ConversionConfig(chunk_size=8, local_chunks=2, sink_tokens=3, retrieval="both", top_k=2),
    "compressed states": ConversionConfig(
        chunk_size=8, local_chunks=1, sink_tokens=3, retrieval="states", compression_factor=2
    ),
    "top-k, original below": ConversionConfig(
        chunk_size=8, local_chunks=1, sink_tokens=0, top_k=2, block_size=4, original_below=21
    ),
    "both, some layers": ConversionConfig(
        chunk_size=4, local_chunks=1, sink_tokens=0, retrieval="both", top_k=2, layers=(1,), original_below=12
    ),
}
settings = pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS.keys())
SCALING = 8**-0.5


def tiny_llama(kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        initializer_range=0.5,  # large enough for the attention to prefer some tokens to others
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().to(dtype)


def tokens(batch: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 97, (batch, n), generator=torch.Generator().manual_seed(seed))


def qkv(batch: int, n: int, heads: int = 6, kv_heads: int = 2) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(n)
    shapes = [(batch, heads, n, 8), (batch, kv_heads, n, 8), (batch, kv_heads, n, 8)]
    return tuple(torch.randn(shape, dtype=torch.float64) * 1.5 for shape in shapes)


@settings
@pytest.mark.parametrize("n", [1, 2, 8, 9, 16, 17, 33, 52])
def test_the_fast_form_is_the_definition(config: ConversionConfig, n: int) -> None:
    q, k, v = qkv(2, n)
    fast, slow = (form(q, k, v, config, SCALING) for form in (attention.attend, reference))
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


@settings
def test_gradients_are_those_of_the_definition(config: ConversionConfig) -> None:
    grads = []
    for form in (attention.attend, reference):
        inputs = [x.requires_grad_() for x in qkv(1, 29)]
        form(*inputs, config, SCALING).square().sum().backward()
        grads.append([x.grad for x in inputs])
    for fast, slow in zip(*grads, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


@settings
@pytest.mark.parametrize("new", [1, 5, 8, 9, 39])
def test_the_last_tokens_alone_are_as_in_the_whole(config: ConversionConfig, new: int) -> None:
    q, k, v = qkv(2, 39)
    whole = attention.attend(q, k, v, config, SCALING)
    sums = block_sums(q, k, config)
    part = attention.attend(q[:, :, -new:], k, v, config, SCALING, sums)
    torch.testing.assert_close(part, whole[:, -new:])


@settings
@pytest.mark.parametrize("n", [1, 8, 9, 40, 64])
def test_no_token_sees_the_future(config: ConversionConfig, n: int) -> None:
    model = convert(tiny_llama(), config)
    ids = tokens(1, n)
    before = model(ids).logits
    for t in {1, 5, 7, 8, 9, 15, 16, 17, 23, 24, 33, 39, n - 1} & set(range(n)):
        changed = ids.clone()
        changed[:, t:] = tokens(1, n - t, seed=t + 1)
        assert torch.equal(model(changed).logits[:, :t], before[:, :t]), f"token {t} changed an earlier output"


@settings
def test_no_token_sees_the_future_of_a_padded_row(config: ConversionConfig) -> None:
    model = convert(tiny_llama(), config)
    ids, mask = tokens(2, 50), torch.ones(2, 50, dtype=torch.int64)
    mask[0, :13], mask[1, 41:] = 0, 0
    before = model(ids, attention_mask=mask).logits
    changed = ids.clone()
    changed[:, 30:] = tokens(2, 20, seed=9)
    after = model(changed, attention_mask=mask).logits
    assert torch.equal(after[0, 13:30], before[0, 13:30])
    assert torch.equal(after[1, :30], before[1, :30])


@settings
@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_padding_changes_nothing(config: ConversionConfig, side: str) -> None:
    model = convert(tiny_llama(), config)
    ids, pads = tokens(1, 45), 11
    where = {"left": 0, "right": 45, "middle": 20}[side]
    padded = torch.cat([ids[:, :where], torch.zeros(1, pads, dtype=torch.int64), ids[:, where:]], dim=1)
    batch = torch.cat([padded, tokens(1, 45 + pads)])
    mask = torch.ones_like(batch)
    mask[0, where : where + pads] = 0
    position = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(batch, attention_mask=mask, position_ids=position).logits
    torch.testing.assert_close(logits[:1, mask[0].bool()], model(ids).logits)
    torch.testing.assert_close(logits[1:], model(batch[1:]).logits)


@pytest.mark.parametrize("retrieval", ["none", "states", "top_k", "top_k_per_token"])
@pytest.mark.parametrize("n", [1, 31, 32])
def test_up_to_one_chunk_it_is_the_original(retrieval: str, n: int) -> None:
    model = tiny_llama()
    converted = convert(model, ConversionConfig(chunk_size=32, block_size=8, sink_tokens=8, retrieval=retrieval))
    assert torch.equal(converted(tokens(2, n)).logits, model(tokens(2, n)).logits)


def test_everything_retrieved_is_the_original() -> None:
    model = tiny_llama()
    config = ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=0, top_k=100, block_size=4)
    torch.testing.assert_close(convert(model, config)(tokens(1, 61)).logits, model(tokens(1, 61)).logits)


@settings
@pytest.mark.parametrize("n", [5, 16, 40])
def test_decoding_agrees_with_reading_again(config: ConversionConfig, n: int) -> None:
    model, ids = convert(tiny_llama(), config), tokens(2, n + 21)
    expected = model(ids).logits[:, n - 1 :]
    out = model(ids[:, :n], use_cache=True)
    logits = [out.logits[:, -1:]]
    for t in range(n, n + 21):
        out = model(ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected)


@settings
def test_reading_in_pieces_agrees_with_reading_at_once(config: ConversionConfig) -> None:
    model, ids, mask = convert(tiny_llama(), config), tokens(2, 60), torch.ones(2, 60, dtype=torch.int64)
    mask[1, :9] = 0
    for used in (None, mask):
        expected = model(ids, attention_mask=used).logits[:, 9:]
        cache, logits = None, []
        for a, b in [(0, 20), (20, 21), (21, 37), (37, 60)]:
            now = None if used is None else used[:, :b]
            out = model(ids[:, a:b], attention_mask=now, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits)
        torch.testing.assert_close(torch.cat(logits, dim=1)[:, 9:], expected)


@settings
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_agrees_with_reading_again(config: ConversionConfig, beams: int) -> None:
    model, ids, mask = convert(tiny_llama(), config), tokens(3, 30), torch.ones(3, 30, dtype=torch.int64)
    mask[1, :9], mask[2, :26] = 0, 0
    how = dict(attention_mask=mask, max_new_tokens=14, do_sample=False, num_beams=beams, eos_token_id=None)
    cached, read_again = (model.generate(ids, use_cache=use, **how) for use in (True, False))
    assert torch.equal(cached, read_again)
    if beams == 1:
        alone = model.generate(ids[1:2, 9:], max_new_tokens=14, do_sample=False, eos_token_id=None)
        assert torch.equal(cached[1:2, 9:], alone)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_any_grouping_of_heads(kv_heads: int) -> None:
    q, k, v = qkv(1, 37, kv_heads=kv_heads)
    for config in SETTINGS.values():
        torch.testing.assert_close(attention.attend(q, k, v, config, SCALING), reference(q, k, v, config, SCALING))


def test_the_original_is_left_as_it_was() -> None:
    model, ids = tiny_llama(), tokens(1, 50)
    before, config = model(ids).logits, model.config.to_dict()
    converted = convert(model, SETTINGS["local"])
    assert type(converted) is type(model)
    assert not torch.equal(converted(ids).logits, before)
    assert torch.equal(model(ids).logits, before)
    assert model.config.to_dict() == config
    assert not any(hasattr(module, "bsbr") for module in model.modules())


def test_weights_are_shared_until_copied() -> None:
    model = tiny_llama()
    converted = convert(model, SETTINGS["top-k"])
    ours, theirs = (m.model.layers[0].self_attn.q_proj.weight for m in (converted, model))
    assert ours is theirs
    assert copy.deepcopy(converted).model.layers[0].self_attn.q_proj.weight is not theirs


def test_converting_again_changes_the_setting() -> None:
    model, ids = tiny_llama(), tokens(1, 50)
    once = convert(model, SETTINGS["top-k"])
    twice = convert(convert(model, SETTINGS["states"]), SETTINGS["top-k"])
    assert torch.equal(once(ids).logits, twice(ids).logits)


@settings
def test_bfloat16_is_near_float32(config: ConversionConfig) -> None:
    q, k, v = (x.float() for x in qkv(1, 100))
    exact = attention.attend(q, k, v, config, SCALING)
    rough = attention.attend(*(x.bfloat16() for x in (q, k, v)), config, SCALING)
    assert rough.dtype == torch.bfloat16
    # A rounded score can turn a close choice between two blocks, so a few tokens may differ more.
    assert (rough - exact).abs().flatten(2).amax(-1).median() < 0.1


@settings
def test_nothing_of_size_n_by_n_is_built(config: ConversionConfig) -> None:
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.itemsize)
            return out

    n, largest = 1024, Largest()
    model = convert(tiny_llama(), config)
    ids = tokens(1, n)
    with torch.inference_mode(), largest:
        model(ids, logits_to_keep=1)
        model(ids, attention_mask=(torch.arange(n) > 3)[None], logits_to_keep=1)
    assert largest.numel < n * n


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size: expected a multiple of block_size=32, got 48"):
        ConversionConfig(chunk_size=48)
    with pytest.raises(ValueError, match="retrieval: expected one of"):
        ConversionConfig(retrieval="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top_k: expected at least 1, got 0"):
        ConversionConfig(top_k=0)


def test_models_that_cannot_be_converted_are_refused() -> None:
    with pytest.raises(ValueError, match=r"architecture among gpt2, gpt_neox, llama, .*, got 'Linear'"):
        convert(torch.nn.Linear(2, 2))
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    windowed = MistralForCausalLM(MistralConfig(vocab_size=9, num_key_value_heads=1, sliding_window=64, **sizes))
    with pytest.raises(ValueError, match="a sliding window of 64 tokens"):
        convert(windowed)
    full = MistralForCausalLM(MistralConfig(vocab_size=9, num_key_value_heads=1, sliding_window=None, **sizes))
    assert convert(full)(torch.ones(1, 9, dtype=torch.int64)).logits.shape == (1, 9, 9)


def test_masks_that_cannot_be_read_are_refused() -> None:
    model, ids = convert(tiny_llama(), SETTINGS["local"]), tokens(1, 20)
    with pytest.raises(ValueError, match="packed sequences"):
        model(ids, position_ids=torch.arange(20)[None] % 10, use_cache=False)
    with pytest.raises(ValueError, match=r"attention_mask: expected \(batch, tokens\)"):
        model(ids, attention_mask=torch.zeros(1, 1, 20, 20))


def test_a_cache_that_another_model_filled_is_refused() -> None:
    model, ids = tiny_llama(), tokens(1, 20)
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values: expected an empty DynamicCache"):
        convert(model, SETTINGS["top-k"])(ids[:, :1], past_key_values=cache)
