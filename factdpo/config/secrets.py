"""Secrets of the environment: what they are called, and the refusal of a config that holds one of their values."""

import os
import re
from collections.abc import Mapping
from typing import Any

NAME = re.compile(r"key|token(?!s)|passw|secret|credential", re.IGNORECASE)  # max_new_tokens is no secret
SHORTEST = 8  # characters; shorter values stand in harmless text too


def in_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Variable -> value, of those that are named like secrets."""
    return {name: value for name, value in env.items() if NAME.search(name) and len(value) >= SHORTEST}


def problems(values: dict[str, Any]) -> list[str]:
    """A sentence per config key with a secret of the environment in it, as `${oc.env:HF_TOKEN}` gives one.

    The config is written into the run's folder and shown by W&B and in reports. The value itself is not told.
    """
    secrets = {name: value for name, value in in_environment(os.environ).items() if not os.path.exists(value)}
    return [
        f"{key}: holds the value of ${name}, and configs are written down and shown; leave it out (the keys of W&B and "
        "the hub are read from the environment)"
        for key, value in values.items()
        for name, secret in secrets.items()
        if any(secret in text for text in _texts(value))
    ]


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
