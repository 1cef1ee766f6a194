"""The machine a number was measured on. Importing this module does not import torch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import torch


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # the parameters' numbers in malloc.h


class DeviceNotFoundError(RuntimeError):
    """The target that was asked for is not on this machine."""


def device(target: str) -> torch.device:
    """The torch device of a target, `"cpu"` or `"gpu"`.

    Raises:
        ValueError: `target` is neither.
        DeviceNotFoundError: `target` is `"gpu"` and PyTorch finds no CUDA device.
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
    """
    return set_malloc(M_MMAP_THRESHOLD, 2**30) and set_malloc(M_TRIM_THRESHOLD, 2**31 - 1)


def set_malloc(parameter: int, value: int) -> bool:
    """Set a parameter of glibc's allocator for this process; False without effect where the C library has none."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(parameter, value))


def cpu_model() -> str:
    """The processor's name as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Processor, cores, threads, memory in GiB, operating system and, where there is one, the GPU.

    `threads` is what PyTorch uses for one operation; it is `None` if torch has not been imported.
    """
    torch = sys.modules.get("torch")
    with_gpu = torch is not None and torch.cuda.is_available()
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads() if torch else None,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "gpu": torch.cuda.get_device_name() if torch and with_gpu else None,
    }
