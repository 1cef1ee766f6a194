"""The cache of a converted model: transformers' own, and beside each layer's keys and values what retrieval needs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from bsbr.convert.attention import Fit, Meta, States, block_sums, chunk_states, wide
from bsbr.convert.config import ConversionConfig


class RetrievalLayer(DynamicLayer):
    """Keys and values of one layer, the block sums that retrieval chooses by, and the states of far chunks.

    Block sums take (heads + kv_heads) × head_dim numbers (float32) for every `block_size` tokens, beside
    the 2 × kv_heads × head_dim numbers that each token takes anyway.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._forget()

    def _forget(self) -> None:
        self.meta: Meta | None = None
        self.states: States | None = None
        self.chunks_in_states: Int[Tensor, " batch"] | None = None

    def add(
        self,
        q: Tensor,
        k: Tensor,
        position: Int[Tensor, "batch new"] | None,
        real: Bool[Tensor, "batch new"] | None,
        config: ConversionConfig,
    ) -> Meta:
        """Add new tokens to the block sums. position None means that they are the first tokens, none padding."""
        if position is None and self.meta is None:
            self.meta = block_sums(q, k, config)
            return self.meta
        if position is None or real is None:
            raise ValueError("position and real are needed once the cache holds tokens")
        blocks = -(-self.get_seq_length() // config.block)
        old = self.meta or Meta(*(wide(x[:, :, :0]) for x in (q, k)))
        grown = [F.pad(x, (0, 0, 0, blocks - x.shape[2])) for x in old]
        block = (position.clamp(min=0) // config.block)[:, None, :, None]
        for total, x in zip(grown, (q, k), strict=True):
            x = wide(x) * real[:, None, :, None]
            total.scatter_add_(2, block.expand_as(x), x)
        self.meta = Meta(*grown)
        return self.meta

    def far_states(
        self,
        k: Tensor,
        v: Tensor,
        order: Tensor | None,
        lengths: Tensor,
        config: ConversionConfig,
        scaling: float,
        fit: Fit | None,
    ) -> States:
        """States of all chunks that any row reads through them; those that a row has completed since are added."""
        complete = lengths // config.chunk_size
        chunk = (lengths - 1).clamp(min=0) // config.chunk_size
        needed = (chunk - config.local_chunks + 1).clamp(min=0)
        if self.states is None or self.chunks_in_states is None or bool((needed > self.chunks_in_states).any()):
            if order is not None:
                k, v = (x.gather(2, order[:, None, :, None].expand_as(x)) for x in (k, v))
            keep = 0 if self.chunks_in_states is None else int(self.chunks_in_states.min())
            states = chunk_states(k, v, config, scaling, fit, first=keep)
            if self.states is not None and keep:
                states = self.states.map(lambda x: x[:, :, :keep]).then(states)
            self.states, self.chunks_in_states = states, complete
        return self.states

    def _select(self, rows: Tensor) -> None:
        if self.meta is not None:
            self.meta = Meta(*(x[rows.to(x.device)] for x in self.meta))
        if self.states is not None and self.chunks_in_states is not None:
            self.states = self.states.map(lambda x: x[rows.to(x.device)])
            self.chunks_in_states = self.chunks_in_states[rows.to(self.chunks_in_states.device)]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.keys is not None:
            self._select(torch.arange(self.keys.shape[0]).repeat_interleave(repeats))
        super().batch_repeat_interleave(repeats)

    def reset(self) -> None:
        super().reset()
        self._forget()

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0:
            raise ValueError(
                "a converted model's cache cannot take tokens back: its block sums do not say what each token added; "
                "decode without an assistant model or prompt lookup"
            )


def retrieval_layer(cache: Any, index: int) -> RetrievalLayer:
    """The layer of a DynamicCache that this model may use, put in place of a plain one that is still empty.

    Raises:
        ValueError: the cache is of another kind, or another model has filled it.
    """
    while len(cache.layers) <= index:
        cache.layers.append(RetrievalLayer())
    layer = cache.layers[index]
    if type(layer) is DynamicLayer and layer.get_seq_length() == 0:
        layer = cache.layers[index] = RetrievalLayer()
    if not isinstance(layer, RetrievalLayer):
        raise ValueError(
            f"past_key_values: expected an empty DynamicCache or one that a converted model has filled, got "
            f"{type(layer).__name__} of {layer.get_seq_length()} tokens; leave past_key_values out"
        )
    return layer
