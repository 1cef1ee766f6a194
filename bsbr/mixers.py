"""Sequence mixers: the projections around a mechanism, and its decoding state.

A mixer maps (batch, n, hidden_dim) to the same shape in three ways that agree: `forward` for a whole sequence,
`prefill` for a whole sequence and the state behind it, `step` for one more token. Each class names its mechanism, a
record of `bsbr.mechanisms`; models call `make` and know none of them otherwise.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bsbr.attention import bsbr, deltanet, gated_deltanet, gau, hopfield, linear, moba, sliding_window, standard
from bsbr.attention._shared import Operations, accumulate_in
from bsbr.config import ModelConfig
from bsbr.mechanisms import MECHANISMS
from bsbr.rotary import Rotary
from bsbr.short_conv import ShortConv, ShortConvState

MIXERS: dict[str, type[Mixer]] = {}


def make(config: ModelConfig, layer: int = 0) -> Mixer:
    """The mixer of a layer, by default the first, with random weights.

    Args:
        config: sizes, mechanism and its options.
        layer: which layer's, where layers differ.

    Raises:
        ValueError: an option of the mechanism does not fit: retrieval, compression_factor, feature_map, key_dim.

    Examples:
        >>> from bsbr import ModelConfig, mixers
        >>> mixer = mixers.make(ModelConfig("deltanet", hidden_dim=32, num_heads=2))
        >>> type(mixer).__name__
        'DeltaNet'
    """
    return MIXERS[config.mechanisms[layer]](config)


class Mixer(nn.Module):
    """Query, key and value projections, rotary positions, and an output projection around a mechanism.

    A subclass names its mechanism, its module of `bsbr.attention` and the `options` that its functions take by keyword.
    One that needs more than q, k and v says so in `project`. With `short_conv`, what `in_proj` gives is convolved
    before anything else is done with it, and the decoding state is a `ShortConvState` around the mechanism's.

    Args:
        config: sizes and the options of the mechanism.

    Examples:
        >>> import torch
        >>> from bsbr import ModelConfig, mixers
        >>> mixer = mixers.make(ModelConfig("sliding_window", hidden_dim=32, num_heads=2, window_size=8))
        >>> x = torch.randn(1, 20, 32)
        >>> rotary = mixers.Rotary.at(torch.arange(20)[None], mixer.rotary_dim, torch.float32)
        >>> mixer(x, rotary).shape  # forward
        torch.Size([1, 20, 32])
        >>> out, state = mixer.prefill(x, rotary, lengths=torch.tensor([20]))
        >>> isinstance(state, mixer.state_type)
        True
        >>> after = mixers.Rotary.at(torch.tensor([[20]]), mixer.rotary_dim, torch.float32)
        >>> mixer.step(torch.randn(1, 32), after, state)[0].shape
        torch.Size([1, 32])

        What these are made of, and the options that the mechanism's functions take:

        >>> q, k, v = mixer.project(x, rotary)
        >>> q.shape
        torch.Size([1, 2, 20, 16])
        >>> mixer.merge(x, v).shape
        torch.Size([1, 20, 32])
        >>> mixer.options
        {'window_size': 8}
        >>> mixer.operations(n=40).forward > mixer.operations(n=20).forward
        True
    """

    attention: ModuleType

    def __init_subclass__(cls, mechanism: str) -> None:
        if mechanism not in MECHANISMS or mechanism in MIXERS:
            raise ValueError(f"{cls.__name__}: mechanism must have one record in bsbr.mechanisms, but is {mechanism!r}")
        MIXERS[mechanism] = cls

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = self.rotary_dim = config.hidden_dim // config.num_heads
        self.in_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim, bias=False)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)
        self.short_conv = _short_conv(config, self.in_proj)
        self._options: dict[str, Any] = {}

    @property
    def options(self) -> dict[str, Any]:
        """What the functions of `attention` take by keyword."""
        return self._options

    @property
    def state_type(self) -> type:
        """The class of its mechanism's decoding state."""
        return self.attention.State

    def forward(self, x: Float[Tensor, "batch n hidden_dim"], rotary: Rotary) -> Float[Tensor, "batch n hidden_dim"]:
        """Mix a whole sequence."""
        return self.merge(x, self.attention.attend(*self.project(x, rotary), **self.options))

    def prefill(
        self, x: Float[Tensor, "batch n hidden_dim"], rotary: Rotary, lengths: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch n hidden_dim"], Any]:
        """Mix a whole sequence; also the state after the first `lengths` tokens of each row."""
        if self.short_conv is None:
            return self._prefill(x, rotary, lengths, None)
        inputs = self.in_proj(x)
        out, state = self._prefill(x, rotary, lengths, inputs)
        return out, ShortConvState(state, self.short_conv.last(inputs, lengths))

    def step(
        self, x: Float[Tensor, "batch hidden_dim"], rotary: Rotary, state: Any
    ) -> tuple[Float[Tensor, "batch hidden_dim"], Any]:
        """Mix one more token. The tensors of `state` may be overwritten: go on with the state returned."""
        if self.short_conv is None:
            return self._step(x, rotary, state, None)
        inputs = torch.cat([state.inputs, self.in_proj(x)[:, None]], dim=1)  # (batch, width, dims)
        out, mechanism = self._step(x, rotary, state.mechanism, inputs)
        return out, ShortConvState(mechanism, inputs[:, 1:])

    def project(
        self,
        x: Float[Tensor, "batch n hidden_dim"],
        rotary: Rotary,
        inputs: Float[Tensor, "batch before_and_n dims"] | None = None,
    ) -> tuple[Tensor, ...]:
        """What the mechanism reads, (batch, heads, n, …) each: q, k and v, and more where a subclass adds it.

        Args:
            inputs: what `in_proj` gives for x, where that is known already; with `short_conv`, behind what it gave for
                tokens before x, without which x begins the text.
        """
        heads = self._inputs(x, inputs).unflatten(-1, (3, self.num_heads, -1))  # (batch, n, 3, heads, head_dim)
        heads = heads.permute(2, 0, 3, 1, 4)  # (3, batch, heads, n, head_dim)
        q, k = rotary.rotate(heads[:2]).unbind(0)
        return q, k, heads[2]

    def merge(
        self, x: Float[Tensor, "batch n hidden_dim"], out: Float[Tensor, "batch heads n dim"]
    ) -> Float[Tensor, "batch n hidden_dim"]:
        """The heads' outputs as one vector per token, projected."""
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (batch, n, heads · dim) before the projection

    def operations(self, n: int) -> Operations:
        """Floating-point operations of `forward` on one row of n tokens, and of its gradients, from the sizes alone."""
        attention = self.attention.operations(n, self.num_heads, self.head_dim, **self.options)
        return attention + _projecting(n, self.in_proj, self.out_proj)

    def _prefill(self, x: Tensor, rotary: Rotary, lengths: Tensor, inputs: Tensor | None) -> tuple[Tensor, Any]:
        out, state = self.attention.prefill(*self.project(x, rotary, inputs), lengths=lengths, **self.options)
        return self.merge(x, out), state

    def _step(self, x: Tensor, rotary: Rotary, state: Any, inputs: Tensor | None) -> tuple[Tensor, Any]:
        x = x[:, None]
        token = (part[:, :, 0] for part in self.project(x, rotary, inputs))
        out, state = self.attention.step(*token, state, **self.options)
        return self.merge(x, out[:, :, None])[:, 0], state

    def _inputs(self, x: Tensor, inputs: Tensor | None) -> Float[Tensor, "batch n dims"]:
        """What `in_proj` gives for x, convolved if asked."""
        inputs = self.in_proj(x) if inputs is None else inputs
        return inputs if self.short_conv is None else self.short_conv(inputs, x.shape[1])


def _short_conv(config: ModelConfig, in_proj: nn.Linear) -> ShortConv | None:
    return None if config.short_conv is None else ShortConv(in_proj.out_features, config.short_conv)


def _projecting(rows: int, *layers: nn.Linear) -> Operations:
    return Operations.of_products(sum(2 * rows * layer.weight.numel() for layer in layers))


class Standard(Mixer, mechanism="standard"):
    """Softmax attention to every earlier token."""

    attention = standard


class BSBRState(NamedTuple):
    """The mechanism's state, and the sum of the open chunk's tokens, from which its meta key will be projected.

    The sum is in float32 or wider: half precision would round it at every token. Without meta keys it has no columns.
    """

    attention: bsbr.AnyState
    x_sum: Float[Tensor, "batch hidden_dim_or_0"]


class BSBR(Mixer, mechanism="bsbr"):
    """Softmax attention inside chunks, retrieval of compressed states between them.

    A chunk's meta key is projected from the mean of its tokens, the meta query of the next chunk from its last token,
    or with retrieval `"per_token"` each token's from itself; a short convolution reads none of them. With
    `compression_factor` f, a state's values have head_dim / f dimensions, by two learned maps a head.
    """

    attention = bsbr

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        bsbr.check_retrieval(config.retrieval, config.top_k, config.compression_factor)
        self.retrieval = config.retrieval
        self.meta_q_proj = self.meta_k_proj = None
        if config.retrieval in bsbr.CHOOSING:
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
            retrieval=self.retrieval,
        )

    @property
    def state_type(self) -> type:
        return BSBRState

    def project(self, x: Tensor, rotary: Rotary, inputs: Tensor | None = None) -> tuple[Tensor, ...]:
        """q, k, v, and the meta query and meta key of every complete chunk, (batch, heads, chunks, head_dim).

        With retrieval `"per_token"` there is a meta query of every token; where nothing is chosen, both are zeros.
        """
        complete = x.shape[1] // self.chunk_size
        if self.meta_q_proj is None or self.meta_k_proj is None:
            zeros = x.new_zeros(()).expand(x.shape[0], self.num_heads, complete, self.head_dim)
            return *super().project(x, rotary, inputs), zeros, zeros
        chunks = x[:, : complete * self.chunk_size].unflatten(1, (complete, self.chunk_size))
        meta_q = self.meta_q_proj(x if self.retrieval == "per_token" else chunks[:, :, -1])
        meta_k = self.meta_k_proj(chunks.mean(2))
        return *super().project(x, rotary, inputs), self._heads(meta_q), self._heads(meta_k)

    def _prefill(self, x: Tensor, rotary: Rotary, lengths: Tensor, inputs: Tensor | None) -> tuple[Tensor, BSBRState]:
        out, state = super()._prefill(x, rotary, lengths, inputs)
        if self.meta_k_proj is None:
            return out, BSBRState(state, x.new_zeros(x.shape[0], 0))
        position, end = torch.arange(x.shape[1], device=x.device), lengths[:, None]
        opened = (position >= end // self.chunk_size * self.chunk_size) & (position < end)
        x_sum = (x.to(accumulate_in(x.dtype)) * opened[..., None]).sum(1)
        return out, BSBRState(state, x_sum)

    def _step(self, x: Tensor, rotary: Rotary, state: BSBRState, inputs: Tensor | None) -> tuple[Tensor, BSBRState]:
        q, k, v = (part[:, :, 0] for part in super().project(x[:, None], rotary, inputs))
        sizes = self.chunk_size, self.local_chunks
        own = self._heads(self.meta_q_proj(x)) if self.meta_q_proj and self.retrieval == "per_token" else None
        out, attention = bsbr.step(q, k, v, state.attention, *sizes, self.expand, self.retrieval, own)
        x_sum = state.x_sum if self.meta_k_proj is None else state.x_sum + x
        rows = bsbr.ended(attention, self.chunk_size)
        if len(rows):
            meta_q = meta_k = None
            if self.meta_q_proj is not None and self.meta_k_proj is not None:
                meta_q = self._heads(self.meta_q_proj(x[rows]))
                meta_k = self._heads(self.meta_k_proj((x_sum[rows] / self.chunk_size).to(x.dtype)))
                x_sum[rows] = 0
            closing = *sizes, self.top_k, self.compress, self.retrieval
            attention = bsbr.close(rows, meta_q, meta_k, attention, *closing)
        return self.merge(x[:, None], out[:, :, None])[:, 0], BSBRState(attention, x_sum)

    def operations(self, n: int) -> Operations:
        """As those of any mixer, and two projections of each complete chunk, where chunks are chosen."""
        if self.meta_q_proj is None or self.meta_k_proj is None:
            return super().operations(n)
        closed = n // self.chunk_size
        queries = n if self.retrieval == "per_token" else closed
        meta = _projecting(queries, self.meta_q_proj) + _projecting(closed, self.meta_k_proj)
        if n <= self.chunk_size * self.local_chunks:  # no chunk retrieves, so no output depends on them
            meta = Operations(meta.forward, 0)
        return super().operations(n) + meta

    def _heads(self, x: Float[Tensor, "batch *rest hidden_dim"]) -> Float[Tensor, "batch heads *rest head_dim"]:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).movedim(-2, 1)


