"""What a job asks of its machine, as metrics under MLflow's own names, so that its "System metrics" page shows them.

Read from /proc and from the torch that the job has loaded, at the moments when it records anyway: no thread, no
library. What a machine does not tell is left out.
"""

import os
import sys
import time
from pathlib import Path

_MB = 1e6


class SystemMetrics:
    """Readings of processor, memory and GPU; rates are means since the reading before."""

    def __init__(self) -> None:
        self._machine, self._process = _machine_times(), _process_times()
        self._busy = self._machine[0] / max(self._machine[1], 1)  # since the machine's start, until a tick has passed

    def read(self) -> dict[str, float]:
        """The metrics by name. Never raises."""
        found: dict[str, float] = {}
        for part in (self._processor, self._memory, self._gpu):
            try:
                found |= part()
            except Exception:
                continue  # what a machine does not tell is left out
        return {f"system/{name}": value for name, value in found.items()}

    def _processor(self) -> dict[str, float]:
        """Share of the machine's processors that was busy, and how many of them this process kept so (100 is one)."""
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
        """Of the GPU that this process computes on; utilization and power where torch finds nvidia-ml-py."""
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
            pass  # nvidia-ml-py is not there, or the driver does not tell
        return {f"gpu_{device}_{name}": float(value) for name, value in values.items()}


def _process_times() -> tuple[float, float]:
    """Seconds of processor time of this process with its threads, and of the clock."""
    return time.process_time(), time.monotonic()


def _machine_times() -> tuple[int, int]:
    """Ticks that all processors together were busy, and all ticks; zeros where nothing tells."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # fields 3 and 4: idle, waiting for a disk
