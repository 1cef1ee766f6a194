"""`sliding_window`: the keys and values that the window reaches before a slice, from as many ranks as it takes."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bsbr.attention import sliding_window
from bsbr.config import ModelConfig
from bsbr.parallel.layout import Layout, Need
from bsbr.parallel.passing import Sent, with_earlier


def attend(
    q: Float[Tensor, "batch heads own_n head_dim"],
    k: Float[Tensor, "batch heads own_n head_dim"],
    v: Float[Tensor, "batch heads own_n head_dim"],
    layout: Layout,
    window_size: int,
) -> Float[Tensor, "batch heads own_n head_dim"]:
    """This rank's slice of `bsbr.attention.sliding_window.attend`."""
    before = Need(1, window_size - 1)
    k, v = with_earlier(layout, [(k, before), (v, before)])
    return sliding_window.attend_after(q, k, v, window_size)


def sent(config: ModelConfig) -> list[Sent]:
    """What `attend` sends."""
    return [Sent("key and value of a token", 2 * config.hidden_dim, Need(1, config.window_size - 1))]
