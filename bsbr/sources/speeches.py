"""The State of the Union addresses."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from bsbr.sources.parts import PARTS, near_duplicates, parts_of
from bsbr.sources.pins import check_files, read_pin, split_keys


@dataclass(frozen=True)
class Speech:
    """One State of the Union address. `key` is its file name, such as `1901_theodore_roosevelt_r`."""

    key: str
    year: int
    president: str
    party: str
    text: str


@functools.cache
def _all_speeches() -> tuple[Speech, ...]:
    folder = check_files(read_pin("speeches"))
    speeches = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        speeches.append(Speech(path.stem, record["year"], record["name"], record["party"], record["text"]))
    return tuple(speeches)


@functools.cache
def _parts() -> dict[str, list[str]]:
    texts = {speech.key: speech.text for speech in _all_speeches()}
    return parts_of("speeches", dict.fromkeys(texts, ""), near_duplicates(texts))


def load_speeches(split: str | None = None) -> list[Speech]:
    """State of the Union addresses in order of year: all, one part of the pinned split, or a part for training.

    Args:
        split: None for all. For conversions `"development"` (for choosing settings), or for reporting only
            `"held_out"` (few and long) or `"samples"` (many, some of them short). For models that are trained here
            `"train"`, `"validation"` or `"test"`, which have nothing to do with the former.

    Raises:
        ValueError: there is no such split.
        SourceError: the speeches were not fetched, or were altered.

    Examples:
        >>> from bsbr.sources import load_speeches
        >>> speeches = load_speeches()
        >>> len(speeches), speeches[0].year, speeches[0].president
        (233, 1790, 'George Washington')
    """
    if split is None:
        return list(_all_speeches())
    keys = _parts()[split] if split in PARTS else split_keys("speeches", split)
    by_key = {speech.key: speech for speech in _all_speeches()}
    return [by_key[key] for key in keys]
