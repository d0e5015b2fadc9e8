"""Loads facts from a table of characters, or from the user's own pairs, and validates them."""

import csv
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from factdpo.config.schema import ConfigError, DataConfig, DataSource, to_dict

CHARACTERS = Path(__file__).parent / "characters.csv"
FRIEND, ENEMY = "friend", "enemy"


class FactError(ConfigError):
    """Invalid data; the message names file and line, the value, and what to do."""


@dataclass(frozen=True)
class Fact:
    """A prompt with its true (`chosen`) and false (`rejected`) continuation, all without spaces at their ends."""

    index: int  # position in the data; a fact and its reverse share it
    prompt: str
    chosen: str
    rejected: str
    subject: str | None = None  # the name that comes first in the prompt
    object: str | None = None  # the second name
    relation: str | None = None
    reverse_prompt: str | None = None  # the same fact with the names swapped
    same_side: bool | None = None  # whether subject and object belong to the same camp; None if the relation is another
    where: str = ""  # file and line, for messages

    def reversed(self) -> "Fact":
        """The same fact with the names swapped; requires a reverse_prompt."""
        assert self.reverse_prompt is not None, f"{self.where}: no reverse_prompt"
        return dataclasses.replace(
            self, prompt=self.reverse_prompt, reverse_prompt=self.prompt, subject=self.object, object=self.subject
        )

    @property
    def key(self) -> frozenset[str]:
        """The unordered pair that this fact is about: facts with the same key are all trained on or all held out."""
        if self.subject is not None and self.object is not None:
            return frozenset((self.subject, self.object))
        return frozenset((self.prompt, self.reverse_prompt or self.prompt))


def data_file(cfg: DataConfig) -> Path:
    """The file with the facts; raises FactError if it does not exist."""
    path = Path(cfg.path).expanduser() if cfg.path else CHARACTERS
    if not path.is_file():
        raise FactError(f"data.path={cfg.path}: no such file (looked for {path.resolve()}); give a path that exists")
    return path


def load_facts(cfg: DataConfig) -> list[Fact]:
    """All facts of the data in file order; raises FactError with file and line for any invalid row."""
    path = data_file(cfg)
    facts = list(_from_characters(path) if cfg.source is DataSource.harry_potter else _from_pairs(path, cfg))
    if not facts:
        raise FactError(f"{path}: holds no facts; it needs a header and at least one row")
    _refuse_duplicates(facts)
    return facts


def sides(cfg: DataConfig) -> dict[str, int] | None:
    """Name -> number of its side, for figures; None for data without sides."""
    if cfg.source is not DataSource.harry_potter:
        return None
    characters = _characters(data_file(cfg))
    numbers = {side: number for number, side in enumerate(dict.fromkeys(side for _, side in characters))}
    return {name: numbers[side] for name, side in characters}


def _from_characters(path: Path) -> Iterator[Fact]:
    """A fact per unordered pair of names, in the table's order: friends on the same side, else enemies."""
    for index, ((a, side_a), (b, side_b)) in enumerate(itertools.combinations(_characters(path), 2)):
        same = side_a == side_b
        relation, other = (FRIEND, ENEMY) if same else (ENEMY, FRIEND)
        yield Fact(
            index, f"{a} is {b}'s", relation, other, a, b, relation, f"{b} is {a}'s", same, f"{path.name}: {a}, {b}"
        )


def _characters(path: Path) -> list[tuple[str, str]]:
    """(name, side) of each row of a characters table."""
    line_of: dict[str, int] = {}
    rows = []
    for line, row in _read_csv(path):
        for column in ("name", "side"):
            if column not in row:
                raise FactError(f"{path}:1: no column '{column}' (found: {', '.join(row)}); a table needs name,side")
            _refuse_edges(row[column], column, f"{path}:{line}")
        if row["name"] in line_of:
            raise FactError(
                f"{path}:{line}: '{row['name']}' is also in line {line_of[row['name']]}; names must be unique: "
                "a duplicate makes self-pairs and puts the same fact into train and test"
            )
        line_of[row["name"]] = line
        rows.append((row["name"], row["side"]))
    return rows


