"""Every map is the real one: weights times values is the output of the mechanism's own definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import grouped_llama
from torch import Tensor
from transformers import LlamaForCausalLM

from bsbr import MECHANISMS, ConversionConfig, ModelConfig, TransformerLM, convert, mixers
from bsbr.conversion import attention as converted
from bsbr.conversion import calibrate
from bsbr.conversion.reference import reference
from bsbr.conversion.states import Fit
from bsbr.rotary import Rotary
from bsbr.studies import attention_maps as maps

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
SMALL = ConversionConfig(chunk_size=8, local_chunks=2, sink_tokens=4, retrieval="top_k", top_k=2, block_size=4)
RUNGS = {
    "none": replace(SMALL, retrieval="none"),
    "unaligned sinks": replace(SMALL, retrieval="none", sink_tokens=3),
    "states": replace(SMALL, retrieval="states"),
    "top_k": SMALL,
    "top_k_per_token": replace(SMALL, retrieval="top_k_per_token"),
    "both": replace(SMALL, retrieval="both", top_k=1),
    "original below": replace(SMALL, original_below=21),
}


def mixer_and_input(name: str, n: int = 45) -> tuple[Any, Tensor, Rotary]:
    """One mixer with random weights, in float64, whose chunks and windows do not divide n."""
    torch.manual_seed(0)
    config = ModelConfig(name, hidden_dim=32, num_heads=2, chunk_size=8, window_size=7, key_dim=16)
    mixer = mixers.make(config).double()
    x = torch.randn(2, n, 32, dtype=torch.float64)
    return mixer, x, Rotary.at(torch.arange(n)[None], mixer.rotary_dim, x.dtype)


@pytest.mark.parametrize("name", MECHANISMS)
def test_weights_times_values_are_the_outputs_of_the_reference(name: str) -> None:
    mixer, x, rotary = mixer_and_input(name)
    with torch.no_grad():
        found = maps.of_mixer(mixer, x, rotary)
        parts = mixer.project(x, rotary)
        values = parts[-1] if name == "gau" else parts[2]
        expected = mixer.attention.reference(*parts, **mixer.options)
    torch.testing.assert_close(found @ values, expected, **CLOSE)


@pytest.mark.parametrize("name", MECHANISMS)
def test_no_weight_lies_on_a_later_token(name: str) -> None:
    mixer, x, rotary = mixer_and_input(name)
    with torch.no_grad():
        assert maps.of_mixer(mixer, x, rotary).triu(1).count_nonzero() == 0


@pytest.mark.parametrize("name", MECHANISMS)
def test_positive_inputs_show_what_a_mechanism_can_read(name: str) -> None:
    mixer, x, rotary = mixer_and_input(name)
    with torch.no_grad():
        found = maps.of_mixer(mixer, x, rotary, positive=True)[0, 0] != 0
    t = torch.arange(len(found))
    can = (t[:, None] - t < 7) if name == "sliding_window" else torch.ones_like(found)
    assert torch.equal(found, can & (t <= t[:, None]))


def queries_and_keys(n: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return tuple(3 * torch.randn(heads, n, 16, dtype=torch.float64) for heads in (6, 2, 2))  # type: ignore[return-value]


def test_softmax_rows_are_those_of_the_fused_kernel() -> None:
    q, k, v = queries_and_keys(40)
    rows = torch.cat(
        [torch.nn.functional.pad(maps.softmax_rows(q, k, 0.25, a, a + 8), (0, 32 - a)) for a in range(0, 40, 8)], dim=1
    )
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.25, enable_gqa=True)
    torch.testing.assert_close(rows @ v.repeat_interleave(3, 0), expected, **CLOSE)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("n", [16, 64, 61])
def test_converted_rows_times_values_are_the_outputs_of_the_reference(rung: str, n: int) -> None:
    q, k, v = queries_and_keys(n)
    expected = reference(q[None], k[None], v[None], RUNGS[rung], 0.25)[0].transpose(0, 1)
    for start in range(0, n, 8):
        end = min(start + 8, n)
        rows = maps.converted_rows(q, k, RUNGS[rung], 0.25, start, end)
        found = rows @ v[:, :end].repeat_interleave(3, 0)
        torch.testing.assert_close(found, expected[:, start:end], **CLOSE)


@pytest.mark.parametrize("rung", ["none", "top_k", "top_k_per_token"])
def test_the_short_way_finds_what_columns_of_the_identity_find(rung: str) -> None:
    q, k, _ = queries_and_keys(61)

    def attend(values: Tensor) -> Tensor:
        return converted.attend(q[None], k[None], values, RUNGS[rung], 0.25).transpose(1, 2)

    torch.testing.assert_close(maps._kernel_weights(attend, k[None]), maps.weights(attend, k[None]), **CLOSE)


# -- Whole models ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return grouped_llama()


def seen(model: Any, ids: Tensor, chunk_size: int = 8) -> list[Tensor]:
    """Each layer's whole map, (heads, n, n)."""
    found = []

    def look(layer: maps.Layer) -> None:
        parts = [(end, layer.rows(start, end)) for start, end in maps.by_chunk(layer, chunk_size)]
        found.append(torch.cat([torch.nn.functional.pad(rows, (0, layer.n - end)) for end, rows in parts], dim=1))

    maps.visit(model, ids, look)
    return found


def test_an_original_models_maps_are_what_transformers_returns(llama: LlamaForCausalLM) -> None:
    ids = torch.randint(50, (1, 37))
    llama.set_attn_implementation("eager")
    with torch.no_grad():
        expected = llama(ids, output_attentions=True).attentions
    llama.set_attn_implementation("sdpa")
    for found, layer in zip(seen(llama, ids), expected, strict=True):
        torch.testing.assert_close(found, layer[0], rtol=1e-4, atol=1e-6)


