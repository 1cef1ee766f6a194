"""The counter counts what the formulas say, for every mechanism, whatever n is to a chunk."""

import pytest
import torch

from bsbr import MECHANISMS, ModelConfig, TransformerLM
from bsbr.measure import flops


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("n", [1, 31, 64, 65, 128, 129, 300, 2049, 4133])
def test_counted_operations_are_those_of_the_formula(mechanism, n):
    config = ModelConfig(mechanism, vocab_size=10, hidden_dim=32, num_heads=2, ff_dim=48, chunk_size=64, window_size=64)
    model, ids = TransformerLM(config).eval(), torch.zeros(1, n, dtype=torch.long)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert flops.count(lambda: model.encode(ids)) == flops.expected(config, n)
            assert sum(flops.products(lambda: model.encode(ids)).values()) == flops.expected(config, n)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("n", [1, 31, 64, 65, 128, 300, 2049, 4133])
def test_counted_operations_of_both_passes_are_those_of_the_formulas(mechanism, n):
    config = ModelConfig(mechanism, vocab_size=10, hidden_dim=32, num_heads=2, ff_dim=48, chunk_size=64, window_size=64)
    counted = flops.count_passes(config, n)
    assert counted == (flops.expected(config, n), flops.expected_backward(config, n))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_one_layer_of_shapes_counts_as_three_of_numbers_do(mechanism):
    sizes = {"vocab_size": 10, "hidden_dim": 32, "num_layers": 3, "num_heads": 2, "ff_dim": 48}
    config = ModelConfig(mechanism, **sizes, chunk_size=64, window_size=64)
    model, ids = TransformerLM(config), torch.zeros(1, 300, dtype=torch.long)
    assert flops.count(lambda: model.encode(ids).sum().backward()) == sum(flops.count_passes(config, 300))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_products_alone_are_as_many_operations_as_they_were_recorded_from(mechanism):
    config = ModelConfig(mechanism, vocab_size=10, hidden_dim=32, num_heads=2, ff_dim=48, chunk_size=64, window_size=64)
    model, ids = TransformerLM(config).eval(), torch.zeros(1, 2048, dtype=torch.long)
    with torch.inference_mode():
        spent = flops.products(lambda: model.encode(ids))
    # A causal mask leaves part of a product; whole matrices stand for it.
    assert flops.count(flops.alone(spent)) == pytest.approx(sum(spent.values()), rel=0.01)
