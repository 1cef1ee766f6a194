"""Language modelling: windows of the tokens of documents, one after the other."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bsbr.training.settings import Batch
from bsbr.training.tokens import VOCABULARY, encoded

END_ID = 0  # `tokens.END`


class Windows:
    """Rows of n tokens and those that follow them. Windows do not overlap, so an epoch trains each token once.

    Args:
        streams: the tokens of each part, documents ended by `END_ID`.
        n: tokens in a row.
        vocab_size: how many tokens there are.
        sources: names of the pinned sources that the streams are made of.

    Raises:
        ValueError: a part has no whole window.

    Examples:
        >>> import numpy as np
        >>> from bsbr.training.tasks import Windows
        >>> task = Windows({"train": np.arange(100), "validation": np.arange(20)}, n=8, vocab_size=100)
        >>> task.size("train"), task.size("validation")
        (12, 2)
        >>> batch = task.rows("train", [1])
        >>> batch["input_ids"].tolist(), batch["labels"].tolist()
        ([[8, 9, 10, 11, 12, 13, 14, 15]], [[9, 10, 11, 12, 13, 14, 15, 16]])
        >>> len(task.fingerprint())
        64
    """

    def __init__(
        self, streams: Mapping[str, np.ndarray], n: int, vocab_size: int = VOCABULARY, sources: Sequence[str] = ()
    ) -> None:
        for part, stream in streams.items():
            if len(stream) <= n:
                raise ValueError(
                    f"n must be below the {len(stream)} tokens of {part}, but is {n}; add texts, or lower n"
                )
        self.streams, self.n, self.vocab_size, self.sources = dict(streams), n, vocab_size, tuple(sources)

    def size(self, part: str) -> int:
        """Windows in a part."""
        return (len(self.streams[part]) - 1) // self.n

    def rows(self, part: str, indices: Sequence[int]) -> Batch:
        """`input_ids` and `labels`, (batch, n) each."""
        starts = np.array(indices)[:, None] * self.n
        tokens = torch.from_numpy(self.streams[part][starts + np.arange(self.n + 1)])
        return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}

    def fingerprint(self) -> str:
        """One hash over the streams and n."""
        total = hashlib.sha256(f"{self.n} {self.vocab_size}".encode())
        for part in sorted(self.streams):
            total.update(part.encode() + hashlib.sha256(self.streams[part].tobytes()).digest())
        return total.hexdigest()


@functools.cache
def corpus_windows(n: int, corpora: tuple[str, ...] = ("brown", "speeches")) -> Windows:
    """Windows over pinned corpora, documents in an order that mixes the corpora.

    Args:
        n: tokens in a row.
        corpora: of `"brown"`, `"emails"` and `"speeches"`.

    Raises:
        ValueError: there is no such corpus.
        SourceError: one was not fetched.

    Examples:
        >>> from bsbr.training.tasks import corpus_windows
        >>> task = corpus_windows(1024, ("speeches",))
        >>> task.rows("test", [0])["input_ids"].shape
        torch.Size([1, 1024])
    """
    parts = ("train", "validation", "test")
    streams = {part: stream([ids for corpus in corpora for ids in encoded(corpus, part)]) for part in parts}
    return Windows(streams, n, sources=corpora)


def text_windows(texts: Mapping[str, Sequence[str]], tokenizer: Any, n: int) -> Windows:
    """Windows over one's own texts by part, as tokens of a `tokenizers.Tokenizer` whose token 0 ends a document.

    Args:
        texts: the texts of each part, `"train"` and `"validation"`, and `"test"` where it is used.
        tokenizer: a `tokenizers.Tokenizer`, such as `bsbr.training.tokens.byte_pairs` makes.
        n: tokens in a row.

    Examples:
        >>> from bsbr.training.tasks import text_windows
        >>> from bsbr.training.tokens import byte_pairs
        >>> texts = {"train": ["To be or not to be."] * 10, "validation": ["That is the question."]}
        >>> task = text_windows(texts, byte_pairs(texts["train"], vocabulary=300), n=8)
        >>> task.rows("validation", [0])["input_ids"].shape
        torch.Size([1, 8])
    """
    streams = {part: stream([one.ids for one in tokenizer.encode_batch(list(found))]) for part, found in texts.items()}
    return Windows(streams, n, tokenizer.get_vocab_size())


def stream(documents: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Documents one after the other, each ended by `END_ID`, in the order of their content's hashes."""
    arrays = [np.append(np.asarray(document, dtype=np.int64), END_ID) for document in documents]
    arrays.sort(key=lambda array: hashlib.sha256(array.tobytes()).digest())
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
