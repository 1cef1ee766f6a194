"""The machine a number was measured on. Importing this module does not import torch."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # the parameters' numbers in malloc.h


class DeviceNotFoundError(RuntimeError):
    """The target that was asked for is not on this machine."""


def device(target: str) -> torch.device:
    """The torch device of a target, `"cpu"` or `"gpu"`.

    Args:
        target: of a measurement.

    Raises:
        ValueError: `target` is neither.
        DeviceNotFoundError: `target` is `"gpu"` and PyTorch finds no CUDA device.

    Examples:
        >>> from bsbr.measure import machine
        >>> machine.device("cpu")
        device(type='cpu')
    """
    import torch

    if target == "cpu":
        return torch.device("cpu")
    if target != "gpu":
        raise ValueError(f"target must be 'cpu' or 'gpu', not {target!r}")
    if not torch.cuda.is_available():
        raise DeviceNotFoundError("target='gpu' needs a CUDA GPU and PyTorch finds none; use target='cpu'")
    return torch.device("cuda")


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed tensors for the next ones, in this process, from now on.

    The allocator of glibc returns large blocks to the system when they are freed and asks for them anew, and each page
    of a new block costs a fault when it is first touched: for tensors of many megabytes, more than the arithmetic on
    them. A GPU's caching allocator in PyTorch keeps memory by itself. The price is that the process stays at its peak.
    What is set is `M_MMAP_THRESHOLD` and `M_TRIM_THRESHOLD` (GNU C Library manual, "Malloc Tunable Parameters").

    Returns:
        Whether the C library took the settings; False without effect where it is not glibc.

    Examples:
        >>> from bsbr.measure import machine
        >>> machine.keep_freed_memory() in (True, False)
        True
    """
    return set_malloc(M_MMAP_THRESHOLD, 2**30) and set_malloc(M_TRIM_THRESHOLD, 2**31 - 1)


def set_malloc(parameter: int, value: int) -> bool:
    """Set a parameter of glibc's allocator for this process; False without effect where the C library has none."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(parameter, value))
