"""Reads the rows of a table in any format: text with separators, JSON, Parquet, Arrow, Excel; also compressed."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from factdpo.data.facts import FactError, cut

Rows = Iterator[tuple[str, dict[str, Any]]]  # (file:line or file:row, column -> value)

DELIMITERS = ",;\t|"
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def read_rows(path: Path, delimiter: str | None = None) -> Rows:
    """Each row with where it stands; raises FactError for a file that is none of FORMATS, or a damaged one."""
    name, packed = path, path.suffix.lower() in OPENERS
    if packed:
        name = path.with_suffix("")
    reader = FORMATS.get(name.suffix.lower())
    if reader is None:
        raise FactError(
            f"data.path={path}: ending '{name.suffix}' is not one of {', '.join(FORMATS)}, alone or with "
            f"{', '.join(OPENERS)} after it"
        )
    if reader is _read_csv:
        return _or_refused(path, _read_csv(path, "\t" if _is_tsv(path) and delimiter is None else delimiter))
    return _or_refused(path, reader(path))


def _or_refused(path: Path, rows: Rows) -> Rows:
    """The rows; any error of a parser that its reader does not know is a FactError too: the file may be anybody's."""
    try:
        yield from rows
    except FactError:
        raise
    except Exception as error:  # dates out of range, integers too long for a number, nesting too deep
        reason = f"{type(error).__name__}: {cut(str(error))}"
        raise FactError(f"{path}: cannot be read ({reason}); save it anew, or in another format") from None


def ending_decides(path: Path, delimiter: str | None) -> bool:
    """Whether a text table is read otherwise than the same bytes under another ending: a .tsv with commas, say."""
    if delimiter is not None or not _is_tsv(path):
        return False
    with OPENERS.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8-sig", errors="replace") as file:
        header = next((line for line in file if line.strip("\r\n")), "")
    return _found_out(header) != "\t"


def _is_tsv(path: Path) -> bool:
    return (path.with_suffix("") if path.suffix.lower() in OPENERS else path).suffix.lower() == ".tsv"


def _found_out(header: str) -> str:
    """The delimiter that stands most often in a header; the comma where there is none."""
    return max(DELIMITERS, key=header.count)


def is_table(path: Path) -> bool:
    """Whether a file's name says that `read_rows` can read it."""
    name = path.with_suffix("") if path.suffix.lower() in OPENERS else path
    return name.suffix.lower() in FORMATS


def _read_csv(path: Path, delimiter: str | None) -> Rows:
    csv.field_size_limit(sys.maxsize)  # a field may be a long text
    text = _text(path)
    header = text.lstrip("\r\n").split("\n", 1)[0]
    separator = delimiter or _found_out(header)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        columns = list(reader.fieldnames or [])
        duplicates = sorted({name for name in columns if name and columns.count(name) > 1})
        if duplicates:
            raise FactError(f"{path}:1: two columns are called '{duplicates[0]}'; rename or remove one")
        for row in reader:
            if None in row or None in row.values():
                surplus = row.pop(None, [])
                count = sum(value is not None for value in row.values()) + len(surplus)
                raise FactError(
                    f"{path}:{reader.line_num}: {count} values for {len(columns)} columns; quote a value that holds a "
                    f"{'comma' if separator == ',' else repr(separator)}, or name the separator: data.delimiter=';'"
                )
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        # line_num is that of the row before: an open quote swallows the rest of the file
        raise FactError(f"{path}:{reader.line_num + 1}: not CSV: {error}; is a quote left open?") from None


def _read_json(path: Path) -> Rows:
    """A JSON object per line, one array of objects, or an object with such an array."""
    text = _text(path)
    rows = _array(path, text)
    if rows is None:
        numbered = _json_lines(path, text)
    else:
        numbered = ((f"{path}: element {number}", row) for number, row in enumerate(rows, start=1))
    for where, row in numbered:
        if not isinstance(row, dict):
            raise FactError(f"{where}: found a {type(row).__name__}; a row must be an object with named columns")
        yield where, row


