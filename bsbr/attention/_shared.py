"""What more than one mechanism needs: chunks, states carried from chunk to chunk, and rings of recent tokens."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNKS_AT_ONCE = 32


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


def ring_tokens(position: Int[Tensor, " batch"], window: int) -> Int[Tensor, "batch window"]:
    """The latest token ≤ position that each slot of a ring holds; negative where none was written."""
    slot = torch.arange(window, device=position.device)
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
