"""What it costs to read whole documents, counted in pages of 500 words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bsbr.measure import memory, speed
from bsbr.model import TransformerLM
from bsbr.store import Row, over, row
from bsbr.studies.tasks import prefill_task, timed_rows
from bsbr.training.tokens import documents, encoded

WORDS = 500  # of a page
MB = 1e6


@dataclass(frozen=True)
class Whole:
    """A document that is read whole: its key, how many words it has, and its tokens."""

    key: str
    words: int
    ids: tuple[int, ...]

    @property
    def pages(self) -> float:
        """Of 500 words, the last one counted by its share."""
        return self.words / WORDS

    @property
    def factors(self) -> dict[str, Any]:
        """What tells its rows from those of others: its key, and its n tokens."""
        return {"document": self.key, "n": len(self.ids)}


def chosen(corpus: str, part: str, shares: Sequence[float]) -> list[Whole]:
    """Documents of a part by their length in tokens: for each share, the one that so many are at most as long as.

    Args:
        corpus, part: as `training.tokens.documents` takes them.
        shares: 0 for the shortest, 0.5 for the median, 1 for the longest.

    Raises:
        ValueError: a share is not between 0 and 1, or two choose the same document.
    """
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shares must lie in [0, 1], but are {tuple(shares)}")
    found = [
        Whole(document.key, len(document.text.split()), tuple(ids.tolist()))
        for document, ids in zip(documents(corpus, part), encoded(corpus, part), strict=True)
    ]
    found.sort(key=lambda document: (len(document.ids), document.key))
    places = [round(share * (len(found) - 1)) for share in shares]
    if len(set(places)) < len(places):
        raise ValueError(f"shares must choose each another of the {len(found)} documents, but are {tuple(shares)}")
    return [found[place] for place in places]


def times(
    models: Mapping[str, TransformerLM], read: Sequence[Whole], *, seconds: float, baseline: str = "standard"
) -> list[Row]:
    """Rows `time`, in seconds a page, and `speedup` over the baseline in the same round: of each document, and of all.

    In a round every model reads every document once. The time a page of all documents together is that of the round,
    over their pages.

    Args:
        models: by the name of their mechanism, on one device.
        seconds: about how long all rounds may take; seven are made anyway.
        baseline: of `speedup`, where it is among the models.
    """
    tasks = {
        (name, document.key): prefill_task(model, _ids(document, model))
        for document in read
        for name, model in models.items()
    }
    taken = speed.interleave({" ".join(key): task for key, task in tasks.items()}, seconds=seconds)
    rows: list[Row] = []
    for document in read:
        a_page = {name: taken[f"{name} {document.key}"] / document.pages for name in models}
        rows += timed_rows(a_page, "mechanism", baseline=baseline, **document.factors)
    pages = sum(document.pages for document in read)
    together = {name: np.sum([taken[f"{name} {document.key}"] for document in read], axis=0) / pages for name in models}
    label = over("document", [document.key for document in read])
    return rows + [{**found, "over": label} for found in timed_rows(together, "mechanism", baseline=baseline)]


def peaks(models: Mapping[str, TransformerLM], read: Sequence[Whole], *, baseline: str = "standard") -> list[Row]:
    """Rows of what tensors hold at the peak of reading a document: of each, and of all one after the other.

    `peak_memory`, parameters included, which for all is that of the one that takes the most; `memory_per_page`, what
    the document's pages add, a page; and `memory_relative`, the baseline's peak over the model's.

    Arguments are those of `times`.
    """
    held = [{name: _peak(model, document) for name, model in models.items()} for document in read]
    rows: list[Row] = []
    for document, found in zip(read, held, strict=True):
        where = document.factors
        rows += _peak_rows({name: one.total for name, one in found.items()}, baseline, where)
        added = {name: one.total - one.parts["parameters"] for name, one in found.items()}
        rows += [
            row("memory_per_page", size / MB / document.pages, mechanism=name, **where) for name, size in added.items()
        ]
    label = over("document", [document.key for document in read])
    most = {name: max(found[name].total for found in held) for name in models}
    return rows + [{**found, "over": label} for found in _peak_rows(most, baseline, {})]


def _peak_rows(totals: Mapping[str, int], baseline: str, where: Mapping[str, Any]) -> list[Row]:
    rows = [row("peak_memory", total / MB, mechanism=name, **where) for name, total in totals.items()]
    rows += [
        row("memory_relative", totals[baseline] / total, mechanism=name, **where)
        for name, total in totals.items()
        if baseline in totals and name != baseline
    ]
    return rows


def _peak(model: TransformerLM, document: Whole) -> memory.TensorPeak:
    ids = _ids(document, model)
    return memory.tensors(lambda: prefill_task(model, ids).run(None), model, ids)


def _ids(document: Whole, model: TransformerLM) -> Tensor:
    return torch.tensor([document.ids], device=model.embedding.weight.device)
