"""sweep.json: the question, axes, runs and commands of a sweep."""

from pathlib import Path
from typing import Any, NamedTuple

from factdpo.store import shapes

FILE = "sweep.json"
REMEDY = "move it away and rerun the sweep's command, which writes a new one"


class Metric(NamedTuple):
    """A number of a trained run, and which way it is better."""

    name: str  # as result.summary names it: accuracy/test
    lower_is_better: bool = False


def read(folder: Path) -> dict[str, Any] | None:
    """The sweep.json in a folder, of the shape `shapes.SweepShape`; None if there is none.

    Raises DamagedFile, a ConfigError, for one that cannot be read or is of another shape.
    """
    try:
        return shapes.read(folder / FILE, shapes.SweepShape, REMEDY)
    except FileNotFoundError:
        return None


def metrics_asked(sweep: dict[str, Any] | None) -> list[Metric]:
    """What a sweep.json says that its sweep asks about, the deciding number first; [] if it does not say."""
    return [Metric(one["name"], one["lower_is_better"]) for one in (sweep or {}).get("metrics", [])]
