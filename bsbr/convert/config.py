"""What a converted model reads: the settings of one rung."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Retrieval = Literal["none", "states", "top_k", "top_k_per_token", "both"]


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
            `bsbr.convert.least_sensitive` chooses them by a measured sensitivity.
        original_below: tokens at positions below read all before them, as in the original, so that a text no longer
            than this is read by the original attention. It goes by a token's position and not by the text's length:
            else what follows a token would change its output.

    Raises:
        ValueError: a setting is out of range, or the sizes do not divide.
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
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        lowest = {"chunk_size": 1, "local_chunks": 1, "sink_tokens": 0, "top_k": 1, "block_size": 1}
        lowest |= {"compression_factor": 1, "original_below": 0}
        for name, low in lowest.items():
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")
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
