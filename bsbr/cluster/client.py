"""The executor that hands the cells of a sweep to the workers of a Dask cluster.

Dask decides which worker measures what, and gives out again what a worker had that died. What Dask loses with its
scheduler is given out again here, when that is back. The journal is written by the sweep alone, a cell at a time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import logging
import math
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from distributed import Client, KilledWorker, LocalCluster
from distributed import Future as Task
from distributed.comm import get_address_host

from bsbr.cluster.measuring import code_parts
from bsbr.cluster.worker import Offer, work
from bsbr.store import Sweep, cells, machine
from bsbr.store.cells import Job
from bsbr.store.executor import Here

TICK = 0.1  # seconds between looks at what is done
LOOK = 2.0  # seconds between looks at who is there
PATIENCE = 600.0  # seconds in which a scheduler that has gone may come back
DEATHS = 2  # times that a cell is given out again whose process, or whose workers one after the other, died
LOST = (OSError, TimeoutError, asyncio.CancelledError, concurrent.futures.CancelledError)  # with a connection


class ClusterError(RuntimeError):
    """Cells cannot be measured by the cluster; the message says why, and what can be done."""


class CellError(RuntimeError):
    """A cell failed on a worker; the message has what it raised there."""


@contextlib.contextmanager
def local(workers: int) -> Iterator[str]:
    """Worker processes on this machine, which share its threads, and the address of their scheduler."""
    threads = max(1, machine.usable_cores() // workers)
    with LocalCluster(
        n_workers=workers, threads_per_worker=threads, dashboard_address=None, silence_logs=logging.ERROR
    ) as cluster:
        yield cluster.scheduler_address


def workers_at(address: str) -> int:
    """How many workers the scheduler at an address has.

    Raises:
        ClusterError: nobody answers there.
    """
    try:
        with _connection(address, 10) as client:
            return len(client.scheduler_info()["workers"])
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address}: start it, or correct the address ({error})"
        ) from None


@dataclass(eq=False)
class _Given:
    """A cell on its way."""

    job: Job
    number: int
    future: Future[Any] = field(default_factory=Future)
    task: Task | None = None
    times: int = 0
    deaths: int = 0


class Workers(Here):
    """Hands cells to the workers of the scheduler at an address.

    A worker is told where the cell stands (`measuring`) and gets neither code nor objects. One whose code, packages or
    sources differ is told off, and its cell goes to another.
    """

    at_once = math.inf

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: Client | None = None
        self._lock = threading.RLock()
        self._open: list[_Given] = []
        self._thread: threading.Thread | None = None
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._gone = 0.0
        self._count = 0
        self._workers: dict[str, dict[str, Any]] = {}
        self._looked = 0.0
        self._refused: dict[str, str] = {}
        self._waiting = ""
        self._timing: tuple[str, dict[str, Any]] | None = None

    # -- What a sweep asks ------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The entry of a job, as a future."""
        if not isinstance(fn, Job):
            raise TypeError(f"workers measure cells of a sweep, not {fn!r}")
        with self._lock:
            self._count += 1
            given = _Given(fn, self._count)
            self._open.append(given)
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep, name="cells", daemon=True)
                self._thread.start()
        return given.future

    def machine(self, exclusive: bool) -> dict[str, Any]:
        """This machine, or for exclusive cells the one on which all of this process are measured."""
        if not exclusive:
            return machine.describe()
        while self._timing is None:
            with self._lock:
                try:
                    self._timing, self._gone = self._find_timing(self._connected()), 0.0
                except LOST as error:
                    self._lost(error)
            for sentence in self.said():
                print(f"    {sentence}", flush=True)
            time.sleep(1 if self._gone else TICK)
        return self._timing[1]

    def under_way(self) -> int:
        return sum(given.task is not None for given in self._open)

    def _offering(self) -> int:
        """How many workers measure cells."""
        return sum(self._has(one, "cell") > 0 for one in self._workers)

    def said(self) -> list[str]:
        return [self._said.get() for _ in range(self._said.qsize())]

    def _find_timing(self, client: Client) -> tuple[str, dict[str, Any]] | None:
        """The host that times, and its machine as a cell finds it that has it for itself."""
        self._look(client, at_once=True)
        hosts = sorted(_host(one) for one in self._workers if self._has(one, "exclusive") and self._has(one, "cell"))
        if not hosts:
            self._wait_for("a worker that offers exclusive=1")
            return None
        ask, alone = json.dumps({"exclusive": True}), {"cell": 1, "exclusive": 1}
        task = client.submit(work, ask, b"", resources=alone, workers=hosts[:1], pure=False)
        try:
            return hosts[0], json.loads(task.result(timeout=120))["machine"]
        except (KilledWorker, KeyError):  # it died: another look
            return None

    # -- A thread that keeps cells on their way -----------------------------------------------------

    def _keep(self) -> None:
        while True:
            with self._lock:
                if not self._open:
                    self._thread = None
                    return
                try:
                    self._step(self._connected())
                    self._gone = 0.0
                except LOST as error:
                    self._lost(error)
                except Exception as error:
                    if self._client is not None and self._client.status != "running":
                        self._lost(error)
                    else:
                        self._fail(self._open, error)
            time.sleep(1 if self._gone else TICK)

    def _step(self, client: Client) -> None:
        if client.status != "running":
            raise OSError("the connection is closed")
        self._look(client)
        for given in list(self._open):
            if given.future.cancelled():
                self._drop(given)
            elif given.task is None:
                # As many as they measure, and one that waits; none that nobody can take.
                if self.under_way() <= self._offering() and self._can(needs(given.job)):
                    self._give(client, given)
            elif given.task.status == "finished":
                self._take(client, given, json.loads(given.task.result(timeout=30)))
            elif given.task.status == "error":
                self._died(given, given.task.exception(timeout=30))
            elif given.task.status != "pending":
                given.task = None  # lost with a connection

    def _give(self, client: Client, given: _Given) -> None:
        job, given.times = given.job, given.times + 1
        given.task = client.submit(
            work, request(job), earlier(job), pure=False, resources=needs(job),
            workers=[self._timing[0]] if job.part.is_exclusive and self._timing else None,
            key=f"{job.sweep.experiment} {job} #{given.number}.{given.times} {client.id}",
        )  # fmt: skip

    def _take(self, client: Client, given: _Given, answer: dict[str, Any]) -> None:
        worker = answer["worker"]
        if "entry" in answer:
            self._drop(given)
            given.future.set_result(answer["entry"])
        elif "failed" in answer:
            self._fail([given], CellError(f"{answer['failed']}\n{answer['traceback']}"))
        elif "died" in answer:
            self._died(given, ClusterError(answer["died"]))
        else:
            given.task = None
            self._refused[worker] = answer["refused"]
            self._said.put(f"the worker at {worker} cannot help: {answer['refused']}")
            theirs = {str(key) for key in client.processing([worker]).get(worker, ())}
            for other in self._open:  # it offers no cells any more, and so would keep them
                if other.task is not None and str(other.task.key) in theirs:
                    other.task.cancel()
                    other.task = None
            self._look(client, at_once=True)
            timed = [other for other in self._open if other.job.part.is_exclusive]
            if timed and given.job.part.is_exclusive:  # all of them would be measured there
                self._fail(timed, ClusterError(f"the machine that times cannot help: {answer['refused']}"))
            elif not self._offering():
                reasons = "; ".join(f"{one}: {why}" for one, why in self._refused.items())
                self._fail(self._open, ClusterError(f"no worker can help: {reasons}"))

    def _died(self, given: _Given, error: BaseException | None) -> None:
        given.deaths, given.task = given.deaths + 1, None
        if isinstance(error, KilledWorker | ClusterError) and given.deaths <= DEATHS:
            self._said.put(f"{given.job} is given out again: {error}")
        else:
            self._fail([given], ClusterError(f"{given.job}: {error}"))

    def _drop(self, given: _Given) -> None:
        if given.task is not None and given.future.cancelled():
            with contextlib.suppress(Exception):
                given.task.cancel()
        given.task = None
        self._open.remove(given)

    def _fail(self, those: list[_Given], error: Exception) -> None:
        for given in list(those):
            self._drop(given)
            if not given.future.cancelled():
                given.future.set_exception(error)

    # -- The cluster ------------------------------------------------------------------------------

    def _connected(self) -> Client:
        """A client of the scheduler.

        Raises:
            OSError: nobody answers.
        """
        if self._client is None:
            client = _connection(self.address, 5)
            try:
                client.register_plugin(Offer())
            except LOST:
                raise
            except Exception as error:  # the others offer theirs
                self._said.put(f"a worker cannot take cells: {error}")
            self._client, self._looked = client, 0.0
        return self._client

    def _lost(self, error: BaseException) -> None:
        """The scheduler has gone, and with it what was under way: wait for it, but not for ever."""
        client, self._client = self._client, None
        for given in self._open:
            given.task = None
        if not self._gone:
            self._gone = time.monotonic()
            self._said.put(f"the scheduler at {self.address} does not answer: waiting for it ({error})")
        elif time.monotonic() - self._gone > PATIENCE:
            gone = ClusterError(f"the scheduler at {self.address} has not come back; what was measured is kept")
            if not self._open:
                raise gone
            self._fail(self._open, gone)
        if client is not None:
            with contextlib.suppress(*LOST, Exception):
                client.close(timeout=2)

    def _look(self, client: Client, at_once: bool = False) -> None:
        """Who is there, and whether any of them can take each cell: looked at now and then."""
        if not at_once and time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        self._workers = dict(client.scheduler_info()["workers"])
        for given in self._open:
            wanted = needs(given.job)
            if not self._can(wanted):
                self._wait_for(f"a worker that offers {', '.join(f'{name}={need:g}' for name, need in wanted.items())}")
                return
        self._waiting = ""

    def _can(self, wanted: dict[str, float]) -> bool:
        """Whether some worker offers all that."""
        return any(all(self._has(one, name) >= need for name, need in wanted.items()) for one in self._workers)

    def _has(self, worker: str, name: str) -> float:
        return float(self._workers[worker]["resources"].get(name, 0))

    def _wait_for(self, what: str) -> None:
        if what != self._waiting:
            self._said.put(f"waiting for {what}")
        self._waiting = what


