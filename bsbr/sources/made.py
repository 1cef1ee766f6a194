"""What is made from sources and kept in the cache: unpacked and trained models, verified by a recorded hash.

A made folder is named by all that it depends on, so that other settings, sources or code make another one. Its SHA-256
lies beside it and is written last: a folder that is half there, or was damaged, is made again.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from bsbr.sources.pins import cache_folder, files_sha256
from bsbr.store.files import write_whole

ABANDONED = 3600  # seconds after which a temporary folder of another machine belongs to no run that still goes


@contextlib.contextmanager
def temporary_folder(place: Path | None = None) -> Iterator[Path]:
    """A folder in `place` (by default the cache), to be moved into place by one rename; its name says whose it is."""
    place = place or cache_folder()
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=place, prefix=f".{platform.node()}-{os.getpid()}-", suffix=".part", ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def remove_leftovers(place: Path | None = None) -> None:
    """Temporary folders of runs that were killed; those of other machines once they are old."""
    for path in (place or cache_folder()).glob(".*.part"):
        owner = re.match(rf"\.{re.escape(platform.node())}-(\d+)-", path.name)
        gone = not psutil.pid_exists(int(owner[1])) if owner else time.time() - path.stat().st_mtime > ABANDONED
        if gone:
            shutil.rmtree(path, ignore_errors=True)


def record_path(folder: Path) -> Path:
    """Where the hash of a made folder is kept."""
    return folder.with_name(f"{folder.name}.sha256")


def is_whole(folder: Path) -> bool:
    """Whether a made folder is there and as it was made."""
    record = record_path(folder)
    return folder.is_dir() and record.is_file() and record.read_text(encoding="utf-8") == files_sha256(folder)


def keep(folder: Path, fill: Callable[[Path], None]) -> Path:
    """The made folder, filled by `fill` unless it is whole already. A kill at any moment leaves it whole or to be made.

    Args:
        folder: where it is to be.
        fill: writes the files into the empty folder that it is given.
    """
    if is_whole(folder):
        return folder
    with temporary_folder(folder.parent) as temporary:
        filled = temporary / "made"
        filled.mkdir()
        fill(filled)
        digest = files_sha256(filled)
        if is_whole(folder):  # another process was faster
            return folder
        record_path(folder).unlink(missing_ok=True)
        if folder.is_dir():
            os.replace(folder, temporary / "damaged")
        os.replace(filled, folder)
    write_whole(record_path(folder), digest)
    return folder


def discard(folder: Path) -> None:
    """Remove a made folder and its record."""
    record_path(folder).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
