"""What a model has to beat to have learned anything: the commonest class, a bag of words, single pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # inverse regularisation, chosen on validation data


def majority(labels: Sequence[str], count: int) -> list[str]:
    """The commonest training label, of equally common ones the first in order, for `count` documents."""
    counts = Counter(labels)
    return [min(counts, key=lambda label: (-counts[label], label))] * count


def bag_of_words(
    texts: Sequence[str],
    labels: Sequence[str],
    validation: tuple[Sequence[str], Sequence[str]],
    wanted: Sequence[str],
) -> list[str]:
    """Labels that logistic regression on tf–idf of words gives to the texts `wanted` (scikit-learn).

    Args:
        texts, labels: of the training part.
        validation: texts and labels, on whose accuracy the strength of regularisation is chosen.
        wanted: texts to be told.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, min_df=min(2, len(texts)))
    best = _fitted(words.fit_transform(texts), labels, words.transform(validation[0]), validation[1])
    return [str(label) for label in best.predict(words.transform(wanted))]


def pixels(
    pictures: np.ndarray,
    labels: Sequence[str],
    validation: tuple[np.ndarray, Sequence[str]],
    wanted: np.ndarray,
) -> list[str]:
    """Labels that logistic regression on the values of single pixels gives to the pictures `wanted` (scikit-learn).

    Of each value its mean in training is taken away, and all are divided by one number, so that the mean square of a
    picture's length is 1, as it is of a text in tf–idf: then the same strengths of regularisation fit.

    Args:
        pictures, labels: of the training part; pictures of one shape, one along the first axis each.
        validation: pictures and labels, on whose accuracy the strength of regularisation is chosen.
        wanted: pictures to be told.

    Raises:
        ValueError: pictures of different shapes, or training pictures that are all the same.
    """
    shapes = {found.shape[1:] for found in (pictures, validation[0], wanted)}
    if len(shapes) > 1:
        raise ValueError(f"pictures must be of one shape in all parts, but are of {sorted(shapes)}; scale them alike")
    train, held, new = (found.reshape(len(found), -1).astype(np.float64) for found in (pictures, validation[0], wanted))
    middle = train.mean(0)
    length = float(np.sqrt(((train - middle) ** 2).sum(1).mean()))
    if not length:
        raise ValueError("pictures must differ from each other, but are all the same; give two or more different ones")
    train, held, new = ((found - middle) / length for found in (train, held, new))
    return [str(label) for label in _fitted(train, labels, held, validation[1]).predict(new)]


def _fitted(train: Any, labels: Sequence[str], held: Any, held_labels: Sequence[str]) -> Any:
    """Logistic regression of the strength that is best on held-out rows, of equals the first."""
    from sklearn.linear_model import LogisticRegression

    fitted = [LogisticRegression(C=strength, max_iter=2000).fit(train, labels) for strength in STRENGTHS]
    return max(fitted, key=lambda model: accuracy(list(model.predict(held)), held_labels))


def accuracy(given: Sequence[str], labels: Sequence[str]) -> float:
    """The share of labels that are right."""
    return float(np.mean([one == label for one, label in zip(given, labels, strict=True)]))


def macro_f1(given: Sequence[str], labels: Sequence[str]) -> float:
    """F1 of each class that stands in `labels`, averaged; 0 for a class that is never given."""
    scores = []
    for label in sorted(set(labels)):
        right = sum(one == other == label for one, other in zip(given, labels, strict=True))
        said, there = (sum(one == label for one in some) for some in (given, labels))
        scores.append(2 * right / (said + there))
    return float(np.mean(scores))
