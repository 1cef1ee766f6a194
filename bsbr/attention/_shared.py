"""What more than one mechanism needs: checks, chunks, states carried from chunk to chunk, rings of recent tokens."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import NoneType
from typing import Any, ParamSpec, TypeVar, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNKS_AT_ONCE = 32
P = ParamSpec("P")
R = TypeVar("R")

# -- What arguments must be -----------------------------------------------------------------------


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which first holds its arguments against its annotations.

    A name in the shapes, such as `head_dim`, stands for one size in all of them. Whole numbers are ≥ 1, others > 0.

    Raises:
        ValueError: an argument is of another kind, shape or range.
    """
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    annotations = {name: function.__annotations__[name] for name in names}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.compiler.is_compiling():
            sizes: dict[str, tuple[int, str]] = {}
            for name, value in (*zip(names, args, strict=False), *kwargs.items()):
                if name in annotations:
                    _check(name, value, annotations[name], sizes)
        return function(*args, **kwargs)

    return call


def _check(name: str, value: Any, annotation: Any, sizes: dict[str, tuple[int, str]]) -> None:
    kinds = get_args(annotation) or (annotation,)
    if value is None and NoneType in kinds:
        return
    dims = getattr(kinds[0], "dim_str", None)
    if dims is not None:
        _check_shape(name, value, dims.split(), sizes)
        return
    or_none = " or None" if NoneType in kinds else ""
    if kinds[0] is int and (type(value) is not int or value < 1):
        raise ValueError(f"{name} must be a whole number ≥ 1{or_none}, but is {value!r}")
    if kinds[0] is float and not (type(value) in (int, float) and 0 < value < math.inf):
        raise ValueError(f"{name} must be a number > 0 and finite{or_none}, but is {value!r}")


def _check_shape(name: str, value: Any, dims: list[str], sizes: dict[str, tuple[int, str]]) -> None:
    wanted = f"a tensor of shape ({', '.join(dims)})"
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be {wanted}, but is {value!r:.100}")
    if value.ndim != len(dims):
        raise ValueError(f"{name} must be {wanted}, but has shape {tuple(value.shape)}")
    for dim, size in zip(dims, value.shape, strict=True):
        known, by = sizes.setdefault(dim, (size, name))
        if size != known:
            raise ValueError(
                f"{name} must be {wanted}, where {dim} is {known} as in {by}, but has shape {tuple(value.shape)}"
            )


# -- Operations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of matrix products: of a forward pass, and of the gradients behind it."""

    forward: int
    backward: int

    @classmethod
    def of_products(cls, forward: int, beyond_twice: int = 0) -> Operations:
        """The gradients of a product are two products of its size; what differs from that is `beyond_twice`."""
        return cls(forward, 2 * forward + beyond_twice)

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.forward + other.forward, self.backward + other.backward)

    def times(self, count: int) -> Operations:
        """As many such passes."""
        return Operations(count * self.forward, count * self.backward)


def fused(pairs: int, dims: int) -> Operations:
    """Softmax attention to `pairs` of tokens: two products, and five for the gradients of a fused kernel.

    `dims` are those of all heads together. Dao et al. 2022, FlashAttention (arXiv:2205.14135), algorithm 4.
    """
    return Operations.of_products(4 * pairs * dims, 2 * pairs * dims)


def pieces(n: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """The chunks, and the tokens of one, in each of the pieces that `scan` takes in turn."""
    size = CHUNKS_AT_ONCE * chunk_size
    for start in range(0, n, size):
        tokens = min(n - start, size)
        yield -(-tokens // min(chunk_size, tokens)), min(chunk_size, tokens)


# -- Chunks and states ----------------------------------------------------------------------------


def split_chunks(x: Tensor, chunk_size: int) -> Float[Tensor, "batch heads chunks chunk_size dim"]:
    """Cut into chunks, the last one padded with zeros: they stand behind every real token, so none reads them."""
    missing = -x.shape[2] % chunk_size
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    return x.unflatten(2, (-1, chunk_size))


def scan(
    read: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor], state: Tensor, chunk_size: int
) -> tuple[Float[Tensor, "batch heads n dim"], Tensor]:
    """`read(state, *piece) -> (out, state)` over pieces of the inputs, (batch, heads, n, …) each, in sequence.

    A piece is many chunks, so that its products fill the processor, and few enough that what lies between them stays in
    its cache and memory does not grow with n. This more than pays for the loop.
    """
    size = CHUNKS_AT_ONCE * chunk_size
    outputs = []
    for piece in zip(*(x.split(size, dim=2) for x in inputs), strict=True):
        out, state = read(state, *piece)
        outputs.append(out)
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0], state


