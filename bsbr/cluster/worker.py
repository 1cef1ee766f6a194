"""What runs in a worker of Dask: what it offers, and the process beside it that measures.

A cell runs in a process of its own (`bsbr.cluster.measuring`) and not in Dask's: there it has the main thread, the
allocator and the threads that an ordinary process has, and if it dies, the worker does not.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker
from distributed.diagnostics import nvml
from distributed.utils import sync
from filelock import FileLock, Timeout

from bsbr.cluster.measuring import STALE
from bsbr.store import machine, provenance

GIB = 2**30
# What Dask sets for its workers, or a share of the machine's threads: an ordinary process has none of them.
OF_DASK = ("MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ALWAYS = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
SEATS = 1024


class Seat:
    """A worker's place among those of one cluster on one machine: its number, and whether timing is its turn.

    Both are locks that end with the process, however that ends.
    """

    def __init__(self, cluster: str) -> None:
        user = os.getuid() if hasattr(os, "getuid") else 0
        self.folder = Path(tempfile.gettempdir()) / f"bsbr-{user}-{provenance.sha256(cluster)[:12]}"
        self.folder.mkdir(exist_ok=True)
        self._turn = FileLock(self.folder / "turn.lock", thread_local=False)
        for number in range(SEATS):
            self.number, self._lock = number, FileLock(self.folder / f"seat-{number}.lock", thread_local=False)
            with contextlib.suppress(Timeout):
                self._lock.acquire(timeout=0)
                return
        raise RuntimeError(f"there are {SEATS} workers of one cluster on this machine: start fewer")

    def takes_turn(self) -> bool:
        """Whether this worker is the one of its machine that times; it is if no other is."""
        if not self._turn.is_locked:
            with contextlib.suppress(Timeout):
                self._turn.acquire(timeout=0)
        return self._turn.is_locked

    def gives_turn(self) -> None:
        """Leave the timing to another."""
        self._turn.release()


class Cells:
    """The measuring process of a worker, started when it is needed and anew when the code or the threads change."""

    def __init__(self, worker: Worker) -> None:
        self.seat = Seat(worker.scheduler.address)
        self.threads = worker.state.nthreads
        self.process: subprocess.Popen[str] | None = None
        self.whole: bool | None = None  # whether it was started with all threads of the machine
        self.gpu = self._gpu()
        self.refused = False

    @property
    def shared(self) -> bool:
        """Whether other workers have a part of this machine's threads, or may have."""
        return self.seat.number > 0 or self.threads < machine.usable_cores()

    def offers(self, memory: int | None) -> dict[str, float]:
        """The resources of this worker: cells at a time, exclusive ones among them, GPUs, and GiB."""
        gib = (memory / GIB) if memory else machine.describe()["memory_gib"]
        return {"cell": 1, "exclusive": self.seat.takes_turn(), "gpu": self.gpu not in (None, ""), "memory": gib}

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the measuring process answers; `died` with a reason where it ended instead."""
        whole = bool(request["exclusive"]) or not self.shared
        if whole != self.whole:
            self.end()
        for _ in range(2):
            process = self._running(whole)
            assert process.stdin and process.stdout
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps({**request, "shared": self.shared}) + "\n")
                process.stdin.flush()
            if line := process.stdout.readline():
                return dict(json.loads(line))
            code = process.wait()
            self.end()
            if code != STALE:
                break
        return {"died": f"the process that measured it ended with code {code}"}

    def end(self) -> None:
        """End the measuring process."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def _running(self, whole: bool) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            self.end()
            kept = {name: value for name, value in os.environ.items() if name not in OF_DASK}
            threads = {} if whole else {name: str(self.threads) for name in OF_DASK[1:]}
            gpu = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bsbr.cluster.measuring"],
                env={**kept, **ALWAYS, **threads, **gpu}, encoding="utf-8",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            self.whole = whole
        return self.process

    def _gpu(self) -> str | None:
        """The one GPU of this worker, by its seat; empty where none is left for it, None where there is none at all."""
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        found = named.split(",") if named else [str(number) for number in range(nvml.device_get_count())]
        if not found:
            return None
        if named and len(found) == 1:
            return named
        return found[self.seat.number] if self.seat.number < len(found) else ""


_cells: dict[str, Cells] = {}  # by the address of the worker: of one in each process, but in tests


class Offer(WorkerPlugin):
    """Gives each worker its seat, and tells the scheduler what it offers."""

    name = "bsbr"

    async def setup(self, worker: Worker) -> None:
        """Called by Dask in every worker, now and later."""
        if worker.address not in _cells:
            _cells[worker.address] = Cells(worker)
        own = _cells[worker.address]
        own.refused = False
        offers = own.offers(worker.memory_manager.memory_limit)
        await worker.set_resources(**offers)
        self.turns = None if offers["exclusive"] else asyncio.create_task(self._take_turn(worker, own))

    async def _take_turn(self, worker: Worker, own: Cells) -> None:
        """Time on this machine from when on the worker that did so has gone."""
        while not own.refused:
            if own.seat.takes_turn():
                await worker.set_resources(exclusive=1)
                return
            await asyncio.sleep(2)

    def teardown(self, worker: Worker) -> None:
        """Called by Dask when the worker closes, and before another run's offer."""
        if self.turns is not None:
            self.turns.cancel()
        if worker.address in _cells:
            _cells[worker.address].end()


def work(request: str, rows: bytes) -> str:
    """Measure a cell in this worker: where it stands as JSON in, its entry or what kept it from one as JSON out.

    Args:
        request: see `client.Workers`.
        rows: what the calls of `measure` before it came to, as compressed JSON.
    """
    worker = get_worker()
    asked = {**json.loads(request), "rows": base64.b64encode(rows).decode()}
    own = _cells[worker.address]
    answer = own.ask(asked)
    if "refused" in answer:  # no more cells of this run; to the next one it offers them anew
        own.refused = True
        sync(worker.loop, worker.set_resources, cell=0, exclusive=0)
        own.seat.gives_turn()
    return json.dumps({**answer, "worker": worker.address})
