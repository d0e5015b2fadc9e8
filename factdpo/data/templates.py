"""Sentences with places for names: `[X]` and `[Y]` as ParaRel writes them, or `{subject}` and `{object}`."""

import re
from typing import NamedTuple

PLACES = {"[X]": "{subject}", "[Y]": "{object}"}


class Template(NamedTuple):
    """A sentence cut before its answer: a prompt with a place for the other name."""

    prompt: str  # with {subject}, or {object} if it asks for the subject
    asks_subject: bool

    def ask(self, name: str) -> str:
        """The prompt about this name."""
        return self.prompt.replace("{object}" if self.asks_subject else "{subject}", name)


def parse(sentence: str) -> Template | None:
    """The template of a sentence; None if it does not end with the place of one name, after that of the other.

    A full stop at the end is left off, since the answer is the end of what is trained on.
    """
    text = sentence
    for place, name in PLACES.items():
        text = text.replace(place, name)
    text = text.rstrip(" .")
    for answer, other in (("{object}", "{subject}"), ("{subject}", "{object}")):
        prompt = text.removesuffix(answer).rstrip()
        if prompt != text and other in prompt and answer not in prompt:
            return Template(prompt, asks_subject=answer == "{subject}")
    return None


def fill(template: str, names: dict[str, str]) -> str:
    """The template with each `{key}` of `names` replaced; braces in a name stay as they are."""
    return re.sub("|".join(re.escape(f"{{{key}}}") for key in names), lambda m: names[m[0][1:-1]], template)
