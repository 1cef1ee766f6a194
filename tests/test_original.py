"""The original implementation as a model to measure, and what is found of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bsbr import MECHANISMS, ModelConfig, TransformerLM, sources
from bsbr.studies.original import Original, future_influence

SIZES = {"vocab_size": 50, "hidden_dim": 32, "num_layers": 2, "num_heads": 2, "chunk_size": 16, "ff_dim": 32}


@pytest.fixture(scope="module")
def original() -> Original:
    torch.manual_seed(0)
    try:
        return Original(**SIZES).eval()
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
    with torch.inference_mode():
        found = future_influence(original.encode, 50, 60, 37)
    assert len(found) == 60
    assert max(found[:16]) > 0, "earlier chunks retrieve later ones"
    assert max(found[32:37]) > 0, "a token sees the later ones of its own chunk"


def test_the_original_is_not_this_package(original: Original) -> None:
    assert type(original.model).__module__ == "original_bsbr"
    assert not isinstance(original.model, TransformerLM)


def test_the_original_continues_by_its_most_likely_tokens(original: Original) -> None:
    ids = torch.randint(50, (1, 20), generator=torch.Generator().manual_seed(0))
    found = original.generate(ids, 3)
    assert torch.equal(found[:, :20], ids) and found.shape == (1, 23)
    with torch.inference_mode():
        assert found[0, 20] == original(ids)[0, -1].argmax() and found[0, 21] == original(found[:, :21])[0, -1].argmax()
