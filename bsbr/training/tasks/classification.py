"""Document classification: genres of the Brown corpus, groups of e-mails."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bsbr.training.settings import Batch, generator
from bsbr.training.tokens import VOCABULARY, encoded, labels, prepared_sha256


@dataclass(frozen=True)
class Classification:
    """Rows of at most n tokens of a document, and the number of its label in `classes`.

    A row of the training part is a window that is drawn anew each time it is asked for under another number: every
    document is read as often. Of the other parts it is the beginning of the document, one row a document.
    Shorter documents are padded on the right.

    Args:
        corpus: `"brown"` or `"emails"`.
        n: tokens in a row.
        seed: of the windows.

    Examples:
        >>> from bsbr.training.tasks import Classification
        >>> task = Classification("brown", n=256)
        >>> len(task.classes), task.sources
        (15, ('brown',))
        >>> task.rows("test", [0, 1])["input_ids"].shape
        torch.Size([2, 256])
        >>> task.size("train") is None, task.documents("train") > task.size("test")
        (True, True)
        >>> task.targets("test").max() < len(task.classes) and task.vocab_size == 4096
        True
        >>> len(task.fingerprint())
        64
    """

    corpus: str
    n: int
    seed: int = 0

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer."""
        return VOCABULARY

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the pinned sources."""
        return (self.corpus,)

    @property
    def classes(self) -> list[str]:
        """The labels in order."""
        return sorted(set(labels(self.corpus, "train").values()))

    def size(self, part: str) -> int | None:
        """Documents in a part; windows of the training part never end."""
        return None if part == "train" else len(encoded(self.corpus, part))

    def documents(self, part: str) -> int:
        """How many documents a part has."""
        return len(encoded(self.corpus, part))

    def targets(self, part: str) -> np.ndarray:
        """The number of the label of each document of a part."""
        return _targets(self.corpus, part)

    def rows(self, part: str, indices: Sequence[int]) -> Batch:
        """`input_ids` and `attention_mask` (batch, longest row), and `labels` (batch,)."""
        documents = encoded(self.corpus, part)
        chosen = [_mixed(len(documents), self.seed, index) if part == "train" else index for index in indices]
        found = [self._window(documents[which], part, index) for which, index in zip(chosen, indices, strict=True)]
        longest = max(map(len, found))
        ids = np.zeros((len(found), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(found):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": self.targets(part)[chosen]}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _window(self, document: np.ndarray, part: str, index: int) -> np.ndarray:
        spare = len(document) - self.n
        if part != "train" or spare <= 0:
            return document[: self.n]
        chance = generator("window", self.seed, index)
        return document[int(torch.randint(spare + 1, (), generator=chance)) :][: self.n]

    def fingerprint(self) -> str:
        """One hash over settings, documents and labels."""
        return hashlib.sha256(f"{self.corpus} {self.n} {self.seed} {prepared_sha256()}".encode()).hexdigest()


@functools.cache
def _targets(corpus: str, part: str) -> np.ndarray:
    classes = sorted(set(labels(corpus, "train").values()))
    return np.array([classes.index(label) for label in labels(corpus, part).values()], dtype=np.int64)


def _mixed(count: int, seed: int, index: int) -> int:
    """The document that a row of the training part reads: each once in `count` rows, in an order of these rows' own."""
    return _order(count, seed, index // count)[index % count]


@functools.lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=generator("documents", seed, epoch)).tolist()
