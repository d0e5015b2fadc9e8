"""What the commands' parsers share: text as wide as the terminal, one-line refusals, folders that exist as typed."""

import argparse
import shutil
import textwrap
from pathlib import Path
from typing import NoReturn

from factdpo.config.schema import ConfigError

WIDEST = 120  # columns; longer lines are hard to read


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are ConfigErrors, as those of all of factdpo."""

    def __init__(self, name: str, description: str, epilog: str | None = None):
        super().__init__(
            prog=f"factdpo {name}",
            description=folded(description),
            epilog=folded(epilog) if epilog else None,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=width()),
        )

    def add_folders(self, help: str) -> None:
        """Any number of folders; without one `outputs`."""
        self.add_argument("folders", nargs="*", type=folder, default=["outputs"], metavar="FOLDER", help=help)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog.removeprefix('factdpo ')}: {message}; {self.prog} --help says how it is used")


def folder(text: str) -> str:
    """A folder that was typed; refuses a pattern that the shell has left as it was."""
    if any(sign in text for sign in "*?[") and not Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text}: nothing matches")
    return text


def width() -> int:
    """Columns of the terminal that help may fill."""
    return min(shutil.get_terminal_size((100, 24)).columns, WIDEST)


def folded(text: str) -> str:
    """Paragraphs wrapped to the terminal; an indented line is a row of two columns, whose second one is wrapped."""
    parts: list[str] = []
    paragraph: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line and not line.startswith(" "):
            paragraph.append(line)
            continue
        if paragraph:
            parts.append(_wrap(" ".join(paragraph)))
            paragraph = []
        left, _, right = (part.strip() for part in line.lstrip().partition("  "))
        parts.append(row(left, right, len(line) - len(right)) if right else line)
    return "\n".join(parts).strip("\n")


def row(left: str, right: str, column: int) -> str:
    """Two columns, the second one from that column on; below the first one where there is no room beside it."""
    start = f"  {left:<{column - 4}}  "
    if len(start) == column <= width() // 2:
        return _wrap(right, start, " " * column)
    return f"  {left}".rstrip() + "\n" + _wrap(right, " " * 6, " " * 6)


def _wrap(text: str, first: str = "", others: str = "") -> str:
    return textwrap.fill(
        text, width(), initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
