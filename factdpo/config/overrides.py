"""A config as what one types: dotted keys, values in Hydra's grammar, and the command line that asks for it again."""

import dataclasses
import re
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from factdpo.config.schema import NOT_IDENTITY, Config, EngineName, choose_engine, to_dict
from factdpo.config.validate import from_dict, validate

# Not in a run's id, and yet the only way to say which model, which data and which seeds are meant.
_LOCATES = {"seed", "model.name", "model.id", "model.revision", "data.path"}
_BARE = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.-]*")  # what Hydra's grammar reads as text without quotes
_NOT_TEXT = {"null", "true", "false", "inf", "nan"}  # in any case


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, in the config's order."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def decides(key: str) -> bool:
    """Whether a dotted key can change a number, or says where model, data or seeds come from."""
    return key in _LOCATES or not any(key == other or key.startswith(other + ".") for other in NOT_IDENTITY)


def typed(value: Any) -> str:
    """A value in Hydra's grammar: what reads back as anything but this text, or not at all, stands in double quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(typed(item) for item in value) + "]"
    if isinstance(value, int | float):
        return repr(value).removesuffix(".0")
    if _BARE.fullmatch(value) and value.lower() not in _NOT_TEXT and re.search("[A-Za-z_/]", value):
        return value
    # Backslashes are themselves, except before a quote, where each needs another.
    return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (m[2] and '\\"'), value) + '"'


def command(config: dict[str, Any], conf_folders: list[Path]) -> str:
    """The shell command that asks for the run with this resolved config, and so for the same id.

    `conf_folders` hold the groups' options, the first found of a name being Hydra's choice; of each group the option is
    named that leaves the fewest keys to say. Raises ConfigError if today's schema does not know the config.
    """
    cfg = from_dict(config)
    auto = dataclasses.replace(cfg, engine=dataclasses.replace(cfg.engine, name=EngineName.auto))
    if choose_engine(auto)[0].engine.name is cfg.engine.name:
        cfg = auto
    asked = {key: value for key, value in flat(to_dict(cfg)).items() if decides(key)}
    usual = _usual(cfg.seed) | {"seed": Config().seed}
    words = []
    for group in dict.fromkeys(key.split(".")[0] for key in asked):
        keys = [key for key in asked if key.split(".")[0] == group]
        options = [("", {}), *_options(group, conf_folders, usual)]
        option, values = min(options, key=lambda o: sum(asked[key] != (usual | o[1])[key] for key in keys))
        words += [f"{group}={option}"] if option else []
        words += [f"{key}={typed(asked[key])}" for key in keys if asked[key] != (usual | values)[key]]
    return shlex.join(["factdpo", *words])


@lru_cache(maxsize=256)
def _usual(seed: int) -> dict[str, Any]:
    """The default config with this seed, flat."""
    return flat(to_dict(validate(Config(seed=seed))))


@lru_cache(maxsize=256)  # a report names the commands of a thousand runs
def _group_values(path: Path) -> dict[str, Any] | None:
    """What an option's file sets in its own group; None for one that sets other things."""
    text = path.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    return values if isinstance(values, dict) and "@package" not in text else None


def _options(group: str, conf_folders: list[Path], known: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, flat values) of a group's options that set keys of the schema and nothing else."""
    files = {path.stem: path for folder in reversed(conf_folders) for path in sorted((folder / group).glob("*.yaml"))}
    found = []
    for name, path in sorted(files.items()):
        if values := _group_values(path):
            values = flat(values, f"{group}.")
            if values.keys() <= known.keys():
                found.append((name, values))
    return found
