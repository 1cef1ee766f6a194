"""How much memory the cache of a converted model takes."""

from __future__ import annotations

from typing import Any

from bsbr.conversion.config import ConversionConfig
from bsbr.conversion.converter import attention_modules, head_sizes

WIDE = 4  # bytes of a number in block sums and states, which are kept in float32


def cache_bytes(model: Any, n: int, config: ConversionConfig | None) -> int:
    """Bytes that decoding keeps for one text of n tokens, in all layers.

    Args:
        model: converted, or the original that is to be.
        n: tokens in the cache, n ≥ 1.
        config: of the conversion; None for the original model's cache.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48)
        >>> depth = dict(num_hidden_layers=2, num_attention_heads=4)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **depth)).eval()
        >>> from bsbr import ConversionConfig
        >>> from bsbr.conversion.memory import cache_bytes
        >>> cache_bytes(model, n=4096, config=None)  # 2 layers, keys and values of 32 numbers, 4 bytes each
        2097152
        >>> cache_bytes(model, n=4096, config=ConversionConfig()) - cache_bytes(model, n=4096, config=None)
        65536
    """
    modules = attention_modules(model)
    converted = () if config is None else config.layers_of(len(modules))
    heads, kv_heads, dim = head_sizes(model)
    total = len(modules) * 2 * n * kv_heads * dim * model.dtype.itemsize
    if config is None:
        return total
    for layer in converted:
        fitted = getattr(modules[layer], "bsbr_fit", None) is not None
        total += WIDE * _kept(config, n, heads, kv_heads, dim, fitted)
    return total


def _kept(config: ConversionConfig, n: int, heads: int, kv_heads: int, dim: int, fitted: bool) -> int:
    """Numbers that one layer keeps beside keys and values: block sums, and states of whole chunks."""
    numbers = 0
    if config.retrieves_blocks:
        numbers += -(-n // config.block) * (heads + kv_heads) * dim
    if config.reads_states and n > config.window:
        rank = config.rank(dim)
        state = 1 + 2 * dim + rank * rank + rank * dim + (rank * dim if rank < dim else 0)
        numbers += n // config.chunk_size * (heads if fitted else kv_heads) * state
    return numbers
