"""What the command line says about keys: default, meaning and options of each, and one message for each refusal."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any

from factdpo.config import keys, schema


@dataclass
class Key:
    default: str  # as one would type it
    comment: str  # what the schema declares: meaning, unit and bounds
    options: list[str]  # of an enum, else empty


def schema_keys() -> dict[str, Key]:
    """Every key of the schema, dotted, in the schema's order."""
    return {
        name: Key(_typed(key.default), _comment(key), list(key.options) or _options(key.default))
        for name, key in schema.KEYS.items()
    }


def unknown_key(key: str, groups: Iterable[str] = ()) -> str:
    """The refusal of a key that the schema, or Hydra's own node, does not have."""
    if key.startswith("hydra."):
        return f"{key}: Hydra has no such key; --cfg hydra lists them, and + adds one: +hydra.job.env_set.NAME=value"
    keys = list(schema_keys())
    names = [*keys, *(k.rsplit(".", 1)[0] for k in keys if "." in k), *groups]
    same_end = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    hint = _perhaps(same_end) or did_you_mean(key, names)
    return f"{key}: no such key{hint}; factdpo --help lists all keys"


def unknown_option(group: str, option: str, options: Iterable[str]) -> str:
    """The refusal of a group's option that no file defines."""
    options = sorted(options)
    hint = did_you_mean(option, options, cutoff=0.5)
    return f"{group}={option}: no such option{hint}; {group} can be {', '.join(options)}"


def wrong_value(key: str, value: str, problem: str) -> str:
    """The refusal of a value that a key cannot take; `problem` is the message of OmegaConf's type check."""
    key = re.sub(r"\[\d+\]$", "", key)  # of an item of a list: the list's
    declared = schema_keys().get(key, Key("", "", []))
    default = f" (default {declared.default})" if declared.default else ""
    what = f"{key}={value}" if value else key
    if "is not a ListConfig" in problem:
        example = f", as in {key}=[{value}]" if value else ""
        return f"{what}: must be a list{example}{default}"
    if options := declared.options:
        hint = did_you_mean(value.strip("[]'\" "), options, cutoff=0.5)
        return f"{what}: must be one of {', '.join(options)}{hint or default}"
    for part, must in (
        ("converted to Integer", "must be a whole number"),
        ("converted to Float", "must be a number"),
        ("valid bool", "must be true or false"),
        ("is not Optional", "must have a value"),
        ("support deletion", "cannot be taken away, only set"),
    ):
        if part in problem:
            return f"{what}: {must}{default}"
    return f"{what}: {problem}{default}"


def group_given_a_value(key: str, value: str) -> str:
    """The refusal of a value for what is a group of keys, or a table whose keys the user names."""
    inner = [name for name in schema_keys() if name.startswith(f"{key}.")] or [f"{key}.<name>"]
    return f"{key}={value}: is a group of keys, not a value; set one of them, as in {inner[0]}=..."


def unreadable(override: str, problem: str, commands: Iterable[str]) -> str:
    """The refusal of an argument that is not of the form key=value; `problem` is the parser's message."""
    key, equals, value = override.partition("=")
    if not equals:
        hint = "write key=value, with quotes around it where it has spaces: 'data.path=my facts.csv'"
        return f"{override}: neither a command nor key=value{did_you_mean(key, commands)}; {hint}"
    hint = f"close its brackets, or put text with special characters in two pairs of quotes: '{key}=\"{value}\"'"
    return f"{override}: the value cannot be read ({problem.splitlines()[0]}); {hint}"


def several_values(override: str) -> str:
    """The refusal of a comma-separated value in a single run."""
    key, _, values = override.partition("=")
    return f"{override}: several values; -m runs each of them, and {key}=[{values}] is a list"


def many_runs(override: str) -> str:
    """The refusal of a range or a choice in a single run."""
    return f"{override}: asks for many runs; -m runs them, and -m hydra/sweeper=optuna searches a range"


def did_you_mean(name: str, names: Iterable[str], most: int = 1, cutoff: float = 0.6) -> str:
    """` (did you mean ...?)` with at most so many of the names that resemble this one; empty if none does."""
    return _perhaps(get_close_matches(name, list(names), most, cutoff))


def _perhaps(close: list[str]) -> str:
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(_typed(v) for v in value) + "]"
    return value.name if isinstance(value, Enum) else re.sub(r"^\$\{(.*)\}$", r"= \1", str(value))


def _comment(key: keys.Key) -> str:
    """What a key means, and in brackets its unit and bounds."""
    inside = ", ".join(part for part in (key.unit, key.bounds) if part)
    return f"{key.help} [{inside}]" if inside else key.help


def _options(default: Any) -> list[str]:
    """The names that an enum, or a list of one, can have."""
    member = default[0] if isinstance(default, list) and default else default
    return [option.name for option in type(member)] if isinstance(member, Enum) else []
