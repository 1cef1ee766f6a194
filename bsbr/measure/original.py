"""The original implementation of BSBR (the package `bsbr` 0.1.1), measured beside ours.

It has the name of this package, so it lives in a process of its own, which waits for one task at a time and does
nothing between them: tasks can be timed in turn with ours on one timer, and the pipe adds microseconds.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from bsbr.measure.memory import Peak
from bsbr.tasks import sources


def future_influence(
    encode: Callable[[Tensor], Tensor], vocab_size: int, n: int, change_from: int, seed: int = 0
) -> list[float]:
    """How much each token's output changes when the tokens from position `change_from` on are all replaced.

    Of a causal model the first `change_from` numbers are 0.

    Args:
        encode: from ids (1, n) to outputs (1, n, hidden_dim).

    Returns:
        max |change| over the output's numbers, for each of the n positions.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size, (1, n), generator=generator)
    other = ids.clone()
    shift = torch.randint(1, vocab_size, (1, n - change_from), generator=generator)
    other[:, change_from:] = (ids[:, change_from:] + shift) % vocab_size
    return (encode(other) - encode(ids)).abs().amax(-1)[0].tolist()


# Run with the folder of the original on the path. Generating re-reads the text for each token, since it has no state.
_WORKER = """
from __future__ import annotations
import json, re, resource, sys, torch
from pathlib import Path
from bsbr import BSBRModel

sizes, threads = json.loads(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
torch.manual_seed(0)
model = BSBRModel(**sizes).eval()

def encode(n):
    model(torch.randint(sizes["vocab_size"], (1, n)))

def generate(n, new_tokens):
    ids = torch.randint(sizes["vocab_size"], (1, n))
    for _ in range(new_tokens):
        scores = model(ids)[:, -1] @ model.embedding.weight.T
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)

def resident_peak(n):
    encode(64)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    except OSError:
        pass
    before = high_water_mark()
    encode(n)
    return before, high_water_mark()

def high_water_mark():
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

def influence(n, change_from):
    return future_influence(model, sizes["vocab_size"], n, change_from)

for line in sys.stdin:
    task, *numbers = json.loads(line)
    with torch.inference_mode():
        print(json.dumps(globals()[task](*numbers)), flush=True)
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
            [sys.executable, "-c", _with_influence(_WORKER), sizes, str(threads)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, task: Literal["encode", "generate"], n: int, new_tokens: int = 50) -> None:
        """Read n random tokens, or read them and continue them by `new_tokens`, and return when it is done.

        This and the other methods raise MemoryError if the system ended the process, as it does for want of memory, and
        RuntimeError if the task failed.
        """
        self._ask(task, n, *([new_tokens] if task == "generate" else []))

    def resident_peak(self, n: int) -> Peak:
        """Resident bytes of its process before it reads n tokens, 64 being read already, and at the peak of reading."""
        return Peak(*self._ask("resident_peak", n))

    def future_influence(self, n: int, change_from: int) -> list[float]:
        """What `future_influence` of this module finds for it."""
        return list(self._ask("influence", n, change_from))

    def _ask(self, task: str, *numbers: int) -> Any:
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([task, *numbers]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if answer:
            return json.loads(answer)
        what = f"the original implementation at {task} {' '.join(map(str, numbers))}"
        if self._process.wait() < 0:
            raise MemoryError(f"the system ended {what}")
        raise RuntimeError(f"failed: {what}; its message stands above")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def _with_influence(script: str) -> str:
    """The worker with this module's own measure of influence, so that both models are held to the same one."""
    head, rest = script.split("sizes, threads", 1)
    return f"{head}{inspect.getsource(future_influence)}\nsizes, threads{rest}"
