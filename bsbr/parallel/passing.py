"""Rows of earlier ranks, and the way back for their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from bsbr.parallel.layout import Group, Layout, Need


class Sent(NamedTuple):
    """What a layer sends of one text: rows of so many numbers, all heads together, to the ranks that need them."""

    what: str  # in words
    numbers: int  # of a row
    need: Need  # which rows go where
    wide: bool = False  # in float32 at least, whatever the dtype of the model


def with_earlier(layout: Layout, needed: Sequence[tuple[Tensor, Need]]) -> tuple[Tensor, ...]:
    """Each tensor (batch, heads, rows, …) behind the rows of earlier ranks that are needed with it. Differentiable.

    Call it once a layer for all that the layer sends, and let the output depend on it on every rank: then the ranks
    meet in the same order in the backward pass too. A second call may follow whose tensors depend on the first's.

    Args:
        layout: which tokens each rank holds.
        needed: each tensor of this rank with what of it the later ranks need.

    Examples:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from bsbr import parallel
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun says both
        >>> layout = parallel.Layout(None, rank=0, lengths=(24,))
        >>> states = torch.randn(1, 2, 3, 16, 16)  # of three chunks
        >>> [found] = parallel.with_earlier(layout, [(states, parallel.Need(tokens=8, reach=None))])
        >>> found.shape  # the first rank needs nothing of others
        torch.Size([1, 2, 3, 16, 16])
        >>> dist.destroy_process_group()
    """
    tensors, needs = zip(*needed, strict=True)
    return _WithEarlier.apply(layout, needs, *tensors)


class _WithEarlier(torch.autograd.Function):
    """Gradients of received rows go back to where these came from, and are added there in rank order."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, needs: Sequence[Need], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.layout, ctx.needs = layout, needs
        send: list[tuple[int, Tensor]] = []
        receive: list[tuple[int, Tensor]] = []
        outputs = []
        for x, need in zip(tensors, needs, strict=True):
            earlier = [x.new_empty(*x.shape[:2], rows, *x.shape[3:]) for rows in layout.received(need)]
            receive += enumerate(earlier)
            send += [(rank, _last(x, rows)) for rank, rows in layout.sent(need).items()]
            outputs.append([*earlier, x])
        exchange(layout.group, send, receive)
        return tuple(torch.cat(rows, dim=2) for rows in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        layout: Layout = ctx.layout
        send: list[tuple[int, Tensor]] = []
        receive: list[tuple[int, Tensor]] = []
        own, sums = [], []
        for gradient, need in zip(gradients, ctx.needs, strict=True):
            received = layout.received(need)
            *earlier, mine = gradient.split([*received, gradient.shape[2] - sum(received)], dim=2)
            own.append(mine.clone())
            send += enumerate(earlier)
            for rank, rows in layout.sent(need).items():
                shared = _last(own[-1], rows)
                theirs = shared.new_empty(shared.shape)
                receive.append((rank, theirs))
                sums.append((shared, theirs))
        exchange(layout.group, send, receive)
        for shared, theirs in sums:
            shared += theirs
        return None, None, *own


def _last(x: Tensor, rows: int) -> Tensor:
    return x[:, :, x.shape[2] - rows :]


def exchange(group: Group, send: Iterable[tuple[int, Tensor]], receive: Iterable[tuple[int, Tensor]]) -> None:
    """Send and receive (rank, tensor) pairs, all at once, each pair of ranks in the order given."""
    operations = [dist.P2POp(dist.isend, x.contiguous(), group=group, group_peer=rank) for rank, x in send if x.numel()]
    operations += [dist.P2POp(dist.irecv, x, group=group, group_peer=rank) for rank, x in receive if x.numel()]
    for work in dist.batch_isend_irecv(operations) if operations else []:
        work.wait()
