"""`deltanet`: what each earlier rank's slice does to a state, an affine map S ↦ keep S + write.

Such maps compose to one, whatever the order in which they are taken together: so all ranks make their own at once, and
the state at the beginning of a slice is what those before it make of nothing. `attend_by_maps` asks no more of a
mechanism than that, and serves any whose chunks are affine in the state before them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bsbr.attention import deltanet
from bsbr.attention.deltanet import ChunkMaps
from bsbr.config import ModelConfig
from bsbr.parallel.layout import STATE, Layout
from bsbr.parallel.passing import Sent, with_earlier


def attend(
    q: Float[Tensor, "batch heads own_n head_dim"],
    k: Float[Tensor, "batch heads own_n head_dim"],
    v: Float[Tensor, "batch heads own_n head_dim"],
    beta: Float[Tensor, "batch heads own_n"],
    layout: Layout,
) -> Float[Tensor, "batch heads own_n head_dim"]:
    """This rank's slice of `bsbr.attention.deltanet.attend`."""
    out = attend_by_maps(deltanet.chunk_maps(q, k, v, beta), layout)
    return out[:, :, : q.shape[2]].to(q.dtype)


def attend_by_maps(maps: ChunkMaps, layout: Layout) -> Float[Tensor, "batch heads tokens value_dim"]:
    """The outputs of a slice whose chunks are given as maps, those behind its end included.

    The maps of the slice's beginnings up to each chunk are [keep, write] as the columns of one matrix, made by the
    chunks' recurrence from [I, 0]; once the state before the slice is known, one product gives that before each chunk.
    """
    dim = maps.keep.shape[-1]
    identity = torch.eye(dim, dtype=maps.keep.dtype, device=maps.keep.device)
    nothing = F.pad(identity, (0, maps.write.shape[-1])).expand(*maps.write.shape[:2], -1, -1)
    before, whole = deltanet.run(nothing, maps.keep, F.pad(maps.write, (dim, 0)))
    [every] = with_earlier(layout, [(whole[:, :, None], STATE)])
    state = compose(every[:, :, :-1])
    before = before[..., :dim] @ state[:, :, None] + before[..., dim:]
    return (maps.reads @ before + maps.own).flatten(2, 3)


def compose(
    maps: Float[Tensor, "batch heads maps dim dim_and_value_dim"],
) -> Float[Tensor, "batch heads dim value_dim"]:
    """What maps [keep, write] make of a state of zeros, the first map first."""
    dim = maps.shape[3]
    state = maps[:, :, :0, :, dim:].sum(2)  # zeros, which depend on the maps even where there are none
    for one in maps.unbind(2):
        state = one[..., :dim] @ state + one[..., dim:]
    return state


def sent(config: ModelConfig) -> list[Sent]:
    """What `attend` sends."""
    head_dim = config.hidden_dim // config.num_heads
    return [Sent("map of the slice", config.num_heads * 2 * head_dim**2, STATE, wide=True)]
