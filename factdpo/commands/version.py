"""`factdpo version`, also `factdpo --version`."""

import factdpo
from factdpo.commands.parser import Parser


def main(arguments: list[str]) -> None:
    """Prints factdpo's version."""
    make_parser().parse_args(arguments)
    print(f"factdpo {factdpo.__version__}")


def make_parser() -> Parser:
    return Parser("version", "The version of factdpo; factdpo doctor has those of everything that it uses.")
