"""Texts as tokens: documents of the pinned corpora, and a tokenizer of byte pairs, which has tokens for any text."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bsbr.sources import brown, emails, speeches
from bsbr.sources.parts import PARTS
from bsbr.sources.pins import pin_path
from bsbr.store.artefact import RECORD, Report, artefact
from bsbr.store.files import write_whole
from bsbr.store.provenance import sha256

END = "<|endoftext|>"  # token 0: after each document, and where something else begins within a text
VOCABULARY = 4096
CORPORA = ("brown", "emails", "speeches")


@dataclass(frozen=True)
class Document:
    """A text of a corpus. `label` is a genre of Brown, a group of e-mails, or the president of a speech."""

    key: str
    label: str
    text: str


def byte_pairs(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """A byte-level BPE tokenizer, as GPT-2's (Radford et al. 2019), trained on these texts. `END` is token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@functools.cache
def documents(corpus: str, part: str) -> tuple[Document, ...]:
    """The documents of a part of a pinned corpus, in order of key.

    Args:
        corpus: `"brown"`, `"emails"` or `"speeches"`.
        part: `"train"`, `"validation"` or `"test"`.

    Raises:
        ValueError: there is no such corpus or part.
        SourceError: the corpus was not fetched, or was altered.
    """
    if corpus == "brown":
        return tuple(Document(one.key, one.genre, one.text) for one in brown.load_brown(part))
    if corpus == "emails":
        return tuple(Document(one.key, one.group, one.text) for one in emails.load_emails(part))
    if corpus == "speeches":
        return tuple(Document(one.key, one.president, one.text) for one in speeches.load_speeches(part))
    raise ValueError(f"corpus must be one of {', '.join(CORPORA)}, but is {corpus!r}")


@functools.cache
def prepared() -> Path:
    """The folder of the tokenizer and of all corpora as tokens: made once from the pinned sources, and kept.

    There is one tokenizer for all experiments that train on text, made from the training parts of all corpora.

    Raises:
        SourceError: a corpus was not fetched, or was altered.
    """
    return artefact("tokens", _prepare, sources=[pin_path(corpus) for corpus in CORPORA])


def prepared_sha256() -> str:
    """The hash of all that is in the folder `prepared()`."""
    return sha256((prepared() / RECORD).read_bytes())


def _prepare(folder: Path, report: Report) -> None:
    report("tokens: made once from the pinned sources")
    trained = byte_pairs(document.text for corpus in CORPORA for document in documents(corpus, "train"))
    trained.save(str(folder / "tokenizer.json"))
    for corpus in CORPORA:
        for part in PARTS:
            found = documents(corpus, part)
            ids = [one.ids for one in trained.encode_batch_fast([document.text for document in found])]
            flat = np.array([token for document in ids for token in document], dtype=np.int32)
            lengths = np.array([len(document) for document in ids], dtype=np.int32)
            save_file({"ids": flat, "lengths": lengths}, folder / f"{corpus}-{part}.safetensors")
            labels = {document.key: document.label for document in found}
            write_whole(folder / f"{corpus}-{part}.json", json.dumps(labels))


@functools.cache
def tokenizer() -> Tokenizer:
    """The tokenizer of all experiments that train on text."""
    return Tokenizer.from_file(str(prepared() / "tokenizer.json"))


@functools.cache
def encoded(corpus: str, part: str) -> tuple[np.ndarray, ...]:
    """The tokens of each of `documents(corpus, part)`, without `END`. Raises ValueError for another corpus or part."""
    if corpus not in CORPORA or part not in PARTS:
        raise ValueError(f"expected a corpus of {CORPORA} and a part of {PARTS}, got {corpus!r} and {part!r}")
    found = load_file(prepared() / f"{corpus}-{part}.safetensors")
    return tuple(np.split(found["ids"].astype(np.int64), np.cumsum(found["lengths"])[:-1]))


@functools.cache
def labels(corpus: str, part: str) -> dict[str, str]:
    """The label of each of `documents(corpus, part)` by its key, in their order."""
    return json.loads((prepared() / f"{corpus}-{part}.json").read_text(encoding="utf-8"))


def texts_sha256(texts: Sequence[str]) -> str:
    """One hash over texts in their order."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()
