"""Where cells are measured: in this process, unless an executor is used that hands them to others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from bsbr.store import machine
from bsbr.store.table import Row


class Here(Executor):
    """Measures in this process, at once: whoever hands over a cell waits for it.

    What an executor has beyond those of `concurrent.futures`, an executor of others overrides.
    """

    at_once: float = 1  # cells that are handed over before one of them is done

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """What `fn` returns or raises, as a future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def machine(self, exclusive: bool) -> dict[str, Any]:
        """The machine that numbers which belong to one are kept for.

        Args:
            exclusive: whether it is that of cells which have a machine for themselves.
        """
        return machine.describe()

    def under_way(self) -> int:
        """How many cells are being measured now."""
        return 0

    def said(self) -> list[str]:
        """What there is to tell since the last call, in sentences."""
        return []

    def answer(self, sweep: Any, parts: Sequence[Any]) -> list[list[list[Row]]] | None:
        """The rows of each cell of each part, where they are known already and nothing is to be measured."""
        return None


_used: Here = Here()


def used() -> Here:
    """The executor that cells are handed to."""
    return _used


def use(executor: Here) -> Here:
    """Hand cells to this executor from now on, in this process, and return the one before."""
    global _used
    before, _used = _used, executor
    return before


@contextlib.contextmanager
def using(executor: Here) -> Iterator[None]:
    """Hand cells to this executor within the block."""
    before = use(executor)
    try:
        yield
    finally:
        use(before)
