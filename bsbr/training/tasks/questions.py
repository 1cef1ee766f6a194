"""Questions about facts that are hidden in real text.

Each row is a stretch of a real document into which facts have been put between sentences: what each of several people
has, for several kinds of things. One is asked for, in other words than it was told in; the others have the same form,
for other people and things, so that neither the kind nor the person alone gives the answer. Answers are two words.
"""

from __future__ import annotations

import functools
import hashlib
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bsbr.training.heads import IGNORED
from bsbr.training.settings import Batch
from bsbr.training.tokens import VOCABULARY, encoded, prepared_sha256, tokenizer

NAMES = [
    "Abigail",
    "Alfred",
    "Amelia",
    "Arthur",
    "Beatrice",
    "Bernard",
    "Caroline",
    "Cecil",
    "Clara",
    "Conrad",
    "Daisy",
    "Dennis",
    "Dorothy",
    "Edgar",
    "Eleanor",
    "Ernest",
    "Esther",
    "Felix",
    "Flora",
    "Gilbert",
    "Grace",
    "Harold",
    "Hazel",
    "Herbert",
    "Ida",
    "Irving",
    "Ivy",
    "Jasper",
    "Josephine",
    "Julius",
    "Kitty",
    "Lambert",
    "Lavinia",
    "Leonard",
    "Lydia",
    "Mabel",
    "Marcus",
    "Matilda",
    "Milton",
    "Nora",
    "Oliver",
    "Olive",
    "Oscar",
    "Pauline",
    "Percy",
    "Phoebe",
    "Quentin",
    "Ralph",
    "Rosalind",
    "Rufus",
    "Sabina",
    "Simon",
    "Stella",
    "Thaddeus",
    "Theodora",
    "Ursula",
    "Victor",
    "Violet",
    "Walter",
    "Winifred",
]
ADJECTIVES = [
    "amber",
    "ancient",
    "blue",
    "broad",
    "copper",
    "crooked",
    "golden",
    "green",
    "hollow",
    "little",
    "northern",
    "quiet",
    "red",
    "silver",
    "tall",
    "white",
]


@dataclass(frozen=True)
class Kind:
    """A kind of fact: how it is told, how it is asked, and what the things are."""

    told: tuple[str, ...]
    asked: tuple[str, ...]
    things: tuple[str, ...]


