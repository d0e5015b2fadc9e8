"""Where the rows of a config's data lie: one file, several by split, a folder or a glob."""

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from factdpo.config.schema import DataConfig
from factdpo.data import columns, hub
from factdpo.data.facts import FactError
from factdpo.data.tables import is_table, read_rows

CHARACTERS = Path(__file__).parent / "characters.csv"
SPLIT_NAMES = re.compile(r"(train|test|validation|valid|dev)(?![A-Za-z0-9])")  # what a file or its folder begins with
# What lies beside the tables in a folder: what `datasets` saves of its own, and texts about the data.
NOT_DATA = re.compile(r"dataset_infos?\.json|dataset_dict\.json|state\.json|cache-.*|(README|LICENSE|CITATION).*", re.I)


class Row(NamedTuple):
    """One row as it was read."""

    where: str  # file:line, or file:row
    split: str | None  # that it belongs to, by its file or by a column
    values: dict[str, Any]


class DataFile(NamedTuple):
    path: Path
    split: str | None = None  # that its rows belong to; None: to be drawn


def data_files(cfg: DataConfig) -> list[DataFile]:
    """The files with the facts, in order; raises FactError if one is not there."""
    if cfg.files:
        return [file for split, path in cfg.files.items() for file in _files(path, f"data.files.{split}", split)]
    if cfg.path:
        return _files(cfg.path, "data.path", None)
    return [DataFile(CHARACTERS)]


def place(cfg: DataConfig) -> str:
    """Where the facts come from, for messages: the first file, or the id of a data set on the hub."""
    return cfg.hub.id or str(data_files(cfg)[0].path)


def rows(cfg: DataConfig) -> Iterator[Row]:
    """Every row of every file, or of the data set on the hub; raises FactError for what cannot be read."""
    if cfg.hub.id:
        for where, split, values in hub.rows_of(cfg.hub):
            yield Row(where, split or _own_split(values, cfg), values)
        return
    for file in data_files(cfg):
        for where, values in read_rows(file.path, cfg.delimiter):
            yield Row(where, file.split or _own_split(values, cfg), values)


def has_own_splits(cfg: DataConfig) -> bool:
    """Whether the data itself says which rows are trained on: by its files, or by a column."""
    if not cfg.hub.id and any(file.split for file in data_files(cfg)):
        return True
    first = next(rows(cfg), None)
    return first is not None and first.split is not None


def _own_split(values: dict[str, Any], cfg: DataConfig) -> str | None:
    found = columns.pick(values, {"split": cfg.columns.split})["split"]
    return None if found is None else str(found).strip() or None


def _files(given: str, key: str, split: str | None) -> list[DataFile]:
    """The files that a path, a folder or a glob stands for."""
    path = Path(given).expanduser()
    if path.is_file():
        return [DataFile(path, split)]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if is_table(file) and not NOT_DATA.fullmatch(file.name))
        found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        if not found:
            raise FactError(f"{key}={given}: the folder holds no table (CSV, JSON, Parquet, Arrow, Excel)")
    else:
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise FactError(f"{key}={given}: no such file (looked for {path.resolve()}); give a path that exists")
    named = [SPLIT_NAMES.match(file.name) or SPLIT_NAMES.fullmatch(file.parent.name) for file in found]
    if split is None and all(named) and len({match[1] for match in named if match}) > 1:  # of one alone, some are drawn
        return [DataFile(file, match[1]) for file, match in zip(found, named, strict=True) if match]
    return [DataFile(file, split) for file in found]
