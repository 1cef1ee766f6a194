"""How busy a machine is while something runs: processor, memory, disks, power and, where there is one, the GPU.

    with Monitor() as monitor:
        work()
    monitor.readings["cpu_utilisation"].value  # %

What a machine has no sensor for is a reading without a value, and with the reason.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch

from bsbr.store.machine import usable_cores

POWERCAP = Path("/sys/class/powercap")


class NoSensorError(RuntimeError):
    """This machine, or this user on it, cannot read the quantity; the message is the reason."""


@dataclass(frozen=True)
class Reading:
    """A quantity over the time that was monitored, in the unit of the metric of its name; None without a sensor.

    Examples:
        >>> from bsbr.measure.utilisation import Monitor
        >>> with Monitor("cpu") as monitor:
        ...     _ = sum(range(100_000))
        >>> reading = monitor.readings["gpu_utilisation"]
        >>> reading.value is None, bool(reading.reason)
        (True, True)
    """

    value: float | None  # in the unit of its metric
    reason: str = ""  # why there is none


class Monitor(AbstractContextManager["Monitor"]):
    """A context that watches this process and its machine; `readings` has the numbers once it has ended.

    `cpu_utilisation` (%)
        processor time of this process over wall time, as a share of all cores that it may run on;
    `memory_utilisation` (%)
        mean resident set of this process as a share of the machine's memory;
    `io_utilisation` (%)
        share of the time in which the busiest disk was busy, whoever kept it so;
    `power` (W)
        mean power of the device: of a CPU what its packages drew, whoever used them, by the energy counters that Linux
        shows under powercap (Intel RAPL); of a GPU by NVML;
    `gpu_utilisation`, `gpu_memory_utilisation` (%)
        mean share of the time in which a kernel ran, and of the GPU's memory that was in use, by NVML.

    What has a counter is read at both ends. The rest is sampled by a thread, first at the start.

    Args:
        device: where the work runs.
        interval: seconds between samples.

    Raises:
        ValueError: `interval` is not positive.

    Examples:
        >>> from bsbr.measure.utilisation import Monitor
        >>> with Monitor() as monitor:
        ...     _ = sum(range(100_000))
        >>> 0 <= monitor.readings["memory_utilisation"].value <= 100
        True
    """

    def __init__(self, device: torch.device | str = "cpu", interval: float = 0.05) -> None:
        if interval <= 0:
            raise ValueError(f"interval must be seconds between samples, above 0, but is {interval}")
        self.device, self.interval = torch.device(device), interval
        self.readings: dict[str, Reading] = {}

    def __enter__(self) -> Monitor:
        self.readings, self._gauges, self._samples, self._counters = {}, {}, {}, {}
        for name, gauge in self._all_gauges().items():
            with self._or_reason(name):
                self._samples[name] = [gauge()]
                self._gauges[name] = gauge
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        for name, start in self._all_counters().items():
            with self._or_reason(name):
                self._counters[name] = start()
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._begin
        for name, finish in self._counters.items():
            self.readings[name] = Reading(finish(seconds))
        self._stop.set()
        self._thread.join()
        for name, samples in self._samples.items():
            self.readings[name] = Reading(sum(samples) / len(samples))

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            for name, gauge in self._gauges.items():
                with suppress(NoSensorError):  # one that answered at the start and not now: the others are the mean
                    self._samples[name].append(gauge())

    def _all_gauges(self) -> dict[str, Gauge]:
        gauges = {"memory_utilisation": _memory}
        for name, gauge in {"gpu_utilisation": _gpu, "gpu_memory_utilisation": _gpu_memory}.items():
            gauges[name] = partial(gauge, self.device)
        if self.device.type == "cuda":
            gauges["power"] = partial(_gpu_power, self.device)
        return gauges

    def _all_counters(self) -> dict[str, Counter]:
        counters: dict[str, Counter] = {"cpu_utilisation": _cpu, "io_utilisation": _disks}
        if self.device.type == "cpu":
            counters["power"] = _packages
        return counters

    @contextmanager
    def _or_reason(self, name: str) -> Iterator[None]:
        try:
            yield
        except NoSensorError as error:
            self.readings[name] = Reading(None, str(error))


# -- Sensors --------------------------------------------------------------------------------------
# A gauge says how much it is now. A counter, once started, says how much it was over so many seconds since.

Gauge = Callable[[], float]
Counter = Callable[[], Callable[[float], float]]


def _cpu() -> Callable[[float], float]:
    before = time.process_time()
    return lambda seconds: (time.process_time() - before) / seconds / usable_cores() * 100


def _memory() -> float:
    return psutil.Process().memory_info().rss / psutil.virtual_memory().total * 100


def _disks() -> Callable[[float], float]:
    before = _busy_seconds()
    return lambda seconds: (
        max(after - before.get(disk, after) for disk, after in _busy_seconds().items()) / seconds * 100
    )


def _busy_seconds() -> dict[str, float]:
    disks = psutil.disk_io_counters(perdisk=True)
    if not disks:
        raise NoSensorError("the system shows no disk")
    if not all(hasattr(disk, "busy_time") for disk in disks.values()):
        raise NoSensorError("this system does not count the time in which a disk is busy; Linux does")
    return {name: disk.busy_time / 1000 for name, disk in disks.items()}


def _packages() -> Callable[[float], float]:
    zones = sorted(POWERCAP.glob("intel-rapl:[0-9]*"))
    packages = [zone for zone in zones if (zone / "name").read_text(encoding="utf-8").startswith("package")]
    if not packages:
        raise NoSensorError("no energy counter under powercap: the processor has none, or a virtual machine hides it")
    try:
        before = {package: _microjoules(package / "energy_uj") for package in packages}
    except PermissionError as error:
        raise NoSensorError("the energy counters under powercap may be read by the administrator only") from error

    def watts(seconds: float) -> float:
        spent = sum(
            (_microjoules(package / "energy_uj") - begin) % (_microjoules(package / "max_energy_range_uj") + 1)
            for package, begin in before.items()
        )
        return spent / 1e6 / seconds

    return watts


def _microjoules(path: Path) -> int:
    return int(path.read_text(encoding="utf-8"))


def _gpu(device: torch.device) -> float:
    return float(_nvml(torch.cuda.utilization, device))


def _gpu_memory(device: torch.device) -> float:
    return _nvml(torch.cuda.device_memory_used, device) / torch.cuda.get_device_properties(device).total_memory * 100


def _gpu_power(device: torch.device) -> float:
    return _nvml(torch.cuda.power_draw, device) / 1000  # milliwatts


def _nvml(read: Callable[[torch.device], int], device: torch.device) -> int:
    """PyTorch asks NVML by way of the package nvidia-ml-py, and AMD's library on AMD's GPUs."""
    if device.type != "cuda":
        raise NoSensorError("the work ran on the CPU" if torch.cuda.is_available() else "PyTorch finds no GPU here")
    try:
        return read(device)
    except ModuleNotFoundError as error:
        raise NoSensorError("reading a GPU needs the package nvidia-ml-py; run: pip install nvidia-ml-py") from error
    except Exception as error:  # NVML's errors are of a class that exists only where the package does
        raise NoSensorError(f"the GPU's driver does not say: {error}") from error
