"""The costs of variants are those of the model that each of them describes."""

from typing import Any

import pytest

from bsbr import ModelConfig
from bsbr.measure import flops, variants

SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_dim": 32, "num_layers": 2, "num_heads": 2, "ff_dim": 48}
BY_CHUNK = {size: ModelConfig("bsbr", **SIZES, chunk_size=size) for size in (8, 16)}


def measured(phase: str, n: int = 64) -> dict[tuple[str, int], Any]:
    rows = variants.costs("chunk_size", BY_CHUNK, 16, phase, n, seconds=0.01, new_tokens=16)
    return {(row["metric"], row["chunk_size"]): row["value"] for row in rows}


def test_prefill_has_time_memory_and_operations_of_each_variant():
    found = measured("prefill")
    assert found["relative_time", 16] == 1
    for size, config in BY_CHUNK.items():
        assert found["flops", size] == flops.expected(config, 64)
        assert found["time", size] > 0
        parameters_and_hidden = 4 * (50 * 32 + 2 * (6 * 32 * 32 + 2 * 32 * 48) + 64 * 32)
        assert found["peak_memory", size] * 1e6 > parameters_and_hidden


def test_a_decoding_state_is_the_window_the_chunk_states_and_their_mix():
    found = measured("decode")
    for size in BY_CHUNK:
        chunks, hidden, head_dim = 64 // size, 32, 16
        window, of_chunk, mixed = 2 * size * hidden, head_dim * hidden + hidden, head_dim * hidden
        assert found["state_size", size] == window + chunks * of_chunk + hidden + mixed
        assert found["time_per_token", size] * 16 / 1000 == pytest.approx(found["time", size])


def test_a_state_of_several_rows_counts_for_one():
    model = variants._make(BY_CHUNK[8], "cpu")
    one = variants._ids(model, 64)
    assert variants.state_size(model.prefill(one.repeat(3, 1))[1]) == variants.state_size(model.prefill(one)[1])


@pytest.mark.parametrize(
    ("control", "phase", "words"), [(7, "prefill", "control must be"), (8, "sleep", "phase must be")]
)
def test_what_is_not_there_is_refused(control, phase, words):
    with pytest.raises(ValueError, match=words):
        variants.costs("chunk_size", BY_CHUNK, control, phase, 64)
