"""What a run says: where it has got to, and at its end which numbers it found again.

The terminal gets one line per experiment and the numbers that drifted. All others stand in a CSV per experiment in
the journal, which the book's page *Your run beside the published one* shows.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field

import pandas as pd

from bsbr.show.figures import interval
from bsbr.store import Result, files, table
from bsbr.store.compare import ABOUT, DRIFTED, REPRODUCED, VERDICTS, compare

SHOWN = 30  # drifted numbers in the terminal; the page has them all


@dataclass(eq=False)  # two runs are one only if they are the same object
class Run:
    """One notebook on one target: what was published before, what it measured, and what it took."""

    experiment: str
    target: str
    profile: str
    published: Result | None = None
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    comparison: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def name(self) -> str:
        return f"{self.experiment} ({self.target}, {self.profile})"

    def compare(self, here: Result) -> None:
        """Hold what was measured here against what was published, and leave the whole of it for the book."""
        if self.published is None:
            return
        self.comparison = compare(self.published, here)
        path = table.journal_folder(self.target, self.profile) / f"{self.experiment}.comparison.csv"
        files.write_whole(path, self.comparison.to_csv(index=False, lineterminator="\n"))

    def drifted(self) -> pd.DataFrame:
        return self.comparison[self.comparison["verdict"] == DRIFTED] if len(self.comparison) else self.comparison


class Progress:
    """The line of the notebook that runs: kept up to date on a terminal, written once anywhere else."""

    def __init__(self, title: str) -> None:
        self.title, self.begin = title, time.perf_counter()
        self.live = sys.stdout.isatty()
        print(title, end="" if self.live else " … ", flush=True)

    def watch(self, where: str) -> None:
        if self.live:
            self._draw(f"{self.title}  {where}  ({duration(time.perf_counter() - self.begin)})")

    def end(self, what: str) -> None:
        if self.live:
            self._draw(self.title)
        print(f"{': ' if self.live else ''}{what}", flush=True)

    @staticmethod
    def _draw(text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{text if len(text) <= width else text[: width - 1] + '…'}", end="", flush=True)


def show(runs: list[Run]) -> None:
    """Print one line per experiment, and then the numbers that drifted."""
    say("\nPublished numbers that this run measured too")
    for run in runs:
        say(f"  {run.name}: {_outcome(run)}")
    together = pd.concat([run.comparison for run in runs]) if runs else pd.DataFrame()
    say(f"  All together: {counts(together)}; {duration(sum(run.seconds for run in runs))}")
    lines = [(bool(row["clock"]), _number(run, row)) for run in runs for row in run.drifted().to_dict("records")]
    if not lines:
        return
    fixed = sum(not clock for clock, _ in lines)
    say(f"\nDrifted: {fixed} that no clock touches, {len(lines) - fixed} that one does")
    for _, line in sorted(lines, key=lambda entry: entry[0])[:SHOWN]:
        say(f"  {line}")
    if len(lines) > SHOWN:
        say(f"  … and {len(lines) - SHOWN} more")


def strict_failure(runs: list[Run]) -> str:
    """Why a strict run has failed: a number that no clock touches drifted, or there was none. Else nothing."""
    fixed = pd.concat([run.comparison for run in runs if len(run.comparison)] or [pd.DataFrame({"clock": []})])
    fixed = fixed[~fixed["clock"].astype(bool)]
    if fixed.empty or not fixed["verdict"].isin([REPRODUCED, DRIFTED]).any():
        return "--strict: none of these experiments has a published number to compare with"
    drifted = int((fixed["verdict"] == DRIFTED).sum())
    return f"--strict: {drifted} numbers that no clock touches have drifted" if drifted else ""


def _outcome(run: Run) -> str:
    found = [f"failed: {error}" for error in run.errors]
    if run.published is None and not run.errors:
        found.append("nothing was published before, so there is nothing to compare with")
    if len(run.comparison):
        found.append(counts(run.comparison))
    return f"{'; '.join(found)}; {duration(run.seconds)}"


def _number(run: Run, row: dict) -> str:
    factors = " ".join(f"{name}={value}" for name, value in row.items() if name not in ABOUT and pd.notna(value))
    for digits in range(3, 16):  # as many as show that they differ
        both = [interval(row[name], row[f"{name}_low"], row[f"{name}_high"], digits) for name in ("published", "here")]
        if both[0] != both[1]:
            break
    return f"{run.experiment} {row['metric']} {factors}: {both[0]} → {both[1]} {row['unit']}".rstrip()


def counts(comparison: pd.DataFrame) -> str:
    if comparison.empty:
        return "nothing compared"
    found = comparison["verdict"].value_counts()
    return ", ".join(f"{found.get(verdict, 0)} {verdict}" for verdict in VERDICTS)


def duration(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s"


def say(text: str) -> None:
    print(text, flush=True)
