"""Rotary positions: queries and keys are turned by where they stand, so that their products tell how far apart."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Rotary(NamedTuple):
    """Cosines and sines of the rotary position embedding, ready to broadcast over heads."""

    cos: Float[Tensor, "batch_or_1 1 n half_dim"]
    sin: Float[Tensor, "batch_or_1 1 n half_dim"]

    @classmethod
    def at(cls, positions: Int[Tensor, "batch_or_1 n"], head_dim: int, dtype: torch.dtype) -> Rotary:
        """The rotation at each position, θ_i = 10000^(−2i / head_dim) (Su et al. 2021, RoFormer, equation 15).

        float32 has too few digits for the angle of a late position, and not every device has float64. So angles are
        counted in turns of 2⁴⁰ whole parts, of which only the part of the last turn matters.
        """
        turns = 10_000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim) / math.tau  # each token
        positions = positions[:, None, :, None]
        if dtype == torch.float64:
            angles = positions * turns.to(positions.device) * math.tau
        else:
            parts = (turns * 2**40).round().to(torch.int64).to(positions.device)
            half = 2**39
            angles = ((positions * parts + half) % 2**40 - half).to(torch.float32) * (math.tau / 2**40)
        return cls(angles.cos().to(dtype), angles.sin().to(dtype))

    def rotate(self, x: Float[Tensor, "batch heads n head_dim"]) -> Float[Tensor, "batch heads n head_dim"]:
        """Turn the pairs (i, i + head_dim/2) of each vector by their position's angles."""
        first, second = x.chunk(2, dim=-1)
        turned = (
            torch.addcmul(first * self.cos, second, self.sin, value=-1),
            torch.addcmul(second * self.cos, first, self.sin),
        )
        return torch.cat(turned, dim=-1)
