"""Publishing a full run: a table, its record and a page change together, or not at all.

They are prepared in a folder of their own, whose renaming is the moment of publishing. A run killed before it changes
nothing; one killed after it is finished by the next command of the runner, whichever that is.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pairs
import psutil

from bsbr.store import files, table


def staging_folder(experiment: str, target: str) -> Path:
    """Where a full run prepares what it will publish; emptied of what a run that failed has left."""
    staging = table.journal_folder(target, "full") / f"{experiment}.staging"
    shutil.rmtree(staging, ignore_errors=True)
    return staging


def install(staging: Path) -> None:
    """Put a finished staging folder's files in their places."""
    ready = staging.with_suffix(".ready")
    shutil.rmtree(ready, ignore_errors=True)
    staging.rename(ready)
    _put_in_place(ready)


def finish() -> None:
    """Do the rest of what an interrupted run had begun to publish, and remove the halves of files that it left."""
    for ready in sorted((table.data_folder() / "journal").glob("*/full/*/*.ready")):
        _put_in_place(ready)
    for folder in (table.data_folder() / "journal", table.data_folder() / "results", pairs.NOTEBOOKS):
        for part in folder.rglob("*.part"):
            writer = part.suffixes[-2].lstrip(".") if len(part.suffixes) > 1 else ""  # see files.write_whole
            if writer.isdecimal() and not psutil.pid_exists(int(writer)):
                part.unlink(missing_ok=True)


def _put_in_place(ready: Path) -> None:
    target, profile = ready.relative_to(table.data_folder() / "journal").parts[:2]
    places = {"results": table.published_folder(target, profile), "notebooks": pairs.NOTEBOOKS}
    for part, place in places.items():
        for file in sorted(path for path in (ready / part).rglob("*") if path.is_file()):
            files.write_whole(place / file.relative_to(ready / part), file.read_bytes())
    shutil.rmtree(ready)
