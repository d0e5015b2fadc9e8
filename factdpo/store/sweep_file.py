"""sweep.json: the question, axes, runs and commands of a sweep."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from factdpo.config.schema import ConfigError

FILE = "sweep.json"


class Metric(NamedTuple):
    """A number of a trained run, and which way it is better."""

    name: str  # as result.summary names it: accuracy/test
    lower_is_better: bool = False


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


def metrics_asked(sweep: dict[str, Any] | None) -> list[Metric]:
    """What a sweep.json says that its sweep asks about, the deciding number first; [] if it does not say."""
    return [Metric(one["name"], one["lower_is_better"]) for one in (sweep or {}).get("metrics", [])]