KINDS = (
    Kind(
        ("{name} lives near the {thing}.", "The {thing} is next to {name}.", "{name} has a house at the {thing}."),
        ("Where does one go to visit {name}?", "At what place would a letter reach {name}?"),
        ("bridge", "church", "tower", "mill", "harbor", "orchard", "lighthouse", "station"),
    ),
    Kind(
        ("{name} owns a {thing}.", "A {thing} belongs to {name}.", "{name} keeps a {thing}."),
        ("Which animal is cared for by {name}?", "What pet would {name} feed?"),
        ("cat", "dog", "horse", "parrot", "rabbit", "goose", "pony", "owl"),
    ),
    Kind(
        ("{name} wears a {thing}.", "A {thing} is what {name} has on.", "{name} is dressed in a {thing}."),
        ("By what piece of clothing is {name} known?", "What garment would one see on {name}?"),
        ("coat", "hat", "scarf", "shirt", "jacket", "cap", "cloak", "apron"),
    ),
    Kind(
        ("{name} plays a {thing}.", "A {thing} is played by {name}.", "{name} makes music on a {thing}."),
        ("Which instrument does one hear from {name}?", "With what would {name} perform at a concert?"),
        ("flute", "fiddle", "drum", "trumpet", "guitar", "harp", "organ", "whistle"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One row: the tokens up to where the answer begins, the answer, and how far before the question its fact ends.

    `things` are those of all facts of the row, and `answered` the stretches of `prompt` that answer earlier questions.
    """

    prompt: np.ndarray
    answer: str
    distance: int
    things: tuple[str, ...] = ()
    answered: tuple[slice, ...] = ()


@dataclass(frozen=True)
class Questions:
    """Rows of n tokens that end with a question and its answer; labels are the answer and the end after it.

    Args:
        n: tokens in a row, all told.
        people, kinds: a row tells people · kinds facts.
        corpus: whose documents the text is from, each part's own.
        test_rows: rows of the validation and of the test part; those of the training part never end.
        whole_text: whether, in the training part, every token is a label, so that the language is learned too.
        seed: of the rows.
        forms: in how many ways a fact may be told, 1 … 3; in the first, the person comes before the thing.
        asked: questions that a row of the training part asks and answers, about facts that differ; others ask one.

    Raises:
        ValueError: more people, kinds or forms than there are, more questions than facts, or no room for all.

    Examples:
        >>> from bsbr.training.tasks import Questions
        >>> task = Questions(n=512, people=2, kinds=2)
        >>> task.size("test"), task.sources, task.vocab_size
        (500, ('brown',), 4096)
        >>> question = task.question("test", 0)
        >>> question.answer in question.things and question.distance < 512
        True
        >>> task.rows("test", [0])["labels"].shape
        torch.Size([1, 512])
        >>> len(task.fingerprint())
        64
    """

    n: int
    people: int = 4
    kinds: int = 2
    corpus: str = "brown"
    test_rows: int = 500
    whole_text: bool = False
    seed: int = 0
    forms: int = 3
    asked: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.people <= len(NAMES) or not 1 <= self.kinds <= len(KINDS):
            raise ValueError(
                f"people must be 1 … {len(NAMES)} and kinds 1 … {len(KINDS)}, got {self.people}, {self.kinds}"
            )
        facts = self.people * self.kinds
        if not 1 <= self.forms <= 3 or not 1 <= self.asked <= facts:
            raise ValueError(
                f"forms must be 1 … 3 and asked 1 … people · kinds = {facts}, got {self.forms} and {self.asked}"
            )
        if self.n < 20 * facts + 30 * self.asked + 30:
            raise ValueError(
                f"n must be ≥ 20 · people · kinds + 30 · asked + 30, so that the facts find room, but is {self.n}"
            )

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer."""
        return VOCABULARY

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the pinned sources."""
        return (self.corpus,)

    def size(self, part: str) -> int | None:
        """Rows in a part; None for the training part, which never ends."""
        return None if part == "train" else self.test_rows

    def rows(self, part: str, indices: Sequence[int]) -> Batch:
        """`input_ids` and `labels`, (batch, n) each."""
        ids = np.zeros((len(indices), self.n), dtype=np.int64)
        labels = np.full_like(ids, IGNORED)
        for row, index in enumerate(indices):
            question = self.question(part, index)
            whole = np.concatenate([question.prompt, _encode(f" {question.answer}"), [0]])
            ids[row, : len(whole) - 1] = whole[:-1]
            first = 1 if self.whole_text and part == "train" else len(question.prompt)
            labels[row, first - 1 : len(whole) - 1] = whole[first:]
            for earlier in question.answered:
                labels[row, earlier.start - 1 : earlier.stop - 1] = whole[earlier]
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}

    def question(self, part: str, index: int) -> Question:
        """The row of that number before it is padded."""
        chance = np.random.default_rng([self.seed, ("train", "validation", "test").index(part), index])
        names = chance.choice(NAMES, self.people, replace=False)
        facts: list[tuple[str, Kind, str]] = []
        for kind in (KINDS[i] for i in chance.choice(len(KINDS), self.kinds, replace=False)):
            pairs = chance.choice(len(ADJECTIVES) * len(kind.things), self.people, replace=False)
            for name, pair in zip(names, pairs, strict=True):
                adjective, thing = divmod(int(pair), len(kind.things))
                facts.append((name, kind, f"{ADJECTIVES[adjective]} {kind.things[thing]}"))
        name, kind, answer = facts[wanted := int(chance.integers(len(facts)))]
        told = [
            _encode(f" {_sentence(chance.choice(one.told[: self.forms]), who, thing)}") for who, one, thing in facts
        ]
        asked = _ask(kind, name, chance)
        earlier = self._earlier(facts, wanted, chance) if part == "train" and self.asked > 1 else []
        room = self.n - sum(map(len, [*told, *earlier])) - len(asked) - len(_encode(f" {answer}"))
        text = self._text(part, room, chance)
        places = _places(text, len(facts), chance)
        order = chance.permutation(len(facts))
        pieces: list[np.ndarray] = []
        since = 0  # tokens after the fact that is asked for
        for i, (start, end) in enumerate(zip([0, *places], [*places, len(text)], strict=True)):
            pieces.append(text[start:end])
            since += end - start
            if i < len(facts):
                pieces.append(told[order[i]])
                since = 0 if order[i] == wanted else since + len(told[order[i]])
        ends = np.cumsum([sum(map(len, pieces)), *map(len, earlier)])
        answered = [slice(int(ends[i]), int(ends[i + 1])) for i in range(1, len(earlier), 2)]
        whole = np.concatenate([*pieces, *earlier, asked])
        since += sum(map(len, earlier))
        return Question(whole, answer, since, tuple(thing for _, _, thing in facts), tuple(answered))

    def _earlier(self, facts: list[tuple[str, Kind, str]], last: int, chance: np.random.Generator) -> list[np.ndarray]:
        """Questions about other facts than the last one's, each followed by its answer and the end after it."""
        others = [fact for i, fact in enumerate(facts) if i != last]
        found: list[np.ndarray] = []
        for which in chance.permutation(len(others))[: self.asked - 1]:
            name, kind, answer = others[int(which)]
            found += [_ask(kind, name, chance), np.append(_encode(f" {answer}"), 0)]
        return found

    def _text(self, part: str, length: int, chance: np.random.Generator) -> np.ndarray:
        """A stretch of a document of that part."""
        long = _long_documents(self.corpus, part, length)
        if not long:
            raise ValueError(f"n = {self.n} is longer than every document of {self.corpus}, {part}")
        document = long[int(chance.integers(len(long)))]
        start = int(chance.integers(len(document) - length + 1))
        return document[start : start + length]

    def fingerprint(self) -> str:
        """One hash over settings and documents."""
        return hashlib.sha256(f"{sorted(asdict(self).items())} {prepared_sha256()}".encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What a model answered, what was expected, how alike the two are, and how far back the fact was."""

    given: str
    expected: str
    exact_match: float
    f1: float
    distance: int


def ask(model: Any, task: Questions, part: str, indices: Sequence[int], batch: int = 8) -> list[Answer]:
    """The answers of a `TransformerLM`, read off its likeliest tokens up to the first that ends a text.

    Args:
        model: a `TransformerLM`.
        task: the questions.
        part: `"train"`, `"validation"` or `"test"`.
        indices: the numbers of the rows that are asked.
        batch: rows read at once.

    Examples:
        >>> from bsbr import ModelConfig, TransformerLM
        >>> from bsbr.training.tasks import Questions, ask
        >>> task = Questions(n=256, people=1, kinds=1)
        >>> model = TransformerLM(ModelConfig("bsbr", vocab_size=task.vocab_size, hidden_dim=16, num_heads=2)).eval()
        >>> [answer] = ask(model, task, "test", [0])
        >>> answer.expected == task.question("test", 0).answer and 0 <= answer.f1 <= 1
        True
    """
    answers: list[Answer] = []
    for start in range(0, len(indices), batch):
        asked = [task.question(part, index) for index in indices[start : start + batch]]
        ids = torch.zeros(len(asked), max(len(question.prompt) for question in asked), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, question in enumerate(asked):
            ids[row, : len(question.prompt)] = torch.from_numpy(question.prompt)
            mask[row, : len(question.prompt)] = 1
        device = next(model.parameters()).device
        longest = max(len(_encode(f" {question.answer}")) for question in asked) + 1
        found = model.generate(ids.to(device), longest, mask.to(device), eos_token_id=0)[:, ids.shape[1] :].tolist()
        for question, tokens in zip(asked, found, strict=True):
            given = tokenizer().decode(tokens[: tokens.index(0)] if 0 in tokens else tokens).strip()
            scores = exact_match(given, question.answer), f1(given, question.answer)
            answers.append(Answer(given, question.answer, *scores, question.distance))
    return answers


def exact_match(given: str, answer: str) -> float:
    """1 if an answer is the expected one but for case, punctuation and articles, else 0 (Rajpurkar et al. 2016)."""
    return float(_normal(given) == _normal(answer))


def f1(given: str, answer: str) -> float:
    """Harmonic mean of the shares of words that are right and that were found (Rajpurkar et al. 2016)."""
    said, expected = _normal(given), _normal(answer)
    common = sum((Counter(said) & Counter(expected)).values())
    return 2 * common / (len(said) + len(expected)) if common else 0.0


def _ask(kind: Kind, name: str, chance: np.random.Generator) -> np.ndarray:
    return _encode(f"\nQuestion: {chance.choice(kind.asked).format(name=name)} Answer:")


def _sentence(form: str, name: str, thing: str) -> str:
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", form.format(name=name, thing=thing))


def _normal(text: str) -> list[str]:
    plain = "".join(" " if character in string.punctuation else character for character in text.lower())
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


@functools.lru_cache(maxsize=4096)
def _encode(text: str) -> np.ndarray:
    return np.array(tokenizer().encode(text).ids, dtype=np.int64)


@functools.cache
def _sentence_ends() -> np.ndarray:
    """Which tokens end a sentence."""
    texts = (tokenizer().decode([token]) for token in range(VOCABULARY))
    return np.array([text.rstrip().endswith((".", "?", "!")) or text.endswith("\n") for text in texts])


@functools.lru_cache(maxsize=64)
def _long_documents(corpus: str, part: str, length: int) -> list[np.ndarray]:
    return [document for document in encoded(corpus, part) if len(document) >= length]


def _places(text: np.ndarray, count: int, chance: np.random.Generator) -> list[int]:
    """Where facts are put: between sentences, or anywhere if there are too few of these."""
    between = np.flatnonzero(_sentence_ends()[text]) + 1
    if len(between) < count:
        between = np.arange(1, len(text) + 1)
    return sorted(int(place) for place in chance.choice(between, count, replace=len(between) < count))
