"""System metrics of a job under MLflow's names, so that MLflow's "System metrics" page shows them.

They are read from /proc and from an already imported torch, whenever the job records metrics: this needs no thread and
no library. Metrics that a machine does not provide are omitted.
"""

import os
import sys
import time
from pathlib import Path

_MB = 1e6


class SystemMetrics:
    """Reads the load of processor, memory and GPU; rates are means since the previous reading."""

    def __init__(self) -> None:
        self._machine, self._process = _machine_times(), _process_times()
        self._busy = self._machine[0] / max(self._machine[1], 1)  # since boot, until a tick has passed

    def read(self) -> dict[str, float]:
        """The metrics by name. Never raises."""
        found: dict[str, float] = {}
        for part in (self._processor, self._memory, self._gpu):
            try:
                found |= part()
            except Exception:
                continue  # omit metrics that the machine does not provide
        return {f"system/{name}": value for name, value in found.items()}

    def _processor(self) -> dict[str, float]:
        """Busy share of the machine's processors, and the processor use of this process (100 is one processor)."""
        (cpu, clock), (cpu_before, clock_before) = _process_times(), self._process
        self._process = cpu, clock
        values = {"process_cpu_percentage": 100 * (cpu - cpu_before) / max(clock - clock_before, 1e-9)}
        (busy, total), (busy_before, total_before) = _machine_times(), self._machine
        if total > total_before:
            self._machine, self._busy = (busy, total), (busy - busy_before) / (total - total_before)
        return values | ({"cpu_utilization_percentage": 100 * self._busy} if total else {})

    def _memory(self) -> dict[str, float]:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {name: float(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        total = kilobytes["MemTotal"]
        used = total - kilobytes["MemAvailable"]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {
            "system_memory_usage_megabytes": used * 1024 / _MB,
            "system_memory_usage_percentage": 100 * used / total,
            "process_memory_megabytes": pages * os.sysconf("SC_PAGE_SIZE") / _MB,
        }

    def _gpu(self) -> dict[str, float]:
        """Metrics of this process's GPU; utilization and power only if torch finds nvidia-ml-py."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return {}
        device = torch.cuda.current_device()
        free, total = torch.cuda.mem_get_info(device)
        values = {
            "memory_usage_megabytes": (total - free) / _MB,
            "memory_usage_percentage": 100 * (total - free) / total,
            "process_memory_megabytes": torch.cuda.memory_reserved(device) / _MB,
        }
        try:
            values["utilization_percentage"] = torch.cuda.utilization(device)
            values["power_usage_watts"] = torch.cuda.power_draw(device) / 1000
        except Exception:
            pass  # nvidia-ml-py is missing, or the driver does not answer
        return {f"gpu_{device}_{name}": float(value) for name, value in values.items()}


def _process_times() -> tuple[float, float]:
    """(processor time of this process with its threads, clock time), in seconds."""
    return time.process_time(), time.monotonic()


def _machine_times() -> tuple[int, int]:
    """(busy ticks, all ticks) of all processors together; zeros if unknown."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # fields 3 and 4: idle, waiting for a disk
