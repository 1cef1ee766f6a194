"""The store: the one place where tables are written, read and compared. It knows no model.

A notebook measures the cells of a sweep and publishes one tidy table, one number a row. Each measured cell is kept in
a journal: a run that was interrupted continues, and a run of unchanged code measures nothing again.
"""

from bsbr.store.cells import Part, is_out_of_memory
from bsbr.store.compare import compare
from bsbr.store.fingerprint import UnseenError
from bsbr.store.journal import Sweep
from bsbr.store.table import (
    MEASURED,
    NUMBERS,
    AlteredResultError,
    MissingResultError,
    Result,
    ResultError,
    Row,
    factor_columns,
    load,
    only,
    over,
    published,
    row,
    select,
    tidy,
)

__all__ = [
    "MEASURED",
    "NUMBERS",
    "AlteredResultError",
    "MissingResultError",
    "Part",
    "Result",
    "ResultError",
    "Row",
    "Sweep",
    "UnseenError",
    "compare",
    "factor_columns",
    "is_out_of_memory",
    "load",
    "only",
    "over",
    "published",
    "row",
    "select",
    "tidy",
]
