"""CPU, memory and GPU of this machine, without torch: psutil, NVML (when there is an NVIDIA driver), cgroup limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")  # "quota period", or "max period"
OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))  # the container's, the machine's


class Sampler:
    """Takes samples. Guards the NVML session; `warning` says once why a GPU cannot be read."""

    def __init__(self) -> None:
        self.warning: str | None = None
        self._nvml: Any = None
        self._handles: list[tuple[int, Any]] = []
        psutil.cpu_percent()  # the first call has no interval to measure
        self._open()

    def sample(self, workers: Iterable[psutil.Process]) -> dict[str, Any]:
        """The fields of a `hardware` event; the CPU load is that since the last sample."""
        memory = psutil.virtual_memory()
        return {
            "cpu_percent": psutil.cpu_percent(),
            "memory_used_bytes": memory.total - memory.available,
            "memory_total_bytes": memory.total,
            "worker_rss_bytes": sum(_rss_bytes(process) for process in workers),
            "gpus": self.gpus(),
        }

    def gpus(self) -> list[dict[str, Any]]:
        if self._nvml is None:
            return []
        try:
            return [self._gpu(index, handle) for index, handle in self._handles]
        except self._nvml.NVMLError as error:
            self.warning = f"The GPU can no longer be read: {error}."
            self._nvml = None
            return []

    def _open(self) -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            self._handles = [(index, pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]
            self._nvml = pynvml
        except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
            self._handles = []  # no driver, no GPU: nothing to say
        except pynvml.NVMLError as error:
            self.warning = f"There is an NVIDIA driver, but its GPUs cannot be read: {error}."

    def _gpu(self, index: int, handle: Any) -> dict[str, Any]:
        nvml = self._nvml
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = nvml.nvmlDeviceGetName(handle)
        power = self._or_none(nvml.nvmlDeviceGetPowerUsage, handle)
        load = self._or_none(nvml.nvmlDeviceGetUtilizationRates, handle)
        return {
            "index": index,
            "name": name.decode() if isinstance(name, bytes) else name,
            "utilization_percent": None if load is None else load.gpu,
            "memory_used_bytes": memory.used,
            "memory_total_bytes": memory.total,
            "temperature_celsius": self._or_none(
                nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
            ),
            "power_watts": None if power is None else power / 1000,
        }

    def _or_none(self, ask: Any, *arguments: Any) -> Any:
        """A reading that not every GPU has (power in a virtual machine, for instance)."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError_NotSupported:
            return None


def has_accelerator() -> bool:
    """Whether training can use more than the CPU: NVIDIA, AMD (ROCm) or Apple."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return bool(Sampler().gpus()) or Path("/dev/kfd").exists() or sys.platform == "darwin"


def usable_cores() -> int:
    """Physical cores that this process may use: affinity and container quota respected."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota, _, period = CGROUP_CPU.read_text().partition(" ") if CGROUP_CPU.exists() else ("max", "", "")
    if quota != "max":
        cores = min(cores, round(int(quota) / int(period)))
    return max(cores, 1)


def oom_kills() -> int | None:
    """How many processes the kernel has ended for lack of memory, in this container where it counts there. None: unknown."""
    for path in OOM_COUNTERS:
        lines = path.read_text().splitlines() if path.is_file() else []
        for name, _, count in (line.partition(" ") for line in lines):
            if name == "oom_kill":
                return int(count)
    return None


def _rss_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # it ended meanwhile
        return 0
