"""What is made once and kept in the cache, such as trained weights: under a key of all that it was made of."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bsbr.store import fingerprint, lock, provenance
from bsbr.store.files import write_whole

RECORD = "artefact.json"  # in the folder: the SHA-256 of each other file
Report = Callable[[str], None]


def cache_folder() -> Path:
    """The ignored folder of what is fetched and made: `data/cache`, or what BSBR_CACHE names."""
    return Path(os.environ.get("BSBR_CACHE") or provenance.ROOT / "data" / "cache")


def artefact(
    name: str, make: Callable[..., None], /, *, sources: Sequence[Path] = (), report: Report = print, **settings: Any
) -> Path:
    """The folder that `make(folder, report, **settings)` has filled, now or in an earlier run.

    It is found again as long as the code that `make` reaches, the settings, the sources and the packages are the same;
    with others it is made anew, beside the old one. Nobody finds half of it: it is filled under another name and put in
    place by one rename. A folder whose files are not those that were made is made anew. Of several processes that want
    one at once, one makes it and the others wait.

    Args:
        name: what the folder's name begins with.
        make: fills the folder it is given, or raises. Where an earlier call was stopped it is given what that one left,
            and may go on from there; what is in the folder in the end is kept.
        sources: files or folders that it reads.
        report: is told about progress in sentences; it is no part of the key.
        settings: what `make` is called with.

    Raises:
        fingerprint.UnseenError: what `make` depends on cannot be seen.
    """
    folder = folder_of(name, make, sources=sources, **settings)
    if is_whole(folder):
        return folder
    alone = folder.with_name(f".{folder.name}.lock")
    with lock.held(alone, f"the making of {name}", lambda sentence: report(f"{sentence}: waiting for its end.")):
        if not is_whole(folder):  # which another process may have made meanwhile
            partial = folder.with_name(f".{folder.name}.making")
            partial.mkdir(parents=True, exist_ok=True)
            make(partial, report, **settings)
            write_whole(partial / RECORD, json.dumps(_hashes(partial), indent=2) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        alone.unlink(missing_ok=True)  # whoever waits for it finds the folder there
    return folder


def folder_of(name: str, make: Callable[..., None], /, *, sources: Sequence[Path] = (), **settings: Any) -> Path:
    """Where an artefact lies once it was made (see `artefact`)."""
    made_of = {
        "code and settings": fingerprint.of(functools.partial(make, **settings)),
        "sources": provenance.hash_sources(sources),
        "packages": provenance.packages(),
    }
    return cache_folder() / f"{name}-{provenance.sha256(json.dumps(made_of, sort_keys=True))[:12]}"


def is_whole(folder: Path) -> bool:
    """Whether an artefact is there and holds exactly the files that were made."""
    try:
        return bool(json.loads((folder / RECORD).read_text(encoding="utf-8")) == _hashes(folder))
    except (OSError, ValueError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder, the record left out, by its path below the folder."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD):
        with path.open("rb") as stream:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
