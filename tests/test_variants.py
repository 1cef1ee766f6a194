"""The costs of variants are those of the model that each of them describes."""

from typing import Any

import pandas as pd
import pytest

from bsbr import ModelConfig
from bsbr.store import select, tidy
from bsbr.store.metrics import metric
from bsbr.studies import operations, variants

SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_dim": 32, "num_layers": 2, "num_heads": 2, "ff_dim": 48}
BY_CHUNK = {size: ModelConfig("bsbr", **SIZES, chunk_size=size) for size in (8, 16)}


def rows_of(phase: str, n: int = 64) -> list[dict[str, Any]]:
    times = variants.times("chunk_size", BY_CHUNK, 16, phase, n, seconds=0.01, new_tokens=16)
    return times + variants.sizes("chunk_size", BY_CHUNK, 16, phase, n)


def measured(phase: str) -> dict[tuple[str, int], Any]:
    return {(row["metric"], row["chunk_size"]): row["value"] for row in rows_of(phase)}


def test_prefill_has_time_memory_and_operations_of_each_variant():
    found = measured("prefill")
    for size, config in BY_CHUNK.items():
        assert found["flops", size] == operations.expected(config, 64).forward
        assert found["time", size] > 0
        parameters_and_hidden = 4 * (50 * 32 + 2 * (6 * 32 * 32 + 2 * 32 * 48) + 64 * 32)
        assert found["peak_memory", size] * 1e6 > parameters_and_hidden
    assert found["memory_saved", 8] == pytest.approx(100 * (1 - found["peak_memory", 8] / found["peak_memory", 16]))


@pytest.mark.parametrize("phase", variants.PHASES)
def test_only_what_a_clock_touches_is_timed_and_has_an_interval(phase):
    for found in rows_of(phase):
        assert metric(found["metric"]).clock == (found["interval"] == "order statistics")
        assert not metric(found["metric"]).clock or found["samples"] >= 7


@pytest.mark.parametrize("phase", variants.PHASES)
def test_what_the_control_is_by_definition_is_in_no_table_but_can_be_drawn(phase):
    table = tidy(pd.DataFrame([{"n": 64, **found} for found in rows_of(phase)]))
    for name, base in (("relative_time", 1), ("memory_saved", 0)):
        rows = select(table, name)
        assert list(rows["chunk_size"]) == [8]
        drawn = variants.with_control(rows, "chunk_size", 16, base)
        assert drawn.set_index("chunk_size").loc[16, "value"] == base
        assert len(drawn) == 2 and pd.isna(drawn["low"].iloc[1])


def test_a_decoding_state_is_the_window_the_chunk_states_and_their_mix():
    found = measured("decode")
    for size in BY_CHUNK:
        chunks, hidden, head_dim = 64 // size, 32, 16
        window, of_chunk, mixed = 2 * size * hidden, head_dim * hidden + hidden, head_dim * hidden
        assert found["state_size", size] == window + chunks * of_chunk + hidden + mixed
        assert found["time_per_token", size] * 16 / 1000 == pytest.approx(found["time", size])


def test_the_place_of_a_number_to_come_says_so():
    rows = variants.coming("chunk_size", BY_CHUNK, {"accuracy": "another page will"}, mechanism="bsbr")
    assert [found["chunk_size"] for found in rows] == [8, 16]
    for found in rows:
        assert found["value"] is None and found["status"] == "not_available"
        assert found["reason"] == "not measured yet: another page will"


def test_a_state_of_several_rows_counts_for_one():
    model = variants._make(BY_CHUNK[8], "cpu")
    one = variants._ids(model, 64)
    assert variants.state_size(model.prefill(one.repeat(3, 1))[1]) == variants.state_size(model.prefill(one)[1])


def test_a_short_convolution_keeps_its_last_inputs():
    plain, convolved = (ModelConfig("bsbr", **SIZES, chunk_size=8, short_conv=width) for width in (None, 4))
    for n in (1, 64):
        found = [variants.state_size(variants.prefilled(config, n)) for config in (plain, convolved)]
        assert found[1] == found[0] + 3 * 3 * 32


def test_the_state_of_a_hybrid_is_that_of_its_layers():
    names = ("standard", "linear", "linear")
    of = {name: variants.state_size(variants.prefilled(ModelConfig(name, **SIZES), 64)) for name in names}
    state = variants.prefilled(ModelConfig(names, **{**SIZES, "num_layers": 3}), 64)
    assert variants.state_size_of_all_layers(state) == sum(of[name] for name in names)
    assert variants.state_size(state) == round(sum(of[name] for name in names) / 3)


@pytest.mark.parametrize(
    ("control", "phase", "words"), [(7, "prefill", "control must be"), (8, "sleep", "phase must be")]
)
def test_what_is_not_there_is_refused(control, phase, words):
    for measure in (variants.times, variants.sizes):
        with pytest.raises(ValueError, match=words):
            measure("chunk_size", BY_CHUNK, control, phase, 64)
