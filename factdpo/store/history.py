"""history.jsonl, the local record of a run while it runs; W&B and trackio are views of it.

If it cannot be written the run fails: without it no result is worth keeping. A view that fails costs one warning.
"""

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from factdpo.store import cache

Row = dict[str, Any]

HISTORY = "history.jsonl"
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class LocalTracker:
    """Writes history.jsonl in the run's folder: a row per line, on the disk before `log` returns; raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / HISTORY).open("w", encoding="utf-8")  # replaces the history of an earlier attempt

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
    """Rows of a history.jsonl, NaN and infinities as floats again; a last line torn by a kill is left out.

    Raises OSError, and ValueError that names the line, for a file that is no history.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line or "{}")
            if not isinstance(row, dict):
                raise ValueError("no JSON object")
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # only the last line can be without its newline
                break
            advice = "delete the file and run again"
            raise ValueError(f"{path}:{number}: not a row of a history ({error}); {advice}") from None
        if row:
            rows.append(finite_or_not(row))
    return rows


def finite_or_not(row: Row) -> Row:
    """A row as it was logged: NaN and infinities, which a line has as strings, as floats again."""
    return {k: NOT_FINITE.get(v, v) if isinstance(v, str) else v for k, v in row.items()}


def _jsonable(value: Any) -> Any:
    """A row's value for JSON: numbers as numbers, NaN and infinities as the strings of NOT_FINITE."""
    if value is None or isinstance(value, bool | int | str):
        return value
    number = float(value)  # also numpy's and torch's scalars
    return number if math.isfinite(number) else str(number)
