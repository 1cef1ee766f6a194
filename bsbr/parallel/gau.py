"""`gau`: the sum over each earlier rank's slice, for the part that is linear. Inside a chunk nothing is sent."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bsbr.attention import gau
from bsbr.config import ModelConfig
from bsbr.parallel.layout import STATE, Layout
from bsbr.parallel.passing import Sent, with_earlier


def attend(
    q: Float[Tensor, "batch heads own_n key_dim"],
    k: Float[Tensor, "batch heads own_n key_dim"],
    q_lin: Float[Tensor, "batch heads own_n key_dim"],
    k_lin: Float[Tensor, "batch heads own_n key_dim"],
    v: Float[Tensor, "batch heads own_n value_dim"],
    layout: Layout,
    chunk_size: int,
) -> Float[Tensor, "batch heads own_n value_dim"]:
    """This rank's slice of `bsbr.attention.gau.attend`."""
    [every] = with_earlier(layout, [(gau.sums(k_lin, v)[:, :, None], STATE)])
    return gau.attend_after(q, k, q_lin, k_lin, v, every[:, :, :-1].sum(2), layout.start, chunk_size)


def sent(config: ModelConfig) -> list[Sent]:
    """What `attend` sends."""
    return [Sent("sum over the slice", config.key_dim * config.expansion * config.hidden_dim, STATE, wide=True)]
