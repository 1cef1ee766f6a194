"""The registry: what there is to know of each mechanism besides its mathematics. Importing this needs no PyTorch.

A mechanism is a module of `bsbr.attention`, a mixer in `bsbr.mixers` that names it, and a record here. Models, counters
of operations, drawings, charts, pages and tests take their list from `MECHANISMS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

How = Literal["exact", "state", "corrected", "future", ""]


class Reads(Protocol):
    """How token i reads token j, "" for not at all, where a chunk or window has `size` tokens."""

    def __call__(self, i: int, j: int, size: int) -> How: ...


@dataclass(frozen=True)
class Mechanism:
    """What pages, charts and configs say of one mechanism.

    In `time` and `kept`: n tokens, p dimensions of a head, B tokens of a chunk, w of a window, s and e dimensions of a
    key and of a value where these differ.

    Examples:
        >>> from bsbr import MECHANISMS
        >>> list(MECHANISMS)
        ['standard', 'bsbr', 'linear', 'deltanet', 'sliding_window', 'hopfield', 'gau']
        >>> MECHANISMS["sliding_window"].options
        ('window_size',)
    """

    name: str  # of the mechanism in configs and tables
    title: str  # in headings
    colour: str  # in charts, as #rrggbb
    options: tuple[str, ...]  # the fields of ModelConfig that only some mechanisms use, and this one does
    growth: Literal["linear", "quadratic"]  # of the time for long texts, as far as lengths in use go
    reading: str  # what a token reads, in words
    time: str  # for n tokens, in LaTeX
    kept: str  # numbers kept while decoding, each head, in LaTeX
    reads: Reads = field(repr=False)  # what a token reads, to draw
    page: str = ""  # of the book; the name where empty

    def __post_init__(self) -> None:
        object.__setattr__(self, "page", self.page or self.name)


# -- Which tokens a token reads -------------------------------------------------------------------


def _all(how: How) -> Reads:
    """Every token up to its own, in one way."""

    def reads(i: int, j: int, size: int) -> How:
        return how if j <= i else ""

    return reads


def _chunks(i: int, j: int, size: int) -> How:
    """Exactly up to its own within the chunk, every earlier chunk through its state."""
    if i // size == j // size:
        return "exact" if j <= i else ""
    return "state" if j < i else ""


def _window(i: int, j: int, size: int) -> How:
    """The last tokens, its own among them."""
    return "exact" if i - size < j <= i else ""


# -- The mechanisms -------------------------------------------------------------------------------
# Colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers.

_RECORDS = (
    Mechanism(
        "standard",
        title="Standard attention",
        colour="#0072B2",
        options=(),
        growth="quadratic",
        reading="all before it, exactly",
        time="n^2 p",
        kept="$2np$, grows",
        reads=_all("exact"),
    ),
    Mechanism(
        "bsbr",
        title="BSBR",
        colour="#D55E00",
        options=(
            "chunk_size",
            "local_chunks",
            "top_k",
            "retrieval",
            "compression_factor",
            "chunk_encoder",
            "normaliser",
        ),
        growth="linear",
        reading="its chunk exactly, earlier chunks by retrieved states",
        time="n B p + n p^2 + (n/B)^2 p^2",
        kept="$2Bp + p^2$, and $p^2$ per chunk",
        reads=_chunks,
        page="idea",
    ),
    Mechanism(
        "linear",
        title="Linear attention",
        colour="#009E73",
        options=("feature_map",),
        growth="linear",
        reading="all before it, as one sum",
        time="n p^2",
        kept="$p(p+1)$",
        reads=_all("state"),
    ),
    Mechanism(
        "deltanet",
        title="DeltaNet",
        colour="#CC79A7",
        options=("beta",),
        growth="linear",
        reading="all before it, as a corrected memory",
        time="n p^2",
        kept="$p^2$",
        reads=_all("corrected"),
    ),
    Mechanism(
        "sliding_window",
        title="Sliding window",
        colour="#56B4E9",
        options=("window_size",),
        growth="linear",
        reading="the last $w$, exactly",
        time="n w p",
        kept="$2wp$",
        reads=_window,
    ),
    Mechanism(
        "hopfield",
        title="Hopfield retrieval",
        colour="#E69F00",
        options=("num_steps", "inverse_temperature"),
        growth="quadratic",
        reading="all before it, in `num_steps` steps",
        time=r"\text{num\_steps} \cdot n^2 p",
        kept="$2np$, grows",
        reads=_all("exact"),
    ),
    Mechanism(
        "gau",
        title="Gated attention unit",
        colour="#7F7F7F",
        options=("chunk_size", "expansion", "key_dim"),
        growth="linear",
        reading="its chunk exactly, earlier ones as one sum",
        time="n B (s+e) + n s e",
        kept="$B(s+e) + 2se$, for one head",
        reads=_chunks,
    ),
)

MECHANISMS: Mapping[str, Mechanism] = MappingProxyType({record.name: record for record in _RECORDS})
