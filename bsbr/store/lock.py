"""One run at a time: a lock that ends with its process, however that ends, and that says who holds it."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from bsbr.store.files import write_whole


class BusyError(RuntimeError):
    """Another process holds the lock; the message says which."""


@contextlib.contextmanager
def held(path: Path, purpose: str, wait: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold the lock at `path` for as long as the block runs.

    Args:
        path: the lock's file; its folder is made. A note of the holder stands beside it.
        purpose: what the holder does, for the sentence that others get.
        wait: is told who holds the lock, and then the lock is waited for.

    Raises:
        BusyError: somebody else holds it, and `wait` was not given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(path), path.with_suffix(".holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sentence = f"{_holder(note)} is at work in {path.parent}"
        if wait is None:
            raise BusyError(sentence) from None
        wait(sentence)
        lock.acquire()
    try:
        for half in note.parent.glob(f"{glob.escape(note.name)}.*.part"):  # of a holder that was killed as it wrote it
            half.unlink(missing_ok=True)
        since = datetime.now().astimezone().strftime("%H:%M:%S")
        write_whole(note, f"{purpose} (process {os.getpid()}, since {since})")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    try:
        return note.read_text(encoding="utf-8")
    except OSError:  # it has only just begun, or is about to end
        return "another process"
