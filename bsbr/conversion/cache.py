"""The cache of a converted model: transformers' own, and beside each layer's keys and values what retrieval needs."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from bsbr.conversion.blocks import BlockSums, block_sums
from bsbr.conversion.config import ConversionConfig
from bsbr.conversion.precision import wide
from bsbr.conversion.states import Fit, States, chunk_states


class RetrievalLayer(DynamicLayer):
    """Keys and values of one layer, the block sums that retrieval chooses by, and the states of far chunks.

    Block sums take (heads + kv_heads) × head_dim numbers (float32) for every `block_size` tokens, beside
    the 2 × kv_heads × head_dim numbers that each token takes anyway.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._forget()

    def _forget(self) -> None:
        self.setting: ConversionConfig | None = None
        self.fit: weakref.ref[Fit] | None = None
        self.sums: BlockSums | None = None
        self.states: States | None = None
        self.chunks_in_states: Int[Tensor, " batch"] | None = None

    def begin(self, config: ConversionConfig | None, fit: Fit | None) -> None:
        """Called before new tokens are added, with how the model reads this layer; None if it is not converted.

        Raises:
            ValueError: the tokens that the layer holds were read otherwise.
        """
        if self.get_seq_length() == 0:
            self._forget()
            self.setting, self.fit = config, None if fit is None else weakref.ref(fit)
        filled_by = None if self.fit is None else self.fit()
        if self.setting != config or filled_by is not fit:
            raise ValueError(
                f"past_key_values: expected a cache that this model has filled, got one filled with "
                f"{self.setting or 'full attention'}{' and a calibration of its own' if self.fit else ''}; this model "
                f"reads with {config or 'full attention'} here: read the text anew, or leave past_key_values out"
            )

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens. Raises ValueError if they are of more rows or fewer."""
        held = self.keys
        if held is not None and self.get_seq_length() and len(key_states) != len(held):
            raise ValueError(
                f"past_key_values: expected a cache of {len(key_states)} rows, as many as input_ids has, got one of "
                f"{len(held)}; read these texts anew, or choose rows with batch_select_indices or "
                f"batch_repeat_interleave"
            )
        return super().update(key_states, value_states, *args, **kwargs)

    def add(
        self,
        q: Tensor,
        k: Tensor,
        position: Int[Tensor, "batch new"] | None,
        real: Bool[Tensor, "batch new"] | None,
        config: ConversionConfig,
    ) -> BlockSums:
        """Add new tokens to the block sums. position None means that they are the first tokens, none padding."""
        if position is None and self.sums is None:
            self.sums = block_sums(q, k, config)
            return self.sums
        if position is None or real is None:
            raise ValueError("position and real are needed once the cache holds tokens")
        blocks = -(-self.get_seq_length() // config.block)
        old = self.sums or BlockSums(*(wide(x[:, :, :0]) for x in (q, k)))
        grown = [F.pad(x, (0, 0, 0, blocks - x.shape[2])) for x in old]
        block = (position.clamp(min=0) // config.block)[:, None, :, None]
        for total, x in zip(grown, (q, k), strict=True):
            x = wide(x).masked_fill(~real[:, None, :, None], 0)
            total.scatter_add_(2, block.expand_as(x), x)
        self.sums = BlockSums(*grown)
        return self.sums

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
                padding = torch.arange(k.shape[2], device=k.device) >= lengths[:, None]
                k, v = (x.masked_fill(padding[:, None, :, None], 0) for x in (k, v))
            keep = 0 if self.chunks_in_states is None else int(self.chunks_in_states.min())
            states = chunk_states(k, v, config, scaling, fit, first=keep)
            if self.states is not None and keep:
                states = self.states.map(lambda x: x[:, :, :keep]).then(states)
            self.states, self.chunks_in_states = states, complete
        return self.states

    def _select(self, rows: Tensor) -> None:
        if self.sums is not None:
            self.sums = BlockSums(*(x[rows.to(x.device)] for x in self.sums))
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


def retrieval_layer(cache: Any, index: int, config: ConversionConfig | None, fit: Fit | None) -> RetrievalLayer | None:
    """The layer of a cache that this model may use, put in place of a plain one that is still empty.

    None if the cache is of another kind than DynamicCache and the layer needs no more than keys and values.

    Raises:
        ValueError: the layer needs more and the cache is of another kind, or another model has filled it.
    """
    while len(cache.layers) <= index:
        cache.layers.append(RetrievalLayer())
    layer = cache.layers[index]
    if type(layer) is DynamicLayer and layer.get_seq_length() == 0:
        layer = cache.layers[index] = RetrievalLayer()
    if not isinstance(layer, RetrievalLayer):
        if type(layer) is not DynamicLayer and (config is None or config.retrieval == "none"):
            return None
        raise ValueError(
            f"past_key_values: expected an empty DynamicCache or one that a converted model has filled, got "
            f"{type(layer).__name__} of {layer.get_seq_length()} tokens; leave past_key_values out"
        )
    layer.begin(config, fit)
    return layer
