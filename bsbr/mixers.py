"""Sequence mixers: the projections around a mechanism, and its decoding state.

A mixer maps (batch, n, hidden_dim) to the same shape in three ways that agree: `forward` for a whole sequence,
`prefill` for a whole sequence and the state behind it, `step` for one more token. `MECHANISMS` names them. Models look
there and know none of them otherwise: a new mechanism is a module in `bsbr.attention`, and a class and a line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bsbr.attention import bsbr, standard

if TYPE_CHECKING:
    from bsbr.model import ModelConfig


class Rotary(NamedTuple):
    """Cosines and sines of the rotary position embedding, ready to broadcast over heads."""

    cos: Float[Tensor, "batch_or_1 1 n half_dim"]
    sin: Float[Tensor, "batch_or_1 1 n half_dim"]

    @classmethod
    def at(cls, positions: Int[Tensor, "batch_or_1 n"], head_dim: int, dtype: torch.dtype) -> Rotary:
        """The rotation at each position, θ_i = 10000^(−2i / head_dim) (Su et al. 2021, RoFormer, equation 15)."""
        index = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64)
        angles = positions[:, None, :, None] * 10_000.0 ** (-index / head_dim)
        return cls(angles.cos().to(dtype), angles.sin().to(dtype))

    def rotate(self, x: Float[Tensor, "batch heads n head_dim"]) -> Float[Tensor, "batch heads n head_dim"]:
        """Turn the pairs (i, i + head_dim/2) of each vector by their position's angles."""
        first, second = x.chunk(2, dim=-1)
        turned = (
            torch.addcmul(first * self.cos, second, self.sin, value=-1),
            torch.addcmul(second * self.cos, first, self.sin),
        )
        return torch.cat(turned, dim=-1)


class Mixer(nn.Module):
    """Query, key and value projections, rotary positions, and an output projection around a mechanism.

    Subclasses say what happens to q, k and v, each (batch, heads, n, head_dim): `attend`, `attend_prefill` and, with
    n = 1, `attend_step`. They get `x`, the mixer's input, for what they project beyond q, k and v.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.hidden_dim // config.num_heads
        self.in_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim, bias=False)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)

    def forward(self, x: Float[Tensor, "batch n hidden_dim"], rotary: Rotary) -> Float[Tensor, "batch n hidden_dim"]:
        """Mix a whole sequence."""
        return self._merge(self.attend(x, *self._project(x, rotary)))

    def prefill(
        self, x: Float[Tensor, "batch n hidden_dim"], rotary: Rotary, lengths: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch n hidden_dim"], Any]:
        """Mix a whole sequence; also the state after the first `lengths` tokens of each row."""
        out, state = self.attend_prefill(x, *self._project(x, rotary), lengths)
        return self._merge(out), state

    def step(
        self, x: Float[Tensor, "batch hidden_dim"], rotary: Rotary, state: Any
    ) -> tuple[Float[Tensor, "batch hidden_dim"], Any]:
        """Mix one more token. The tensors of `state` may be overwritten: go on with the state returned."""
        q, k, v = (part[:, :, 0] for part in self._project(x[:, None], rotary))
        out, state = self.attend_step(x, q, k, v, state)
        return self.out_proj(out.flatten(1)), state

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def attend_prefill(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def attend_step(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def _project(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.in_proj(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return rotary.rotate(q), rotary.rotate(k), v

    def _merge(self, out: Float[Tensor, "batch heads n head_dim"]) -> Float[Tensor, "batch n hidden_dim"]:
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Float[Tensor, "batch *rest hidden_dim"]) -> Float[Tensor, "batch heads *rest head_dim"]:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).movedim(-2, 1)


class Standard(Mixer):
    """Softmax attention to every earlier token."""

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return standard.attend(q, k, v)

    def attend_prefill(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        return standard.prefill(q, k, v, lengths)

    def attend_step(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: standard.State) -> tuple[Tensor, Any]:
        return standard.step(q, k, v, state)


class BSBR(Mixer):
    """Softmax attention inside chunks, retrieval of compressed states between them.

    A chunk's meta key is projected from the mean of its tokens, the meta query of the next chunk from its last token.
    With `compression_factor` f, a state's values have head_dim / f dimensions, by two learned maps a head.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.meta_q_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)
        self.meta_k_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)
        self.compress = self.expand = None
        if config.compression_factor is not None:
            if self.head_dim % config.compression_factor:
                raise ValueError(
                    f"compression_factor must divide head_dim = {self.head_dim}, but is {config.compression_factor}; "
                    "choose a divisor, or None to keep whole states"
                )
            state_dim = self.head_dim // config.compression_factor
            self.compress = nn.Parameter(torch.randn(self.num_heads, self.head_dim, state_dim) / self.head_dim**0.5)
            self.expand = nn.Parameter(torch.randn(self.num_heads, state_dim, self.head_dim) / state_dim**0.5)
        self.chunk_size, self.local_chunks, self.top_k = config.chunk_size, config.local_chunks, config.top_k

    @property
    def _options(self) -> dict[str, Any]:
        return dict(
            chunk_size=self.chunk_size,
            local_chunks=self.local_chunks,
            top_k=self.top_k,
            compress=self.compress,
            expand=self.expand,
        )

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bsbr.attend(q, k, v, *self._meta(x), **self._options)

    def attend_prefill(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        position = torch.arange(x.shape[1], device=x.device)
        open_chunk = (position >= lengths[:, None] // self.chunk_size * self.chunk_size) & (position < lengths[:, None])
        open_sum = (x * open_chunk[..., None]).sum(1)
        open_meta_k = self._heads(self.meta_k_proj(open_sum))
        return bsbr.prefill(q, k, v, *self._meta(x), open_meta_k, lengths=lengths, **self._options)

    def attend_step(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: bsbr.State) -> tuple[Tensor, Any]:
        meta_q, meta_k = self._heads(self.meta_q_proj(x)), self._heads(self.meta_k_proj(x))
        return bsbr.step(q, k, v, meta_q, meta_k, state, **self._options)

    def _meta(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The meta query and meta key of every complete chunk, (batch, heads, chunks, head_dim) each."""
        complete = x.shape[1] // self.chunk_size
        chunks = x[:, : complete * self.chunk_size].unflatten(1, (complete, self.chunk_size))
        return self._heads(self.meta_q_proj(chunks[:, :, -1])), self._heads(self.meta_k_proj(chunks.mean(2)))


MECHANISMS: dict[str, type[Mixer]] = {
    "standard": Standard,
    "bsbr": BSBR,
}
