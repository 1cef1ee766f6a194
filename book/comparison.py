"""What the page *Your run beside the published one* shows: the comparisons that the runner left in the journal.

They are embedded in the page as JSON, and `_static/comparison.js` filters and sorts them.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown

from bsbr.show import figures
from bsbr.store import MissingResultError, ResultError, load
from bsbr.store.compare import ABOUT, VERDICTS
from bsbr.store.metrics import METRICS
from bsbr.store.provenance import ROOT
from bsbr.store.table import data_folder

ENDING = ".comparison.csv"
FIELDS = [
    "run",
    "experiment",
    "metric",
    "at",
    "published",
    "here",
    "kind",
    "verdict",
    "reason",
]  # as the script has them
HEADS = ["experiment", "number", "at", "published", "here", "verdict", "why"]


def comparisons() -> dict[tuple[str, str, str], pd.DataFrame]:
    """Each comparison in the journal by target, profile and experiment, less damaged ones and those of older code."""
    journal, found = data_folder() / "journal", {}
    for path in sorted(journal.glob(f"*/*/*/*{ENDING}")):
        target, profile, *name = path.relative_to(journal).parts
        experiment = "/".join(name).removesuffix(ENDING)
        try:
            table = pd.read_csv(path, keep_default_na=False, na_values=[""])
        except ValueError:
            continue
        if set(ABOUT) <= set(table.columns):
            found[target, profile, experiment] = table
    return found


def parts() -> list[Markdown | HTML]:
    """What the page displays."""
    found = comparisons()
    if not found:
        return [Markdown("**No run was made here yet.** `nox -s reproduce` makes one; then this page shows it.")]
    return [Markdown(summary(found)), HTML(markup(found))]


def summary(found: dict[tuple[str, str, str], pd.DataFrame]) -> str:
    """One line per experiment: how many numbers have which verdict, and when and where they were measured."""
    lines = [f"| experiment | run | {' | '.join(VERDICTS)} | measured (UTC) | on |", "|---" * (len(VERDICTS) + 4) + "|"]
    for (target, profile, experiment), rows in found.items():
        counts = rows["verdict"].value_counts()
        cells = [experiment, f"{target}, {profile}", *(str(counts.get(verdict, 0)) for verdict in VERDICTS)]
        cells += origin(target, profile, experiment)
        lines.append("| " + " | ".join(map(figures.literal, cells)) + " |")
    return "\n".join(lines)


def origin(target: str, profile: str, experiment: str) -> tuple[str, str]:
    """When and on which processor the run here was measured."""
    try:
        record = load(experiment, target, profile).provenance
    except MissingResultError:
        return "no table is left", "–"
    except ResultError:
        return "its table was altered", "–"
    processor = (record.get("machine") or {}).get("cpu", "several machines")
    return str(record["ended"])[:16].replace("T", " "), str(processor)


def data(found: dict[tuple[str, str, str], pd.DataFrame]) -> dict[str, Any]:
    """Everything that the script needs: a row per number, and the pages that experiments have."""
    rows = []
    for (target, profile, experiment), table in found.items():
        for line in table.to_dict("records"):
            factors = {name: value for name, value in line.items() if name not in ABOUT and pd.notna(value)}
            name, reason = str(line["metric"]), line["reason"]
            rows.append(
                [
                    f"{target}, {profile}",
                    experiment,
                    METRICS[name].title if name in METRICS else name,
                    " ".join(f"{factor}={shown(value)}" for factor, value in factors.items()),
                    number(line, "published"),
                    number(line, "here"),
                    "a clock touches it" if line["clock"] else "no clock touches it",
                    line["verdict"],
                    "" if pd.isna(reason) else reason,
                ]
            )
    names = sorted({experiment for _, _, experiment in found})
    pages = {name: f"../notebooks/{name}.html" for name in names if Path(ROOT, "notebooks", f"{name}.ipynb").exists()}
    return {"fields": FIELDS, "rows": rows, "pages": pages}


def number(line: dict[Any, Any], run: str) -> list[Any]:
    """A number to sort by, and as the page writes it, with its interval and unit."""
    value, low, high = (
        None if pd.isna(line[name]) else float(line[name]) for name in (run, f"{run}_low", f"{run}_high")
    )
    unit = "" if pd.isna(line["unit"]) or value is None else f" {line['unit']}"
    finite = value is not None and abs(value) < float("inf")
    return [value if finite else None, figures.interval(value, low, high) + unit]


def shown(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def markup(found: dict[tuple[str, str, str], pd.DataFrame]) -> str:
    """The filters, the table that the script fills, and its data, in which nothing can end the element it stands in."""
    names = {"run": "run", "experiment": "experiment", "verdict": "verdict", "kind": "kind"}
    filters = "".join(
        f'<label>{title} <select name="{name}"><option value="">all</option></select></label>'
        for name, title in names.items()
    )
    heads = "".join(f'<th scope="col"><button type="button">{head}</button></th>' for head in HEADS)
    embedded = (
        json.dumps(data(found), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    )
    return (
        '<div class="comparison"><noscript>The numbers one by one need JavaScript; they are also in '
        f"<code>data/journal/</code>, in the files <code>*{ENDING}</code>.</noscript>"
        f'<form class="claims-filter" hidden>{filters}<label>text <input type="search" name="text"></label>'
        f'<output></output></form><div class="table-box claims-box"><table class="table comparison-table" hidden>'
        f"<thead><tr>{heads}</tr></thead><tbody></tbody></table></div>"
        '<button type="button" class="comparison-more" hidden>Show more</button>'
        f'<script type="application/json">{embedded}</script></div><script src="../_static/comparison.js"></script>'
    )
