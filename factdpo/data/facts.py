"""What a fact is; what makes two texts the same; and the list of rows that are none."""

import dataclasses
import unicodedata
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from factdpo.config.schema import BadRows, ConfigError

SHOWN = 60  # characters of a text in a message
LONGEST = 1900  # characters of a message: some quote a column's name, which may be a whole file
LISTED = 3  # rows of each kind in a message


class FactError(ConfigError):
    """Invalid data; the message names file and line, the value, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= LONGEST else f"{message[:LONGEST]}…")


class BadRow(FactError):
    """One row that is no fact; `kind` says what is wrong with all rows of its kind."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str  # system, user, assistant, tool
    content: str


class Conversation(NamedTuple):
    """A fact that was told as messages, which each model's chat template writes in its own way."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """A prompt with its true (`chosen`) and false (`rejected`) continuation, all without spaces at their ends."""

    index: int  # position in the data; a fact, its reverse and its probes share it
    prompt: str
    chosen: str
    rejected: str
    subject: str | None = None  # the name that comes first in the prompt
    object: str | None = None  # the second name, or the answer
    relation: str | None = None
    reverse_prompt: str | None = None  # the same fact with the names swapped
    same_side: bool | None = None  # whether subject and object belong to the same camp; None if the relation is another
    where: str = ""  # file and line, for messages
    group: str | None = None  # rows of one group are never on both sides of a split
    split: str | None = None  # the split that the data itself puts it into
    probes: tuple[tuple[str, "Fact"], ...] = ()  # (kind, prompt about this fact): paraphrase, locality, portability
    conversation: Conversation | None = None  # that is to be written in the model's chat template
    separator: str | None = None  # between prompt and answer; None: data.separator

    def reversed(self) -> "Fact":
        """The same fact with the names swapped; requires a reverse_prompt."""
        assert self.reverse_prompt is not None, f"{self.where}: no reverse_prompt"
        return dataclasses.replace(
            self, prompt=self.reverse_prompt, reverse_prompt=self.prompt, subject=self.object, object=self.subject
        )

    @property
    def key(self) -> Hashable:
        """What this fact is about: facts with the same key are all trained on or all held out (D5).

        Its group, else the unordered pair of its names, else its subject, else its prompts; all normalised.
        """
        if self.group is not None:
            return "group", normalised(self.group)
        if self.subject is not None and self.object is not None:
            return frozenset((normalised(self.subject), normalised(self.object)))
        if self.subject is not None:
            return normalised(self.subject)
        return frozenset((normalised(self.prompt), normalised(self.reverse_prompt or self.prompt)))

    @property
    def prompts(self) -> list[str]:
        """The prompts that say this fact, normalised: its own, its reverse, its paraphrases."""
        said = [
            self.prompt,
            self.reverse_prompt,
            *(probe.prompt for kind, probe in self.probes if kind == "paraphrase"),
        ]
        return [normalised(prompt) for prompt in said if prompt]


def normalised(text: str) -> str:
    """The text without what makes no other fact: case, Unicode form (NFC), and how much white space there is."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip(" ").lower()  # the same, in a quarter of the time
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def cut(text: str) -> str:
    """The text as a message shows it: one line, and not longer than SHOWN characters."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


class Loaded(NamedTuple):
    """The facts in the data's order, and what became of the rows that are none."""

    facts: list[Fact]
    notes: list[str]  # a sentence for each kind of row left out, and of change that was made
    dropped: dict[str, int]  # what is wrong with rows that were left out -> their number


@dataclass
class RowCheck:
    """What is found in the rows of the data: those that are no facts, by kind, and what was changed in the others."""

    bad_rows: BadRows
    bad: dict[str, list[str]] = field(default_factory=dict)  # kind -> messages
    changes: dict[str, int] = field(default_factory=dict)  # what was done -> rows
    said: list[str] = field(default_factory=list)  # what else the record is to say

    def refuse(self, kind: str, message: str) -> None:
        """Note a row that is no fact; it is left out of the facts."""
        self.bad.setdefault(kind, []).append(message)

    def change(self, what: str) -> None:
        """Note a row in which something was changed."""
        self.changes[what] = self.changes.get(what, 0) + 1

    def say(self, sentence: str) -> None:
        """Note something about the data as a whole."""
        self.said.append(sentence)

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows of each kind are left out."""
        return {kind: len(messages) for kind, messages in self.bad.items()}

    def notes(self) -> list[str]:
        """A sentence for each kind of change and what else was noted, for the run's record.

        Raises FactError with the first rows of each kind if there are bad ones, unless data.bad_rows=drop.
        """
        if self.bad and self.bad_rows is BadRows.refuse:
            lines = []
            for kind, messages in self.bad.items():
                lines += messages[:LISTED]
                if len(messages) > LISTED:
                    lines.append(f"and {_rows(len(messages) - LISTED)} more: {kind}")
            raise FactError("\n".join([*lines, "correct these rows, or leave them out with data.bad_rows=drop"]))
        dropped = [f"{_rows(count)} left out: {kind}" for kind, count in self.dropped.items()]
        return dropped + [f"{_rows(count)} changed: {what}" for what, count in self.changes.items()] + self.said


def _rows(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''}"
