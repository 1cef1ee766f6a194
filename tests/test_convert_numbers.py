"""A converted model in few bits, on ties, and on a text that is fed in pieces: what a token reads stays the same."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tiny_models import original, tokens

from bsbr.conversion import ConversionConfig, attention, blocks, convert
from bsbr.conversion.blocks import best, block_sums
from bsbr.conversion.reference import reference

SMALL = ConversionConfig(chunk_size=8, local_chunks=2, sink_tokens=4, top_k=2, block_size=4)
RETRIEVALS = ("none", "states", "top_k", "top_k_per_token", "both")
HALVES = (torch.float16, torch.bfloat16)
retrievals = pytest.mark.parametrize("retrieval", RETRIEVALS)
LLAMA = original("llama")
architectures = pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "qwen3"])
halves = pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    return ((found.double() - right.double()).norm() / right.double().norm()).item()


def qkv(n: int, outlier: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random queries, keys and values, the latter two about `outlier` in each dimension."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, n, 8, generator=generator) for heads in (4, 2, 2))
    return q, k + outlier, v + outlier


# -- Any setting ----------------------------------------------------------------------------------


@st.composite
def conversions(draw: st.DrawFn) -> ConversionConfig:
    """Any setting that can be, small enough for a text of some tokens to have far ones."""
    block, per_chunk, retrieval = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.sampled_from(RETRIEVALS))
    return ConversionConfig(
        chunk_size=block * per_chunk,
        local_chunks=draw(st.integers(1, 4)),
        sink_tokens=block * draw(st.integers(0, 3)),
        retrieval=retrieval,
        top_k=draw(st.integers(1, 5)),
        block_size=block,
        compression_factor=draw(st.sampled_from([None, 2, 8])) if retrieval in ("states", "both") else None,
        original_below=draw(st.sampled_from([0, 0, 5, 17])),
    )


@given(conversions(), st.integers(1, 40), st.integers(0, 39), st.integers(0, 9))
@examples(max_examples=60, deadline=None)
def test_the_fast_form_is_the_definition(config: ConversionConfig, n: int, start: int, seed: int) -> None:
    q, k, v = (x.double() for x in qkv(n, seed=seed))
    start = min(start, n - 1)
    with torch.no_grad():
        found = attention.attend(q[:, :, start:], k, v, config, 0.7, block_sums(q, k, config))
        torch.testing.assert_close(found, reference(q, k, v, config, 0.7)[:, start:], rtol=1e-7, atol=1e-7)


# -- Few bits -------------------------------------------------------------------------------------


@torch.no_grad()
@halves
@retrievals
def test_sums_over_large_numbers_do_not_overflow(retrieval: Any, dtype: torch.dtype) -> None:
    config = replace(SMALL, chunk_size=64, local_chunks=1, block_size=64, sink_tokens=64, retrieval=retrieval)
    q, k, v = (x.to(dtype) for x in qkv(450, outlier=3000.0))  # 64 of them, or the square of one, pass 65504
    q = (q.float() * 1e-3).to(dtype)
    found = attention.attend(q, k, v, config, 0.3)
    right = reference(*(x.double() for x in (q, k, v)), config, 0.3)
    assert found.isfinite().all() and error(found, right) < 0.02


@halves
@pytest.mark.parametrize("retrieval", ["top_k", "top_k_per_token", "both", "states"])
def test_autocast_chooses_and_expands_as_without(retrieval: Any, dtype: torch.dtype) -> None:
    config = replace(SMALL, retrieval=retrieval)
    q, k, v = qkv(200)
    with torch.autocast("cpu", dtype):
        found = attention.attend(q, k, v, config, 0.4)
    right = attention.attend(q, k, v, config, 0.4)
    assert (found - right).abs().max() < 0.05 * right.abs().max()  # another block would change a token by far more


@architectures
@retrievals
def test_autocast_loses_no_more_than_all_in_bfloat16(kind: str, retrieval: Any) -> None:
    lost: dict[str, list[float]] = {"autocast": [], "bfloat16": []}
    for seed in range(7):
        model, ids = original(kind, torch.float32), tokens(2, 70, seed=seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.1)
            found = convert(model, replace(SMALL, retrieval=retrieval))
            right = found(ids).logits
            with torch.autocast("cpu", torch.bfloat16):
                lost["autocast"].append(error(found(ids).logits, right))
            lost["bfloat16"].append(error(copy.deepcopy(found).bfloat16()(ids).logits, right))
    # Medians, for a close choice between two blocks that a rounded input turns is chance.
    assert statistics.median(lost["autocast"]) < 1.5 * statistics.median(lost["bfloat16"])


@architectures
@retrievals
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, "autocast"], ids=str)
def test_generates_in_few_bits(kind: str, retrieval: Any, precision: Any) -> None:
    model, ids = convert(original(kind, torch.float32), replace(SMALL, retrieval=retrieval)), tokens(2, 40)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    if precision != "autocast":
        model = model.to(precision)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        found = model.generate(
            ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    assert found.sequences.shape == (2, 52) and torch.stack(found.logits).isfinite().all()


# -- Ties -----------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5]), min_size=1, max_size=40), st.integers(0, 2**16))
@examples(max_examples=100, deadline=None)
def test_of_equals_the_earlier_is_chosen_whatever_rounding_does(values: list[float], seed: int) -> None:
    exact = torch.tensor(values, dtype=torch.float64)
    noise = 1 + 1e-6 * torch.rand(len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    picks = max(1, len(values) // 2)
    order = sorted(range(len(values)), key=lambda block: -values[block])[:picks]
    assert best(exact, picks).tolist() == order
    assert best((exact * noise * 1.0001).float(), picks).tolist() == order


@architectures
@retrievals
@pytest.mark.parametrize("n", [34, 75])
def test_a_token_whose_choices_are_equal_reads_the_same_in_a_pass_and_in_a_step(
    kind: str, retrieval: Any, n: int
) -> None:
    model = original(kind)
    converted = convert(model, replace(SMALL, retrieval=retrieval))
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 0  # as transformers starts a padding token's row
        ids = torch.cat([tokens(1, n - 1), torch.zeros(1, 1, dtype=torch.int64)], dim=1)
        cache = converted(ids[:, :-1]).past_key_values
        step = converted(ids[:, -1:], past_key_values=cache).logits
        torch.testing.assert_close(step, converted(ids).logits[:, -1:])


# -- Fed in pieces --------------------------------------------------------------------------------


@given(
    retrieval=st.sampled_from(RETRIEVALS),
    pads=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    cuts=st.lists(st.integers(1, 49), max_size=6),
)
@examples(max_examples=60, deadline=None)
def test_left_padding_and_pieces_change_nothing(retrieval: Any, pads: tuple[int, int], cuts: list[int]) -> None:
    model = convert(LLAMA, replace(SMALL, chunk_size=4, retrieval=retrieval))
    ids, mask = tokens(2, 50), torch.ones(2, 50, dtype=torch.int64)
    for row, count in enumerate(pads):
        mask[row, :count] = 0
    position = (mask.cumsum(1) - 1).clamp(min=0)
    bounds, cache, logits = sorted({0, *cuts, 50}), None, []
    with torch.no_grad():
        for a, b in itertools.pairwise(bounds):
            out = model(ids[:, a:b], attention_mask=mask[:, :b], position_ids=position[:, a:b], past_key_values=cache)
            cache = out.past_key_values
            logits.append(out.logits)
        found = torch.cat(logits, dim=1)
        for row, count in enumerate(pads):
            torch.testing.assert_close(found[row, count:], model(ids[row : row + 1, count:]).logits[0])
    assert found.isfinite().all()


@architectures
@retrievals
def test_a_row_of_padding_so_far_is_fed_token_by_token(kind: str, retrieval: Any) -> None:
    model, ids = convert(original(kind), replace(SMALL, retrieval=retrieval)), tokens(2, 50)
    mask = torch.ones_like(ids)
    mask[0, :26] = 0
    position, cache, logits = (mask.cumsum(1) - 1).clamp(min=0), None, []
    with torch.no_grad():
        for t in range(50):
            now = {"attention_mask": mask[:, : t + 1], "position_ids": position[:, t : t + 1]}
            out = model(ids[:, t : t + 1], past_key_values=cache, **now)
            cache = out.past_key_values
            logits.append(out.logits)
        found = torch.cat(logits, dim=1)
        torch.testing.assert_close(found[:1, 26:], model(ids[:1, 26:]).logits)
        torch.testing.assert_close(found[1:], model(ids[1:]).logits)
    assert found.isfinite().all()


@architectures
@retrievals
@pytest.mark.parametrize("at_once", [1, 13])
def test_a_prompt_may_be_read_in_chunks(kind: str, retrieval: Any, at_once: int) -> None:
    model, ids = convert(original(kind), replace(SMALL, retrieval=retrieval)), tokens(2, 53)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    how = dict(attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(model.generate(ids, **how), model.generate(ids, **how, prefill_chunk_size=at_once))


@architectures
@retrievals
def test_what_stands_in_padding_reaches_no_token(kind: str, retrieval: Any) -> None:
    model = original(kind)
    converted = convert(model, replace(SMALL, retrieval=retrieval, layers=(1,)))
    ids, mask = tokens(3, 40), torch.ones(3, 40, dtype=torch.int64)
    mask[0, :9], mask[1, 28:], mask[2] = 0, 0, 0  # the last row has no token yet
    ids = torch.where(mask.bool(), ids, 0)
    position, more = (mask.cumsum(1) - 1).clamp(min=0), tokens(3, 12, seed=1)
    with torch.no_grad():
        found = {}
        for name, value in (("zeros", 0.0), ("NaN", math.nan)):
            model.get_input_embeddings().weight[0] = value
            out, cover = converted(ids, attention_mask=mask, position_ids=position), mask
            read = [out.logits[mask.bool()]]
            for t in range(more.shape[1]):
                cover = torch.cat([cover, mask[:, :1] * 0 + 1], dim=1)
                now = cover.sum(1, keepdim=True) - 1
                out = converted(
                    more[:, t : t + 1], attention_mask=cover, position_ids=now, past_key_values=out.past_key_values
                )
                read.append(out.logits[:, 0])
            found[name] = torch.cat(read)[:, 1:]  # but for that token's own logit: tables may be tied
    assert found["NaN"].isfinite().all()
    torch.testing.assert_close(found["NaN"], found["zeros"])


# -- Sizes ----------------------------------------------------------------------------------------


@retrievals
def test_sizes_beyond_the_text_cost_nothing(retrieval: Any) -> None:
    wide = replace(SMALL, local_chunks=10**7, sink_tokens=4 * 10**8, retrieval=retrieval)
    many_sinks = replace(SMALL, local_chunks=1, sink_tokens=4 * 10**8, retrieval=retrieval)
    most = 2**31
    widest = replace(SMALL, chunk_size=most, local_chunks=most, sink_tokens=most, top_k=most, retrieval=retrieval)
    all_original = replace(SMALL, original_below=most, retrieval=retrieval)
    ids = tokens(1, 40)
    with torch.no_grad():
        for config in (wide, widest, all_original, many_sinks):
            model = convert(LLAMA, config)
            out = model(ids[:, :39])
            out = model(ids[:, 39:], past_key_values=out.past_key_values)
            torch.testing.assert_close(out.logits, model(ids).logits[:, 39:])
        torch.testing.assert_close(out.logits, LLAMA(ids).logits[:, 39:])


def test_the_masks_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MASK_BYTES", 200_000)
    q, k, v = qkv(600)
    for local in range(1, 60):
        config = replace(SMALL, local_chunks=local)
        attention.attend(q, k, v, config, 0.4, block_sums(q, k, config))
        assert sum(mask.nbytes for mask in blocks._masks.values()) <= 200_000
    assert blocks._masks
