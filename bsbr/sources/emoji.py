"""Emoji: names and keywords, the group of each, and its picture as two vendors draw it."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bsbr.sources.parts import grouped, keys_of, parts_of
from bsbr.sources.pins import check_files, read_pin

VENDORS = {"twitter": "emoji", "google": "emoji_google"}  # and the source that has its pictures
SIDE = 64  # pixels


@dataclass(frozen=True)
class Emoji:
    """One emoji. `key` is its code points, such as `1F385`; `keywords` are its short names, such as `santa`."""

    key: str
    name: str
    keywords: tuple[str, ...]
    group: str
    image: str  # the file's name

    @property
    def words(self) -> str:
        """Name and keywords as text."""
        return ", ".join([self.name.lower(), *(word.replace("_", " ").replace("-", " ") for word in self.keywords)])


def family(key: str) -> str:
    """Code points without gender: a man, a woman and a person who do the same are drawn alike."""
    without = re.sub(r"-200D-(2640|2642)(-FE0F)?", "", key)
    return re.sub(r"\b(1F468|1F469|1F9D1)\b", "1F9D1", without).removesuffix("-FE0F")


@functools.cache
def _all_emoji() -> dict[str, Emoji]:
    records = json.loads((check_files(read_pin("emoji")) / "emoji.json").read_text(encoding="utf-8"))
    found = [
        Emoji(entry["unified"], entry["name"], tuple(entry["short_names"]), entry["category"], entry["image"])
        for entry in records
        if entry["category"] != "Component" and all(entry[f"has_img_{vendor}"] for vendor in VENDORS)
    ]
    return {emoji.key: emoji for emoji in sorted(found, key=lambda emoji: emoji.key)}


@functools.cache
def _parts() -> dict[str, list[str]]:
    emoji = _all_emoji()
    families = grouped({key: family(key) for key in emoji})
    return parts_of("emoji", {key: one.group for key, one in emoji.items()}, families)


def load_emoji(split: str | None = None) -> list[Emoji]:
    """Emoji in order of code points: all, or the `"train"`, `"validation"` or `"test"` part.

    An emoji stands for its variants in other skin tones, which are left out, and is in one part with those that differ
    in gender only.

    Args:
        split: `"train"`, `"validation"`, `"test"`, or None for all.

    Raises:
        ValueError: there is no such split.
        SourceError: the emoji were not fetched, or were altered.

    Examples:
        >>> from bsbr.sources import load_emoji
        >>> {one.key: one.name for one in load_emoji()}["1F385"]
        'FATHER CHRISTMAS'
    """
    if split is None:
        return list(_all_emoji().values())
    return [_all_emoji()[key] for key in keys_of(split, _parts)]


def load_picture(emoji: Emoji, vendor: str = "twitter") -> np.ndarray:
    """The picture of an emoji on white, uint8 of shape (64, 64, 3).

    Args:
        emoji: one that `load_emoji` returns.
        vendor: who has drawn it, `"twitter"` or `"google"`.

    Raises:
        ValueError: `vendor` is neither `"twitter"` nor `"google"`.
        SourceError: the pictures were not fetched, or were altered.

    Examples:
        >>> from bsbr.sources import load_emoji, load_picture
        >>> load_picture(load_emoji()[0], "google").shape
        (64, 64, 3)
    """
    from PIL import Image

    if vendor not in VENDORS:
        raise ValueError(f"vendor: expected one of {sorted(VENDORS)}, got {vendor!r}")
    with Image.open(_checked(vendor) / emoji.image) as file:
        drawn = file.convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    return np.asarray(Image.alpha_composite(white, drawn).convert("RGB"))


@functools.cache
def _checked(vendor: str) -> Path:
    return check_files(read_pin(VENDORS[vendor]))
