"""Tasks read and continue what they are given, alike in every call, and what does not fit says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bsbr import ModelConfig, TransformerLM
from bsbr.measure import speed
from bsbr.studies import tasks

SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_dim": 32, "num_layers": 2, "num_heads": 2, "ff_dim": 48}
IDS = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(ModelConfig("bsbr", chunk_size=8, **SIZES)).eval()


def spied(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[torch.Tensor]:
    """What a method is called with first, call by call."""
    seen, real = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda first, *rest, **more: (seen.append(first), real(first, *rest, **more))[1])
    return seen


def test_prefill_reads_the_whole_text(model: TransformerLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch, model, "encode")
    task = tasks.prefill_task(model, IDS)
    task.run(task.prepare())
    assert len(seen) == 1 and torch.equal(seen[0], IDS)


def test_decode_writes_what_generate_writes_in_every_call(
    model: TransformerLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = model.generate(IDS, 5)[:, IDS.shape[1] :]
    task = tasks.decode_task(model, IDS, 5)
    seen = spied(monkeypatch, model, "step")
    for _ in range(2):
        task.run(task.prepare())
    assert torch.equal(torch.stack(seen[:5], 1), written) and torch.equal(torch.stack(seen[5:], 1), written)


def test_generate_tasks_go_on_from_the_cache_that_prefill_left(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    model, left = LlamaForCausalLM(config).eval(), tasks.Prefilled()
    with pytest.raises(ValueError, match="has not run"):
        tasks.generate_decode_task(model, left, 3)
    reading = tasks.generate_prefill_task(model, IDS, left, first=5)
    lengths = []
    for _ in range(2):
        reading.run(reading.prepare())
        lengths.append(left.cache.get_seq_length())
    assert lengths == [5, 20], "the first call reads less, and later ones begin anew"
    written = model.generate(IDS, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)[:, 20:]
    decoding = tasks.generate_decode_task(model, left, 3)
    fed: list[torch.Tensor] = []
    real = tasks.forward
    monkeypatch.setattr(tasks, "forward", lambda model, ids, cache=None: (fed.append(ids), real(model, ids, cache))[1])
    for _ in range(2):
        decoding.run(decoding.prepare())
    assert torch.equal(torch.cat(fed[:3], 1), written[:, 1:4]) and torch.equal(torch.cat(fed[3:], 1), written[:, 1:4])


def test_what_fits_is_ready_and_what_does_not_says_why() -> None:
    def make(n: int) -> speed.Task:
        return speed.Task(lambda _: None)

    def hungry(n: int) -> speed.Task:
        raise MemoryError("not enough memory")

    def broken(n: int) -> speed.Task:
        raise RuntimeError("shapes differ")

    assert isinstance(tasks.ready(make, 64, 10), speed.Task)
    refused = tasks.ready(hungry, 64, 10)
    assert isinstance(refused, tasks.Refused)
    assert refused.row("time", n=64)["status"] == "out_of_memory"
    late = tasks.ready(make, 64, -1)
    assert isinstance(late, tasks.Refused) and late.status == "too_long"
    with pytest.raises(RuntimeError, match="shapes differ"):
        tasks.ready(broken, 64, 10)


def test_rows_of_times_are_held_against_those_of_the_same_round() -> None:
    samples = {"standard": np.arange(1.0, 8.0), "bsbr": np.arange(1.0, 8.0) / 2}
    rows = tasks.timed_rows(samples, "mechanism", baseline="standard", control="bsbr", n=64)
    found = {(row["metric"], row["mechanism"]): row["value"] for row in rows}
    assert found == {
        ("time", "standard"): 4, ("time", "bsbr"): 2, ("speedup", "bsbr"): 2, ("relative_time", "standard"): 2,
    }  # fmt: skip
    assert all(row["n"] == 64 and row["interval"] == "order statistics" for row in rows)
    (per_token,) = tasks.per_token_rows({"bsbr": samples["bsbr"]}, 50, "mechanism")
    assert per_token["value"] == pytest.approx(2 / 50 * 1000)