class Linear(Mixer, mechanism="linear"):
    """Linear attention by a feature map."""

    attention = linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        linear.feature_map_named(config.feature_map)  # an unknown one is refused here, not when first used
        self._options = {"feature_map": config.feature_map}


class DeltaNet(Mixer, mechanism="deltanet"):
    """The delta rule. How far a head corrects its memory is learned, β = sigmoid(w · x) for each token, or fixed."""

    attention = deltanet

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.beta = config.beta
        if config.beta is None:
            self.beta_proj = nn.Linear(config.hidden_dim, config.num_heads, bias=False)

    def project(self, x: Tensor, rotary: Rotary, inputs: Tensor | None = None) -> tuple[Tensor, ...]:
        """q, k, v, and β of each token, (batch, heads, n)."""
        q, k, v = super().project(x, rotary, inputs)
        if self.beta is None:
            return q, k, v, self.beta_proj(x).sigmoid().transpose(1, 2)
        return q, k, v, torch.full_like(q[..., 0], self.beta)

    def operations(self, n: int) -> Operations:
        """As those of any mixer, and the projection to β where that is learned."""
        return super().operations(n) + (_projecting(n, self.beta_proj) if self.beta is None else Operations(0, 0))


class GatedDeltaNet(DeltaNet, mechanism="gated_deltanet"):
    """The delta rule on a memory that fades, for each head and token by α = exp(−A · softplus(w · x + b)).

    A > 0 and b are learned, one of each for a head. They begin as in Mamba-2 (Dao and Gu 2024, arXiv:2405.21060), whose
    form this is: A between 1 and 16 and softplus(b) between 0.001 and 0.1, so that some heads begin by keeping what they
    read for a few tokens and some for many.
    """

    attention = gated_deltanet

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.decay_proj = nn.Linear(config.hidden_dim, config.num_heads, bias=False)
        rate, step = (1, 16), (math.log(0.001), math.log(0.1))
        self.log_rate = nn.Parameter(torch.empty(config.num_heads).uniform_(*rate).log())
        self.decay_bias = nn.Parameter(torch.empty(config.num_heads).uniform_(*step).exp().expm1().log())

    def project(self, x: Tensor, rotary: Rotary, inputs: Tensor | None = None) -> tuple[Tensor, ...]:
        """q, k, v, β and log α of each token, the last in float32 or wider; (batch, heads, n) each of these two."""
        wide = accumulate_in(x.dtype)
        step = F.softplus(self.decay_proj(x).to(wide) + self.decay_bias.to(wide))
        return *super().project(x, rotary, inputs), (-self.log_rate.to(wide).exp() * step).transpose(1, 2)

    def operations(self, n: int) -> Operations:
        """As those of `DeltaNet`, and the projection to α."""
        return super().operations(n) + _projecting(n, self.decay_proj)


