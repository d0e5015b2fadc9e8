"""results.parquet: a cache of many result.json, in the folder that the runs lie in.

One row per run with everything that tables show, and the time and size of the result.json that it was read from, so
that only new and changed ones are read again. Deleting the file is harmless: it is rebuilt.
"""

import json
import logging
import os
import uuid
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factdpo.config.overrides import flat, typed
from factdpo.store.history import Row
from factdpo.store.layout import Stamp, file_stamp, read_json, read_yaml, run_names
from factdpo.store.result import KILLED, RUNNING, TRAINING, summary
from factdpo.store.run_lock import running_or_killed

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("factdpo")

FILE = "results.parquet"
VERSION = b"2"  # bump when _read returns other columns or values
ABOUT = [  # columns besides config keys and metrics
    "id", "name", "kind", "folder", "state", "error", "started", "warnings",
]  # fmt: skip
WITHOUT_RESULT = (RUNNING, KILLED)  # states of runs without metrics: read anew each time, never indexed
CHUNK = 500  # runs held as Python objects at once; with thousands, garbage collection takes longer than reading


def update_index(home: Path) -> None:
    """Update the index of the folder that runs lie in; any error is logged as a warning."""
    try:
        if names := run_names(home):
            read_home(home, names, write=True)
    except Exception as error:  # called as the runs of a sweep finish: an index is not worth failing one of them
        _warn(home, error)


def read_home(home: Path, names: list[str], write: bool) -> "pa.Table":
    """One row per run of a folder, from its index where that is up to date; `folder` holds the run's name alone."""
    import pyarrow as pa
    import pyarrow.compute

    stamps = {name: file_stamp(f"{home}/{name}/result.json") for name in names}
    index = _read_index(home / FILE)
    tables: list[pa.Table] = []
    indexed: set[str] = set()
    if index is not None:
        entries = zip(*(index[name].to_pylist() for name in ("folder", "mtime_ns", "size")), strict=True)
        fresh = [stamps.get(folder) == (mtime_ns, size) for folder, mtime_ns, size in entries]
        tables = [index if all(fresh) else index.filter(pa.array(fresh, pa.bool_()))]
        indexed = {*tables[0]["folder"].to_pylist()}
    unfinished: list[Row] = []
    missing = [name for name in names if name not in indexed]
    for chunk in (missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)):
        rows = [_read(home / name, stamps[name]) for name in chunk]
        unfinished += [row for row in rows if row["state"] in WITHOUT_RESULT]
        ended = [row for row in rows if row["state"] not in WITHOUT_RESULT]
        if ended:
            tables.append(_table(ended))
    if write and tables and tables != [index]:  # else the index is up to date
        try:
            _write_index(home / FILE, concat(tables))
        except OSError as error:
            _warn(home, error)
    if unfinished:
        tables.append(_table(unfinished))
    return concat(tables).sort_by("folder")


def _read(folder: Path, stamp: Stamp | None) -> Row:
    """One run as a flat row; without a readable result.json its state, and its config if that can be read."""
    try:
        result = json.loads((folder / "result.json").read_bytes())
        row: Row = {name: result.get(name) for name in ABOUT}
        row |= {"id": str(result["id"]), "state": str(result["state"]), "kind": result.get("kind", TRAINING)}
        row["warnings"] = "\n".join(result.get("warnings") or []) or None
        row |= {key: _cell(value) for key, value in flat(result["config"]).items()} | summary(result)
    except FileNotFoundError:
        row = _without_result(folder, None)
        if (now := file_stamp(folder / "result.json")) != stamp:  # the run ended meanwhile
            return _read(folder, now)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        row = _without_result(folder, f"result.json: not a result ({type(error).__name__}: {error})")
    mtime_ns, size = stamp or (None, None)
    return row | {"folder": folder.name, "mtime_ns": mtime_ns, "size": size}


def _without_result(folder: Path, reason: str | None) -> Row:
    """The row of a run that is running or was killed, or whose result.json is damaged (`reason`)."""
    row: Row = dict.fromkeys(ABOUT)
    row |= {key: _cell(value) for key, value in flat(read_yaml(folder / "config.yaml")).items()}
    state, asked = running_or_killed(folder), read_json(folder / "asked.json") or {}
    error = reason or (None if state == RUNNING else "no result, and no process is at work on it")
    return (
        row
        | {"id": folder.name.rpartition("-")[2], "name": folder.name, "state": state, "error": error}
        | {"kind": asked.get("kind", TRAINING)}
    )


def _cell(value: Any) -> Any:
    """A config value that a table can group by: a list becomes the text that one would type."""
    return typed(value) if isinstance(value, list) else value


def _table(rows: list[Row]) -> "pa.Table":
    import pyarrow as pa

    def column(name: str) -> pa.Array:
        values = [row.get(name) for row in rows]
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # text in one run, a number in another
            return pa.array([None if value is None else str(value) for value in values])

    return pa.table({name: column(name) for name in dict.fromkeys(name for row in rows for name in row)})


def concat(tables: "list[pa.Table]") -> "pa.Table":
    """The tables' rows with the columns of all; a column that is text in one table becomes text."""
    import pyarrow as pa

    types: dict[str, set[pa.DataType]] = {}
    for field in (field for table in tables for field in table.schema if not pa.types.is_null(field.type)):
        types.setdefault(field.name, set()).add(field.type)
    numbers = {pa.int64(), pa.float64()}
    mixed = {name for name, distinct in types.items() if len(distinct) > 1 and not distinct <= numbers}

    def with_text(table: pa.Table) -> pa.Table:
        fields = [field.with_type(pa.string()) if field.name in mixed else field for field in table.schema]
        return table.cast(pa.schema(fields))

    return pa.concat_tables(map(with_text, tables), promote_options="permissive")


def _read_index(path: Path) -> "pa.Table | None":
    """The index; None if it is missing, damaged, or of another version: then it is rebuilt."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return None
    return table if (table.schema.metadata or {}).get(b"factdpo_index") == VERSION else None


def _write_index(path: Path, table: "pa.Table") -> None:
    """Write the index atomically. If two processes write, the last wins; rows that it lacks are read again."""
    import pyarrow.parquet

    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        marked = table.replace_schema_metadata({b"factdpo_index": VERSION})
        pyarrow.parquet.write_table(marked, temporary, write_page_checksum=True)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _warn(home: Path, error: Exception) -> None:
    number = getattr(error, "errno", None)
    _warn_once(home, os.strerror(number) if number else str(error))  # its own text has the name of a temporary file


@cache  # not after every run of a sweep
def _warn_once(home: Path, reason: str) -> None:
    log.warning("%s cannot be written (%s); reading these runs takes longer without it", home / FILE, reason)
