"""The JSON files that are read back: what each holds, one reader, and one error that names the file and the remedy."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required

from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from factdpo.config.schema import ConfigError

SHOWN = 200  # characters of what was found in a file


class DamagedFile(ConfigError):
    """A file that is not what was written there: names the file, what was found, and what to do."""


def _plain_name(name: str) -> str:
    """A folder's name that leads nowhere else."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError("must be the name of a folder beside this file")
    return name


def _name_inside(name: str) -> str:
    """The name of a file below the folder, and of none outside."""
    if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise ValueError("must be the name of a file in this folder")
    return name


def _leaves(values: dict[str, Any]) -> Iterator[Any]:
    for value in values.values():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield value


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """A config: what a key can be set to, in groups."""
    of_lists = chain.from_iterable(leaf for leaf in _leaves(values) if isinstance(leaf, list))
    if any(isinstance(item, list | dict) for item in of_lists):
        raise ValueError("must have lists of plain values only")
    return values


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """What tables show a column of, in groups."""
    if any(isinstance(leaf, list) for leaf in _leaves(values)):
        raise ValueError("must have no lists")
    return values


def _with_accuracy(scores: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(scores.get("accuracy"), int | float):
        raise ValueError("must have an accuracy")
    return scores


class _Checked:
    """Has pydantic call a function on what it read; imports pydantic only then."""

    def __init__(self, check: Callable[[Any], Any]) -> None:
        self.check = check

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.check, handler(source))


PlainName = Annotated[str, _Checked(_plain_name)]
NameInside = Annotated[str, _Checked(_name_inside)]
Settings = Annotated[dict[str, Any], _Checked(_settings)]
Numbers = Annotated[dict[str, Any], _Checked(_numbers)]


class ResultShape(TypedDict, total=False):
    """What readers of result.json rely on; `store.result.KEYS` documents all of it."""

    id: Required[str]
    name: str
    kind: str
    state: Required[Literal["FINISHED", "STOPPED", "FAILED", "DIVERGED", "PREEMPTED"]]
    config: Required[Settings]
    error: str | None
    started: str | None
    engine: str
    asked: dict[str, Any]
    versions: dict[str, Any]
    hardware: dict[str, Any]
    base: dict[str, Numbers]
    trained: dict[str, Annotated[Numbers, _Checked(_with_accuracy)]]
    baselines: dict[str, Numbers]
    coverage: dict[str, dict[str, Any]]
    across: dict[str, Numbers]
    warnings: list[str]
    training: Numbers
    timing: Numbers
    files: dict[NameInside, str]
    record_version: int
    sha256: str


class PlannedShape(TypedDict):
    folder: PlainName
    label: NotRequired[str | None]
    finished: NotRequired[bool]


class MetricShape(TypedDict):
    name: str
    lower_is_better: bool


class SweepShape(TypedDict, total=False):
    """sweep.json."""

    id: str
    name: str
    question: str | None
    axes: dict[str, list[str]]
    runs: Required[dict[str, PlannedShape]]
    metrics: list[MetricShape]
    commands: list[dict[str, Any]]


class AskedShape(TypedDict):
    """asked.json: what the run's id is a hash of."""

    config: dict[str, Any]
    data: Any
    model: Any
    versions: dict[str, Any]


class CheckpointShape(TypedDict, total=False):
    """state.json of a cohort's checkpoint."""

    keys: Required[list[str]]
    step: Required[int]
    format: int
    rank: int
    together: int
    seconds: float
    runs: list[dict[str, Any]]


def read(path: Path, shape: type, remedy: str) -> dict[str, Any]:
    """The JSON object in a file, which has this shape; other keys may stand beside.

    Raises FileNotFoundError if nothing is there, and DamagedFile for anything else that is not such a file.
    """
    return parsed(path, read_bytes(path, remedy), shape, remedy)


def read_bytes(path: Path, remedy: str) -> bytes:
    """A file's bytes; raises FileNotFoundError if nothing is there, and DamagedFile where they cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedFile(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from None


def parsed(path: Path, data: bytes, shape: type, remedy: str) -> dict[str, Any]:
    """As `read`, of bytes that were read from the file."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path}: not JSON ({_cut(error)}); {remedy}") from None
    if problem := _problem(value, shape):
        raise DamagedFile(f"{path}: {problem}; {remedy}")
    return value


def _problem(value: Any, shape: type) -> str | None:
    """Where a value first departs from a shape, and what stands there."""
    from pydantic import ValidationError

    try:
        _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        found = "" if first["type"] == "missing" else f" (found {_cut(first['input'])})"
        return f"{place[:SHOWN]}: {first['msg']}{found}"
    except RecursionError:
        return "nested too deeply"
    return None


@cache
def _adapter(shape: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def _cut(found: object) -> str:
    text = str(found) if isinstance(found, Exception) else repr(found)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
