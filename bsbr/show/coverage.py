"""Which registered mechanisms a published comparison says nothing of, because they joined after it was measured."""

from __future__ import annotations

import pandas as pd

from bsbr.mechanisms import MECHANISMS
from bsbr.store import ResultError, load, published

COLUMNS = ("mechanism", "model")  # the factors of a table that name mechanisms


def unmeasured(table: pd.DataFrame) -> list[str]:
    """The titles of those that are missing from a table that compares mechanisms, in the order of the registry.

    A table compares them if it has most of the registered ones; one that looks at a few of them lacks none.

    Args:
        table: of a result.

    Examples:
        >>> import pandas as pd
        >>> from bsbr import MECHANISMS
        >>> from bsbr.show import coverage
        >>> coverage.unmeasured(pd.DataFrame({"mechanism": list(MECHANISMS)[:-1]}))
        ['MoBA']
        >>> coverage.unmeasured(pd.DataFrame({"mechanism": ["standard", "bsbr"]}))
        []
    """
    for column in COLUMNS:
        found = set(table[column].dropna()) & set(MECHANISMS) if column in table else set()
        if 2 * len(found) > len(MECHANISMS):
            return [record.title for name, record in MECHANISMS.items() if name not in found]
    return []


def note(experiment: str) -> str:
    """`Not measured yet here: …`, of a published experiment; nothing where none is missing, or nothing is published."""
    try:
        missing = unmeasured(load(experiment).table)
    except ResultError:
        return ""
    return f"Not measured yet here: {', '.join(missing)}." if missing else ""


def of_mechanism(name: str) -> str:
    """Where the published comparisons leave out a mechanism: a sentence with links, for its page; else nothing."""
    title = MECHANISMS[name].title
    without = [one for one in published() if title in unmeasured(load(one).table)]
    links = ", ".join(f"[](../notebooks/{one}.ipynb)" for one in without)
    return f"Of ours there are no numbers yet: {title} is **not measured yet** in {links}." if without else ""
