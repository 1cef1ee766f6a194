"""Predicted costs: sizes hold exactly, the counting of kernels sees what there is, and small cases are found."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bsbr import MECHANISMS, ModelConfig, TransformerLM, parallel
from bsbr.measure import flops, kernels
from bsbr.measure.kernels import Kernel
from bsbr.mixers import make
from bsbr.model import leaves
from bsbr.parallel import Layout
from bsbr.store import load
from bsbr.studies import cost, cost_checks, operations, traffic
from bsbr.studies.cost import Cost, Device, Link

SMALL: dict[str, Any] = dict(vocab_size=50, hidden_dim=32, num_layers=3, num_heads=2, ff_dim=64, chunk_size=16)
HERE = [name for name in traffic.DEFAULT if name in MECHANISMS]
ONE = Device("one", flops=1e9, bandwidth=1e9, memory=1e9)
WIRE = Link("wire", bandwidth=1e9, latency=0)

# -- Kernels --------------------------------------------------------------------------------------


def test_a_product_reads_both_sides_and_writes_its_result() -> None:
    left, right = torch.ones(10, 20), torch.ones(20, 30)
    assert kernels.of(lambda: left @ right) == {Kernel("product", 12000, 4 * (200 + 600 + 300)): 1}


def test_views_move_nothing_and_repeated_numbers_count_once() -> None:
    x = torch.ones(10, 1)
    assert not kernels.of(lambda: x.expand(10, 50).t().unflatten(0, (5, 10)).detach())
    assert not kernels.of(lambda: torch.empty(1000))
    assert kernels.of(lambda: x.expand(10, 50) + 1) == {Kernel("other", 0, 4 * (10 + 500)): 1}
    assert kernels.of(lambda: x.add_(1)) == {Kernel("other", 0, 80): 1}


def test_an_embedding_reads_the_rows_that_it_looks_up() -> None:
    table, ids = torch.ones(1000, 8), torch.zeros(5, dtype=torch.long)
    assert kernels.of(lambda: F.embedding(ids, table)) == {Kernel("other", 0, 2 * 4 * 40): 1}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_kernels_have_the_operations_that_the_counter_counts(mode: Any) -> None:
    model, ids = TransformerLM(ModelConfig("bsbr", **SMALL)), torch.zeros(1, 100, dtype=torch.long)
    with mode():
        found = kernels.of(lambda: model(ids))
        assert sum(one.flops * count for one, count in found.items()) == flops.count(lambda: model(ids))


# -- One slice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", HERE)
@pytest.mark.parametrize("n", [16, 100, 300])
def test_a_slice_of_shapes_is_a_pass_of_numbers(mechanism: str, n: int) -> None:
    config = ModelConfig(mechanism, **SMALL)
    model, ids = TransformerLM(config).eval(), torch.zeros(1, n, dtype=torch.long)
    with torch.no_grad():
        real = kernels.of(lambda: model._encode(ids))
    assert +cost.own_slice(config, n, "prefill", False, torch.float32).kernels == real


@pytest.mark.parametrize("mechanism", HERE)
def test_gradients_cost_what_the_formulas_say(mechanism: str) -> None:
    config = ModelConfig(mechanism, **SMALL)
    found = cost.own_slice(config, 300, "training_backbone", False, torch.float32).kernels
    assert sum(one.flops * count for one, count in found.items()) == sum(operations.expected(config, 300))


@pytest.mark.parametrize("mechanism", HERE)
@pytest.mark.parametrize("n", [8, 64, 300])
def test_a_decoding_state_has_the_bytes_of_a_real_one(mechanism: str, n: int) -> None:
    config = ModelConfig(mechanism, **SMALL)
    with torch.inference_mode():
        _, state = TransformerLM(config).eval().prefill(torch.zeros(1, n, dtype=torch.long))
    numbers = [x for layer in state.layers for x in leaves(layer) if x.is_floating_point()]
    if mechanism == "standard":  # its cache has room to grow
        numbers = [x[:, :, :n] for x in numbers]
    held = sum(x.numel() * x.element_size() for x in numbers)
    assert held == config.num_layers * cost.state_bytes(config, n, 4)


# -- What slices have to do with each other -------------------------------------------------------


def zeros_before(layout: Layout, needed: Any) -> tuple[torch.Tensor, ...]:
    """What `with_earlier` gives, without other processes."""
    return tuple(
        torch.cat([x.new_zeros(*x.shape[:2], sum(layout.received(need)), *x.shape[3:]), x], dim=2) for x, need in needed
    )


@pytest.mark.parametrize("options", [{}, {"compression_factor": 4}], ids=str)
def test_what_a_later_slice_of_bsbr_does_is_what_its_code_does(monkeypatch: Any, options: dict[str, int]) -> None:
    monkeypatch.setitem(parallel.attend.__globals__, "with_earlier", zeros_before)
    config = ModelConfig("bsbr", **SMALL | options)
    mixer, held, dims = make(config), (64, 64, 64, 64), 16
    q, k, v = (torch.ones(1, 2, 64, dims) for _ in range(3))
    meta_q, meta_k = (torch.ones(1, 2, 4, dims) for _ in range(2))

    def attend(lengths: tuple[int, ...]) -> int:
        layout = Layout(None, len(lengths) - 1, lengths)
        return flops.count(lambda: parallel.attend(q, k, v, meta_q, meta_k, layout, **mixer.options))

    added = sum(one.flops * count for one, count in cost.remote(config, held, 4).items())
    # Alone, the first chunk retrieves nothing, and of the others the last makes no state that is read.
    alone = sum(one.flops * count for one, count in cost.remote(config, (16, 64), 4).items())
    assert attend(held) - attend(held[1:]) == pytest.approx(added * 1 / 3, rel=1e-9)
    assert alone > 0


def test_slices_of_standard_attention_do_together_what_one_device_does() -> None:
    config, n = ModelConfig("standard", **SMALL), 256
    held = (64, 64, 64, 64)

    def spent(found: Counter[Kernel]) -> int:
        return sum(one.flops * count for one, count in found.items())

    slices = sum(
        spent(cost.own_slice(config, own, "prefill", False).kernels)
        + config.num_layers * spent(cost.remote(config, held[: place + 1], 2))
        for place, own in enumerate(held)
    )
    assert slices == spent(cost.own_slice(config, n, "prefill", False).kernels)


@pytest.mark.parametrize("method", ["states", "later_only"])
def test_only_later_slices_are_sent_to(method: str) -> None:
    config = ModelConfig("bsbr" if method == "states" else "standard", **SMALL)
    sent = traffic.of_layer(config, 256, 4, 4, method)
    assert not np.tril(sent.forward).any() and not np.triu(sent.backward).any()
    assert (sent.forward == sent.backward.T).all() and sent.forward[np.triu_indices(4, 1)].all()


def test_the_busiest_link_depends_on_how_devices_are_joined() -> None:
    sent = np.triu(np.ones((4, 4), dtype=np.int64), 1) * 10
    assert traffic.busiest(sent, "switch") == 30  # the first sends to three
    # Over the link from 1 to 2: from 0 to 2, from 1 to 2 and 3; what 0 has for 3 goes the other way round.
    assert traffic.busiest(sent, "ring") == 30
    round_it = np.roll(np.eye(4, dtype=np.int64), 1, axis=1) * 10
    assert traffic.busiest(round_it, "switch") == traffic.busiest(round_it, "ring") == 10


@pytest.mark.parametrize("ranks", [2, 4, 7])
def test_published_ring_attention_sends_more_than_one_that_keeps_its_blocks(ranks: int) -> None:
    config = ModelConfig("standard", **SMALL)
    keeping, again = (traffic.of_layer(config, 280, ranks, 4, way) for way in ("ring_keeping", "ring"))
    assert (keeping.forward == again.forward).all()
    block = 2 * 280 // ranks * SMALL["hidden_dim"] * 4
    assert (again.backward[again.backward > 0] == (2 * ranks - 1) * block).all()


# -- The whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", HERE)
@pytest.mark.parametrize("work", ["prefill", "training"])
def test_more_tokens_cost_more_of_everything_and_faster_links_less(mechanism: str, work: Any) -> None:
    config = ModelConfig(mechanism, **SMALL)
    short, long = (cost.predict(config, n, ONE, WIRE, ranks=4, work=work) for n in (128, 256))
    assert long.flops > short.flops and long.arithmetic > short.arithmetic and long.total_memory > short.total_memory
    assert long.link_bytes >= short.link_bytes and long.communication >= short.communication
    fast = cost.predict(config, 128, ONE, Link("fast", 1e12, 0), ranks=4, work=work)
    assert fast.communication < short.communication and fast.arithmetic == short.arithmetic


def test_one_device_sends_nothing() -> None:
    found = cost.predict(ModelConfig("standard", **SMALL), 64, ONE, WIRE, ranks=1)
    assert found.link_bytes == 0 and found.communication == 0 and found.memory["received"] == 0


def test_keeping_everything_takes_memory_and_saves_arithmetic() -> None:
    config = ModelConfig("bsbr", **SMALL | {"num_layers": 8})
    kept, again = (cost.predict(config, 256, ONE, WIRE, ranks=2, recompute=way) for way in (False, True))
    assert kept.total_memory > again.total_memory and kept.flops < again.flops and kept.link_bytes < again.link_bytes


def test_the_limit_is_what_takes_longer() -> None:
    about = dict(flops=1.0, link_bytes=1, memory={"parameters": 1})
    assert Cost(arithmetic=1.0, communication=2.0, **about).limit == "network"
    assert Cost(arithmetic=2.0, communication=1.0, **about).limit == "arithmetic"


def test_the_large_model_has_the_parameters_that_its_name_says() -> None:
    with torch.device("meta"):
        model = TransformerLM(ModelConfig("standard", **cost.SIZES_1_4B))
    assert 1.3e9 < sum(parameter.numel() for parameter in model.parameters()) < 1.45e9


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mechanism": "gau"}, "mechanism must be one that several devices can share"),
        ({"mechanism": ["bsbr", "standard", "bsbr"]}, "mechanism must be one"),
        ({"mechanism": "bsbr", "method": "ring"}, "method must be"),
        ({"mechanism": "standard", "method": "states"}, "method must be"),
        ({"mechanism": "bsbr", "n": 32}, "n must give each of 4 ranks a chunk"),
        ({"mechanism": "bsbr", "retrieval": "none"}, "retrieval must be 'states'"),
        ({"mechanism": "bsbr", "work": "inference"}, "work must be"),
        ({"mechanism": "bsbr", "topology": "torus"}, "topology must be"),
    ],
    ids=str,
)
def test_what_cannot_be_predicted_is_refused(changed: dict[str, Any], words: str) -> None:
    changed = dict(changed)
    options = {name: changed.pop(name) for name in ("n", "method", "work") if name in changed}
    link = Link("wire", 1e9, 0, changed.pop("topology", "switch"))
    config = ModelConfig(**SMALL | changed)
    with pytest.raises(ValueError, match=words):
        cost.predict(config, options.pop("n", 256), ONE, link, ranks=4, **options)


# -- Held against what was measured ---------------------------------------------------------------


def test_every_byte_that_was_sent_is_predicted() -> None:
    frame = cost_checks.sent(load("benchmarks/sequence_parallel").table)
    assert len(frame) > 100
    assert not len(frame[frame["predicted"] != frame["measured"]])


def test_operations_are_predicted_exactly() -> None:
    frame = cost_checks.counted(load("benchmarks/parameters_and_flops").table, ["standard", "bsbr"], [64, 4096])
    assert len(frame) == 8 and (frame["predicted"] == frame["measured"]).all()


def test_memory_is_within_a_fifth() -> None:
    frame = cost_checks.held(load("benchmarks/memory").table, ["standard", "bsbr"], [4096])
    assert len(frame) > 5 and frame["error"].abs().max() <= 20


def test_a_wrong_table_is_seen() -> None:
    table = load("benchmarks/sequence_parallel").table.copy()
    table.loc[table["metric"] == "bytes_sent", "value"] += 1
    frame = cost_checks.sent(table)
    assert len(frame) and (frame["predicted"] != frame["measured"]).all()


def test_rates_are_found_from_times_alone() -> None:
    truth = Device("truth", flops=3e11, bandwidth=2e10, memory=0, attention=0.4, start=2e-5)
    calls = [
        {Kernel(kind, operations, moved): 2}
        for kind in ("product", "attention")
        for operations, moved in ((10**9, 10), (10**7, 10**8), (10**4, 10), (10**10, 10**6))
    ]
    found = cost_checks.fitted([(call, truth.seconds(call)) for call in calls])
    for name in ("flops", "bandwidth", "attention", "start"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-3)
    with pytest.raises(ValueError, match="cells must be at least 4"):
        cost_checks.fitted([])


def test_no_predicted_time_was_fitted() -> None:
    frame = cost_checks.timed(load("benchmarks/inference_time").table, ["standard", "sliding_window"])
    assert set(frame["size"]) == set(cost_checks.SIZES)
    for size, longest in cost_checks.FITTED.items():
        assert (frame[frame["size"] == size]["n"] > longest).all()


def test_most_predicted_times_are_within_a_fifth() -> None:
    """Of times that a clock gave once, and rates that are fitted to them: the table is fixed, so is the answer."""
    frame = cost_checks.timed(load("benchmarks/inference_time").table, ["standard", "sliding_window"])
    assert (frame["error"].abs() <= 20).mean() > 0.8
