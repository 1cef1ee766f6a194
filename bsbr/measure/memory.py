"""The one memory meter: what tensors hold at the peak of a call, and what a whole process holds.

`tensors` counts bytes of tensors and gives the same numbers in every run; `peak` asks the operating system about a
fresh process, and sees what no tensor shows: scratch inside an operation, the libraries' own buffers, fragmentation.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bsbr.measure import machine

# -- Tensors --------------------------------------------------------------------------------------

# Ours for the kinds that PyTorch's tracker tells apart.
PARTS = {
    "Parameter": "parameters",
    "Buffer": "buffers",
    "Gradient": "gradients",
    "Activation": "activations",
    "Temp": "temporaries",
    "Optstate": "optimizer_state",
    "Other": "inputs",
}


@dataclass(frozen=True)
class TensorPeak:
    """Bytes that tensors hold at the peak of a call, and once it has ended.

    Attributes:
        total: at the peak, parameters included.
        parts: the same by kind, summing to `total`: `parameters`, `buffers`, `gradients` (of parameters),
            `activations` (whatever else a forward pass made, or made again under activation checkpointing),
            `temporaries` (whatever else a backward pass made: gradients of activations, mostly), `optimizer_state`, and
            `inputs`.
        after: by kind, what is still held when the call has ended and its result is dropped.
        allocator: on a CUDA device the peak by the count of PyTorch's allocator, which also sees scratch inside
            operations and tensors that `tensors` was not told of; None on a CPU, where PyTorch keeps no such count.

    Examples:
        >>> from bsbr.measure.memory import TensorPeak
        >>> peak = TensorPeak(total=300, parts={"parameters": 200, "activations": 100}, after={"parameters": 200})
        >>> sum(peak.parts.values()) == peak.total
        True
    """

    total: int
    parts: dict[str, int]
    after: dict[str, int]
    allocator: int | None = None


def tensors(run: Callable[[], object], model: nn.Module, *inputs: Tensor | torch.optim.Optimizer) -> TensorPeak:
    """Call `run` once and return what tensors on the model's device held at its peak.

    A storage counts once, however many tensors look at it, from the operation that made it until its last tensor is
    gone. The numbers depend on the calls alone, not on the machine. What an operation keeps to itself is not seen, such
    as the scratch of a fused attention kernel. Works with and without gradients, under inference mode, and with
    activation checkpointing, for which PyTorch warns that activations and temporaries may be told apart wrongly.

    Gradients that a model has from before are held, and counted, from the start: `model.zero_grad()` frees them.

    Args:
        run: the call. It is made once; on a GPU, make it once before, so that libraries have their workspaces.
        model: the module whose parameters, buffers and gradients it uses.
        inputs: tensors made before the call, such as token ids, and optimizers.

    Raises:
        TypeError: `model` is no module, or one of `inputs` is neither a tensor nor an optimizer.
        ValueError: `model` lies on several devices.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from bsbr.measure.memory import tensors
        >>> model, x = nn.Linear(100, 50, bias=False), torch.randn(8, 100)
        >>> with torch.inference_mode():
        ...     peak = tensors(lambda: model(x), model, x)
        >>> peak.parts["parameters"], peak.parts["inputs"]  # 4 bytes a number
        (20000, 3200)
    """
    from bsbr.measure._tracker import Tracker  # late: it takes seconds, and a child process of `peak` has no need of it

    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be the torch module that run calls, but is {model!r}")
    for given in inputs:
        if not isinstance(given, Tensor | torch.optim.Optimizer):
            raise TypeError(f"inputs must be tensors or optimizers, one argument each, but one is {given!r}")
    device = _device(model)
    tracker = Tracker()
    tracker.track_external(model, *inputs)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tracker:
        result = run()
    allocator = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    del result
    parts, after = (_parts(tracker.get_tracker_snapshot(when).get(device, {})) for when in ("peak", "current"))
    return TensorPeak(sum(parts.values()), parts, after, allocator)


def _device(model: nn.Module) -> torch.device:
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        raise ValueError(f"model must lie on one device, but lies on {', '.join(sorted(map(str, devices)))}")
    return devices.pop() if devices else torch.device("cpu")


def _parts(snapshot: dict[str, int]) -> dict[str, int]:
    return {ours: snapshot.get(theirs, 0) for theirs, ours in PARTS.items()}


# -- A process ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peak:
    """Bytes resident: before the call, once all that it needs was loaded, and at its peak.

    Examples:
        >>> from bsbr.measure.memory import Peak
        >>> Peak(before=300, peak=500).added
        200
    """

    before: int  # the call
    peak: int  # during it

    @property
    def added(self) -> int:
        """What the call added."""
        return self.peak - self.before


def peak(prepare: Callable[..., Callable[[], object]], *arguments: object) -> Peak:
    """Peak resident memory of `run = prepare(*arguments); run()` in a fresh process.

    Args:
        prepare: a function of a module (a child process imports it) that loads what is needed and returns the call.
        arguments: anything that pickles between two processes of this machine.

    Raises:
        MemoryError: the system ended the child for want of memory.

    Examples:
        >>> import functools
        >>> import operator
        >>> from bsbr.measure.memory import peak
        >>> found = peak(functools.partial, operator.mul, b"x", 10**8)  # 100 MB of text
        >>> found.added > 9 * 10**7
        True
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_in_child, prepare, arguments).result()
        except BrokenProcessPool as error:
            raise MemoryError(f"the process that ran {prepare.__name__}{arguments} was ended by the system") from error


def return_freed_blocks() -> None:
    """Have the C library give freed memory back at once, so that the resident set follows the tensors.

    By default glibc keeps much of it for the next allocation, which a process's peak then includes.

    Raises:
        NotImplementedError: the C library is not glibc.
    """
    if not machine.set_malloc(machine.M_MMAP_THRESHOLD, 128 * 1024):
        raise NotImplementedError("freed memory can be returned at once with glibc; this system's C library is another")


def _in_child(prepare: Callable[..., Callable[[], object]], arguments: tuple[object, ...]) -> Peak:
    run = prepare(*arguments)
    with contextlib.suppress(OSError):  # Linux: forget the peak of preparing (proc_pid_clear_refs(5))
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _peak_so_far()
    run()
    return Peak(before, _peak_so_far())


def _peak_so_far() -> int:
    # Not getrusage on Linux: its ru_maxrss passes from a parent to the processes that it starts.
    with contextlib.suppress(FileNotFoundError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        if found:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
