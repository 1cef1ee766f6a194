"""The sizes of a model and the options of its mechanism. Importing this needs no PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real

from bsbr.mechanisms import MECHANISMS

LARGEST = 2**31  # of any size: no text and no memory is that long, and a product of two fits int64
MOST_LAYERS = 1000  # as deep as any transformer was published (Wang et al. 2022, "DeepNet", arXiv:2203.00555)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a `TransformerLM` and options of its mechanism.

    `mechanism` is a name for all layers, or a list of names, one for each: `ModelConfig(["bsbr"] * 3 + ["standard"],
    num_layers=4)`. A list is kept as a tuple.

    One config can be given to every mechanism: options that a mechanism does not use have no effect on it. Which it
    uses, its record says: `MECHANISMS[name].options`.

    Raises:
        ValueError: an unknown mechanism, names that are not one for each layer, a size below 1 or above 2³¹, a
            hidden_dim that does not divide into heads of even size, more than 1000 layers, or a dropout, beta or
            inverse_temperature out of range. Making a model also refuses options of its own mechanisms that do not
            fit: retrieval, compression_factor, feature_map, key_dim.

    Examples:
        >>> from bsbr import ModelConfig
        >>> ModelConfig("bsbr", hidden_dim=512, num_heads=8).chunk_size
        128
        >>> hybrid = ModelConfig(["bsbr"] * 3 + ["standard"], num_layers=4)
        >>> hybrid.name, hybrid.mechanisms
        ('bsbr+standard', ('bsbr', 'bsbr', 'bsbr', 'standard'))
        >>> ModelConfig("bsbr", hidden_dim=100, num_heads=8)
        Traceback (most recent call last):
        ValueError: hidden_dim must be a multiple of 2 · num_heads, ... but hidden_dim is 100 and num_heads is 8
    """

    mechanism: str | list[str] | tuple[str, ...]  # a name in bsbr.MECHANISMS, or one for each layer
    vocab_size: int = 10_000  # tokens that there are
    hidden_dim: int = 256  # dimensions of a token between layers
    num_layers: int = 2  # blocks of a mixer and a feed-forward network
    num_heads: int = 4  # heads of hidden_dim / num_heads dimensions each
    ff_dim: int = 512  # dimensions inside the feed-forward network
    dropout: float = 0.0  # the probability that a number is left out in training
    chunk_size: int = 128  # bsbr, moba, and the chunks of mixed chunk attention in gau
    local_chunks: int = 1  # bsbr: chunks read exactly, the own one included
    top_k: int | None = None  # bsbr: retrieve from this many chunks only; None for all
    retrieval: str = "states"  # bsbr: what earlier chunks give, a name in bsbr.attention.bsbr.RETRIEVALS
    compression_factor: int | None = None  # bsbr: states of head_dim² / compression_factor numbers
    window_size: int = 128  # sliding_window: tokens read, the current one included
    feature_map: str = "elu"  # linear: a name in bsbr.attention.linear.FEATURE_MAPS
    read_chunks: int = 3  # moba: chunks that a token reads exactly, its own and the earlier ones that fit it best
    beta: float | None = None  # deltanet, gated_deltanet: how far each token corrects the memory, in (0, 1]; None to learn it
    num_steps: int = 1  # hopfield: updates of the query, the last of which reads the values
    inverse_temperature: float | None = None  # hopfield; None for 1/√head_dim
    expansion: int = 2  # gau: values have expansion · hidden_dim dimensions
    key_dim: int = 128  # gau: dimensions of queries and keys
    short_conv: int | None = None  # all: width of a causal convolution over q, k and v, usually 4; None for none

    def __post_init__(self) -> None:
        if isinstance(self.mechanism, list):
            object.__setattr__(self, "mechanism", tuple(self.mechanism))
        names = self.mechanism if isinstance(self.mechanism, tuple) else (self.mechanism,)
        if not names or not all(isinstance(name, str) and name in MECHANISMS for name in names):
            raise ValueError(
                f"mechanism must be one of {', '.join(MECHANISMS)}, or a list with one for each layer, but is "
                f"{self.mechanism!r}"
            )
        for name, optional in _COUNTS.items():
            value = getattr(self, name)
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number ≥ 1{' or None' * optional}, but is {value!r}")
            if value > LARGEST:
                raise ValueError(
                    f"{name} must be at most {LARGEST:,}, but is {value}; choose one that a text can reach"
                )
        if self.num_layers > MOST_LAYERS:
            raise ValueError(f"num_layers must be at most {MOST_LAYERS}, but is {self.num_layers}; widen the layers")
        if isinstance(self.mechanism, tuple) and len(self.mechanism) != self.num_layers:
            raise ValueError(
                f"mechanism must be one name, or one for each of num_layers = {self.num_layers} layers, but has "
                f"{len(self.mechanism)}; set num_layers={len(self.mechanism)}"
            )
        if self.hidden_dim % (2 * self.num_heads):
            raise ValueError(
                f"hidden_dim must be a multiple of 2 · num_heads, so that rotary positions turn pairs in each head, "
                f"but hidden_dim is {self.hidden_dim} and num_heads is {self.num_heads}"
            )
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), but is {self.dropout!r}")
        if self.beta is not None and not (_is_number(self.beta) and 0 < self.beta <= 1):
            raise ValueError(f"beta must lie in (0, 1], or be None to be learned, but is {self.beta!r}")
        heat = self.inverse_temperature
        if heat is not None and not (_is_number(heat) and 0 < heat < math.inf):
            raise ValueError(f"inverse_temperature must be > 0 and finite, or None, but is {heat!r}")
        for name in ("feature_map", "retrieval"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a name, but is {getattr(self, name)!r}")

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """The mechanism of each layer."""
        return self.mechanism if isinstance(self.mechanism, tuple) else (str(self.mechanism),) * self.num_layers

    @property
    def name(self) -> str:
        """The mechanism, or those of a hybrid in the order in which layers have them first, such as "bsbr+standard"."""
        return "+".join(dict.fromkeys(self.mechanisms))


_COUNTS = {f.name: f.type == "int | None" for f in fields(ModelConfig) if f.type in ("int", "int | None")}


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
