"""Memory of the runs' processes, of the machine and of its GPUs, as the operating system and nvidia-smi report it."""

import shutil
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from factdpo.store import provenance
from factdpo.store.run_lock import lock_file

GIB, MIB = 2**30, 2**20
GPU_SECONDS = 5.0  # between two calls of nvidia-smi, which takes up to a second
GPU_FIELDS = "name,memory.used,memory.total,utilization.gpu"


@dataclass
class Machine:
    """Memory in GiB; thread-safe."""

    _locks: frozenset[str] = frozenset()
    _holders: dict[psutil.Process, int] = field(default_factory=dict)  # process -> number of runs that it works on
    _gpus_read: float = -GPU_SECONDS
    _gpus: list[dict[str, Any]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def memory(self, running: list[Path]) -> dict[str, Any]:
        """Of the machine, its GPUs, and the visible processes that work on the runs in these folders."""
        total, available = provenance.memory_bytes()
        with self._lock:
            return {
                "used_gib": (total - available) / GIB,
                "total_gib": total / GIB,
                "processes": self._processes(frozenset(str(lock_file(folder).resolve()) for folder in running)),
                "gpus": self._read_gpus(),
            }

    def _processes(self, locks: frozenset[str]) -> list[dict[str, Any]]:
        if locks != self._locks or not all(process.is_running() for process in self._holders):
            self._holders, self._locks = _holders(locks), locks
        rows = []
        for process, runs in self._holders.items():
            try:
                rows.append({"pid": process.pid, "runs": runs, "rss_gib": process.memory_info().rss / GIB})
            except psutil.Error:
                continue  # the process has just ended
        return sorted(rows, key=lambda row: -row["rss_gib"])

    def _read_gpus(self) -> list[dict[str, Any]]:
        if time.monotonic() - self._gpus_read > GPU_SECONDS:
            self._gpus, self._gpus_read = gpus(), time.monotonic()
        return self._gpus


def _holders(locks: frozenset[str]) -> dict[psutil.Process, int]:
    """Number of these locks that each process holds open; other users' processes may be invisible."""
    held: Counter[psutil.Process] = Counter()
    for process in psutil.process_iter() if locks else ():
        try:
            if count := len(locks & {file.path for file in process.open_files()}):
                held[process] = count
        except (psutil.Error, OSError):
            continue
    return held


def gpus() -> list[dict[str, Any]]:
    """Name, memory and load of each NVIDIA GPU, None where the driver reports no value; [] without a GPU."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        query = [command, f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # no answer from the driver, which the runs report themselves
    rows = []
    for line in done.stdout.splitlines():
        name, *numbers = (cell.strip() for cell in line.rsplit(",", 3))
        used, total, busy = (float(number) if number.isdigit() else None for number in numbers)
        memory = {"used_gib": used and used * MIB / GIB, "total_gib": total and total * MIB / GIB}
        rows.append({"name": name, **memory, "busy": busy and busy / 100})
    return rows
