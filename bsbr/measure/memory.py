"""The one memory meter: a child process's peak resident set, so that nothing measured before can hide in it."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Bytes resident: before the call, once all that it needs was loaded, and at its peak."""

    before: int
    peak: int

    @property
    def added(self) -> int:
        return self.peak - self.before


def peak(prepare: Callable[..., Callable[[], object]], *arguments: object) -> Peak:
    """Peak resident memory of `run = prepare(*arguments); run()` in a fresh process.

    Args:
        prepare: a function of a module (a child process imports it) that loads what is needed and returns the call.
        arguments: anything that pickles between two processes of this machine.

    Raises:
        MemoryError: the system ended the child for want of memory.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_in_child, prepare, arguments).result()
        except BrokenProcessPool as error:
            raise MemoryError(f"the process that ran {prepare.__name__}{arguments} was ended by the system") from error


def _in_child(prepare: Callable[..., Callable[[], object]], arguments: tuple[object, ...]) -> Peak:
    run = prepare(*arguments)
    before = _peak_so_far()
    run()
    return Peak(before, _peak_so_far())


def _peak_so_far() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
