"""Unigrams to n-grams with interpolated Kneser–Ney smoothing: what counting alone predicts of the next token.

With c the count of an n-gram at the highest order, and below it the number of different tokens that it follows on
(Kneser and Ney 1995; Chen and Goodman 1999, section 2.7):

    p_n(w | h) = max(c(h w) − D, 0) / c(h ·) + D · N(h ·) / c(h ·) · p_{n−1}(w | h without its first token)

where N(h ·) is how many different tokens follow h, D = n₁ / (n₁ + 2 n₂) from the numbers of n-grams that were counted
once and twice, and p_0 is the same for all tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Order:
    """Counts of one order: of each n-gram, and of each history its sum and how many tokens follow it."""

    grams: np.ndarray
    counts: np.ndarray
    histories: np.ndarray
    totals: np.ndarray
    followers: np.ndarray
    discount: float


class Ngrams:
    """An n-gram model over token ids.

    Args:
        stream: the tokens that it learns from, documents one after the other.
        order: 1 for unigrams, 5 for 5-grams.
        vocab_size: how many tokens there are.

    Raises:
        ValueError: n-grams of that order and vocabulary do not fit 63 bits, or the stream is shorter than one.
    """

    def __init__(self, stream: np.ndarray, order: int, vocab_size: int) -> None:
        self.bits = max(1, int(vocab_size - 1).bit_length())
        if order < 1 or order * self.bits > 63:
            raise ValueError(f"order must lie in 1 … {63 // self.bits} for {vocab_size} tokens, but is {order}")
        if len(stream) < order:
            raise ValueError(f"stream must have at least order = {order} tokens, but has {len(stream)}")
        self.order, self.vocab_size = order, vocab_size
        self._orders: list[_Order] = []
        grams, counts = np.unique(self._packed(stream, order), return_counts=True)
        for n in range(order, 0, -1):
            self._orders.insert(0, self._count(grams, counts))
            # Below the highest order it counts in how many ways an n-gram goes on to the left.
            grams, counts = np.unique(grams & ((1 << (self.bits * (n - 1))) - 1), return_counts=True)

    def probabilities(self, stream: np.ndarray) -> np.ndarray:
        """p of each token of a stream given those before it, as many of them as the order takes: float64."""
        stream = np.asarray(stream, dtype=np.int64)
        found = np.full(len(stream), 1.0 / self.vocab_size)
        for n, order in enumerate(self._orders, start=1):
            if len(stream) < n:
                break
            grams = self._packed(stream, n)
            count = _looked_up(order.grams, order.counts, grams)
            total, followers = (
                _looked_up(order.histories, values, grams >> self.bits) for values in (order.totals, order.followers)
            )
            seen = total > 0
            safe = np.where(seen, total, 1)
            mixed = (np.maximum(count - order.discount, 0) + order.discount * followers * found[n - 1 :]) / safe
            found[n - 1 :] = np.where(seen, mixed, found[n - 1 :])
        return found

    def perplexity(self, stream: np.ndarray) -> float:
        """exp of the mean of −log p over a stream."""
        return float(np.exp(-np.log(self.probabilities(stream)).mean()))

    def _packed(self, stream: np.ndarray, n: int) -> np.ndarray:
        """Each n-gram of a stream as one whole number, its last token in the lowest bits."""
        stream = np.asarray(stream, dtype=np.int64)
        packed = np.zeros(len(stream) - n + 1, dtype=np.int64)
        for i in range(n):
            packed = (packed << self.bits) | stream[i : len(stream) - n + 1 + i]
        return packed

    def _count(self, grams: np.ndarray, counts: np.ndarray) -> _Order:
        histories, first, followers = np.unique(grams >> self.bits, return_index=True, return_counts=True)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = float(once / (once + 2 * twice)) if once else 0.0
        return _Order(grams, counts, histories, np.add.reduceat(counts, first), followers, discount)


def _looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, which are sorted; 0 where there is none."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
