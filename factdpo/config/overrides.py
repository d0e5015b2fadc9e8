"""A config as one types it: short names, values in Hydra's grammar, and the command line that repeats a run."""

import dataclasses
import re
import shlex
import typing
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from factdpo.config import folders
from factdpo.config.engine_choice import choose_engine
from factdpo.config.help import unknown_option, wrong_value
from factdpo.config.schema import KEYS, Config, ConfigError, EngineName, to_dict
from factdpo.config.validate import from_dict, validate

_BARE = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.-]*")  # what Hydra's grammar reads as text without quotes
_NOT_TEXT = {"null", "true", "false", "inf", "nan"}  # in any case

# Names that people type -> the key that is meant.
SHORT = {
    "lr": "dpo.learning_rate", "dpo.lr": "dpo.learning_rate", "epochs": "dpo.epochs", "max_steps": "dpo.max_steps",
    "beta": "dpo.beta", "loss": "dpo.loss", "rank": "lora.rank", "alpha": "lora.alpha",
}  # fmt: skip
_PATHS = ("data.path", "data.files.", "model.id", "out")
# Options of Hydra that take the word after them.
_WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun",
}  # fmt: skip
_OVERRIDE = re.compile(r"(\+{0,2})([A-Za-z_][^=]*)=(.*)", re.DOTALL)
# A value between the commas of a sweep; those in quotes and brackets are its own.
_QUOTED = r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
_PART = re.compile(rf"""(?:{_QUOTED}|\[(?:{_QUOTED}|[^\]"'])*\]|\{{[^}}]*\}}|\([^)]*\)|[^,])+""")
# What is written in Hydra's grammar already: null, quotes, lists, functions, interpolations, escapes.
_NUMBER_OR_BOOL = re.compile(r"true|false|[-+]?(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(inf|nan)", re.IGNORECASE)
_GRAMMAR = re.compile(r"""(?i:null)|["'\[{].*|\w+\(.*\)|.*(\$\{|\\).*""", re.DOTALL)