def test_looking_changes_neither_the_output_nor_the_model(llama: LlamaForCausalLM) -> None:
    ids = torch.randint(50, (1, 37))
    for model in (llama, convert(llama, SMALL)):
        with torch.no_grad():
            before = model(ids).logits
            seen(model, ids)
            assert torch.equal(model(ids).logits, before)


def test_layers_that_a_conversion_left_as_they_were_are_drawn_as_softmax_attention(llama: LlamaForCausalLM) -> None:
    ids = torch.randint(50, (1, 61))
    first, second = seen(llama, ids), seen(convert(llama, SMALL), ids)
    for found, expected, rest in (
        (seen(convert(llama, replace(SMALL, layers=(1,))), ids), first, 1),
        (seen(convert(llama, replace(SMALL, layers=(0,))), ids), second, 0),
    ):
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-7)
        leaves_out = [(layer[:, -1] == 0).any() for layer in found]
        assert leaves_out == [rest == 0, rest == 1]


def test_the_map_of_a_calibrated_layer_is_what_it_reads(llama: LlamaForCausalLM) -> None:
    q, k, v = queries_and_keys(61)
    fit = Fit(6, 16).double()
    with torch.no_grad():
        for parameter in fit.parameters():
            parameter.add_(torch.rand_like(parameter) / 4)
        expected = reference(q[None], k[None], v[None], RUNGS["states"], 0.25, fit)[0].transpose(0, 1)
        rows = maps.converted_rows(q, k, RUNGS["states"], 0.25, 40, 61, fit=fit)
    torch.testing.assert_close(rows @ v.repeat_interleave(3, 0), expected[:, 40:], **CLOSE)
    fitted = convert(llama, RUNGS["states"])
    calibrate(fitted, [torch.randint(50, (1, 61))], steps=2)
    ids = torch.randint(50, (1, 61))
    assert not torch.allclose(seen(fitted, ids)[0], seen(convert(llama, RUNGS["states"]), ids)[0], atol=1e-4)


def test_a_converted_models_rows_sum_to_one_and_leave_most_far_tokens_out(llama: LlamaForCausalLM) -> None:
    for found in seen(convert(llama, SMALL), torch.randint(50, (1, 120))):
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:2]))
        last = found[:, -8:, : SMALL.far_end(14)].count_nonzero(dim=-1)
        assert last.max() <= SMALL.sink_tokens + SMALL.top_k * SMALL.block_size


def test_the_map_of_a_beginning_is_the_corner_of_the_whole(llama: LlamaForCausalLM) -> None:
    ids = torch.randint(50, (1, 64))
    for model in (llama, convert(llama, SMALL)):
        for part, whole in zip(seen(model, ids[:, :40]), seen(model, ids), strict=True):
            torch.testing.assert_close(part, whole[:, :40, :40], rtol=1e-4, atol=1e-6)


def test_a_model_of_our_own_is_visited_layer_by_layer() -> None:
    model = TransformerLM(ModelConfig("bsbr", vocab_size=50, hidden_dim=32, num_heads=2, chunk_size=8)).eval()
    found = seen(model, torch.randint(50, (1, 29)))
    assert [layer.shape for layer in found] == [(2, 29, 29)] * 2


def test_a_model_that_cannot_be_visited_is_refused_with_the_remedy(llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"ids: expected one row"):
        maps.visit(llama, torch.zeros(2, 5, dtype=torch.int64), lambda _: None)
    llama.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"set_attn_implementation\('sdpa'\)"):
        maps.visit(llama, torch.zeros(1, 5, dtype=torch.int64), lambda _: None)
    llama.set_attn_implementation("sdpa")


# -- What a map says ------------------------------------------------------------------------------


@pytest.fixture
def rows() -> np.ndarray:
    """The rows of the second chunk of 4 tokens, of 2 heads; each sums to 1."""
    later = torch.ones(4, 8, dtype=torch.bool).triu(5)
    scores = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)) * 3
    return scores.masked_fill(later, -torch.inf).softmax(-1).numpy()


def test_counts_above_a_threshold_tell_the_own_chunk_from_earlier_ones(rows: np.ndarray) -> None:
    assert maps.count_above(rows, 0).tolist() == [[10, 16]] * 2 == [list(maps.pairs(4, 8))] * 2
    assert maps.count_above(rows, 0.1).sum() == (rows > 0.1).sum()


def test_the_fewest_weights_that_carry_a_mass(rows: np.ndarray) -> None:
    for head, found in zip(rows, maps.count_for_mass(rows, (0.5, 0.9)), strict=True):
        for mass, count in zip((0.5, 0.9), found, strict=True):
            expected = sum(int((np.cumsum(np.sort(row)[::-1]) < mass).sum()) + 1 for row in head)
            assert count == expected
    assert maps.count_for_mass(np.full((1, 1, 10), 0.1, dtype=np.float64), (0.75,)).tolist() == [[8]]


def test_mass_within_cosine_and_pooling(rows: np.ndarray) -> None:
    np.testing.assert_allclose(maps.within_mass(rows), rows[:, :, 4:].sum((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(maps.cosine(rows, rows), 1, rtol=1e-6)
    assert maps.cosine(rows[:1] * 0, rows[:1]).max() == 0 and maps.cosine(rows * 0, rows * 0).min() == 1
    assert maps.pool(-rows, 4).shape == (2, 1, 2) and maps.pool(-rows, 4).max() == rows.max()
