"""sweep.json: the question, axes, runs and commands of a sweep."""

import json
from pathlib import Path
from typing import Any

from factdpo.config.schema import ConfigError

FILE = "sweep.json"


def read(folder: Path) -> dict[str, Any] | None:
    """The sweep.json in a folder; None if there is none. Raises ConfigError for one that cannot be read."""
    path = folder / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); move it away and rerun the sweep's command, which writes a new one"
        ) from None
