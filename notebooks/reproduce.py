"""Run the notebooks, publish what they measured, build the book, and say how it compares with what was published.

Called by `nox -s reproduce`, which sets up the environment that this needs:

    python notebooks/reproduce.py [--profile quick|full] [--target cpu|gpu] [--fresh] [names …]

A stop at any moment leaves every published file whole, and the next run goes on with what was not yet measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import jupytext
import nbformat
import pandas as pd
import papermill
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from bsbr import files, provenance, results
from bsbr.figures import number
from bsbr.measure import machine

NOTEBOOKS = provenance.ROOT / "notebooks"
BOOK = provenance.ROOT / "_build" / "html" / "index.html"
BUILD_BOOK = ["jupyter-book", "build", ".", "--all", "--warningiserror", "--keep-going"]
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
STOPPED = 130


@dataclass
class Run:
    """One notebook on one target: what was published before, what it measured, and what it took."""

    experiment: str
    target: str
    profile: str
    published: results.Result | None
    seconds: float = 0.0
    error: str = ""
    comparison: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def name(self) -> str:
        return f"{self.experiment} ({self.target}, {self.profile})"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    for way in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a process started in the background would ignore it
        signal.signal(way, _stop)
    try:
        return build_book(quietly=False) if options.only_book else reproduce(options)
    except KeyboardInterrupt:
        say("\nStopped. Published files are whole, what was measured is kept: the same command goes on from here.")
        return STOPPED


def parse(arguments: list[str] | None) -> argparse.Namespace:
    known = experiments()
    parser = argparse.ArgumentParser(prog="nox -s reproduce --", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"which notebooks; all by default: {', '.join(known)}")
    parser.add_argument("--profile", choices=["tiny", "quick", "full"], default="quick", help="full is published")
    parser.add_argument("--target", choices=["cpu", "gpu"], help="default: the CPU, and the GPU if there is one")
    parser.add_argument("--fresh", action="store_true", help="measure anew what earlier runs have measured")
    parser.add_argument("--no-book", action="store_true", help="measure and report only")
    parser.add_argument("--only-book", action="store_true", help="build the book from the published results only")
    options = parser.parse_args(arguments)
    options.experiments = []
    for name in options.names or known:
        found = [one for one in known if name in (one, one.split("/")[-1])]
        if not found:
            parser.error(f"no notebook is called {name!r}; there are {', '.join(known)}")
        options.experiments += found
    return options


def experiments() -> list[str]:
    """The name of every notebook: its path below `notebooks/`."""
    return sorted(path.relative_to(NOTEBOOKS).with_suffix("").as_posix() for path in NOTEBOOKS.glob("*/*.py"))


def reproduce(options: argparse.Namespace) -> int:
    finish_installing()
    if options.profile == "full" and (changed := provenance.changed_files()):
        say(f"Warning: not as committed: {', '.join(changed)}. The results will say so; commit first to publish them.")
    try:
        runs = [plan(name, target, options.profile) for target in targets(options) for name in options.experiments]
    except machine.DeviceNotFoundError as error:
        say(str(error))
        return 1
    if not fetch_sources(options.experiments):
        return 1
    os.environ |= {"BSBR_FRESH": "1" if options.fresh else "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for position, run in enumerate(runs, start=1):
        say(f"\n[{position}/{len(runs)}] {run.name}")
        measure(run)
    failed = not options.no_book and build_book(quietly=True) != 0
    report(runs)
    if not options.no_book:
        say("The book could not be built; its messages stand above." if failed else f"The book: {BOOK}")
    return int(failed or any(run.error for run in runs))


def targets(options: argparse.Namespace) -> list[str]:
    if options.target:
        machine.device(options.target)
        return [options.target]
    try:
        machine.device("gpu")
    except machine.DeviceNotFoundError:
        say("gpu: there is no CUDA GPU here, so only the cpu target runs.")
        return ["cpu"]
    return ["cpu", "gpu"]


def plan(experiment: str, target: str, profile: str) -> Run:
    try:
        return Run(experiment, target, profile, published=results.load(experiment, target))
    except results.ResultError:
        return Run(experiment, target, profile, published=None)


def fetch_sources(names: list[str]) -> bool:
    """Fetch and check corpora and checkpoints if a notebook reads any."""
    if not any("bsbr.tasks" in (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8") for name in names):
        return True
    say("\nSources")
    return subprocess.run([sys.executable, "-m", "bsbr.tasks.sources"], cwd=provenance.ROOT).returncode == 0


# -- One notebook ---------------------------------------------------------------------------------


class AnnouncingEngine(NBClientEngine):
    """Papermill's own engine, saying at each cell which one it is and under which heading it stands."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> None:
        headings = list(_headings(nb_man.nb))
        begin = nb_man.cell_start

        def cell_start(cell: Any, cell_index: int, **more: Any) -> None:
            if cell.cell_type == "code":
                say(f"  cell {cell_index + 1}/{len(headings)}  {headings[cell_index]}")
            begin(cell, cell_index, **more)

        nb_man.cell_start = cell_start
        super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


