"""results.parquet: a cache of many result.json, in the folder that the runs lie in.

One row per run with everything that tables show, and the time, size and sha256 of the result.json that it was read
from, so that only new and changed ones are read again. Deleting the file is harmless: it is rebuilt. It is used only
if its own sha256, in a hidden file beside it, is that of all its bytes: Parquet's checksums leave out its names.
"""

import hashlib
import logging
import os
import uuid
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factdpo.config.overrides import flat, typed
from factdpo.store.history import Row
from factdpo.store.layout import file_stamp, read_json, read_yaml, run_names
from factdpo.store.result import KILLED, REMEDY, RUNNING, TRAINING, is_proven, parse_record, summary
from factdpo.store.run_lock import running_or_killed
from factdpo.store.shapes import DamagedFile, read_bytes

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("factdpo")

FILE = "results.parquet"
VERSION = b"4"  # bump when _read returns other columns or values
HIDDEN = ["proven", "mtime_ns", "ctime_ns", "size", "sha256"]  # columns of the index alone
ABOUT = [  # columns besides config keys and metrics
    "id", "name", "kind", "folder", "state", "error", "started", "warnings",
]  # fmt: skip
WITHOUT_RESULT = (RUNNING, KILLED)  # states of runs without metrics: read anew each time, never indexed
CHUNK = 500  # runs held as Python objects at once; with thousands, garbage collection takes longer than reading


def update_index(home: Path) -> None:
    """Update the index of the folder that runs lie in; any error is logged as a warning."""
    try:
        if names := run_names(home):
            read_home(home, names, write=True, trust_times=True)
    except Exception as error:  # called as the runs of a sweep finish: an index is not worth failing one of them
        _warn(home, error)


def finished(home: Path) -> set[str]:
    """The names of the runs that the index of a folder has as finished, whatever has become of them."""
    table = _read_index(home / FILE) if (home / FILE).is_file() else None
    rows = [] if table is None else table.select(["folder", "state"]).to_pylist()
    return {row["folder"] for row in rows if row["state"] == "FINISHED"}


def read_home(home: Path, names: list[str], write: bool, trust_times: bool = False) -> "pa.Table":
    """One row per run of a folder, from its index where that is up to date; `folder` holds the run's name alone.

    A row of the index counts if result.json has the sha256 that it was read with; with `trust_times` if it has the
    same size and times, which is quicker and misses what a failing disk changes.
    """
    import pyarrow as pa
    import pyarrow.compute

    known = _known(home, names, trust_times)
    index = _read_index(home / FILE)
    tables: list[pa.Table] = []
    indexed: set[str] = set()
    if index is not None:
        columns = ["mtime_ns", "ctime_ns", "size"] if trust_times else ["sha256"]
        entries = zip(index["folder"].to_pylist(), *(index[name].to_pylist() for name in columns), strict=True)
        fresh = [known.get(folder) == (*rest,) for folder, *rest in entries]
        tables = [index if all(fresh) else index.filter(pa.array(fresh, pa.bool_()))]
        indexed = {*tables[0]["folder"].to_pylist()}
    unfinished: list[Row] = []
    missing = [name for name in names if name not in indexed]
    for chunk in (missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)):
        rows = [_read(home / name) for name in chunk]
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


def _known(home: Path, names: list[str], trust_times: bool) -> dict[str, tuple[Any, ...] | None]:
    """What each run's result.json must agree with in the index; None without a file that can be read."""
    if trust_times:
        return {name: file_stamp(f"{home}/{name}/result.json") for name in names}
    return {name: _sha256(f"{home}/{name}/result.json") for name in names}


def _sha256(path: str) -> tuple[str] | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return (hashlib.sha256(file.read()).hexdigest(),)
    except OSError:
        return None


def _read(folder: Path) -> Row:
    """One run as a flat row; without a sound result.json its state, and its config if that can be read."""
    stamp = file_stamp(folder / "result.json")  # of the bytes read after it, or of older ones: then it is read again
    row: Row = {}
    try:
        data = read_bytes(folder / "result.json", REMEDY)
        result = parse_record(folder, data)
        row = {key: _cell(value) for key, value in flat(result["config"]).items()} | summary(result)
        row |= {name: result.get(name) for name in ABOUT} | {"proven": is_proven(result)}
        row["kind"] = result.get("kind", TRAINING)
        row["warnings"] = "\n".join(result.get("warnings") or []) or None
        row["sha256"] = hashlib.sha256(data).hexdigest()
    except FileNotFoundError:
        row = _without_result(folder, None)
        if (folder / "result.json").exists():  # the run ended meanwhile
            return _read(folder)
    except DamagedFile as error:
        row = _without_result(folder, str(error))
    mtime_ns, ctime_ns, size = stamp or (None, None, None)
    return row | {"folder": folder.name, "mtime_ns": mtime_ns, "ctime_ns": ctime_ns, "size": size}


def _without_result(folder: Path, reason: str | None) -> Row:
    """The row of a run that is running or was killed, or whose result.json is damaged (`reason`)."""
    row: Row = {key: _cell(value) for key, value in flat(read_yaml(folder / "config.yaml")).items()}
    row |= dict.fromkeys(ABOUT)
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
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != _proof(path).read_text(encoding="ascii"):
            return None
        table = pyarrow.parquet.read_table(pa.BufferReader(data))
    except (OSError, ValueError, pa.ArrowException):
        return None
    return table if (table.schema.metadata or {}).get(b"factdpo_index") == VERSION else None


def _proof(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _write_index(path: Path, table: "pa.Table") -> None:
    """Write the index atomically. If two processes write, the last wins; rows that it lacks are read again."""
    import pyarrow.parquet

    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    proof = temporary.with_suffix(".sha256.part")
    try:
        marked = table.replace_schema_metadata({b"factdpo_index": VERSION})
        pyarrow.parquet.write_table(marked, temporary)
        proof.write_text(hashlib.sha256(temporary.read_bytes()).hexdigest(), encoding="ascii")
        os.replace(temporary, path)
        os.replace(proof, _proof(path))
    finally:
        temporary.unlink(missing_ok=True)
        proof.unlink(missing_ok=True)


def _warn(home: Path, error: Exception) -> None:
    number = getattr(error, "errno", None)
    _warn_once(home, os.strerror(number) if number else str(error))  # its own text has the name of a temporary file


@cache  # not after every run of a sweep
def _warn_once(home: Path, reason: str) -> None:
    log.warning("%s cannot be written (%s); reading these runs takes longer without it", home / FILE, reason)
