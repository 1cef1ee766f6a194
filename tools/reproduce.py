"""Run the notebooks, publish what they measured, build the book, and say how it compares with what was published.

Called by `nox -s reproduce`, which sets up the environment that this needs:

    python tools/reproduce.py [--profile quick|full] [--target cpu|gpu] [--fresh] [--strict] [--workers N] [names …]

A stop at any moment leaves every published file whole, and the next run goes on with what was not yet measured.
It ends with 0; 1 if an experiment or the book failed; 2 for wrong arguments; 3 if `--strict` found that a number which
no clock touches has drifted; 4 if another run is at work here; 130 if it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import execution
import pairs
import publishing
import report
from report import Run, say

from bsbr import cluster
from bsbr.measure import machine
from bsbr.store import (
    AlteredResultError,
    MissingResultError,
    Result,
    files,
    journal,
    lock,
    provenance,
    reference,
    table,
)

BOOK = provenance.ROOT / "_build" / "html"
BUILD_BOOK = ["jupyter-book", "build", ".", "--all", "--warningiserror", "--keep-going"]
FAILED, DRIFTED, BUSY, STOPPED = 1, 3, 4, 130


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if Path(__file__).resolve().parents[1] != provenance.ROOT:
        say(f"This environment runs the code of {provenance.ROOT}, another checkout. Remove .nox here and run again.")
        return FAILED
    for way in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a process started in the background would ignore it
        signal.signal(way, _stop)
    try:
        kept = table.data_folder() / "journal"
        purpose = f"nox -s {'book' if options.only_book else 'reproduce'}"
        with lock.held(kept / "run.lock", purpose, _wait if options.wait else None):
            return _work(options, kept)
    except lock.BusyError as error:
        say(f"{error}. Two runs would mix their results: wait for it, or use --wait.")
        return BUSY
    except KeyboardInterrupt:
        say("\nStopped. Published files are whole, what was measured is kept: the same command goes on from here.")
        return STOPPED
    except OSError as error:
        say(f"\nThe run cannot go on: {execution.sentence(error)}. Published files are whole.")
        return FAILED


def _work(options: argparse.Namespace, kept: Path) -> int:
    publishing.finish()
    try:
        if options.only_book:
            with execution.own_surroundings(kept / "home"):
                return build_book(quietly=False)
        return reproduce(options, kept)
    except KeyboardInterrupt:
        publishing.finish()
        raise


def parse(arguments: list[str] | None) -> argparse.Namespace:
    known = pairs.experiments()
    parser = argparse.ArgumentParser(prog="nox -s reproduce --", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"which notebooks; all by default: {', '.join(known)}")
    parser.add_argument("--profile", choices=["tiny", "quick", "full"], default="quick", help="full is published")
    parser.add_argument("--target", choices=["cpu", "gpu"], help="default: the CPU, and the GPU if there is one")
    parser.add_argument("--fresh", action="store_true", help="measure anew what earlier runs have measured")
    parser.add_argument("--retry", action="store_true", help="try again what ran out of memory or took too long")
    parser.add_argument("--strict", action="store_true", help="end with 3 if a number that no clock touches drifted")
    parser.add_argument("--set-reference", action="store_true", help="hold later runs of this profile against this one")
    parser.add_argument("--wait", action="store_true", help="if another run is at work here, wait for its end")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, metavar="N", help="measure cells in N processes of this machine")
    where.add_argument("--scheduler", metavar="ADDRESS", help="hand cells to the workers of this scheduler of Dask")
    parser.add_argument("--no-book", action="store_true", help="measure and report only")
    parser.add_argument("--only-book", action="store_true", help="build the book from the published results only")
    options = parser.parse_args(arguments)
    if options.set_reference and options.profile == "full":
        parser.error("--set-reference is for the profiles tiny and quick: a full run is what is published anyway")
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers must be 1 or more, but is {options.workers}")
    if (options.workers or options.scheduler) and not cluster.is_installed():
        parser.error(cluster.MISSING)
    options.experiments = []
    for name in options.names or known:
        found = [one for one in known if name in (one, one.split("/")[-1])]
        if not found:
            parser.error(f"no notebook is called {name!r}; there are {', '.join(known)}")
        options.experiments += found
    return options


def reproduce(options: argparse.Namespace, kept: Path) -> int:
    if options.profile == "full" and (changed := provenance.changed_files()):
        say(f"Warning: not as committed: {', '.join(changed)}. The results will say so; commit first to publish them.")
    try:
        runs = [plan(name, target, options.profile) for target in targets(options) for name in options.experiments]
    except machine.DeviceNotFoundError as error:
        say(str(error))
        return FAILED
    blocked = (
        []
        if fetch_sources(options.experiments, kept / "sources.log")
        else [run for run in runs if reads_sources(run.experiment)]
    )
    for run in blocked:
        run.errors.append("a text or model that it reads could not be fetched; why stands above")
    with execution.own_surroundings(kept / "home"):
        os.environ |= {
            journal.FRESH: "1" if options.fresh else "",
            journal.RETRY: "1" if options.retry else "",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with workers(options):
            for position, run in enumerate(runs, start=1):
                if run not in blocked:
                    measure(run, f"[{position}/{len(runs)}] {run.name}", options.set_reference)
        book_failed = not options.no_book and build_book(quietly=True) != 0
    report.show(runs)
    page = BOOK / "book" / "comparison.html"
    where = kept if options.no_book or book_failed else page
    say(f"\nEach published number beside this machine's: {where}")
    if not options.no_book:
        say(
            "The book could not be built; its messages stand above."
            if book_failed
            else f"The book: {BOOK / 'index.html'}"
        )
    drifted = report.strict_failure(runs) if options.strict else ""
    if drifted:
        say(drifted)
    if book_failed or any(run.errors for run in runs):
        return FAILED
    return DRIFTED if drifted else 0


@contextlib.contextmanager
def workers(options: argparse.Namespace) -> Iterator[None]:
    """What measures the cells: the kernels of the notebooks, or workers of Dask that they are told of."""
    os.environ[cluster.SCHEDULER] = ""
    if not (options.workers or options.scheduler):
        yield
        return
    from bsbr.cluster import client

    with client.local(options.workers) if options.workers else contextlib.nullcontext(options.scheduler) as address:
        say(f"Cells are handed to {client.workers_at(address)} workers at {address}.")
        os.environ[cluster.SCHEDULER] = address
        yield


def targets(options: argparse.Namespace) -> list[str]:
    if options.target == "cpu":
        return ["cpu"]
    if options.target == "gpu":
        machine.device("gpu")
        return ["gpu"]
    try:
        machine.device("gpu")
    except machine.DeviceNotFoundError:
        say("gpu: there is no CUDA GPU here, so only the cpu target runs.")
        return ["cpu"]
    return ["cpu", "gpu"]


def plan(experiment: str, target: str, profile: str) -> Run:
    """A run, with what it is held against: the reference of its profile if there is one, else what is published."""
    run = Run(experiment, target, profile)
    try:
        run.published = _published(experiment, target, profile)
    except MissingResultError:
        pass
    except AlteredResultError as error:
        run.errors.append(str(error))
    return run


def _published(experiment: str, target: str, profile: str) -> Result:
    try:
        return reference.load_reference(experiment, target, profile)
    except MissingResultError:
        return table.load(experiment, target)


def reads_sources(experiment: str) -> bool:
    return "sources" in pairs.script(experiment).read_text(encoding="utf-8")


def fetch_sources(names: list[str], log: Path) -> bool:
    """Fetch and check corpora and checkpoints if a notebook reads any, and return whether all are here."""
    if not any(reads_sources(name) for name in names):
        return True
    progress = report.Progress("Texts and models")
    # With the person's own settings of registries, but with a cache of npm that is not in their HOME.
    with tempfile.TemporaryDirectory(prefix="bsbr-npm-") as cache, log.open("w", encoding="utf-8") as stream:
        fetching = subprocess.Popen(
            [sys.executable, "-u", "-m", "bsbr.sources"],
            cwd=provenance.ROOT,
            env={**os.environ, "npm_config_cache": cache},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        try:
            for line in fetching.stdout or ():
                stream.write(line)
                progress.watch((line.strip().splitlines() or [""])[-1])
        except BaseException:
            fetching.terminate()
            raise
        finally:
            fetching.wait()
    here = fetching.returncode == 0
    progress.end(f"{'here' if here else 'not all here'}, {report.duration(time.perf_counter() - progress.begin)}")
    if not here:
        say(f"{execution.tail(log)}\n  all it said: {log}")
    return here


def measure(run: Run, title: str, set_reference: bool = False) -> None:
    """Execute the notebook; a full run then replaces the published table and the paired notebook together.

    What goes wrong is this experiment's failure and is noted: the others still run.
    """
    folder = table.journal_folder(run.target, run.profile)
    log = folder / f"{run.experiment}.log"
    progress, before = report.Progress(title), len(run.errors)
    try:
        _measure(run, folder / f"{run.experiment}.ipynb", log, progress)
        if set_reference:
            reference.keep_reference(table.load(run.experiment, run.target, run.profile))
    except Exception as error:
        run.errors.append(execution.sentence(error))
    run.seconds = time.perf_counter() - progress.begin
    progress.end(report.duration(run.seconds))
    for said in run.errors[before:]:
        say(f"{execution.tail(log)}\n  failed: {said}\n  all it said: {log}")


def _measure(run: Run, executed: Path, log: Path, progress: report.Progress) -> None:
    staging = publishing.staging_folder(run.experiment, run.target)
    os.environ[journal.STAGING] = str(staging / "results") if run.profile == "full" else ""
    parameters = {"target": run.target, "profile": run.profile}
    folder = pairs.script(run.experiment).parent
    notebook = execution.execute(pairs.read(run.experiment), executed, log, folder, parameters, progress.watch)
    if run.profile == "full":
        if run.target == "cpu":  # the pages of the book are the CPU's
            if moved := pairs.set_aside(run.experiment):
                say(f"\n{moved}")
            files.write_whole(staging / "notebooks" / f"{run.experiment}.ipynb", pairs.written(notebook))
        if staging.exists():
            publishing.install(staging)
    run.compare(table.load(run.experiment, run.target, run.profile))


def build_book(quietly: bool) -> int:
    """Build the book with warnings as errors; quietly, the end of its messages is shown only if it fails."""
    say("The book is being built …")
    command = [str(Path(sys.executable).parent / BUILD_BOOK[0]), *BUILD_BOOK[1:]]
    if not quietly:
        return subprocess.run(command, cwd=provenance.ROOT).returncode
    log = table.data_folder() / "journal" / "book.log"
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(command, cwd=provenance.ROOT, stdout=stream, stderr=subprocess.STDOUT).returncode
    if code:
        say(f"{execution.tail(log)}\n  all it said: {log}")
    return code


def _wait(sentence: str) -> None:
    say(f"{sentence}: waiting for its end.")


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
