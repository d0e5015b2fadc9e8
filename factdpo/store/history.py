"""Where a run is written down while it runs: history.jsonl is the record; W&B and trackio are views of it.

The two fail differently on purpose. A local record that cannot be written raises: without it no result is worth
keeping. A dashboard is never in the way: whatever goes wrong there costs one warning, then the run goes on without it.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from factdpo.store import cache

Row = dict[str, Any]

HISTORY = "history.jsonl"
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@runtime_checkable
class Tracker(Protocol):
    def log(self, *rows: Row) -> None:
        """Write down rows of the history: flat, numbers under TRL's names, with `step`."""
        ...

    def finish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        """Write down the end of the run; its state (FINISHED or otherwise) is read from the result."""
        ...


@dataclass
class Trackers:
    """Many trackers as one, the local record first."""

    each: list[Tracker]
    rows: int = 0  # that they were told

    def log(self, *rows: Row) -> None:
        self.rows += len(rows)
        for tracker in self.each:
            tracker.log(*rows)

    def finish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        for tracker in self.each:
            tracker.finish(result, items, generations, folder)


# ---------------------------------------------------------------------------------------------------- the local record


class LocalTracker:
    """history.jsonl in the run's folder: a row per line, on the disk before `log` returns; raises OSError if not."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / HISTORY).open("w", encoding="utf-8")  # a history of an earlier attempt is cut off

    def log(self, *rows: Row) -> None:
        with cache.writing(Path(self._file.name)):
            for row in rows:
                values = {key: _jsonable(value) for key, value in row.items()}
                self._file.write(json.dumps(values, allow_nan=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        with suppress(OSError):  # of rows that could not be written: `log` has raised it
            self._file.close()


def read_history(path: Path) -> list[Row]:
    """Rows of a history.jsonl, NaN and infinities as floats again; a last line torn by a kill is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line else None
        except json.JSONDecodeError as error:
            if number == len(lines):  # only the last line can be without its newline
                break
            raise ValueError(
                f"{path}:{number}: not a row of a history ({error}); delete the file and run again"
            ) from None
        if row is not None:
            rows.append(
                {key: NOT_FINITE.get(value, value) if isinstance(value, str) else value for key, value in row.items()}
            )
    return rows


def _jsonable(value: Any) -> Any:
    """A row's value as JSON has it: numbers as numbers, NaN and infinities as the strings of NOT_FINITE."""
    if value is None or isinstance(value, bool | int | str):
        return value
    number = float(value)  # also numpy's and torch's scalars
    return number if math.isfinite(number) else str(number)


# ------------------------------------------------------------------------------------------------ what views of it show


def summary(result: Row) -> Row:
    """The flat view of a result: `accuracy/<split>` and the rest after training, the same under `base/` before it."""
    flat: Row = {"state": result["state"]}
    for prefix, model in (("", "trained"), ("base/", "base")):
        for split, scores in (result.get(model) or {}).items():
            flat |= {f"{prefix}{metric}/{split}": value for metric, value in _leaves(scores)}
        flat |= {
            f"{prefix}across/{name}": value for name, value in _leaves((result.get("across") or {}).get(model) or {})
        }
    for split, scores in (result.get("baselines") or {}).items():
        flat |= {f"baseline/{rule}/{split}": value for rule, value in _leaves(scores)}
    flat |= {f"timing/{name}": value for name, value in _leaves(result.get("timing") or {})}
    return flat


def _leaves(scores: Row) -> Iterator[tuple[str, Any]]:
    """(`name` or `name.inner`, value) of a nested dict, less what is unknown (null)."""
    for name, value in scores.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", leaf) for inner, leaf in _leaves(value))
        elif value is not None:
            yield name, value
