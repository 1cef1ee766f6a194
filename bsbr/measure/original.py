"""The original implementation of BSBR (the package `bsbr` 0.1.1), measured beside ours.

It has the name of this package, so it lives in a process of its own, which waits for one task at a time and does
nothing between them: tasks can be timed in turn with ours on one timer, and the pipe adds microseconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from typing import Literal

from bsbr.tasks import sources

# Run with the folder of the original on the path. Generating re-reads the text for each token, since it has no state.
_WORKER = """
import json, sys, torch
from bsbr import BSBRModel
sizes, threads = json.loads(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
torch.manual_seed(0)
model = BSBRModel(**sizes).eval()
def generate(n, new_tokens=50):
    ids = torch.randint(sizes["vocab_size"], (1, n))
    for _ in range(new_tokens):
        scores = model(ids)[:, -1] @ model.embedding.weight.T
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
tasks = {"encode": lambda n: model(torch.randint(sizes["vocab_size"], (1, n))), "generate": generate}
for line in sys.stdin:
    task, n = line.split()
    with torch.inference_mode():
        tasks[task](int(n))
    print("done", flush=True)
"""


class Original(AbstractContextManager["Original"]):
    """A running `BSBRModel` of the original package, in eval mode and float32.

    Args:
        sizes: JSON of its arguments: vocab_size, hidden_dim, num_layers, num_heads, chunk_size, ff_dim.
        threads: PyTorch's threads in its process.

    Raises:
        SourceError: the package was not fetched, or was altered.
    """

    def __init__(self, sizes: str, threads: int) -> None:
        folder = sources.check_files(sources.read_pin("bsbr")).parent
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, sizes, str(threads)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, task: Literal["encode", "generate"], n: int) -> None:
        """Read n random tokens, or read them and continue them by 50, and return when it is done."""
        assert self._process.stdin and self._process.stdout
        print(task, n, file=self._process.stdin, flush=True)
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError(f"the original implementation failed at {task} {n}; its message stands above")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
