"""The timer, the fit and the machine."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from bsbr import stats
from bsbr.measure import machine, speed
from bsbr.store.machine import describe

# -- Timer ----------------------------------------------------------------------------------------


def sleeper(seconds: float) -> speed.Task:
    return speed.Task(run=time.sleep, prepare=lambda: seconds)


def test_a_known_time_and_a_known_ratio_are_found() -> None:
    samples = speed.interleave({"short": sleeper(0.002), "long": sleeper(0.006)}, seconds=2)
    assert 0.002 <= stats.median(samples["short"]).value < 0.006
    times = stats.ratio(samples["long"], samples["short"])
    assert times.low is not None and times.high is not None and times.low <= times.value <= times.high
    assert 1.5 < times.value < 6


def test_tasks_take_turns_and_the_order_rotates() -> None:
    order: list[str] = []
    tasks = {name: speed.Task(run=lambda _, name=name: order.append(name)) for name in "ab"}
    speed.interleave(tasks, seconds=0, min_rounds=2, max_rounds=2, block=0)
    assert order == ["a", "a", "b", "b", "a", "b", "b", "a"]  # each called twice beforehand, then two rounds


def test_what_is_prepared_is_not_on_the_clock() -> None:
    task = speed.Task(run=lambda _: None, prepare=lambda: time.sleep(0.02))
    assert stats.median(speed.interleave({"task": task}, seconds=0)["task"]).value < 0.01


def test_rounds_are_as_many_as_precision_and_time_ask_but_never_fewer_than_the_least() -> None:
    steady = speed.interleave({"steady": sleeper(0.01)}, seconds=30, precision=0.5)
    assert len(steady["steady"]) < 30
    assert len(speed.interleave({"task": sleeper(0.001)}, seconds=0, precision=0)["task"]) == 7
    many = speed.interleave({"task": sleeper(0.001)}, seconds=30, precision=0, max_rounds=9, block=0.001)
    assert len(many["task"]) == 9


def test_a_pilot_of_little_scatter_asks_for_few_rounds_and_one_of_much_for_many() -> None:
    pilot = {"calm": np.exp([0.0, 0.01, 0.02]), "restless": np.exp([0.0, 0.1, 0.2])}
    few, many = speed.rounds_for(0.05, {"calm": pilot["calm"]}), speed.rounds_for(0.05, pilot)
    assert few == 1  # (4.91 · 0.01 / 0.05)² = 0.97
    assert many == 97  # the same with ten times the scatter


def test_rounds_fixed_by_a_pilot_leave_the_interval_of_a_median_what_it_says() -> None:
    generator, held = np.random.default_rng(0), []
    for _ in range(3000):
        times = np.exp(generator.normal(0, 0.03, speed.PILOT + 60))  # the median is 1
        rounds = min(max(speed.rounds_for(0.05, {"task": times[: speed.PILOT]}), 7), 60)
        found = stats.median(times[speed.PILOT :][:rounds])
        held.append(found.low is not None and found.high is not None and found.low <= 1 <= found.high)
    assert np.mean(held) >= 0.93


def test_a_cloned_state_shares_nothing() -> None:
    state = (torch.zeros(2), (torch.zeros(1), 3))
    copy = speed.clone(state)
    copy[0][0] = copy[1][0][0] = 7
    assert state[0].sum() == 0 and state[1][0].sum() == 0 and copy[1][1] == 3


def test_a_task_is_called_before_it_counts_and_the_first_call_of_a_slow_one_is_enough() -> None:
    calls: list[float] = []

    def slow_at_first() -> None:
        time.sleep(0 if calls else 0.05)
        calls.append(time.perf_counter())

    quick = speed.interleave({"task": slow_at_first}, seconds=0, min_rounds=3, max_rounds=3, block=0.001)
    assert quick["task"].max() < 0.05


def test_what_would_take_too_long_is_foreseen_from_its_growth() -> None:
    now = 0.0
    tried: list[int] = []

    def run(n: int) -> None:
        nonlocal now
        tried.append(n)
        now += (n / 1000) ** 2

    with pytest.raises(speed.TooLongError, match="would take over 10 s, by its growth from n = 1,000 to 2,000"):
        speed.foresee(run, 4000, 10, clock=lambda: now)
    assert tried == [1000, 2000] * 2
    speed.foresee(run, 4000, 17, clock=lambda: now)
    speed.foresee(run, 400, 10, clock=lambda: now)  # far from the limit: one look is enough
    assert tried[6:] == [100]
    with pytest.raises(
        speed.TooLongError, match="would take over 10 s, if only in proportion to its time at n = 2,000"
    ):
        speed.foresee(run, 8000, 10, clock=lambda: now)
    assert tried[7:] == [2000] * 2


def test_a_hiccup_is_not_taken_for_growth() -> None:
    times = iter([0, 9, 9, 10, 10, 12])  # 9 s once, then 1 s at a quarter and 2 s at a half
    speed.foresee(lambda n: None, 4000, 5, clock=lambda: next(times))


def test_what_takes_too_long_is_interrupted_also_where_exceptions_are_caught() -> None:
    begin = time.perf_counter()
    with pytest.raises(speed.TooLongError, match=r"took over 0\.1 s"), speed.at_most(0.1):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(0.01)
    assert time.perf_counter() - begin < 5
    with speed.at_most(0.05):
        pass
    time.sleep(0.1)  # nothing is left that would go off


# -- Compiling ------------------------------------------------------------------------------------


def test_compiled_code_computes_the_same_and_its_compile_time_is_known() -> None:
    example = torch.randn(8, 8)
    for shift in range(12):  # more than the versions that the compiler keeps of one code

        def function(x: torch.Tensor, shift: int = shift) -> torch.Tensor:
            return x.sin() + shift

        fast, seconds = speed.compiled(function, [example], 60, backend="aot_eager", fullgraph=True)
        assert seconds > 0
        torch.testing.assert_close(fast(example), function(example))


def test_without_a_compiler_the_reason_is_one_line() -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise RuntimeError("no working compiler\nand much more")

    with pytest.raises(speed.CompileError, match=r"^[^\n]*no working compiler$"):
        speed.compiled(lambda x: x + 1, [torch.ones(2)], 60, backend=broken)


def test_no_time_to_compile_is_too_little() -> None:
    with pytest.raises(speed.TooLongError, match="not tried"):
        speed.compiled(lambda x: x + 1, [torch.ones(2)], 0)


# -- Machine --------------------------------------------------------------------------------------


def test_the_machine_is_described() -> None:
    here = describe()
    assert here["cpu"] and here["cores"] >= 1 and here["memory_gib"] > 0
    assert here["threads"] == torch.get_num_threads()


def test_a_gpu_that_is_not_there_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(machine.DeviceNotFoundError, match=r"target='gpu' needs a CUDA GPU .* use target='cpu'"):
        machine.device("gpu")
    assert machine.device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="target must be 'cpu' or 'gpu', not 'tpu'"):
        machine.device("tpu")


def test_memory_that_is_kept_is_not_faulted_in_again():
    """In a process of its own: the setting holds for the rest of a process."""
    script = (
        "import resource, torch\n"
        "from bsbr.measure import machine\n"
        "kept = machine.keep_freed_memory()\n"
        "def faults(numbers):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(numbers)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults(20_000_000)\n"
        "print(int(kept), faults(10_000_000))\n"
    )
    kept, faults = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    if kept == "0":
        pytest.skip("the C library is not glibc")
    assert int(faults) < 10_000_000 * 4 / 4096 / 100


def test_no_tasks_take_no_time() -> None:
    assert speed.interleave({}) == {}