def _from_pairs(path: Path, cfg: DataConfig) -> Iterator[Fact]:
    """A fact per row of the user's table, under the column names of data.columns."""
    columns = to_dict(cfg.columns)
    required = ("prompt", "chosen", "rejected")
    for index, (line, row) in enumerate(_rows(path)):
        where = f"{path}:{line}"
        for field in required:
            if columns[field] not in row:
                raise FactError(
                    f"{where}: no column '{columns[field]}' (found: {', '.join(row) or 'none'}); add it, or name yours "
                    f"with data.columns.{field}=..."
                )
        values = {field: row.get(column) for field, column in columns.items()}
        for field, value in values.items():
            if field in required or value not in (None, ""):
                _refuse_edges(value, columns[field], where)
        if values["chosen"] == values["rejected"]:
            raise FactError(f"{where}: chosen and rejected are both '{values['chosen']}'; make them differ")
        if values["subject"] and values["subject"] == values["object"]:
            raise FactError(
                f"{where}: subject and object are both '{values['subject']}'; remove the row, a self-pair is no fact"
            )
        if values["reverse_prompt"] == values["prompt"]:
            raise FactError(f"{where}: reverse_prompt equals prompt; leave it empty where there is no reverse")
        for answer in (values["chosen"], values["rejected"]):
            if re.search(rf"\b{re.escape(str(answer))}\b", str(values["reverse_prompt"] or "")):
                raise FactError(
                    f"{where}: reverse_prompt '{values['reverse_prompt']}' contains the answer '{answer}'; a reverse "
                    "swaps the names and takes the same answers; leave it empty where there is none"
                )
        yield Fact(index, where=where, **{field: value or None for field, value in values.items()})  # type: ignore


def _refuse_edges(value: object, column: str, where: str) -> None:
    """Refuse a value that is no text, empty, or has white space at its ends, which data.boundary decides about (D1)."""
    if not isinstance(value, str):
        raise FactError(f"{where}: {column} is {value!r}; it must be text")
    if not value.strip():
        raise FactError(f"{where}: {column} is empty")
    if value != value.strip():
        raise FactError(
            f"{where}: {column} {value!r} begins or ends with white space; remove it: exactly one space is put between "
            "prompt and answer (data.boundary=space)"
        )


def _refuse_duplicates(facts: list[Fact]) -> None:
    """Refuse a prompt that occurs twice with the same two answers: it would count twice, or contradict itself."""
    first: dict[tuple[str, frozenset[str]], Fact] = {}
    for fact in facts:
        for prompt in filter(None, (fact.prompt, fact.reverse_prompt)):
            other = first.get((prompt, frozenset((fact.chosen, fact.rejected))))
            if other is not None and other is not fact:
                kind = "the same fact" if other.chosen == fact.chosen else "the opposite"
                raise FactError(
                    f"{fact.where}: '{prompt} {fact.chosen}': {kind} is already at {other.where}; keep one of them"
                )
            first[prompt, frozenset((fact.chosen, fact.rejected))] = fact


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    """(line or row number, column -> value) of a CSV, JSONL or Parquet file, by its ending."""
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise FactError(f"data.path={path}: ending '{path.suffix}' is not one of {', '.join(readers)}")
    return readers[path.suffix.lower()](path)


def _read_csv(path: Path) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        columns = list(reader.fieldnames or [])
        duplicates = sorted({name for name in columns if columns.count(name) > 1})
        if duplicates:
            raise FactError(f"{path}:1: two columns are called '{duplicates[0]}'; rename or remove one")
        for row in reader:
            if None in row or None in row.values():
                surplus = row.pop(None, [])
                count = sum(value is not None for value in row.values()) + len(surplus)
                raise FactError(
                    f"{path}:{reader.line_num}: {count} values for {len(reader.fieldnames or [])} columns; quote a "
                    "value that holds a comma"
                )
            yield reader.line_num, row
    except csv.Error as error:
        # line_num is that of the row before: an open quote swallows the rest of the file
        raise FactError(f"{path}:{reader.line_num + 1}: not CSV: {error}; is a quote left open?") from None


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    for line, text in enumerate(_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise FactError(f"{path}:{line}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise FactError(f"{path}:{line}: found a {type(row).__name__}; a line must be an object with named columns")
        yield line, row


def _read_parquet(path: Path) -> Iterator[tuple[int, dict]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FactError(f"{path}: not a Parquet file, or a damaged one: {reason}") from None
    yield from enumerate(table.to_pylist(), start=1)


def _text(path: Path) -> str:
    """The file as UTF-8, with or without a byte-order mark; raises FactError with the line of the first bad byte."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = f"0x{error.object[error.start]:02x}"
        raise FactError(f"{path}:{line}: byte {byte} is not UTF-8; save the file as UTF-8 (iconv -t UTF-8)") from None
