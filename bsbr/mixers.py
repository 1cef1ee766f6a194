"""Sequence mixers: the projections around a mechanism, and its decoding state.

A mixer maps (batch, n, hidden_dim) to the same shape in three ways that agree: `forward` for a whole sequence,
`prefill` for a whole sequence and the state behind it, `step` for one more token. `MECHANISMS` names them. Models look
there and know none of them otherwise: a new mechanism is a module in `bsbr.attention`, and a class and a line here.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bsbr.attention import bsbr, deltanet, gau, hopfield, linear, sliding_window, standard

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

    A subclass names its module of `bsbr.attention` and the `options` that its functions take by keyword. One that needs
    more than q, k and v says so in `project`.
    """

    attention: ModuleType

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = self.rotary_dim = config.hidden_dim // config.num_heads
        self.in_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim, bias=False)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)
        self._options: dict[str, Any] = {}

    @property
    def options(self) -> dict[str, Any]:
        """What the functions of `attention` take by keyword."""
        return self._options

    def forward(self, x: Float[Tensor, "batch n hidden_dim"], rotary: Rotary) -> Float[Tensor, "batch n hidden_dim"]:
        """Mix a whole sequence."""
        return self.merge(x, self.attention.attend(*self.project(x, rotary), **self.options))

    def prefill(
        self, x: Float[Tensor, "batch n hidden_dim"], rotary: Rotary, lengths: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch n hidden_dim"], Any]:
        """Mix a whole sequence; also the state after the first `lengths` tokens of each row."""
        out, state = self.attention.prefill(*self.project(x, rotary), lengths=lengths, **self.options)
        return self.merge(x, out), state

    def step(
        self, x: Float[Tensor, "batch hidden_dim"], rotary: Rotary, state: Any
    ) -> tuple[Float[Tensor, "batch hidden_dim"], Any]:
        """Mix one more token. The tensors of `state` may be overwritten: go on with the state returned."""
        x = x[:, None]
        token = (part[:, :, 0] for part in self.project(x, rotary))
        out, state = self.attention.step(*token, state, **self.options)
        return self.merge(x, out[:, :, None])[:, 0], state

    def project(self, x: Float[Tensor, "batch n hidden_dim"], rotary: Rotary) -> tuple[Tensor, ...]:
        """What the mechanism reads, (batch, heads, n, …) each: q, k and v, and more where a subclass adds it."""
        heads = self.in_proj(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotary.rotate(heads[:2]).unbind(0)
        return q, k, heads[2]

    def merge(
        self, x: Float[Tensor, "batch n hidden_dim"], out: Float[Tensor, "batch heads n dim"]
    ) -> Float[Tensor, "batch n hidden_dim"]:
        """The heads' outputs as one vector a token, projected."""
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Standard(Mixer):
    """Softmax attention to every earlier token."""

    attention = standard


class BSBRState(NamedTuple):
    """The mechanism's state, and the sum of the open chunk's tokens, from which its meta key will be projected."""

    attention: bsbr.State
    x_sum: Float[Tensor, "batch hidden_dim"]


class BSBR(Mixer):
    """Softmax attention inside chunks, retrieval of compressed states between them.

    A chunk's meta key is projected from the mean of its tokens, the meta query of the next chunk from its last token.
    With `compression_factor` f, a state's values have head_dim / f dimensions, by two learned maps a head.
    """

    attention = bsbr

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
    def options(self) -> dict[str, Any]:
        return dict(
            chunk_size=self.chunk_size,
            local_chunks=self.local_chunks,
            top_k=self.top_k,
            compress=self.compress,
            expand=self.expand,
        )

    def project(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, ...]:
        """q, k, v, and the meta query and meta key of every complete chunk, (batch, heads, chunks, head_dim)."""
        complete = x.shape[1] // self.chunk_size
        chunks = x[:, : complete * self.chunk_size].unflatten(1, (complete, self.chunk_size))
        meta_q, meta_k = self.meta_q_proj(chunks[:, :, -1]), self.meta_k_proj(chunks.mean(2))
        return *super().project(x, rotary), self._heads(meta_q), self._heads(meta_k)

    def prefill(self, x: Tensor, rotary: Rotary, lengths: Tensor) -> tuple[Tensor, BSBRState]:
        out, state = super().prefill(x, rotary, lengths)
        position, end = torch.arange(x.shape[1], device=x.device), lengths[:, None]
        opened = (position >= end // self.chunk_size * self.chunk_size) & (position < end)
        return out, BSBRState(state, (x * opened[..., None]).sum(1))

    def step(self, x: Tensor, rotary: Rotary, state: BSBRState) -> tuple[Tensor, BSBRState]:
        q, k, v = (part[:, :, 0] for part in super().project(x[:, None], rotary))
        out, attention = bsbr.step(q, k, v, state.attention, self.chunk_size, self.local_chunks, self.expand)
        x_sum = state.x_sum.add_(x)
        rows = bsbr.ended(attention, self.chunk_size)
        if len(rows):
            meta_q = self._heads(self.meta_q_proj(x[rows]))
            meta_k = self._heads(self.meta_k_proj(x_sum[rows] / self.chunk_size))
            sizes = self.chunk_size, self.local_chunks, self.top_k
            attention = bsbr.close(rows, meta_q, meta_k, attention, *sizes, self.compress)
            x_sum[rows] = 0
        return self.merge(x[:, None], out[:, :, None])[:, 0], BSBRState(attention, x_sum)

    def _heads(self, x: Float[Tensor, "batch *rest hidden_dim"]) -> Float[Tensor, "batch heads *rest head_dim"]:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).movedim(-2, 1)


class Linear(Mixer):
    """Linear attention by a feature map."""

    attention = linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        linear.feature_map_named(config.feature_map)  # an unknown one is refused here, not when first used
        self._options = {"feature_map": config.feature_map}


class DeltaNet(Mixer):
    """The delta rule. How far a head corrects its memory is learned, β = sigmoid(w · x) for each token, or fixed."""

    attention = deltanet

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.beta = config.beta
        if config.beta is None:
            self.beta_proj = nn.Linear(config.hidden_dim, config.num_heads, bias=False)

    def project(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, ...]:
        """q, k, v, and β of each token, (batch, heads, n)."""
        q, k, v = super().project(x, rotary)
        if self.beta is None:
            return q, k, v, self.beta_proj(x).sigmoid().transpose(1, 2)
        return q, k, v, torch.full_like(q[..., 0], self.beta)


class SlidingWindow(Mixer):
    """Softmax attention to the last `window_size` tokens."""

    attention = sliding_window

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._options = {"window_size": config.window_size}


class Hopfield(Mixer):
    """Retrieval from a modern Hopfield network whose stored patterns are the keys so far."""

    attention = hopfield

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._options = {"num_steps": config.num_steps, "inverse_temperature": config.inverse_temperature}


class GAU(Mixer):
    """The gated attention unit with mixed chunk attention: out_proj(SiLU(gate_proj(x)) ⊙ attention).

    One head, whatever `num_heads`. Values have `expansion` · hidden_dim dimensions; the four queries and keys are
    scales and offsets of one projection to `key_dim` dimensions. The paper draws the scales near 0, where relu² has
    next to no gradient; they begin at 1 here.
    """

    attention = gau

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if config.key_dim % 2:
            raise ValueError(f"key_dim must be even, so that rotary positions turn pairs, but is {config.key_dim}")
        self.value_dim, self.rotary_dim = config.expansion * config.hidden_dim, config.key_dim
        self.in_proj = nn.Linear(config.hidden_dim, self.value_dim + config.key_dim, bias=False)
        self.gate_proj = nn.Linear(config.hidden_dim, self.value_dim, bias=False)
        self.out_proj = nn.Linear(self.value_dim, config.hidden_dim, bias=False)
        self.scale = nn.Parameter(torch.ones(4, config.key_dim))
        self.offset = nn.Parameter(torch.zeros(4, config.key_dim))
        self._options = {"chunk_size": config.chunk_size}

    def project(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, ...]:
        """q, k, q_lin, k_lin, each (batch, 1, n, key_dim), and v, (batch, 1, n, value_dim)."""
        v, shared = F.silu(self.in_proj(x))[:, None].split([self.value_dim, self.rotary_dim], dim=-1)
        scale, offset = (y[:, None, None, None] for y in (self.scale, self.offset))
        return *rotary.rotate(torch.addcmul(offset, shared, scale)).unbind(0), v

    def merge(self, x: Tensor, out: Tensor) -> Tensor:
        """Gate, then project."""
        return self.out_proj(F.silu(self.gate_proj(x)) * out[:, 0])


MECHANISMS: dict[str, type[Mixer]] = {
    "standard": Standard,
    "bsbr": BSBR,
    "linear": Linear,
    "deltanet": DeltaNet,
    "sliding_window": SlidingWindow,
    "hopfield": Hopfield,
    "gau": GAU,
}
