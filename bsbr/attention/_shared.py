"""What more than one mechanism needs: cutting into chunks, sums over the chunks before, and rings of recent tokens."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_GROUP = 16


def split_chunks(x: Tensor, chunk_size: int) -> Float[Tensor, "batch heads chunks chunk_size dim"]:
    """Cut into chunks, the last one padded with zeros: they stand behind every real token, so none reads them."""
    missing = -x.shape[2] % chunk_size
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    return x.unflatten(2, (-1, chunk_size))


def sum_before(x: Float[Tensor, "batch heads chunks rows cols"]) -> Float[Tensor, "batch heads chunks rows cols"]:
    """For each chunk, the sum over the chunks before it; zeros for the first.

    In groups of chunks, by one product with a triangle of ones inside each and a running sum over the groups: linear
    in `chunks`, and several times as fast as `torch.cumsum`, which strides through memory. Nothing later is added and
    taken off again, so rounding carries nothing back from the future.
    """
    chunks = x.shape[2]
    groups = F.pad(x.flatten(3), (0, 0, 0, -chunks % _GROUP)).unflatten(2, (-1, _GROUP))
    before = F.pad(groups[:, :, :-1].sum(3).cumsum(2), (0, 0, 1, 0))
    triangle = torch.ones(_GROUP, _GROUP, dtype=x.dtype, device=x.device).tril(-1)
    sums = triangle @ groups + before[:, :, :, None]
    return sums.flatten(2, 3)[:, :, :chunks].unflatten(3, x.shape[3:])


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
