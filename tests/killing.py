"""Runs that are killed at a moment of their life, each forked from a process that has loaded what all of them need."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from bsbr.store.provenance import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def forking(code: str, *arguments: str) -> Iterator[Callable[[str, float | None], int]]:
    """A function that has `code` fork a run and returns how that ended, by itself or by a kill.

    Args:
        code: prints "ready"; then for each line that it reads it forks a run, prints its process, waits for it, and
            prints its exit code. The function is given that line, and the seconds until the kill or None.
        arguments: of the process.
    """
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin and server.stdout
        asked, said = server.stdin, server.stdout
        assert said.readline() == "ready\n"

        def run(line: str, seconds: float | None) -> int:
            print(line, file=asked, flush=True)
            pid = int(said.readline())
            if seconds is not None:
                time.sleep(seconds)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return int(said.readline())

        yield run
        asked.close()
