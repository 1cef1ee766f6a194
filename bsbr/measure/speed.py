"""The one timer: tasks in turn, round after round, so that whatever slows the machine slows all of them alike."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import signal
import sys
import time
import timeit
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, FunctionType
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Float
from torch.utils import benchmark

from bsbr import stats

Samples = Float[np.ndarray, " rounds"]
READING = 0.001  # seconds that the clock measures to a thousandth and better
PILOT = 3  # rounds that do not count and decide how many do
SLOW = 1.0  # seconds from which a first call's own overhead cannot matter, so that it need not be repeated


@dataclass(frozen=True)
class Task:
    """Something to time: `run(prepare())`, where only `run` is on the clock.

    Examples:
        >>> from bsbr.measure.speed import Task, interleave
        >>> sorting = Task(run=lambda numbers: numbers.sort(), prepare=lambda: list(range(1000, 0, -1)))
        >>> len(interleave({"sorting": sorting}, seconds=0, min_rounds=3, block=1e-4)["sorting"])
        3
    """

    run: Callable[[Any], object]  # the work, given what was prepared
    prepare: Callable[[], Any] = lambda: None  # makes what a reading of the clock needs anew


def clone(state: Any) -> Any:
    """A copy of a decoding state (nested tuples of tensors): a step may reuse the memory of the one it is given."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, tuple):
        parts = [clone(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def interleave(
    tasks: Mapping[str, Task | Callable[[], object]],
    *,
    seconds: float = 10.0,
    precision: float = 0.05,
    min_rounds: int = 7,
    max_rounds: int = 60,
    block: float = 0.01,
) -> dict[str, Samples]:
    """Time several tasks in turn and return the seconds a call of each took, one sample a round.

    Each sample is the median of a block of calls on PyTorch's clock, which waits for a GPU to finish. A task is called
    before it counts: once or twice at the start, and once before each block of several calls, which brings back into
    the caches what others have pushed out. The order rotates from round to round.

    How many rounds there are is fixed before the first that counts: rounds that end when their own intervals look
    narrow would hold the truth less often than those say. A few rounds that do not count show how far
    samples scatter, and with that how many it takes for medians with 95 % intervals as narrow as `precision`.

    Args:
        tasks: by name. A plain callable is a task that needs nothing prepared.
        seconds: about how long all rounds may take, those that do not count included; `min_rounds` are made anyway.
        precision: width of the intervals to aim at, relative to the median.
        min_rounds, max_rounds: samples a task at least and at most. From six on the samples' range is a 95 % interval,
            from nine on the interval leaves out the least and the greatest.
        block: seconds that a block of calls lasts at least.

    Examples:
        >>> from bsbr.measure.speed import interleave
        >>> tasks = {"short": lambda: sum(range(100)), "long": lambda: sum(range(1000))}
        >>> samples = interleave(tasks, seconds=0, min_rounds=3, block=1e-4)
        >>> {name: len(found) for name, found in samples.items()}
        {'short': 3, 'long': 3}
    """
    if not tasks:
        return {}
    clocks = {name: _clock(task if isinstance(task, Task) else _plain(task)) for name, task in tasks.items()}
    blocks = {name: _block(clock, block) for name, clock in clocks.items()}

    def take_turns(rounds: int) -> dict[str, Samples]:
        samples: dict[str, list[float]] = {name: [] for name in tasks}
        names = list(tasks)
        for _ in range(rounds):
            for name in names:
                samples[name].append(_sample(clocks[name], *blocks[name]))
            names = names[1:] + names[:1]
        return {name: np.array(found) for name, found in samples.items()}

    rounds = min_rounds
    if max_rounds > min_rounds and seconds > 0:
        begin = time.perf_counter()
        pilot = take_turns(PILOT)
        took = time.perf_counter() - begin
        affordable = int((seconds - took) / took * PILOT)
        rounds = max(min(rounds_for(precision, pilot), affordable, max_rounds), min_rounds)
    return take_turns(rounds)


def rounds_for(precision: float, pilot: Mapping[str, Samples]) -> int:
    """How many rounds make the 95 % interval of every median about that narrow, by how far a pilot's samples scatter.

    A median of m samples that scatter normally by σ has a standard error of √(π/2) σ/√m. A pilot of a few rounds knows
    σ only roughly: the precision is an aim, while the intervals are what they are.
    """
    scatter = max(float(np.std(np.log(samples), ddof=1)) for samples in pilot.values())
    return math.ceil((2 * 1.96 * math.sqrt(math.pi / 2) * scatter / precision) ** 2) if precision > 0 else sys.maxsize


def _plain(task: Callable[[], object]) -> Task:
    return Task(run=lambda _: task())


def _clock(task: Task) -> timeit.Timer:
    """What is prepared is prepared anew for each reading of the clock; `timeit` holds the garbage collector off."""
    names = {"run": task.run, "prepare": task.prepare}
    return timeit.Timer("run(prepared)", "prepared = prepare()", timer=benchmark.timer, globals=names)


def _block(clock: timeit.Timer, seconds: float) -> tuple[int, int]:
    """How many readings of the clock make up a block, and how many calls one reading."""
    calls, took = 1, clock.timeit(1)
    if took < SLOW:
        took = clock.timeit(1)  # the first call of anything loads and allocates
    while took < min(READING, seconds):
        calls *= math.ceil(min(max(READING / max(took, 1e-9), 2), 10))
        took = clock.timeit(calls)
    return max(math.ceil(seconds / took), 1), calls


def _sample(clock: timeit.Timer, readings: int, calls: int) -> float:
    if readings * calls > 1:
        clock.timeit(1)
    return float(np.median(clock.repeat(readings, calls))) / calls


# -- Limits of time -------------------------------------------------------------------------------


class TooLongError(RuntimeError):
    """Something would take, or took, longer than it may."""


def foresee(run: Callable[[int], object], n: int, limit: float, clock: Callable[[], float] = benchmark.timer) -> None:
    """Make sure that `run(n)` will not take over `limit` seconds, by what it takes at n/4 and n/2.

    The growth between those two lengths is taken to go on. The second is not tried where the first tells enough: no
    cost here grows faster than n³, or slower than n once it takes so long. What seems too long is tried once more:
    a hiccup of the machine looks like growth.

    Args:
        run: does the work for a length.
        n: the length that it is meant to run at.
        limit: seconds that it may take.
        clock: tells the time in seconds.

    Raises:
        TooLongError: it would; the message says by which growth.

    Examples:
        >>> from bsbr.measure.speed import foresee
        >>> foresee(lambda n: sum(range(n)), n=10_000, limit=10.0)
    """
    for _ in range(2):
        reason = _why_too_long(run, n, limit, clock)
        if not reason:
            return
    raise TooLongError(f"would take over {limit:g} s, {reason}")


def _why_too_long(run: Callable[[int], object], n: int, limit: float, clock: Callable[[], float]) -> str:
    def seconds(length: int) -> float:
        begin = clock()
        run(length)
        return clock() - begin

    quarter, half = n // 4, n // 2
    if quarter < 1 or (first := seconds(quarter)) < limit / 4**3:
        return ""
    if 4 * first > limit:
        return f"if only in proportion to its time at n = {quarter:,}"
    if stats.extrapolate((quarter, half), (first, seconds(half)), n) > limit:
        return f"by its growth from n = {quarter:,} to {half:,}"
    return ""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt what takes over `seconds`. For the main thread of a process; on Windows it has no effect.

    Args:
        seconds: that it may take.

    Raises:
        TooLongError: it did.

    Examples:
        >>> import time
        >>> from bsbr.measure.speed import at_most
        >>> with at_most(0.05):
        ...     time.sleep(1)
        Traceback (most recent call last):
        bsbr.measure.speed.TooLongError: took over 0.05 s
    """
    if not hasattr(signal, "setitimer"):
        yield
        return

    class Interrupt(BaseException):
        """Not an Exception: what catches those must not take it for a failure of its own."""

    def interrupt(_: int, __: FrameType | None) -> NoReturn:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # again and again: some callbacks swallow what is raised in them
    try:
        yield
    except Interrupt:
        raise TooLongError(f"took over {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- Compiling ------------------------------------------------------------------------------------


class CompileError(RuntimeError):
    """PyTorch could not compile; the message is the reason, in one line."""


def compiled(
    function: FunctionType, example: Sequence[Any], limit: float, **options: Any
) -> tuple[Callable[..., Any], float]:
    """`torch.compile(function, **options)`, called once with `example`, and the seconds which that took.

    Nothing is taken from a cache of earlier compilations, and what every first compilation of a process does once (to
    load the compiler, to compile the headers) is done beforehand.

    Args:
        limit: seconds that it may take; with 0 nothing is tried.

    Raises:
        CompileError: there is no compiler, or it failed.
        TooLongError: it took over `limit` seconds.
    """
    if limit <= 0:
        raise TooLongError("compiling is not tried at this size")
    device = next(x.device for x in example if isinstance(x, torch.Tensor))
    with torch.compiler.config.patch(force_disable_caches=True), warnings.catch_warnings():  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
        try:
            _warm_compiler(device, options.get("backend", "inductor"), limit)
            with at_most(limit):
                fast = torch.compile(_own_code(function), **options)
                begin = benchmark.timer()
                fast(*example)
                return fast, benchmark.timer() - begin
        except TooLongError:
            raise TooLongError(f"compiling takes over {limit:g} s") from None
        except Exception as error:  # whatever a compiler says: the same call has to work without one
            raise CompileError(_first_line(error)) from error


def _own_code(function: FunctionType) -> FunctionType:
    """A function of the same meaning with code of its own: of one code the compiler keeps only a few versions."""
    code = function.__code__.replace(co_name=f"{function.__code__.co_name}_{next(_count)}")
    return FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)


_count = itertools.count()
_warm: set[tuple[torch.device, object]] = set()


def _warm_compiler(device: torch.device, backend: Any, limit: float) -> None:
    if backend == "inductor":
        importlib.import_module("torch._inductor.compile_fx")  # an import is not to be interrupted
    if (device, backend) not in _warm:
        with at_most(limit):
            torch.compile(lambda x: (x @ x).relu().sum(-1), backend=backend)(torch.ones(64, 64, device=device))
        _warm.add((device, backend))


def _first_line(error: BaseException) -> str:
    """The first line of what an exception says, or of the one in the compiler that it stands for."""
    error = getattr(error, "inner_exception", error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:200]
