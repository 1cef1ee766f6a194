"""Small tables that are kept to check code with: the numbers of a reduced profile that no clock touches.

What the book publishes is measured at full size, which takes hours. A change of code is held against these instead,
within minutes: see the runner's `--strict` and `--set-reference`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bsbr.store import provenance
from bsbr.store.files import write_whole
from bsbr.store.metrics import metric
from bsbr.store.table import MissingResultError, Result, data_folder, read

LONGEST = 200
RECORDED = ("experiment", "target", "profile", "measured", "commit", "clean", "packages", "machine", "started", "ended")


def reference_path(experiment: str, target: str, profile: str) -> Path:
    return data_folder() / "reference" / target / profile / f"{experiment}.csv"


def load_reference(experiment: str, target: str, profile: str) -> Result:
    """The reference of an experiment at a reduced profile.

    Raises:
        MissingResultError: there is none.
        AlteredResultError: it is not what its record describes.
    """
    path = reference_path(experiment, target, profile)
    remedy = f"run: nox -s reproduce -- --target {target} --profile {profile} --set-reference {experiment}"
    if not path.exists() and not path.with_suffix(".json").exists():
        raise MissingResultError(f"no reference of {experiment} for {target}, {profile}; {remedy}")
    return read(path, experiment, target, profile, remedy)


def keep_reference(result: Result) -> int:
    """Keep those numbers of a result that another machine must find too, and return how many there are.

    Of a long table `LONGEST` rows are kept, evenly spaced, which is enough to notice a change. A result without such
    numbers has no reference.
    """
    table = result.table[result.table["metric"].map(_is_fixed) & (result.table["status"] == "ok")]
    table = table.iloc[np.unique(np.linspace(0, len(table) - 1, min(len(table), LONGEST)).round().astype(int))]
    path = reference_path(result.experiment, result.target, result.profile)
    if table.empty:
        for file in (path, path.with_suffix(".json")):
            file.unlink(missing_ok=True)
        return 0
    text = table.to_csv(index=False, float_format="%.12g", lineterminator="\n")
    record = {name: result.provenance[name] for name in RECORDED} | {"table_sha256": provenance.sha256(text)}
    write_whole(path, text)
    write_whole(path.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    return len(table)


def _is_fixed(name: str) -> bool:
    found = metric(name)
    return not found.by_interval and found.rule != "hardware"
