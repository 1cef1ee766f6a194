"""Small models of every mechanism and option, which several test modules ask the same things of."""

import pytest
import torch
from torch import Tensor

from bsbr import MECHANISMS, ModelConfig, TransformerLM

VOCAB = 61


RETRIEVALS: list[dict] = [
    {"mechanism": "bsbr", "retrieval": "none"},
    {"mechanism": "bsbr", "retrieval": "uniform", "compression_factor": 2, "local_chunks": 2},
    {"mechanism": "bsbr", "retrieval": "per_token", "compression_factor": 4},
    {"mechanism": "bsbr", "retrieval": "exact", "top_k": 2},
]
OPTIONS: list[dict] = [{"mechanism": name} for name in MECHANISMS] + [
    *RETRIEVALS,
    {"mechanism": "bsbr", "compression_factor": 2},
    {"mechanism": "bsbr", "compression_factor": 4, "local_chunks": 2},
    {"mechanism": "bsbr", "compression_factor": 8, "top_k": 2},
    {"mechanism": "bsbr", "local_chunks": 3, "top_k": 1},
    {"mechanism": "linear", "feature_map": "hedgehog"},
    {"mechanism": "deltanet", "beta": 0.5},
    {"mechanism": "hopfield", "num_steps": 3, "inverse_temperature": 2.0},
    {"mechanism": "gau", "expansion": 1, "key_dim": 6},
    {"mechanism": "moba", "read_chunks": 2},
    {"mechanism": "gated_deltanet", "beta": 0.5},
    {"mechanism": "linear", "short_conv": 4},
    {"mechanism": "bsbr", "retrieval": "per_token", "local_chunks": 2, "short_conv": 2},
    {"mechanism": "gau", "short_conv": 11},
]


every_mechanism = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))


def make(dtype: torch.dtype = torch.float64, chunk_size: int = 8, **options) -> TransformerLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCAB, hidden_dim=32, num_heads=2, num_layers=2, ff_dim=48, window_size=8)
    model = TransformerLM(ModelConfig(**{**sizes, "chunk_size": chunk_size, **options}))
    draw_kernels(model)
    return model.to(dtype).eval()


def draw_kernels(model: TransformerLM) -> None:
    """Kernels of short convolutions begin as the identity, which says nothing of the tokens before."""
    for name, parameter in model.named_parameters():
        if name.endswith("short_conv.kernel"):
            torch.nn.init.normal_(parameter, std=0.5)


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def padding_mask(lengths: list[int], side: str) -> Tensor:
    position = torch.arange(max(lengths))
    mask = position < torch.tensor(lengths)[:, None]
    return mask if side == "right" else mask.flip(1)
