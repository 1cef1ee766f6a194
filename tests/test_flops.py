"""The counter counts what the formulas say, for every mechanism, whatever n is to a chunk."""

import pytest
import torch

from bsbr import MECHANISMS, ModelConfig, TransformerLM
from bsbr.measure import flops
from bsbr.studies import operations

OPTIONS: list[dict] = [
    {"mechanism": "bsbr", "compression_factor": 4},
    {"mechanism": "bsbr", "local_chunks": 2},
    {"mechanism": "bsbr", "local_chunks": 3, "top_k": 2},
    {"mechanism": "bsbr", "top_k": 1, "compression_factor": 2},
    {"mechanism": "bsbr", "retrieval": "none", "local_chunks": 2},
    {"mechanism": "bsbr", "retrieval": "uniform", "compression_factor": 4},
    {"mechanism": "bsbr", "retrieval": "per_token"},
    {"mechanism": "bsbr", "retrieval": "per_token", "compression_factor": 4, "local_chunks": 2},
    {"mechanism": "bsbr", "retrieval": "exact", "top_k": 1},
    {"mechanism": "bsbr", "retrieval": "exact", "top_k": 3, "local_chunks": 2},
    {"mechanism": "linear", "feature_map": "dpfp"},
    {"mechanism": "linear", "feature_map": "hedgehog"},
    {"mechanism": "deltanet", "beta": 0.5},
    {"mechanism": "hopfield", "num_steps": 3},
    {"mechanism": "gau", "expansion": 1, "key_dim": 6},
    {"mechanism": "gated_deltanet", "beta": 0.5},
    {"mechanism": "moba", "read_chunks": 1},
    {"mechanism": "moba", "read_chunks": 2, "chunk_size": 20},
    {"mechanism": "moba", "read_chunks": 12, "chunk_size": 20},
    *({"mechanism": name, "short_conv": 4} for name in MECHANISMS),
    {"mechanism": ("bsbr", "gau", "bsbr", "standard"), "num_layers": 4},
]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("n", [1, 31, 64, 65, 128, 129, 300, 2049, 4133])
def test_counted_operations_are_those_of_the_formula(mechanism, n):
    config = ModelConfig(mechanism, vocab_size=10, hidden_dim=32, num_heads=2, ff_dim=48, chunk_size=64, window_size=64)
    model, ids = TransformerLM(config).eval(), torch.zeros(1, n, dtype=torch.long)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert flops.count(lambda: model.encode(ids)) == operations.expected(config, n).forward
            assert sum(flops.products(lambda: model.encode(ids)).values()) == operations.expected(config, n).forward


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("n", [1, 31, 64, 65, 128, 300, 2049, 4133])
def test_counted_operations_of_both_passes_are_those_of_the_formulas(mechanism, n):
    config = ModelConfig(mechanism, vocab_size=10, hidden_dim=32, num_heads=2, ff_dim=48, chunk_size=64, window_size=64)
    assert operations.count_passes(config, n) == operations.expected(config, n)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
@pytest.mark.parametrize("n", [1, 64, 65, 300, 1111])
def test_the_formulas_hold_for_every_option(options, n):
    sizes = dict(vocab_size=10, hidden_dim=32, num_heads=2, ff_dim=48, chunk_size=64)
    config = ModelConfig(**{**sizes, **options})
    assert operations.count_passes(config, n) == operations.expected(config, n)


@pytest.mark.parametrize("mechanism", [*MECHANISMS, ("linear", "gau", "linear")])
def test_one_layer_of_shapes_counts_as_three_of_numbers_do(mechanism):
    sizes = {"vocab_size": 10, "hidden_dim": 32, "num_layers": 3, "num_heads": 2, "ff_dim": 48}
    config = ModelConfig(mechanism, **sizes, chunk_size=64, window_size=64)
    model, ids = TransformerLM(config), torch.zeros(1, 300, dtype=torch.long)
    assert flops.count(lambda: model.encode(ids).sum().backward()) == sum(operations.count_passes(config, 300))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_products_alone_are_as_many_operations_as_they_were_recorded_from(mechanism):
    config = ModelConfig(mechanism, vocab_size=10, hidden_dim=32, num_heads=2, ff_dim=48, chunk_size=64, window_size=64)
    model, ids = TransformerLM(config).eval(), torch.zeros(1, 2048, dtype=torch.long)
    with torch.inference_mode():
        spent = flops.products(lambda: model.encode(ids))
    # A causal mask leaves part of a product; whole matrices stand for it.
    assert flops.count(flops.alone(spent)) == pytest.approx(sum(spent.values()), rel=0.01)
