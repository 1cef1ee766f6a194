"""The original implementation in its own process, and what is measured of it."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from bsbr import MECHANISMS, ModelConfig, TransformerLM
from bsbr.measure.original import Original, future_influence
from bsbr.tasks import sources

SIZES = {"vocab_size": 50, "hidden_dim": 32, "num_layers": 2, "num_heads": 2, "chunk_size": 16, "ff_dim": 32}


@pytest.fixture(scope="module")
def original() -> Original:
    try:
        with Original(json.dumps(SIZES), 1) as running:
            yield running
    except sources.SourceError as error:
        pytest.skip(str(error))


def embedded(ids: torch.Tensor) -> torch.Tensor:
    return F.one_hot(ids, 50).double()


def test_a_running_sum_is_influenced_from_the_change_on() -> None:
    found = future_influence(lambda ids: embedded(ids).cumsum(1), 50, 40, 30)
    assert found[:30] == [0.0] * 30 and all(change > 0 for change in found[30:])


def test_a_mean_over_all_tokens_is_influenced_everywhere() -> None:
    found = future_influence(lambda ids: embedded(ids).mean(1, keepdim=True).expand(-1, 40, -1), 50, 40, 30)
    assert min(found) > 0


@pytest.mark.parametrize("name", MECHANISMS)
def test_none_of_ours_sees_the_future(name: str) -> None:
    model = TransformerLM(ModelConfig(name, **{**SIZES, "window_size": 16})).eval()
    with torch.inference_mode():
        found = future_influence(model.encode, 50, 60, 37)
    assert max(found[:37]) == 0 and min(found[37:]) > 0


def test_the_original_sees_the_future(original: Original) -> None:
    found = original.future_influence(60, 37)
    assert len(found) == 60
    assert max(found[:16]) > 0, "earlier chunks retrieve later ones"
    assert max(found[32:37]) > 0, "a token sees the later ones of its own chunk"


def test_the_original_reads_continues_and_tells_its_memory(original: Original) -> None:
    original.run("encode", 64)
    original.run("generate", 32)
    peak = original.resident_peak(1024)
    assert peak.peak > peak.before > 50e6
    assert peak.added > 2 * 1024**2 * 4  # two heads' scores, n × n numbers of four bytes


def test_an_original_that_was_ended_is_out_of_memory_and_one_that_failed_is_not(original: Original) -> None:
    with Original(json.dumps(SIZES), 1) as ended, pytest.raises(MemoryError, match=r"the system ended .* encode 64"):
        ended._process.kill()
        ended._ask("encode", 64)
    with Original(json.dumps(SIZES), 1) as failed, pytest.raises(RuntimeError, match=r"failed: .* dance 3"):
        failed._ask("dance", 3)
