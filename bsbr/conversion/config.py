"""What a converted model reads: the setting of a conversion."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Retrieval = Literal["none", "states", "top_k", "top_k_per_token", "both"]
LARGEST = 2**31  # of any size: no text is that long, and a product of two fits int64
LEAST = {
    "chunk_size": 1,
    "local_chunks": 1,
    "sink_tokens": 0,
    "top_k": 1,
    "block_size": 1,
    "compression_factor": 1,
    "original_below": 0,
}


@dataclass(frozen=True)
class ConversionConfig:
    """Which earlier tokens the attention of a converted model reads, and how.

    Every token reads its own chunk up to itself, the `local_chunks - 1` chunks before, and the first
    `sink_tokens` tokens, all exactly. What lies between is far; `retrieval` says what becomes of it:

    - `"none"`: it is not read.
    - `"states"`: each far chunk is read through its state, the Taylor expansion of softmax attention around
      the chunk's mean key, under one normaliser with what is read exactly.
    - `"top_k"`: the `top_k` best far blocks of `block_size` tokens are read exactly, chosen once a chunk by
      the chunk before: the mean queries of its blocks (meta queries) against the mean keys of far blocks
      (meta keys).
    - `"top_k_per_token"`: the same, chosen by each token for itself. Costs as much as full attention; it shows
      what a better choice would give.
    - `"both"`: the `top_k` best far chunks are read exactly, chosen once a chunk as with `"top_k"` but whole; all
      other far chunks are read through their states.

    Args:
        chunk_size: tokens of a chunk.
        local_chunks: chunks read exactly, the own one included.
        sink_tokens: tokens at the very start that are always read. Pretrained models rest unused attention
            there (Xiao et al. 2024, "Efficient streaming language models with attention sinks").
        retrieval: what becomes of the far tokens.
        top_k: far blocks that a chunk or a token reads exactly, for each key/value head.
        block_size: tokens of one such block; divides `chunk_size` and `sink_tokens`. With `"both"` it is not used.
        compression_factor: a state keeps head_dim / compression_factor directions of its chunk's keys, those in
            which they vary most; None keeps all.
        layers: the layers that are converted, counted from 0; None converts all. The others keep full attention.
            `bsbr.studies.sensitivity.least_sensitive` chooses them by a measured sensitivity.
        original_below: tokens at positions below read all before them, as in the original, so that a text no longer
            than this is read by the original attention. It goes by a token's position and not by the text's length:
            else what follows a token would change its output.

    Raises:
        ValueError: an argument is not of its kind or out of range, or the sizes do not divide.

    Examples:
        >>> from bsbr import ConversionConfig
        >>> config = ConversionConfig(chunk_size=64, local_chunks=2, top_k=8)
        >>> config.window, config.block, config.first_block, config.layers_of(3)
        (128, 32, 1, (0, 1, 2))
        >>> config.retrieves_blocks, config.reads_states
        (True, False)
        >>> config.far_end(5)  # tokens from the sinks up to here are far for chunk 5
        256
        >>> ConversionConfig(retrieval="states", compression_factor=4).rank(head_dim=64)
        16
        >>> ConversionConfig(chunk_size=100)
        Traceback (most recent call last):
        ValueError: chunk_size: expected a multiple of block_size=32, got 100; change one of them
    """

    chunk_size: int = 128
    local_chunks: int = 2
    sink_tokens: int = 32
    retrieval: Retrieval = "top_k"
    top_k: int = 16
    block_size: int = 32
    compression_factor: int | None = None
    layers: tuple[int, ...] | None = None
    original_below: int = 0

    def __post_init__(self) -> None:
        if self.layers is not None:  # a list, as JSON has it, is as good
            object.__setattr__(self, "layers", _layer_numbers(self.layers))
        for name, least in LEAST.items():
            if name != "compression_factor" or self.compression_factor is not None:
                object.__setattr__(self, name, _whole_number(name, getattr(self, name), least))
        if self.retrieval not in get_args(Retrieval):
            raise ValueError(f"retrieval: expected one of {get_args(Retrieval)}, got {self.retrieval!r}")
        if self.compression_factor is not None and not self.reads_states:
            raise ValueError(
                f"compression_factor: expected None with retrieval={self.retrieval!r}, which keeps no states, "
                f"got {self.compression_factor}"
            )
        if self.retrieval in ("top_k", "top_k_per_token"):
            for name in ("chunk_size", "sink_tokens"):
                if getattr(self, name) % self.block_size:
                    raise ValueError(
                        f"{name}: expected a multiple of block_size={self.block_size}, got {getattr(self, name)}; "
                        f"change one of them"
                    )

    @classmethod
    def kept_in(cls, model_config: Any) -> ConversionConfig | None:
        """The setting that `convert` has written into a model's config; None if the model was not converted.

        Args:
            model_config: the `config` of a model of transformers.

        Raises:
            ValueError: what stands there is no setting, or of another version of this package.

        Examples:
            >>> from transformers import LlamaConfig, LlamaForCausalLM
            >>> sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48)
            >>> depth = dict(num_hidden_layers=2, num_attention_heads=4)
            >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **depth)).eval()
            >>> from bsbr import ConversionConfig, convert
            >>> ConversionConfig.kept_in(convert(model).config) == ConversionConfig()
            True
            >>> ConversionConfig.kept_in(model.config) is None
            True
        """
        kept = getattr(model_config, "bsbr", None)
        if kept is None:
            return None
        names = [field.name for field in fields(cls)]
        if not isinstance(kept, dict):
            raise ValueError(f"config.bsbr: expected a table of {', '.join(names)}, got {kept!r}")
        if unknown := sorted(set(kept) - set(names), key=str):
            raise ValueError(
                f"config.bsbr: expected {', '.join(names)}, got {', '.join(map(repr, unknown))} among them; the model "
                f"was saved by another version of bsbr: load it with that one, or convert the original anew"
            )
        try:
            return cls(**kept)
        except ValueError as error:
            raise ValueError(f"config.bsbr: {error}") from error

    @property
    def retrieves_blocks(self) -> bool:
        """Whether whole blocks of far tokens are read exactly."""
        return self.retrieval in ("top_k", "top_k_per_token", "both")

    @property
    def reads_states(self) -> bool:
        """Whether far chunks are read through their states."""
        return self.retrieval in ("states", "both")

    @property
    def block(self) -> int:
        """Tokens that are retrieved as one."""
        return self.chunk_size if self.retrieval == "both" else self.block_size

    @property
    def first_block(self) -> int:
        """The first block that holds no sinks: those before cannot be chosen."""
        return -(-self.sink_tokens // self.block)

    def rank(self, head_dim: int) -> int:
        """Directions of the keys that a state keeps."""
        return max(1, head_dim // (self.compression_factor or 1))

    @property
    def window(self) -> int:
        """Up to so many tokens, everything is read exactly and the original attention is used."""
        return self.local_chunks * self.chunk_size

    def layers_of(self, count: int) -> tuple[int, ...]:
        """The layers to convert of a model with `count` of them. Raises ValueError if it lacks one."""
        chosen = tuple(range(count)) if self.layers is None else self.layers
        if missing := [layer for layer in chosen if not 0 <= layer < count]:
            raise ValueError(f"layers: expected numbers from 0 to {count - 1}, got {missing}")
        return chosen

    def far_end(self, chunk: int) -> int:
        """Tokens from `sink_tokens` up to here are far for a chunk (none are if it is not beyond the sinks)."""
        return max(0, (chunk - self.local_chunks + 1) * self.chunk_size)


def _whole_number(name: str, value: Any, least: int) -> int:
    """The value as an int, whatever kind of whole number it is."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"{name}: expected a whole number, got {value!r}")
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, got {number}")
    if number > LARGEST:
        raise ValueError(f"{name}: expected at most {LARGEST}, got {number}; choose one that a text can reach")
    return number


def _layer_numbers(layers: Any) -> tuple[int, ...]:
    """Numbers of layers in order, each once."""
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise ValueError(f"layers: expected numbers of layers, such as (0, 1), got {layers!r}")
    numbers = tuple(sorted({_whole_number("layers", layer, 0) for layer in layers}))
    if not numbers:
        raise ValueError(
            "layers: expected one layer or more, got none; None converts all; to convert none, leave the model alone"
        )
    return numbers
