"""How much memory the runs take: of their processes, of the machine, of its GPUs. Asked of the system, not of torch."""

import shutil
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from factdpo.store.layout import lock_file

GIB, MIB = 2**30, 2**20
GPU_SECONDS = 5.0  # between two questions to nvidia-smi, which takes up to a second to answer
ASKED = "name,memory.used,memory.total,utilization.gpu"


@dataclass
class Machine:
    """Memory in GiB; safe to be asked by several threads."""

    _locks: frozenset[str] = frozenset()
    _holders: dict[psutil.Process, int] = field(default_factory=dict)  # process -> runs that it does
    _asked: float = -GPU_SECONDS
    _gpus: list[dict[str, Any]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def memory(self, running: list[Path]) -> dict[str, Any]:
        """Of the machine, its GPUs, and the processes that do the runs in these folders, as far as they can be seen."""
        found = psutil.virtual_memory()
        with self._lock:
            return {
                "used_gib": (found.total - found.available) / GIB,
                "total_gib": found.total / GIB,
                "processes": self._processes(frozenset(str(lock_file(folder).resolve()) for folder in running)),
                "gpus": self._ask_gpus(),
            }

    def _processes(self, locks: frozenset[str]) -> list[dict[str, Any]]:
        if locks != self._locks or not all(process.is_running() for process in self._holders):
            self._holders, self._locks = _holders(locks), locks
        rows = []
        for process, runs in self._holders.items():
            try:
                rows.append({"pid": process.pid, "runs": runs, "rss_gib": process.memory_info().rss / GIB})
            except psutil.Error:
                continue  # it ended just now
        return sorted(rows, key=lambda row: -row["rss_gib"])

    def _ask_gpus(self) -> list[dict[str, Any]]:
        if time.monotonic() - self._asked > GPU_SECONDS:
            self._gpus, self._asked = gpus(), time.monotonic()
        return self._gpus


def _holders(locks: frozenset[str]) -> dict[psutil.Process, int]:
    """The processes that hold these locks open: those of other users, and on some systems all, cannot be seen."""
    held: Counter[psutil.Process] = Counter()
    for process in psutil.process_iter() if locks else ():
        try:
            if many := len(locks & {file.path for file in process.open_files()}):
                held[process] = many
        except (psutil.Error, OSError):
            continue
    return held


def gpus() -> list[dict[str, Any]]:
    """Name, memory and load of each NVIDIA GPU, None for what the driver does not tell; empty where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        question = [command, f"--query-gpu={ASKED}", "--format=csv,noheader,nounits"]
        done = subprocess.run(question, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # a driver that does not answer, which the runs will say themselves
    rows = []
    for line in done.stdout.splitlines():
        name, *numbers = (cell.strip() for cell in line.rsplit(",", 3))
        used, total, busy = (float(number) if number.isdigit() else None for number in numbers)
        rows.append(
            {
                "name": name,
                "used_gib": used and used * MIB / GIB,
                "total_gib": total and total * MIB / GIB,
                "busy": busy and busy / 100,
            }
        )
    return rows
