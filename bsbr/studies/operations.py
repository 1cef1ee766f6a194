"""The operations of a model's passes: as the formula of its mechanism says, and as the counter counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bsbr.config import ModelConfig
from bsbr.measure import flops
from bsbr.measure.flops import Passes
from bsbr.model import TransformerLM


def count_passes(config: ModelConfig, n: int) -> Passes:
    """Operations of `TransformerLM.encode` on one row of n tokens, and of the gradients of the sum of its outputs.

    All products are the layers', and layers of one mechanism are alike: one is counted.
    """

    def count(layer: ModelConfig) -> Passes:
        def encode() -> Tensor:
            return TransformerLM(layer)._encode(torch.zeros(1, n, dtype=torch.int64))  # `encode` looks at ids' values

        return flops.count_passes(encode)

    return _of_all_layers(config, count)


def expected(config: ModelConfig, n: int) -> Passes:
    """What `count_passes` is checked against: the same, from the sizes alone, for every option."""
    feeding = 4 * n * config.hidden_dim * config.ff_dim

    def add_up(layer: ModelConfig) -> Passes:
        with torch.device("meta"):
            mixing = TransformerLM(layer).blocks[0].mixer.operations(n)
        return Passes(mixing.forward + feeding, mixing.backward + 2 * feeding)

    return _of_all_layers(config, add_up)


def _of_all_layers(config: ModelConfig, of_one: Callable[[ModelConfig], Passes]) -> Passes:
    """The sum over all layers of what `of_one` says of a model with one layer of the mechanism."""
    counts = Counter(config.mechanisms)
    found = {name: of_one(replace(config, mechanism=name, num_layers=1)) for name in counts}
    return Passes(*(sum(counts[name] * found[name][i] for name in counts) for i in range(2)))
