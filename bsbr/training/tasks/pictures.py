"""Emoji: the group of each, from its name, its picture, or both.

A picture is read as tokens too, so that no model needs to be changed for it: halved to 32 × 32, cut into 64 patches of
4 × 4, and each patch told as the nearest of the patches in a code book, which k-means finds on the training part.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from bsbr.sources.emoji import VENDORS, Emoji, load_emoji, load_picture
from bsbr.sources.pins import pin_path
from bsbr.store.artefact import RECORD, Report, artefact
from bsbr.training.settings import Batch
from bsbr.training.tokens import VOCABULARY, prepared_sha256, tokenizer

CODES = 256
PATCH = 4  # pixels of the halved picture
PATCHES = 64
ROUNDS = 12  # of k-means
INPUTS = ("name", "picture", "both")


@dataclass(frozen=True)
class Pictures:
    """Rows with an emoji's words, its picture, or its words, `END` and its picture; labels are numbers in `classes`.

    Args:
        inputs: `"name"`, `"picture"` or `"both"`.
        vendor: whose pictures, `"twitter"` or `"google"`. The code book is always that of twitter's training part.

    Raises:
        ValueError: an unknown input or vendor.

    Examples:
        >>> from bsbr.training.tasks import Pictures
        >>> task = Pictures(inputs="name")
        >>> task.vocab_size, task.sources
        (4352, ('emoji', 'emoji_google'))
        >>> "Flags" in task.classes, task.size("train") > task.size("test")
        (True, True)
        >>> sorted(task.rows("test", [0, 1]))
        ['attention_mask', 'input_ids', 'labels']
    """

    inputs: str = "both"
    vendor: str = "twitter"

    def __post_init__(self) -> None:
        if self.inputs not in INPUTS:
            raise ValueError(f"inputs must be one of {', '.join(INPUTS)}, but is {self.inputs!r}")
        if self.vendor not in VENDORS:
            raise ValueError(f"vendor must be one of {', '.join(VENDORS)}, but is {self.vendor!r}")

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer, and the codes after it."""
        return VOCABULARY + CODES

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the pinned sources."""
        return ("emoji", "emoji_google")

    @property
    def classes(self) -> list[str]:
        """The groups in order."""
        return sorted({emoji.group for emoji in load_emoji()})

    def size(self, part: str) -> int:
        """Emoji in a part."""
        return len(load_emoji(part))

    def rows(self, part: str, indices: Sequence[int]) -> Batch:
        """`input_ids` and `attention_mask` (batch, longest row), and `labels` (batch,)."""
        emoji, classes = load_emoji(part), self.classes
        found = [self._tokens(emoji[index]) for index in indices]
        ids = np.zeros((len(found), max(map(len, found))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(found):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        arrays = {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": np.array([classes.index(emoji[index].group) for index in indices]),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _tokens(self, emoji: Emoji) -> np.ndarray:
        words = [np.array(tokenizer().encode(emoji.words).ids)] if self.inputs != "picture" else []
        picture = [VOCABULARY + _codes(self.vendor)[emoji.key]] if self.inputs != "name" else []
        return np.concatenate([*words, [0], *picture] if len(words + picture) == 2 else words + picture)

    def fingerprint(self) -> str:
        """One hash over settings, names and pictures."""
        codes = (_coded() / RECORD).read_text(encoding="utf-8")
        return hashlib.sha256(f"{sorted(asdict(self).items())} {prepared_sha256()} {codes}".encode()).hexdigest()


@functools.cache
def _codes(vendor: str) -> dict[str, np.ndarray]:
    """The 64 codes of each emoji's picture by its key."""
    keys = [emoji.key for emoji in load_emoji()]
    return dict(zip(keys, load_file(_coded() / "codes.safetensors")[vendor].astype(np.int64), strict=True))


@functools.cache
def _coded() -> Path:
    """The folder of the pictures as codes, made once from the pinned pictures, and kept."""
    return artefact("pictures", _code, sources=[pin_path(source) for source in VENDORS.values()])


def _code(folder: Path, report: Report) -> None:
    report("pictures: made once from the pinned sources")
    emoji = load_emoji()
    training = {one.key for one in load_emoji("train")}
    patches = {vendor: np.stack([patches_of(halved(load_picture(one, vendor))) for one in emoji]) for vendor in VENDORS}
    seen = np.array([one.key in training for one in emoji])
    book = code_book(patches["twitter"][seen].reshape(-1, PATCH * PATCH * 3), CODES)
    codes = {vendor: nearest(found.reshape(-1, book.shape[1]), book) for vendor, found in patches.items()}
    found = {vendor: one.reshape(len(emoji), PATCHES).astype(np.int16) for vendor, one in codes.items()}
    save_file({**found, "book": book}, folder / "codes.safetensors")


def as_read(emoji: Emoji, vendor: str = "twitter") -> np.ndarray:
    """What a model is shown of an emoji's picture: the patches of its codes, uint8 of shape (32, 32, 3).

    Raises:
        ValueError: there is no such vendor.
        SourceError: the pictures were not fetched, or were altered.
    """
    if vendor not in VENDORS:
        raise ValueError(f"vendor must be one of {', '.join(VENDORS)}, but is {vendor!r}")
    book = load_file(_coded() / "codes.safetensors")["book"]
    return joined(book[_codes(vendor)[emoji.key]]).astype(np.uint8)


def halved(picture: np.ndarray) -> np.ndarray:
    """A (64, 64, 3) picture at half the size, each pixel the mean of four: (32, 32, 3), whole numbers in int32."""
    return picture.astype(np.int32).reshape(32, 2, 32, 2, 3).sum((1, 3)) // 4


def patches_of(picture: np.ndarray) -> np.ndarray:
    """The 64 patches, row by row, of a (32, 32, 3) picture: (64, 48)."""
    side = 32 // PATCH
    return picture.reshape(side, PATCH, side, PATCH, 3).swapaxes(1, 2).reshape(PATCHES, -1)


def joined(patches: np.ndarray) -> np.ndarray:
    """The (32, 32, 3) picture that `patches_of` has cut into patches, (64, 48)."""
    side = 32 // PATCH
    return patches.reshape(side, side, PATCH, PATCH, 3).swapaxes(1, 2).reshape(32, 32, 3)


def code_book(patches: np.ndarray, codes: int) -> np.ndarray:
    """The centres that k-means (Lloyd 1982) finds, rounded to whole numbers at each round: (codes, values), int32.

    Whole numbers below 2^24 are exact in float32, so that every machine finds the same.
    """
    different = np.unique(patches, axis=0)
    mixed = different[np.random.default_rng(0).permutation(len(different))]
    book = mixed[:codes].copy()
    for _ in range(ROUNDS):
        chosen = nearest(mixed, book)
        for code in range(len(book)):
            mine = mixed[chosen == code]
            if len(mine):
                book[code] = mine.sum(0) // len(mine)
    return book.astype(np.int32)


def nearest(patches: np.ndarray, book: np.ndarray) -> np.ndarray:
    """The number of the centre nearest to each patch; of two as near, the first."""
    centres = book.astype(np.float32)
    lengths = (centres**2).sum(1)
    found = [(lengths - 2 * (part.astype(np.float32) @ centres.T)).argmin(1) for part in np.array_split(patches, 64)]
    return np.concatenate(found)
