"""A short causal convolution over queries, keys and values, so that each of them knows the tokens just before its own.

With a kernel of `width` numbers for each dimension, and zeros before the text,

    y_t = Σ_{i < width} kernel_i ⊙ x_{t−i}

Memories that are sums compare a token with its neighbours by little else, and are not used without it: H3 shifts its
keys (Fu et al. 2023, arXiv:2212.14052), Mamba (Gu and Dao 2023, arXiv:2312.00752), DeltaNet (Yang et al. 2024,
arXiv:2406.06484) and Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464) have a convolution of width 4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class ShortConvState(NamedTuple):
    """The mechanism's state, and the last width − 1 tokens that the convolution has read, the latest last."""

    mechanism: Any
    inputs: Float[Tensor, "batch width_minus_1 dims"]


class ShortConv(nn.Module):
    """The convolution of this module's docstring; `kernel` is (dims, width), column i for the token i back.

    Nothing follows it. DeltaNet puts a SiLU there; here the convolution is an option of every mechanism, and what each
    does next with queries and keys (a softmax, elu + 1, a norm) stays what its paper says. For the same reason it
    begins as the identity: with an equal seed, a new model has the weights and the outputs of one without it.

    Its width · dims multiplications per token are no matrix product, so counters of operations leave them out, as they
    do rotary positions.
    """

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.kernel = nn.Parameter(torch.eye(1, width).repeat(dims, 1))

    def forward(self, x: Float[Tensor, "batch before_and_n dims"], n: int) -> Float[Tensor, "batch n dims"]:
        """The outputs of the last n tokens of x. The tokens before these count for what they are, those before x for
        zeros.

        Sums of shifted products: PyTorch's convolution has no fast form for one token, nor for all dtypes on a CPU.
        """
        reach = self.width - 1
        x = F.pad(x, (0, 0, reach - (x.shape[1] - n), 0))  # (batch, reach + n, dims)
        kernel = self.kernel.to(x.dtype)
        out = x[:, reach:] * kernel[:, 0]
        for back in range(1, self.width):
            out.addcmul_(x[:, reach - back : reach - back + n], kernel[:, back])
        return out

    def last(
        self, x: Float[Tensor, "batch n dims"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch width_minus_1 dims"]:
        """The last width − 1 of the first `lengths` tokens of each row, behind zeros where there are fewer."""
        tokens = lengths[:, None] + torch.arange(1 - self.width, 0, device=x.device)
        held = x.gather(1, tokens.clamp(min=0)[..., None].expand(-1, -1, x.shape[2]))
        return held.masked_fill((tokens < 0)[..., None], 0.0)