def _array(path: Path, text: str) -> list[Any] | None:
    """The rows of a text that is one JSON value over several lines, or an array; None if each line is one."""
    first = text.lstrip().split("\n", 1)[0].strip()
    if not first.startswith("[") and first != "{":
        return None
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise FactError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise FactError(f"{path}: not JSON: {error}") from None
    if isinstance(whole, list):
        return whole
    arrays = [value for value in whole.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return arrays[0] if len(arrays) == 1 and "prompt" not in whole else [whole]


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                yield f"{path}:{line}", json.loads(content)
            except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
                raise FactError(f"{path}:{line}: not JSON: {error}; it begins with {cut(content)!r}") from None


def _read_parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        yield from _numbered(path, batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise FactError(f"{path}: not a Parquet file, or a damaged one: {str(error).splitlines()[0]}") from None


def _read_arrow(path: Path) -> Rows:
    """Arrow's stream format, as `datasets` saves it, or its file format."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                file = pyarrow.ipc.open_file(source)
                yield from _numbered(path, (file.get_batch(number) for number in range(file.num_record_batches)))
            else:
                yield from _numbered(path, pyarrow.ipc.open_stream(source))
    except (pyarrow.ArrowException, OSError) as error:
        raise FactError(f"{path}: not an Arrow file, or a damaged one: {str(error).splitlines()[0]}") from None


def _numbered(path: Path, batches: Any) -> Rows:
    number = 0
    for batch in batches:
        batch.validate(full=True)  # else offsets that a damaged file has lead outside of its memory
        for row in batch.to_pylist():
            number += 1
            yield f"{path}:{number}", row


def _read_excel(path: Path) -> Rows:
    """The first sheet."""
    import pandas as pd

    try:
        frame = pd.read_excel(path, dtype=object, keep_default_na=False, na_values=[""])  # NA may be an answer
    except ImportError:
        raise FactError(f"{path}: reading Excel needs a package: pip install openpyxl; or save it as CSV") from None
    except Exception as error:  # openpyxl's and zipfile's own kinds
        raise FactError(f"{path}: not an Excel file, or a damaged one: {error}") from None
    for number, row in enumerate(frame.to_dict("records"), start=2):
        yield f"{path}:{number}", {str(column): value for column, value in row.items()}


def _read_graph(path: Path) -> Rows:
    """The edges of a graph, with the columns source and target beside their own attributes."""
    import networkx

    kind, read = ("GML", networkx.read_gml) if path.suffix.lower() == ".gml" else ("GraphML", networkx.read_graphml)
    try:
        edges = list(read(path).edges(data=True))
    except Exception as error:  # the parsers' own kinds
        raise FactError(f"{path}: not {kind}, or a damaged file: {str(error).splitlines()[0]}") from None
    for number, (source, target, attributes) in enumerate(edges, start=1):
        yield f"{path}: edge {number}", {"source": source, "target": target, **attributes}


def _text(path: Path) -> str:
    """The file as UTF-8, with or without a byte-order mark; raises FactError with the line of the first bad byte."""
    try:
        with OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise FactError(f"{path}: cannot be read: {error}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = f"0x{error.object[error.start]:02x}"
        raise FactError(f"{path}:{line}: byte {byte} is not UTF-8; save the file as UTF-8 (iconv -t UTF-8)") from None


FORMATS: dict[str, Callable[..., Rows]] = {
    ".csv": _read_csv, ".tsv": _read_csv, ".txt": _read_csv, ".jsonl": _read_json, ".ndjson": _read_json,
    ".json": _read_json, ".parquet": _read_parquet, ".arrow": _read_arrow, ".xlsx": _read_excel,
    ".gml": _read_graph, ".graphml": _read_graph,
}  # fmt: skip