class MoBA(Mixer, mechanism="moba"):
    """Softmax attention to the own chunk and to the earlier ones whose mean key fits a token's query best."""

    attention = moba

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._options = {"chunk_size": config.chunk_size, "read_chunks": config.read_chunks}


class SlidingWindow(Mixer, mechanism="sliding_window"):
    """Softmax attention to the last `window_size` tokens."""

    attention = sliding_window

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._options = {"window_size": config.window_size}


class Hopfield(Mixer, mechanism="hopfield"):
    """Retrieval from a modern Hopfield network whose stored patterns are the keys so far."""

    attention = hopfield

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._options = {"num_steps": config.num_steps, "inverse_temperature": config.inverse_temperature}


class GAU(Mixer, mechanism="gau"):
    """The gated attention unit with mixed chunk attention: out_proj(SiLU(gate_proj(x)) ⊙ attention).

    One head, whatever `num_heads`. Values have `expansion` · hidden_dim dimensions; the four queries and keys are
    scales and offsets of one projection to `key_dim` dimensions. The paper draws the scales near 0, where relu² has
    next to no gradient; they begin at 1 here. A short convolution reads values and that one projection before their
    SiLU, where Mamba has it too, and leaves the gate alone.
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
        self.short_conv = _short_conv(config, self.in_proj)
        self.scale = nn.Parameter(torch.ones(4, config.key_dim))
        self.offset = nn.Parameter(torch.zeros(4, config.key_dim))
        self._options = {"chunk_size": config.chunk_size}

    def project(self, x: Tensor, rotary: Rotary, inputs: Tensor | None = None) -> tuple[Tensor, ...]:
        """q, k, q_lin, k_lin, each (batch, 1, n, key_dim), and v, (batch, 1, n, value_dim)."""
        v, shared = F.silu(self._inputs(x, inputs))[:, None].split([self.value_dim, self.rotary_dim], dim=-1)
        scale, offset = (y[:, None, None, None] for y in (self.scale, self.offset))
        return *rotary.rotate(torch.addcmul(offset, shared, scale)).unbind(0), v

    def merge(self, x: Tensor, out: Tensor) -> Tensor:
        """Gate, then project."""
        return self.out_proj(F.silu(self.gate_proj(x)) * out[:, 0])

    def operations(self, n: int) -> Operations:
        """As those of any mixer, with one head, and the projection to the gate."""
        attention = gau.operations(n, self.rotary_dim, self.value_dim, **self.options)
        return attention + _projecting(n, self.in_proj, self.gate_proj, self.out_proj)
