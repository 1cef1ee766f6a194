"""Densities are counts of a map divided by its causal pairs, whatever the length they are read off at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import grouped_llama
from transformers import LlamaForCausalLM

from bsbr import MECHANISMS, ConversionConfig, ModelConfig, convert
from bsbr.studies import attention_maps, likeness, sparsity

CHUNK, N = 8, 32
SMALL = ConversionConfig(chunk_size=8, local_chunks=2, sink_tokens=4, retrieval="top_k", top_k=1, block_size=4)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return grouped_llama()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(50, (1, N), generator=torch.Generator().manual_seed(0))


def layers(model: Any, ids: torch.Tensor) -> list[attention_maps.Layer]:
    found: list[attention_maps.Layer] = []
    attention_maps.visit(model, ids, found.append)
    return found


def whole(model: Any, ids: torch.Tensor) -> np.ndarray:
    """(layers, heads, n, n)"""
    return np.array([layer.rows(0, ids.shape[1]).numpy() for layer in layers(model, ids)])


def value(rows: list[dict[str, Any]], name: str, **where: object) -> float:
    (found,) = [
        r for r in rows
        if r["metric"] == name and all(r.get(k) == v for k, v in {"layer": None, "head": None, **where}.items())
    ]  # fmt: skip
    return found["value"]


def test_densities_of_a_model_are_counts_over_pairs(llama: LlamaForCausalLM, ids: torch.Tensor) -> None:
    rows = sparsity.of_model(
        llama, ids, CHUNK, [8, 16, 32], thresholds=[0.0, 0.05], masses=[90], every=1, by_layer=(16, 0.05)
    )
    maps = whole(llama, ids)
    t = np.arange(N)
    causal, same = t <= t[:, None], t // CHUNK == (t // CHUNK)[:, None]
    for n in (8, 16, 32):
        for scope, part in (("within", causal & same), ("between", causal & ~same), ("overall", causal)):
            for threshold in (0.0, 0.05):
                where = {"n": n, "scope": scope, "threshold": threshold}
                inside = part[:n, :n]
                if not inside.any():
                    assert value(rows, "density", **where) is None
                    continue
                expected = 100 * (maps[:, :, :n, :n][..., inside] > threshold).mean()
                assert value(rows, "density", **where) == pytest.approx(expected)
    for index in range(2):
        expected = 100 * (maps[index, :, :16, :16][:, causal[:16, :16]] > 0.05).mean()
        found = value(rows, "density", n=16, scope="overall", threshold=0.05, layer=index)
        assert found == pytest.approx(expected)
    ordered = np.sort(maps, axis=-1)[..., ::-1].cumsum(-1)
    fewest = (ordered < 0.9 * maps.sum(-1, keepdims=True)).sum(-1) + 1
    expected = 100 * fewest[:, :, :16].mean((0, 1)).sum() / causal[:16, :16].sum()
    assert value(rows, "weights_for_mass", n=16, mass=90) == pytest.approx(expected)


def test_only_some_tokens_are_asked_for_their_mass(llama: LlamaForCausalLM, ids: torch.Tensor) -> None:
    options: dict[str, Any] = {"thresholds": [0.0], "masses": [90]}
    one, two = (sparsity.of_model(llama, ids, CHUNK, [N], every=every, **options) for every in (1, 4))
    assert value(one, "density", n=N, scope="overall") == value(two, "density", n=N, scope="overall")
    assert value(one, "weights_for_mass", n=N) == pytest.approx(value(two, "weights_for_mass", n=N), rel=0.3)


@pytest.mark.parametrize("name", MECHANISMS)
def test_by_structure_only_a_window_leaves_pairs_out(name: str) -> None:
    config = ModelConfig(name, hidden_dim=16, num_heads=1, key_dim=16, chunk_size=CHUNK, window_size=CHUNK)
    found = attention_maps.of_mechanism(config, N, positive=True)
    rows = sparsity.of_mechanism(found, CHUNK, [16, N])
    for n in (16, N):
        pairs = n * (n + 1) // 2
        seen = sum(min(t + 1, CHUNK) for t in range(n)) if name == "sliding_window" else pairs
        assert value(rows, "density", n=n, scope="overall") == pytest.approx(100 * seen / pairs)
        assert value(rows, "density", n=n, scope="within") == 100


def test_a_length_that_is_no_whole_number_of_chunks_is_refused(llama: LlamaForCausalLM, ids: torch.Tensor) -> None:
    for n in (12, 64):
        with pytest.raises(ValueError, match="lengths must be whole numbers of 8 tokens"):
            sparsity.of_mechanism(np.ones((1, N, N)), CHUNK, [n])
        with pytest.raises(ValueError, match="lengths must be whole numbers of 8 tokens"):
            likeness.compare(layers(llama, ids), layers(llama, ids), CHUNK, [n], names=("a", "b"))
    with pytest.raises(ValueError, match="by_layer must be one of"):
        sparsity.of_model(llama, ids, CHUNK, [8], thresholds=[0.0], masses=[], by_layer=(16, 0.0))


def test_a_conversion_reads_all_up_to_the_length_that_is_stated(llama: LlamaForCausalLM) -> None:
    ids = torch.randint(50, (1, 64), generator=torch.Generator().manual_seed(1))
    n = attention_maps.reads_all_up_to(SMALL)
    for length, all_read in ((n, True), (n + SMALL.chunk_size, False)):
        rows = whole(convert(llama, SMALL), ids[:, :length])
        assert (rows[..., np.tri(length, dtype=bool)] > 0).all() == all_read
    with pytest.raises(ValueError, match="which reads all"):
        attention_maps.reads_all_up_to(ConversionConfig(retrieval="states"))


def test_a_model_is_like_itself_and_its_mass_is_that_of_its_map(llama: LlamaForCausalLM, ids: torch.Tensor) -> None:
    own = layers(llama, ids)
    rows = likeness.compare(own, own, CHUNK, [8, 32], names=("a", "b"), heads_at=32)
    for found in rows:
        if found["metric"] == "map_similarity":
            assert found["value"] == pytest.approx(1, abs=1e-5) and found["model"] == "b"
    assert not [found for found in rows if found["n"] == 8 and found.get("scope") == "between"]
    maps = whole(llama, ids)
    t = np.arange(N)
    inside = (maps * (t // CHUNK == (t // CHUNK)[:, None])).sum(-1)
    where = {"model": "a", "n": N}
    assert value(rows, "within_mass", **where) == pytest.approx(100 * inside.mean(), rel=1e-5)
    assert value(rows, "within_mass", layer=1, **where) == pytest.approx(100 * inside[1].mean(), rel=1e-5)
    assert value(rows, "within_mass", layer=1, head=2, **where) == pytest.approx(100 * inside[1, 2].mean(), rel=1e-5)


def test_likeness_of_a_row_and_of_its_parts(llama: LlamaForCausalLM) -> None:
    ids = torch.randint(50, (1, 64), generator=torch.Generator().manual_seed(1))
    one, other = llama, convert(llama, SMALL)
    rows = likeness.compare(layers(one, ids), layers(other, ids), CHUNK, [64], names=("a", "b"))
    a, b = whole(one, ids)[0, 0], whole(other, ids)[0, 0]
    expected = {"overall": [], "within": [], "between": []}
    for t in range(64):
        start = t // CHUNK * CHUNK
        for scope, part in (("overall", slice(0, 64)), ("within", slice(start, 64)), ("between", slice(0, start))):
            if part.stop:
                x, y = a[t, part], b[t, part]
                expected[scope].append(float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-30)))
    with_heads = likeness.compare(layers(one, ids), layers(other, ids), CHUNK, [64], names=("a", "b"), heads_at=64)
    found = value(with_heads, "map_similarity", n=64, scope="overall", layer=0, head=0)
    assert found == pytest.approx(np.mean(expected["overall"]), rel=1e-4)
    between = value(rows, "map_similarity", n=64, scope="between")
    assert between < value(rows, "map_similarity", n=64, scope="within") <= 1 + 1e-6


def test_means_over_heads_say_over_which(llama: LlamaForCausalLM, ids: torch.Tensor) -> None:
    own = layers(llama, ids)
    for found in likeness.compare(own, own, CHUNK, [8], names=("a", "b"), heads_at=8):
        heads = 8 if found.get("layer") is None else 4
        assert (found["over"] == "") if found.get("head") is not None else found["over"].startswith(f"{heads} heads ")


def test_mass_of_a_mechanism_on_its_own_chunk() -> None:
    found = np.tril(np.ones((1, N, N)))
    expected = np.mean([(t % CHUNK + 1) / (t + 1) for t in range(N)])
    assert likeness.of_mechanism(-found, CHUNK)[0]["value"] == pytest.approx(100 * expected)
