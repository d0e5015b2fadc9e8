"""`factdpo export`: a trained model as a folder that needs no factdpo, or on the hub."""

from pathlib import Path

from factdpo import console, hub
from factdpo.commands.parser import Parser, folder
from factdpo.config.help import did_you_mean
from factdpo.config.schema import ConfigError
from factdpo.using.export import export
from factdpo.using.finished import read_finished

WORDS = ("merge", "to", "push")


def main(arguments: list[str]) -> None:
    """Writes the folder, and pushes it if asked to; raises ConfigError for what cannot be done."""
    args = make_parser().parse_intermixed_args(arguments)
    words = _read(args.words)
    merge = words.get("merge", "false").lower()
    if merge not in ("true", "false"):
        raise ConfigError(f"merge={words['merge']}: must be true or false")
    to, push = words.get("to"), words.get("push")
    where = export(read_finished(Path(args.folder)), Path(to).expanduser() if to else None, merge == "true", push)
    console.say(f"{where}: {'a whole model' if (where / 'config.json').is_file() else 'a PEFT adapter'}")
    console.say(f"how to load it: {where / 'README.md'}")
    if push:
        console.say(hub.push(where, push, f"Upload {where.name}"))


def _read(words: list[str]) -> dict[str, str]:
    """`key=value` words as a dict; raises ConfigError for one that is none of WORDS."""
    read: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (equals and value) or key not in WORDS:
            raise ConfigError(
                f"export: {word}: write merge=true, to=<folder> or push=<user>/<name>{did_you_mean(key, list(WORDS))}"
            )
        read[key] = value
    return read


def make_parser() -> Parser:
    parser = Parser(
        "export",
        "Write the trained model of a run as a folder that transformers and PEFT load, with a model card.",
        """KEY=VALUE:
  merge=true       a whole model: the adapter is added to the weights of its base
  to=FOLDER        where to write it (default: out/exports/<run>)
  push=USER/NAME   upload the folder to the Hugging Face hub too; needs a token

Without merge=true the folder is a PEFT adapter. Its base is the model's hub id and
commit; nano, SmolLM2 and models from folders are written to base/ beside it.

examples:
  factdpo export outputs/runs/<run>
  factdpo export outputs/runs/<run> merge=true to=my-model
  factdpo export outputs/runs/<run> merge=true push=ada/nano-facts""",
    )
    parser.add_argument("folder", type=folder, metavar="FOLDER", help="of a finished run")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="merge, to, push: see below")
    return parser