def for_hydra(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments as Hydra reads them, and the lines that say where a default gave way.

    Options come first wherever they were typed; short names become keys; values of keys that hold text or a list need
    neither quotes nor brackets. Raises ConfigError for what cannot be meant.
    """
    options, typed_overrides = _apart(arguments)
    matches = [(override, _OVERRIDE.fullmatch(override)) for override in typed_overrides]
    given = {SHORT.get(match[2], match[2]): match[3] for _, match in matches if match}
    is_sweep = given.get("sweeps", "null") != "null"
    many = is_sweep or bool({"-m", "--multirun"} & {*options}) or given.get("hydra.mode") == "MULTIRUN"
    overrides = [
        f"{m[1] or ('++' if _in_dict(m[2]) or _is_dict(m[2]) else '')}{_override(m[2], m[3], many)}" if m else override
        for override, m in matches
    ]
    notes = []
    if is_sweep and "hydra.mode" not in given:
        overrides.append("hydra.mode=MULTIRUN")
    if given.get("dpo.max_steps", "null") != "null" and "dpo.epochs" not in given:
        overrides.append("dpo.epochs=null")
        notes.append(f"dpo.max_steps={given['dpo.max_steps']} replaces the default number of epochs (dpo.epochs=null)")
    return [*options, *(["--"] if options and overrides else []), *overrides], notes


def _apart(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's options with their values, and the overrides; raises ConfigError for a key with dashes before it."""
    options: list[str] = []
    overrides: list[str] = []
    names = _kinds().keys() | SHORT.keys() | {key.split(".")[0] for key in _kinds()} | {"sweeps", "experiment"}
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, _, value = argument.lstrip("-").partition("=")
        dashed = argument.startswith("-")
        if dashed and name in names:
            raise ConfigError(f"{argument}: a key has no dashes before it; write {name}={value or '...'}")
        if argument.lstrip("~") in KEYS and argument.startswith("~"):
            raise ConfigError(wrong_value(argument[1:], "", "does not support deletion"))
        is_option = dashed or before in _WITH_VALUE or (before in ("--info", "-i") and "=" not in argument)
        (options if is_option else overrides).append(argument)
    return options, overrides


def _dict_and_name(key: str) -> tuple[str, str] | None:
    """A dict of the schema and the name in it: `data.files` and `test` of data.files.test; None for any other key.

    Such a key is added with `++`, since Hydra knows no key of a dict before it is set.
    """
    dicts = [name for name, kind in _kinds().items() if typing.get_origin(kind) is dict]
    return next(((name, key.removeprefix(f"{name}.")) for name in dicts if key.startswith(f"{name}.")), None)


def _in_dict(key: str) -> Any:
    """The type of a value in a dict of the schema, as of data.files.test; None for any other key."""
    found = _dict_and_name(key)
    return typing.get_args(_kinds()[found[0]])[1] if found else None


def _written(key: str, values: list[str]) -> str:
    """`key=value,value`; in braces where the name in a dict is none of Hydra's, as `place of work` or `v1.0`."""
    found = _dict_and_name(key)
    if found is None or re.fullmatch(r"[\w-]+", found[1]):
        return f"{key}={','.join(values)}"
    name = re.sub(r"([\\()\[\]{}:=,])", r"\\\1", found[1])
    return f"{found[0]}={','.join(f'{{{name}:{value}}}' for value in values)}"


def _is_dict(key: str) -> bool:
    return typing.get_origin(_kinds().get(key)) is dict


def _override(key: str, value: str, many: bool) -> str:
    """`key=value` in Hydra's grammar; with `many`, commas part the values of a sweep over lists."""
    key = SHORT.get(key, key)
    if value.lower() == "null" and any(name.startswith(f"{key}.") for name in KEYS):
        raise ConfigError(f"{key}={value}: a group of keys is never null; choose an option (factdpo help {key})")
    _check_option(key.lstrip("+"), value)
    kind = _kinds().get(key) or _in_dict(key)
    if kind is None or (_is_list(kind) and not many and len(_PART.findall(value)) > 1):
        return f"{key}={value}"
    if key == "data.separator" and value != value.strip() and value.strip()[:1] not in ("'", '"'):
        return f"{key}={_PART.sub(lambda part: typed(part[0]), value) if many else typed(value)}"  # the ends matter
    if _in_dict(key):
        return _written(key, [_in_grammar(key, part.strip(), kind) for part in _PART.findall(value)])
    return f"{key}={_PART.sub(lambda part: _in_grammar(key, part[0].strip(), kind), value)}"


def _check_option(key: str, value: str) -> None:
    """Raises ConfigError for a number or a truth value where a group takes one of its options by name."""
    wrong = next((part for part in map(str.strip, value.split(",")) if _NUMBER_OR_BOOL.fullmatch(part)), None)
    if wrong is not None and key not in KEYS and (there := folders.options().get(key)):
        raise ConfigError(unknown_option(key, wrong, there))


def _in_grammar(key: str, value: str, kind: Any) -> str:
    if _GRAMMAR.fullmatch(value):
        return value
    kinds = {kind, *typing.get_args(kind)}
    if type(None) in kinds and value.lower() == "none":
        text = f", and the text in two pairs of quotes: '{key}=\"{value}\"'" if str in kinds else ""
        raise ConfigError(f"{key}={value}: write null for no value, as in {key}=null{text}")
    if _is_list(kind):
        return f"[{typed(value) if kind == list[str] else value}]"
    if str in kinds:
        return typed(str(Path(value).expanduser()) if key.startswith(_PATHS) and value.startswith("~") else value)
    return value


def _is_list(kind: Any) -> bool:
    return any(typing.get_origin(part) is list for part in (kind, *typing.get_args(kind)))


@lru_cache(maxsize=1)
def _kinds() -> dict[str, Any]:
    """Dotted key -> its type in the schema."""

    def tree(cls: Any) -> dict[str, Any]:
        hints = typing.get_type_hints(cls)
        return {name: tree(kind) if dataclasses.is_dataclass(kind) else kind for name, kind in hints.items()}

    return flat(tree(Config))


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, in the config's order."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def decides(key: str) -> bool:
    """Whether a dotted key can change a number, or says where model, data or seeds come from."""
    return key not in KEYS or bool(KEYS[key].in_id) or KEYS[key].locates


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
    """The shell command of the run with this resolved config, and so of the same id.

    `conf_folders` hold the groups' options; of two with the same name Hydra takes the first. Each group's option is the
    one that leaves the fewest keys to write out. Raises ConfigError if today's schema does not know the config.
    """
    cfg = from_dict(config)
    auto = dataclasses.replace(cfg, engine=dataclasses.replace(cfg.engine, name=EngineName.auto))
    if choose_engine(auto)[0].engine.name is cfg.engine.name:
        cfg = auto
    wanted = {key: value for key, value in flat(to_dict(cfg)).items() if decides(key)}
    usual = _usual(cfg.seed) | {"seed": Config().seed}
    words = []
    for group in dict.fromkeys(key.split(".")[0] for key in wanted):
        keys = [key for key in wanted if key.split(".")[0] == group]
        options = [("", {}), *_options(group, conf_folders, usual)]
        option, values = min(
            options,  # of equals the one that is named after what it sets: data=pairs, and not data=hub
            key=lambda o: (
                sum(wanted[key] != (usual | o[1]).get(key) for key in keys),
                bool(o[0]) and o[0] not in o[1].values(),
            ),
        )
        words += [f"{group}={option}"] if option else []
        words += [_word(key, wanted[key]) for key in keys if wanted[key] != (usual | values).get(key)]
    return shlex.join(["factdpo", *words])


def _word(key: str, value: Any) -> str:
    share = isinstance(value, float) and int in typing.get_args(_kinds().get(key))  # 1.0 is a share, 1 a number
    return _written(key, [str(value) if share else typed(value)])


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


def _options(group: str, conf_folders: list[Path], default: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, flat values) of a group's options that set keys of the schema and nothing else."""
    files = {path.stem: path for folder in reversed(conf_folders) for path in sorted((folder / group).glob("*.yaml"))}
    values = [(name, flat(_group_values(path) or {}, f"{group}.")) for name, path in sorted(files.items())]
    return [(name, keys) for name, keys in values if keys and keys.keys() <= default.keys()]
