"""`linear`: the sums over each earlier rank's slice. The state at the beginning of a slice is their sum."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bsbr.attention import linear
from bsbr.config import ModelConfig
from bsbr.parallel.layout import STATE, Layout
from bsbr.parallel.passing import Sent, with_earlier


def attend(
    q: Float[Tensor, "batch heads own_n head_dim"],
    k: Float[Tensor, "batch heads own_n head_dim"],
    v: Float[Tensor, "batch heads own_n head_dim"],
    layout: Layout,
    feature_map: str = "elu",
) -> Float[Tensor, "batch heads own_n head_dim"]:
    """This rank's slice of `bsbr.attention.linear.attend`."""
    own = linear.sums(k, v, feature_map)
    [every] = with_earlier(layout, [(own[:, :, None], STATE)])
    return linear.attend_after(q, k, v, linear.State(every[:, :, :-1].sum(2)), feature_map)


def sent(config: ModelConfig) -> list[Sent]:
    """What `attend` sends."""
    head_dim = config.hidden_dim // config.num_heads
    features = linear.feature_map_named(config.feature_map)(torch.zeros(1, head_dim)).shape[-1]
    return [Sent("sums over the slice", config.num_heads * features * (head_dim + 1), STATE, wide=True)]
