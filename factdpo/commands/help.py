"""`factdpo help`, also `factdpo --help`: the keys used most, the commands, the groups, and more about each by name."""

import re
from pathlib import Path

from factdpo.commands import table
from factdpo.commands.parser import Parser, folded, row
from factdpo.config.folders import options
from factdpo.config.help import Key, did_you_mean, schema_keys
from factdpo.config.overrides import SHORT
from factdpo.config.schema import ConfigError

# What --help opens with.
USED = (
    "model.name", "data.path", "split.train", "lora.rank", "lora.alpha", "dpo.loss", "dpo.beta", "dpo.learning_rate",
    "dpo.epochs", "seed",
)  # fmt: skip
TITLE = "factdpo: can preference optimisation (DPO) teach a language model facts, and which facts then generalise?"
USAGE = """\
  factdpo [KEY=VALUE ...]        one run: split the facts, train with DPO, score before and after, record
  factdpo -m KEY=A,B [...]       a run for each combination, trained together
  factdpo sweeps=NAME [...]      the runs of a file in sweeps/
  factdpo COMMAND [...]          one of the commands below"""
MORE = """\
EXAMPLES
  factdpo                                           the default run, on the embedded model: seconds, no network
  factdpo model=pythia_160m experiment=seed         the 2024 notebook's run, done right (needs the hub)
  factdpo model=smollm2_135m experiment=seed        a real language model without the hub
  factdpo data=pairs data.path=~/my.csv lr=1e-3     facts of your own
  factdpo -m lr=1e-3,1e-4 seed=0,1,2                six runs
  factdpo results outputs/sweeps/<sweep>            its runs as one table

Runs lie in outputs/runs/, sweeps in outputs/sweeps/. The same command again reads the stored answer.
Folders conf/ and sweeps/ where you stand are searched before factdpo's own: put your own options there.
dry_run=true says what would run; --cfg job prints a composed config; --hydra-help lists the rest of Hydra's options."""


def main(arguments: list[str]) -> None:
    """Prints the overview, or the help on each name; raises ConfigError for an unknown one."""
    names = make_parser().parse_args(arguments).names
    print("\n\n".join(map(about, names)) if names else overview())


def make_parser() -> Parser:
    parser = Parser("help", "Without a name: commands, groups and keys. With one: all about it.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a command, a group (lora) or a key (lora.rank)")
    return parser


def overview() -> str:
    """What `factdpo --help` prints."""
    keys, groups = schema_keys(), options()
    by_group: dict[str, list[str]] = {}
    for name in keys:
        group, _, end = name.rpartition(".")
        by_group.setdefault(group, []).append(end)
    alone = ", ".join(by_group.pop(""))
    all_keys = [*((f"{group}.", ", ".join(ends)) for group, ends in by_group.items()), ("", alone)]
    parts = [
        folded(TITLE),
        folded(USAGE),
        "THE KEYS THAT ARE USED MOST: key, default, meaning\n" + _rows([_key(name, keys[name]) for name in USED]),
        "COMMANDS (factdpo COMMAND --help)\n" + _rows([command[:2] for command in table.COMMANDS]),
        "GROUPS (GROUP=OPTION)\n" + _rows([(group, ", ".join(names)) for group, names in groups.items()]),
        "ALL KEYS, BY GROUP (factdpo --help lora: what each is)\n" + _rows(all_keys),
        folded(MORE),
    ]
    return "\n\n".join(parts)


def about(name: str) -> str:
    """All about a command, a group or a key; raises ConfigError for any other name."""
    name = SHORT.get(name.partition("=")[0], name.partition("=")[0])
    if command := table.find(name):
        return command.load().make_parser().format_help().strip()
    keys, groups = schema_keys(), options()
    inside = [_key(key, keys[key]) for key in keys if key == name or key.startswith(f"{name}.")]
    parts = [f"{name}: key, default, meaning\n{_rows(inside)}"] if inside else []
    if name in groups:
        files = [(option, _first_comment(file)) for option, file in groups[name].items()]
        parts.insert(0, f"{name}=OPTION\n{_rows(files)}")
    if not parts:
        hint = did_you_mean(name, [*table.NAMES, *groups, *keys, *SHORT])
        raise ConfigError(f"help {name}: neither a command nor a group nor a key{hint}; factdpo --help lists all")
    return "\n\n".join(parts)


def _key(name: str, key: Key) -> tuple[str, str, str]:
    """Name, default, and meaning with options and short names."""
    short = [alias for alias, meant in SHORT.items() if meant == name and "." not in alias]
    what = [key.comment, " | ".join(key.options), *(f"short: {alias}" for alias in short)]
    if name == "model.name":  # a label: what picks the model is its group
        return "model", key.default, "the base model, an option of the group; factdpo --help model lists them"
    return name, key.default, "; ".join(part for part in what if part)


def _rows(cells: list[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell; the last one is wrapped."""
    widths = [max(map(len, column)) + 2 for column in zip(*cells, strict=True)]
    column = 2 + sum(widths[:-1])
    lefts = ["".join(f"{cell:<{width}}" for cell, width in zip(row, widths[:-1], strict=False)) for row in cells]
    return "\n".join(row(left[:-2], cell[-1], column) for left, cell in zip(lefts, cells, strict=True))


def _first_comment(file: Path) -> str:
    """The first comment of an option's file, less what stands behind two spaces: the size of a sweep."""
    comments = [line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((re.split(r"\s{2,}", line)[0] for line in comments if not line.startswith("@package")), "")
