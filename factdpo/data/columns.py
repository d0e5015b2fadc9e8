"""The values of a row by what they mean: columns found by name, and everything as text."""

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from factdpo.data.facts import BadRow, FactError

Values = dict[str, Any]  # field -> value; None where the column or its value is missing


def pick(
    row: dict[str, Any], names: dict[str, str], required: Collection[str] = (), where: str = "",
    group: str = "data.columns",
) -> Values:  # fmt: skip
    """Field -> value of its column. Column names are compared without case and white space where none is the same.

    Raises FactError if a required column is missing; `group` holds the keys that name columns.
    """
    found = _columns(tuple(row), tuple(names.items()))
    for field in required:
        if found[field] is None:
            raise FactError(
                f"{where}: no column '{names[field]}' (found: {', '.join(map(str, row)) or 'none'}); add it, or name "
                f"yours with {group}.{field}=..."
            )
    return {field: None if column is None else row[column] for field, column in found.items()}


@lru_cache(maxsize=1024)
def _columns(present: tuple[str, ...], names: tuple[tuple[str, str], ...]) -> dict[str, str | None]:
    alike = {_plain(column): column for column in reversed(present)}
    return {field: name if name in present else alike.get(_plain(name)) for field, name in names}


def _plain(name: str) -> str:
    return re.sub(r"\s+", "", str(name)).casefold()


def text(value: Any, name: str, where: str) -> str | None:
    """A value as text: numbers and booleans as JSON writes them; None for a missing one (null, NaN, empty)."""
    if value is None or value == "" or value != value:  # NaN, and a missing date of pandas, are not equal to themselves
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # pandas makes 1987.0 of a year in a column with gaps
    if isinstance(value, dict | list | bytes):
        raise BadRow("a column is no text", f"{where}: {name} is a {type(value).__name__}; it must be text")
    return str(value)


def required_text(values: Values, name: str, where: str) -> str:
    """The same without white space at its ends; raises BadRow if there is none."""
    found = text(values[name], name, where)
    if found is None or not found.strip():
        raise BadRow("a column is empty", f"{where}: {name} is empty")
    return found.strip()
