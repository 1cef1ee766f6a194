"""Training, validation and test: which document is in which part, by a rule that the pin fixes.

A pin's `parts` is `{"pattern": [part, part, …], "sha256": …}`. Documents that are near-duplicates of each other are one
family and stay together. Families are named by their first document, taken label by label in order of the SHA-256 of
their names, and dealt to the parts as the pattern says, again and again: so that every part has each label. The hash is
of the outcome, so that nobody changes the rule and does not notice.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from bsbr.sources.pins import SourceError, read_pin

PARTS = ("train", "validation", "test")
RUN = 8  # words in a row that two documents may share
SAMPLED = 8  # one run of so many is looked at
COMMON = 20  # documents; a run in more is a mailing list's footer or a signature, and says nothing
SHARED = 0.5  # of the runs of the shorter document, from which on the two are near-duplicates


def parts_of(name: str, labels: Mapping[str, str], families: Iterable[Iterable[str]]) -> dict[str, list[str]]:
    """The keys of a source's documents by part, each in order.

    Args:
        name: of the source.
        labels: the label of each document by its key; one and the same where there are none.
        families: keys that must stay together; a key may be in several.

    Raises:
        SourceError: the outcome is not the pinned one.
        ValueError: the source is not divided for training.
    """
    rule = read_pin(name).parts
    if rule is None:
        raise ValueError(f"name: expected a source that is divided for training, got {name!r}")
    dealt = deal(labels, families, rule["pattern"])
    found = parts_sha256(dealt)
    if found != rule["sha256"]:
        raise SourceError(
            f"{name}: its division into parts has SHA-256 {found}, not the pinned {rule['sha256']}: the rule in "
            "bsbr/sources has changed since it was pinned. Undo that, since trained models stand on it."
        )
    return dealt


def keys_of(split: str, parts: Callable[[], Mapping[str, list[str]]]) -> list[str]:
    """The keys of one part; `parts` is not called for a part that there is not.

    Raises:
        ValueError: there is no such split.
    """
    if split not in PARTS:
        raise ValueError(f"split: expected None or one of {sorted(PARTS)}, got {split!r}")
    return parts()[split]


def deal(labels: Mapping[str, str], families: Iterable[Iterable[str]], pattern: Sequence[str]) -> dict[str, list[str]]:
    """Documents by part, families kept whole, as the module's rule says."""
    members: dict[str, list[str]] = defaultdict(list)
    for key, first in united(labels, families).items():
        members[first].append(key)
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    dealt: Counter[str] = Counter()
    for first in sorted(members, key=lambda key: hashlib.sha256(key.encode()).hexdigest()):
        label = labels[first]
        parts[pattern[dealt[label] % len(pattern)]] += members[first]
        dealt[label] += 1
    return {part: sorted(keys) for part, keys in parts.items()}


def united(keys: Iterable[str], families: Iterable[Iterable[str]]) -> dict[str, str]:
    """The first key of the family of each key, where families that share a key are one."""
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for family in families:
        roots = sorted({root(key) for key in family})
        for other in roots[1:]:
            parent[other] = roots[0]
    return {key: root(key) for key in parent}


def parts_sha256(parts: Mapping[str, Sequence[str]]) -> str:
    """One hash over which document is in which part."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def near_duplicates(texts: Mapping[str, str]) -> list[list[str]]:
    """Families of documents that share at least half of the runs of eight words of the shorter, judged by a sample.

    A run is in the sample if its hash says so, so that two documents with the same run both have it there or both not.
    Runs that very many documents have, such as a mailing list's footer, do not count. Documents that are the same but
    for case and white space are of one family, however short.
    """
    same: dict[str, list[str]] = defaultdict(list)
    holders: dict[int, list[str]] = defaultdict(list)
    for key, text in texts.items():
        words = text.replace(">", " ").lower().split()
        same[" ".join(words)].append(key)
        runs = {_hash(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}
        for run in runs:
            if run % SAMPLED == 0:
                holders[run].append(key)
    telling = [keys for keys in holders.values() if len(keys) <= COMMON]
    sizes = Counter(key for keys in telling for key in keys)
    shared = Counter((first, second) for keys in telling for i, first in enumerate(keys) for second in keys[:i])
    families = [keys for keys in same.values() if len(keys) > 1]
    families += [
        [first, second]
        for (first, second), count in shared.items()
        if count >= max(2, SHARED * min(sizes[first], sizes[second]))
    ]
    return families


def grouped(keys: Mapping[str, Hashable]) -> list[list[str]]:
    """Families of the documents that have the same value; None is no value."""
    families: dict[Hashable, list[str]] = defaultdict(list)
    for key, value in keys.items():
        if value is not None:
            families[value].append(key)
    return [family for family in families.values() if len(family) > 1]


def _hash(words: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "big")