def _headings(notebook: Any) -> Iterator[str]:
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next((line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")), heading)
        yield heading


def measure(run: Run) -> None:
    """Execute the notebook; a full run then replaces the published table and the paired notebook together."""
    folder = results.journal_folder(run.target, run.profile)
    executed, staging = folder / f"{run.experiment}.ipynb", folder / f"{run.experiment}.staging"
    shutil.rmtree(staging, ignore_errors=True)
    executed.parent.mkdir(parents=True, exist_ok=True)
    os.environ["BSBR_STAGING"] = str(staging / "results") if run.profile == "full" else ""
    begin = time.perf_counter()
    try:
        notebook = execute(run, executed)
    except PapermillExecutionError as error:
        run.error = f"{error.ename}: {error.evalue}"
        say(f"{error}\n  failed: {run.error}\n  as far as it got: {executed}")
        return
    finally:
        run.seconds = time.perf_counter() - begin
    if run.profile == "full":
        if run.target == "cpu":  # the pages of the book are the CPU's
            page = staging / "notebooks" / f"{run.experiment}.ipynb"
            files.write_whole(page, nbformat.writes(tidy(notebook)) + "\n")
        install(staging)
    here = results.load(run.experiment, run.target, run.profile)
    if run.published is not None:
        run.comparison = results.compare(run.published.table, here.table)


def execute(run: Run, output: Path) -> Any:
    papermill_engines.register("announcing", AnnouncingEngine)
    notebook = jupytext.read(NOTEBOOKS / f"{run.experiment}.py")
    return papermill.execute_notebook(
        notebook,
        output,
        parameters={"target": run.target, "profile": run.profile},
        engine_name="announcing",
        kernel_name="python3",
        language="python",
        cwd=(NOTEBOOKS / run.experiment).parent,
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
        extra_arguments=["--log-level=CRITICAL"],  # else each kernel warns that it talks over a local port
    )


def tidy(notebook: Any) -> Any:
    """The notebook as it pairs with its .py file, without anything that differs from run to run by itself."""
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for position, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{position}"
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if tags and "remove-output" in tags:
            cell.outputs = []
    return notebook


# -- Publishing -----------------------------------------------------------------------------------
# A full run changes a table, its record and a notebook. They are prepared in a folder of their own, whose
# renaming is the moment of publishing: a run killed before it changes nothing, one killed after it is
# finished by the next.


def install(staging: Path) -> None:
    """Put a finished staging folder's files in their places, or do the rest of it after an interruption."""
    ready = staging.with_suffix(".ready")
    if staging.exists():
        shutil.rmtree(ready, ignore_errors=True)
        staging.rename(ready)
    journal = results.data_folder() / "journal"
    target, profile = ready.relative_to(journal).parts[:2]
    places = {"results": results.published_folder(target, profile), "notebooks": NOTEBOOKS}
    for part, place in places.items():
        for file in sorted((ready / part).rglob("*.*")):
            files.write_whole(place / file.relative_to(ready / part), file.read_text(encoding="utf-8"))
    shutil.rmtree(ready, ignore_errors=True)


def finish_installing() -> None:
    for ready in sorted((results.data_folder() / "journal").glob("*/full/*/*.ready")):
        install(ready.with_suffix(".staging"))


# -- Book and report ------------------------------------------------------------------------------


def build_book(quietly: bool) -> int:
    """Build the book with warnings as errors; quietly, its messages are shown only if it fails."""
    say("\nThe book is being built …")
    scripts = Path(sys.executable).parent
    command = [str(scripts / BUILD_BOOK[0]), *BUILD_BOOK[1:]]
    run = subprocess.run(command, cwd=provenance.ROOT, capture_output=quietly, text=True)
    if quietly and run.returncode:
        say(run.stdout + run.stderr)
    return run.returncode


def report(runs: list[Run]) -> None:
    say("\n" + "=" * 100 + "\nReport: every published number that this run measured too\n")
    for run in runs:
        say(f"{run.name}: {_duration(run.seconds)}")
        if run.error:
            say(f"  failed: {run.error}")
        elif run.published is None:
            say("  nothing was published for this target before, so there is nothing to compare with")
        else:
            _report_numbers(run)
    together = pd.concat([run.comparison for run in runs]) if runs else pd.DataFrame()
    say(f"\nAll together: {_counts(together)}; {_duration(sum(run.seconds for run in runs))}")


def _report_numbers(run: Run) -> None:
    comparison = run.comparison
    path = results.journal_folder(run.target, run.profile) / f"{run.experiment}.report.csv"
    files.write_whole(path, comparison.to_csv(index=False))
    factors = [name for name in comparison.columns if name not in ("metric", "unit", "published", "here", "verdict")]
    for line in comparison[comparison["verdict"] != "not measured here"].to_dict("records"):
        what = " ".join(f"{name}={line[name]}" for name in factors if pd.notna(line[name]))
        numbers = f"{number(line['published']):>10} {number(line['here']):>10} {line['unit']:<6}"
        say(f"  {line['metric']:<18} {what:<58} {numbers} {line['verdict']}")
    say(f"  {_counts(comparison)}\n  also in {path}")


def _counts(comparison: pd.DataFrame) -> str:
    if comparison.empty:
        return "nothing compared"
    counts = comparison["verdict"].value_counts()
    kinds = ("reproduced", "drifted", "hardware-bound", "not measured here")
    return ", ".join(f"{counts.get(kind, 0)} {kind}" for kind in kinds)


def _duration(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def say(text: str) -> None:
    print(text, flush=True)


def _stop(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
