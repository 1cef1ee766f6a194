"""How much sooner two workers have measured an experiment's cells than one, and that their numbers are the same.

Called by `nox -s bench -- workers`, or for any experiment whose cells time nothing:

    python tools/share.py [experiment] [profile]
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time

from bsbr.cluster import client, measuring
from bsbr.store import executor, table

EXPERIMENT, PROFILE = "benchmarks/parameters_and_flops", "quick"
AIM = 1.0  # times as fast as one worker: more


def seconds(workers: int, experiment: str, profile: str) -> tuple[float, bytes]:
    """How long the workers take for all cells, from a journal that has none, and the table that they give."""
    path = measuring.NOTEBOOKS / f"{experiment}.py"
    code = compile(measuring.script(path.read_text(encoding="utf-8"), "cpu", profile), str(path), "exec")
    with tempfile.TemporaryDirectory() as data, client.local(workers) as address:
        os.environ["BSBR_DATA"] = data
        begin = time.perf_counter()
        with executor.using(client.Workers(address)), contextlib.redirect_stdout(io.StringIO()):
            exec(code, {"__name__": "__main__"})
        return time.perf_counter() - begin, table.load(experiment, "cpu", profile).path.read_bytes()


def main(experiment: str = EXPERIMENT, profile: str = PROFILE) -> int:
    (one, first), (two, second) = (seconds(workers, experiment, profile) for workers in (1, 2))
    alike = "the same table" if first == second else "ANOTHER TABLE"
    print(
        f"{experiment} ({profile}): {one:.1f} s with one worker, {two:.1f} s with two, {one / two:.2f} times; {alike}"
    )
    return int(one / two <= AIM or first != second)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
