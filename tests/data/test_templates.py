"""Sentences with places for names: where they are cut, and what cannot be asked."""

import pytest

from factdpo.data.templates import Template, fill, parse


@pytest.mark.parametrize(
    ("sentence", "prompt", "asks_subject"),
    [
        ("[X] was born in [Y] .", "{subject} was born in", False),
        ("[X] was born in [Y].", "{subject} was born in", False),
        ("The capital of {subject} is {object}", "The capital of {subject} is", False),
        ("[Y] is the birthplace of [X] .", "{object} is the birthplace of", True),
        ("[X], yes, [X], plays {object}", "{subject}, yes, {subject}, plays", False),
        ("[X] was born in [Y] in spring .", None, None),
        ("[X] was born .", None, None),
        ("in [Y]", None, None),
        ("[X] is [Y], that is [Y]", None, None),
    ],
)
def test_a_sentence_is_cut_before_the_name_it_ends_with(sentence: str, prompt: str | None, asks_subject: bool | None):
    assert parse(sentence) == (None if prompt is None else Template(prompt, bool(asks_subject)))


def test_a_template_asks_about_a_name_and_braces_in_names_stay():
    assert Template("{subject}'s {x} is", False).ask("A {object}") == "A {object}'s {x} is"
    assert Template("{object} is where", True).ask("Paris") == "Paris is where"
    assert fill("{a} and {b} {c}", {"a": "{b}", "b": "x"}) == "{b} and x {c}"
