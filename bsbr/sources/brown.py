"""The Brown corpus: 500 texts of about 2,000 words of American English of 1961, in 15 genres."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from bsbr.sources.parts import keys_of, near_duplicates, parts_of
from bsbr.sources.pins import check_files, read_pin

OPENING, CLOSING = "([{", ".,;:?!)]}"
DOUBLED = ";?!"  # marks that the corpus has twice


@dataclass(frozen=True)
class BrownText:
    """One text of the Brown corpus. `key` is its file name, such as `ca01`; `genre` is such as `news`."""

    key: str
    genre: str
    text: str


def plain_text(tagged: str) -> str:
    """Running text from words with part-of-speech tags, such as `The/at jury/nn said/vbd ./.`, a paragraph a line.

    Spaces before closing and after opening marks go, and `` and '' become quotation marks.
    """
    paragraphs = []
    for block in re.split(r"\n\s*\n", tagged):
        text, joined = "", True
        for token in block.split():
            word = token.rpartition("/")[0]
            word = '"' if word in ("``", "''") else word
            if word in DOUBLED and text.endswith(word):
                continue
            closing = token.startswith("''/") or word in CLOSING
            text += word if joined or closing else f" {word}"
            joined = token.startswith("``/") or word in OPENING
        if text:
            paragraphs.append(text)
    return "\n".join(paragraphs)


@functools.cache
def _all_texts() -> dict[str, BrownText]:
    folder = check_files(read_pin("brown"))
    lines = (folder / "cats.txt").read_text(encoding="utf-8").split("\n")
    genres = dict(line.split() for line in lines if line.strip())
    return {
        key: BrownText(key, genre, plain_text((folder / key).read_text(encoding="utf-8")))
        for key, genre in sorted(genres.items())
    }


@functools.cache
def _parts() -> dict[str, list[str]]:
    texts = _all_texts()
    duplicates = near_duplicates({key: text.text for key, text in texts.items()})
    return parts_of("brown", {key: text.genre for key, text in texts.items()}, duplicates)


def load_brown(split: str | None = None) -> list[BrownText]:
    """Texts of the Brown corpus in order of key: all, or the `"train"`, `"validation"` or `"test"` part.

    Args:
        split: `"train"`, `"validation"`, `"test"`, or None for all.

    Raises:
        ValueError: there is no such split.
        SourceError: the texts were not fetched, or were altered.

    Examples:
        >>> from bsbr.sources import load_brown
        >>> texts = load_brown()
        >>> len(texts), texts[0].key, texts[0].genre
        (500, 'ca01', 'news')
    """
    if split is None:
        return list(_all_texts().values())
    return [_all_texts()[key] for key in keys_of(split, _parts)]
