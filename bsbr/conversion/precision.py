"""Sums, exponentials and scores that decide something are taken in float32 or wider, whatever the model's precision."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """float32 at least: sums and exponentials of half-precision numbers are taken in it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Where x is, no autocast, which would take products in half precision however wide their factors are."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