def running_sums(
    state: Float[Tensor, "batch heads rows cols"], chunk_sums: Float[Tensor, "batch heads chunks rows cols"]
) -> tuple[Float[Tensor, "batch heads chunks rows cols"], Float[Tensor, "batch heads rows cols"]]:
    """`state` plus the sums of the chunks before each chunk, and plus all of them.

    One product with a triangle of ones, several times as fast as `torch.cumsum` along this dimension.
    """
    chunks = chunk_sums.shape[2]
    triangle = torch.ones(chunks + 1, chunks, dtype=state.dtype, device=state.device).tril(-1)
    sums = triangle @ chunk_sums.flatten(3) + state.flatten(2)[:, :, None]
    sums = sums.unflatten(3, state.shape[2:])
    return sums[:, :, :-1], sums[:, :, -1]


def ring(
    x: Float[Tensor, "batch heads n dim"], lengths: Int[Tensor, " batch"], window: int
) -> Float[Tensor, "batch heads slots dim"]:
    """The latest of the first `lengths` tokens of each row: token t in slot t mod window.

    There are no more slots than tokens: a window may be far longer than the text.
    """
    held = ring_tokens(lengths - 1, window, min(window, x.shape[2]))
    return gather_tokens(x, held.clamp(min=0))  # slots not yet written are never read


def with_room(
    held: Float[Tensor, "batch heads slots dim"], position: Int[Tensor, " batch"], window: int
) -> Float[Tensor, "batch heads slots dim"]:
    """A ring with a slot for each row's token at `position`: until it has gone round, it grows by doubling."""
    slots = held.shape[2]
    if slots == window or int(position.max()) < slots:
        return held
    return F.pad(held, (0, 0, 0, min(max(slots, 64), window - slots)))


def ring_tokens(position: Int[Tensor, " batch"], window: int, slots: int) -> Int[Tensor, "batch slots"]:
    """The latest token ≤ position that each of the first slots of a ring holds; negative where none was written."""
    slot = torch.arange(slots, device=position.device)
    return position[:, None] - (position[:, None] - slot) % window


def gather_tokens(
    x: Float[Tensor, "batch heads n dim"], tokens: Int[Tensor, "batch chosen"]
) -> Float[Tensor, "batch heads chosen dim"]:
    """Each row's own choice of tokens."""
    return x.gather(2, tokens[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def is_before(lengths: Int[Tensor, " batch"], n: int) -> Bool[Tensor, "batch 1 n 1"]:
    """True at the first `lengths` of n tokens, ready to multiply with (batch, heads, n, dim)."""
    return (torch.arange(n, device=lengths.device) < lengths[:, None])[:, None, :, None]


def accumulate_in(dtype: torch.dtype) -> torch.dtype:
    """The type to add up in: half precision neither holds long sums nor small quotients."""
    return torch.promote_types(dtype, torch.float32)


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Inside it, products of float32 are float32 under autocast too, which would make half precision of them."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def put(cache: Tensor, where: tuple[Any, ...], x: Tensor) -> Tensor:
    """`cache` with `x` at `where`: written in place unless gradients need what stood there, or it must not be."""
    with_gradients = torch.is_grad_enabled() and (cache.requires_grad or x.requires_grad)
    if with_gradients or (cache.is_inference() and not torch.is_inference_mode_enabled()):
        cache = cache.clone()
    cache[where] = x.to(cache.dtype)  # a state may be filled outside autocast and continued inside it
    return cache