def _connection(address: str, seconds: float) -> Client:
    return Client(address, timeout=seconds, set_as_default=False)


def _host(worker: str) -> str:
    return str(get_address_host(worker))


# -- What a worker is told ------------------------------------------------------------------------


def needs(job: Job) -> dict[str, float]:
    """The resources of a worker that a cell takes (`worker.Cells.offers`)."""
    found: dict[str, float] = {"cell": 1}
    if job.part.is_exclusive:
        found["exclusive"] = 1
    elif job.part.memory:
        found["memory"] = job.part.memory
    return found | ({"gpu": 1} if job.sweep.target == "gpu" else {})


def request(job: Job) -> str:
    """Where a cell stands and what it depends on, as JSON."""
    sweep = job.sweep
    return cells.canonical({
        "place": sweep.experiment, "target": sweep.target, "profile": sweep.profile,
        "position": job.position, "index": job.index, "cell": job.cell, "exclusive": job.part.is_exclusive,
        "basis": job.basis, "code_parts": _code_parts(job.part),
    })  # fmt: skip


def earlier(job: Job) -> bytes:
    """The rows of the calls before, compressed."""
    return _earlier(job.sweep, job.call)


@functools.lru_cache(maxsize=1)
def _earlier(sweep: Sweep, call: int) -> bytes:
    return zlib.compress(cells.canonical(sweep.rows[:call]).encode())


_code_parts = functools.lru_cache(maxsize=64)(code_parts)
