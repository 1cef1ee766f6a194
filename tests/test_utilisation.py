"""The utilisation meter: known loads, and a reason where there is no sensor."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import psutil
import pytest
import torch

from bsbr.measure import utilisation
from bsbr.measure.utilisation import Monitor
from bsbr.store.machine import usable_cores
from bsbr.store.metrics import METRICS


def spin(seconds: float) -> None:
    """Keep one thread busy for that much processor time, however much of the machine others use."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def value(monitor: Monitor, name: str) -> float:
    found = monitor.readings[name].value
    assert found is not None
    return found


def test_a_busy_thread_uses_one_core_and_a_sleeping_one_none() -> None:
    begin = time.perf_counter()
    with Monitor() as busy:
        spin(0.3)
    one_core = 0.3 / (time.perf_counter() - begin) * 100 / usable_cores()
    with Monitor() as idle:
        time.sleep(0.3)
    assert value(busy, "cpu_utilisation") == pytest.approx(one_core, rel=0.2)
    assert value(idle, "cpu_utilisation") < 0.2 * 100 / usable_cores()


def test_memory_that_is_touched_is_seen() -> None:
    with Monitor(interval=0.01) as before:
        time.sleep(0.05)
    # New pages from the kernel: an allocator may give out what an earlier test freed, and the process would not grow.
    with mmap.mmap(-1, 200_000_000) as held:
        held.write(b"1" * len(held))
        with Monitor(interval=0.01) as after:
            time.sleep(0.05)
        touched = len(held)
    grown = (value(after, "memory_utilisation") - value(before, "memory_utilisation")) / 100
    assert grown == pytest.approx(touched / psutil.virtual_memory().total, rel=0.2)


def test_every_quantity_is_a_metric_and_has_a_value_or_a_reason() -> None:
    with Monitor() as monitor:
        pass
    names = {"cpu_utilisation", "memory_utilisation", "io_utilisation", "power"}
    assert set(monitor.readings) == names | {"gpu_utilisation", "gpu_memory_utilisation"} <= set(METRICS)
    for reading in monitor.readings.values():
        assert (reading.value is None) == bool(reading.reason)
    where = "the work ran on the CPU" if torch.cuda.is_available() else "PyTorch finds no GPU here"
    assert monitor.readings["gpu_utilisation"].reason == where


def package(folder: Path, energy: int) -> Path:
    zone = folder / "intel-rapl:0"
    zone.mkdir(exist_ok=True)
    for name, text in {"name": "package-0", "energy_uj": str(energy), "max_energy_range_uj": "999999999"}.items():
        (zone / name).write_text(f"{text}\n")
    return zone


def test_power_is_energy_over_time_and_a_counter_may_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utilisation, "POWERCAP", tmp_path)
    package(tmp_path, 999_000_000)
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the package, which the package has counted
    (tmp_path / "intel-rapl:0:0" / "name").write_text("core\n")
    begin = time.perf_counter()
    with Monitor() as monitor:
        time.sleep(0.1)
        package(tmp_path, 4_000_000)  # 1 J to the end of its range and 4 J from there
    assert value(monitor, "power") == pytest.approx(5 / (time.perf_counter() - begin), rel=0.3)


def test_a_missing_sensor_gives_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utilisation, "POWERCAP", tmp_path)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda perdisk: {})
    with Monitor() as monitor:
        pass
    assert "no energy counter" in monitor.readings["power"].reason
    assert monitor.readings["io_utilisation"] == utilisation.Reading(None, "the system shows no disk")


def test_counters_that_may_not_be_read_are_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> int:
        raise PermissionError(path)

    package(tmp_path, 0)
    monkeypatch.setattr(utilisation, "POWERCAP", tmp_path)
    monkeypatch.setattr(utilisation, "_microjoules", refuse)
    with Monitor() as monitor:
        pass
    assert "administrator only" in monitor.readings["power"].reason


def gpu(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    def read(device: torch.device) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    for name in ("utilization", "device_memory_used", "power_draw"):
        monkeypatch.setattr(torch.cuda, name, read)
    properties = type("Properties", (), {"total_memory": 80})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def test_a_gpu_is_read_through_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, 40)
    with Monitor("cuda", interval=0.01) as monitor:
        time.sleep(0.03)
    assert value(monitor, "gpu_utilisation") == 40
    assert value(monitor, "gpu_memory_utilisation") == 50
    assert value(monitor, "power") == 0.04  # milliwatts


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ModuleNotFoundError("pynvml"), "pip install nvidia-ml-py"), (RuntimeError("Not Supported"), "Not Supported")],
)
def test_a_gpu_that_does_not_say_is_not_an_error(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(monkeypatch, error)
    with Monitor("cuda") as monitor:
        pass
    for name in ("gpu_utilisation", "gpu_memory_utilisation", "power"):
        assert reason in monitor.readings[name].reason


def test_what_goes_wrong_in_the_work_comes_out_and_the_thread_ends() -> None:
    monitor = Monitor(interval=0.01)
    with pytest.raises(ZeroDivisionError), monitor:
        _ = 1 / 0
    assert not monitor._thread.is_alive()


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="interval must be seconds between samples, above 0, but is 0"):
        Monitor(interval=0)
