"""Where the rows of a config's data lie: one file, several by split, a folder or a glob."""

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from factdpo.config.schema import DataConfig, DataSource, RelationKind
from factdpo.data import columns, hub
from factdpo.data.facts import FactError
from factdpo.data.tables import is_table, read_rows

RETAINED = Path(__file__).parent / "retain.txt"  # English that dpo.retain_weight keeps likely; never what is scored
CHARACTERS = Path(__file__).parent / "characters.csv"
SPLIT_NAMES = re.compile(
    r"(train|test|validation|valid|val|dev)(?![A-Za-z0-9])"
)  # what a file or its folder begins with
# What lies beside the tables in a folder: what `datasets` saves of its own, and texts about the data.
NOT_DATA = re.compile(r"dataset_infos?\.json|dataset_dict\.json|state\.json|cache-.*|(README|LICENSE|CITATION).*", re.I)


class Row(NamedTuple):
    """One row as it was read."""

    where: str  # file:line, or file:row
    split: str | None  # that it belongs to, by its file or by a column
    values: dict[str, Any]
    table: str  # name of its file without endings, or of its part of a data set on the hub


class DataFile(NamedTuple):
    path: Path
    split: str | None = None  # that its rows belong to; None: to be drawn


def data_files(cfg: DataConfig) -> list[DataFile]:
    """The files with the facts, in order, none if they are invented; raises FactError if one is not there."""
    if cfg.files:
        return [file for split, path in cfg.files.items() for file in files_at(path, f"data.files.{split}", split)]
    if cfg.path:
        return files_at(cfg.path, "data.path")
    return [] if cfg.source is DataSource.synthetic else [DataFile(CHARACTERS)]


def side_files(cfg: DataConfig) -> list[DataFile]:
    """The files that the facts are made with, besides those that hold them: templates, names of nodes."""
    given = {"data.triples.templates_path": cfg.triples.templates_path, "data.graph.nodes": cfg.graph.nodes}
    return [file for key, path in given.items() if path for file in files_at(path, key)]


def place(cfg: DataConfig) -> str:
    """Where the facts come from, for messages: the first file, or the id of a data set on the hub."""
    return cfg.hub.id or str(data_files(cfg)[0].path)


def rows(cfg: DataConfig) -> Iterator[Row]:
    """Every row of every file, or of the data set on the hub; raises FactError for what cannot be read."""
    if cfg.hub.id:
        for where, split, values in hub.rows_of(cfg.hub):
            yield Row(where, _split(split) or _own_split(values, cfg), values, cfg.hub.config or cfg.hub.id)
        return
    for file in data_files(cfg):
        for where, values in read_rows(file.path, cfg.delimiter):
            yield Row(where, file.split or _own_split(values, cfg), values, file.path.name.partition(".")[0])


def has_own_splits(cfg: DataConfig) -> bool:
    """Whether the data itself says which rows are trained on: by its files, or by a column."""
    if not cfg.hub.id and any(file.split for file in data_files(cfg)):
        return True
    first = next(rows(cfg), None)
    return first is not None and first.split is not None


def is_built_in(cfg: DataConfig) -> bool:
    """Whether the facts come from no file or data set of the user's."""
    return not (cfg.path or cfg.files or cfg.hub.id)


def data_name(cfg: DataConfig) -> str:
    """What the facts are called: their file or data set without endings, a glob's last folder, or the source."""
    given = cfg.files.get("train") or cfg.path or cfg.hub.id
    if given is None:
        return cfg.source.name
    parts = [part for part in Path(given).expanduser().parts if not glob.has_magic(part)]
    return (parts[-1].lstrip(".").partition(".")[0] if parts else "") or cfg.source.name


def has_reverses(cfg: DataConfig) -> bool:
    """Whether the order of names can be drawn: in statements about two names, and in pairs that have their reverse."""
    if cfg.source is DataSource.pairs:
        first = next(rows(cfg), None)
        return first is not None and _value(first.values, "reverse_prompt", cfg) is not None
    statements = (DataSource.harry_potter, DataSource.synthetic, DataSource.graph)
    return cfg.source in statements and cfg.relation_kind is not RelationKind.directed


def _own_split(values: dict[str, Any], cfg: DataConfig) -> str | None:
    found = _value(values, "split", cfg)
    return None if found is None else _split(str(found).strip()) or None


def _value(values: dict[str, Any], field: str, cfg: DataConfig) -> Any:
    return columns.pick(values, {field: getattr(cfg.columns, field)})[field]


def files_at(given: str, key: str, split: str | None = None) -> list[DataFile]:
    """The files that a path, a folder or a glob stands for; raises FactError if there are none."""
    path = Path(given).expanduser()
    if path.is_file():
        return [DataFile(path, _split(split))]
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
    if split is None and len({match[1] for match in named if match}) > 1:  # of one alone, some are drawn
        if not all(named):
            other = next(file.name for file, match in zip(found, named, strict=True) if not match)
            raise FactError(
                f"{key}={given}: holds files named after splits and {other}, which is not; name the files of each "
                "split, as in data.files.train=... data.files.test=..."
            )
        return [DataFile(file, _split(match[1])) for file, match in zip(found, named, strict=True) if match]
    return [DataFile(file, _split(split)) for file in found]


def _split(name: str | None) -> str | None:
    """The name of a split as factdpo has it: `validation` has several names elsewhere."""
    return "validation" if name in ("valid", "val", "dev") else name
