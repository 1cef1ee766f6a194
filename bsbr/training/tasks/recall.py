"""Multi-query associative recall, as Zoology defines it (Arora et al. 2023, arXiv:2312.04927, section 4 and appendix).

A row begins with pairs of a key and a value, all different. Then each key comes once more, and the value is to be told.
Where it comes follows a power law: most keys soon, some late. All else is filled with tokens drawn at random.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from bsbr.training.heads import IGNORED
from bsbr.training.settings import Batch

BLOCK = 256  # rows that are made at once


@dataclass(frozen=True)
class Recall:
    """Rows of n tokens with `pairs` keys to be recalled; `labels` stand at the second coming of each key.

    Keys are tokens 1 … vocab_size / 2 − 1, values the upper half. A row asked for twice is the same.

    Args:
        pairs: keys and values in a row.
        n: tokens in a row; even, and at least 4 · pairs.
        vocab_size: Zoology's is 8,192.
        power: a of the power law p(gap) ∝ gap^(a − 1) for the gap before a key comes again; Zoology's is 0.01.
        train_rows, test_rows: Zoology trains on 100,000 and tests on 3,000; validation has as many rows as the test.
        seed: of the rows.

    Raises:
        ValueError: n, pairs or vocab_size do not go together.

    Examples:
        >>> from bsbr.training.tasks import Recall
        >>> task = Recall(pairs=2, n=16, vocab_size=32)
        >>> task.size("train"), task.size("test")
        (100000, 3000)
        >>> batch = task.rows("train", [0, 1, 2])
        >>> batch["input_ids"].shape, int((batch["labels"] >= 0).sum())  # each of 2 keys is asked for in each of 3 rows
        (torch.Size([3, 16]), 6)
        >>> task.fingerprint() == Recall(pairs=2, n=16, vocab_size=32, seed=1).fingerprint()
        False
    """

    pairs: int = 4
    n: int = 64
    vocab_size: int = 8192
    power: float = 0.01
    train_rows: int = 100_000
    test_rows: int = 3_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n % 2 or self.n < 4 * self.pairs:
            raise ValueError(f"n must be even and ≥ 4 · pairs = {4 * self.pairs}, but is {self.n}")
        if self.vocab_size <= self.n or self.pairs > self.vocab_size // 2 - 1:
            raise ValueError(f"vocab_size must be > n = {self.n} and > 2 · pairs, but is {self.vocab_size}")

    def size(self, part: str) -> int:
        """Rows in a part."""
        return self.train_rows if part == "train" else self.test_rows

    def rows(self, part: str, indices: Sequence[int]) -> Batch:
        """`input_ids` and `labels`, (batch, n) each."""
        blocks = [_block(self, part, index // BLOCK) for index in indices]
        which = [index % BLOCK for index in indices]
        return {
            name: torch.from_numpy(np.stack([block[i][row] for block, row in zip(blocks, which, strict=True)]))
            for i, name in enumerate(("input_ids", "labels"))
        }

    def fingerprint(self) -> str:
        """One hash over the settings."""
        return hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _block(task: Recall, part: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """So many neighbouring rows at once, which takes a fifth of the time: ids and labels, (BLOCK, n) each."""
    chance = np.random.default_rng([task.seed, ("train", "validation", "test").index(part), number])
    half, context = task.vocab_size // 2, 2 * task.pairs
    keys = 1 + _different(np.zeros(half - 1), task.pairs, chance)
    values = half + _different(np.zeros(task.vocab_size - half), task.pairs, chance)
    likely = _power_law((task.n - context) // 2, task.power)
    places = context + 2 * _different(np.log(likely), task.pairs, chance)
    ids = chance.integers(task.vocab_size, size=(BLOCK, task.n))
    ids[:, 0:context:2], ids[:, 1:context:2] = keys, values
    labels = np.full_like(ids, IGNORED)
    rows = np.arange(BLOCK)[:, None]
    ids[rows, places], labels[rows, places] = keys, values
    return ids, labels


def _different(log_weights: np.ndarray, count: int, chance: np.random.Generator) -> np.ndarray:
    """For each row of a block, numbers drawn one by one without putting back, by weight: (BLOCK, count).

    The greatest of Gumbel noise and log weights have that distribution (Yellott 1977).
    """
    noisy = log_weights + chance.gumbel(size=(BLOCK, len(log_weights)))
    return np.argsort(-noisy, axis=1)[:, :count]


@functools.cache
def _power_law(space: int, power: float) -> np.ndarray:
    likely = power * np.arange(1, space + 1) ** (power - 1)
    return likely / likely.sum()
