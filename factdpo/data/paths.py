"""Values in nested rows by dotted paths, and what two texts begin with in common."""

import re
from collections.abc import Iterator
from typing import Any


def value_at(row: Any, path: str) -> Any:
    """What stands at a path like `requested_rewrite.target_new.str`, `answers[0]` or `locality.*.prompt`.

    A step into a list without a number is taken in each of its elements, and `*` in each value of an object: the result
    is then a list. A column whose own name has dots is found by it. None where there is nothing.
    """
    return _at(row, tuple(step for step in re.split(r"[.\[\]]", path) if step))


def _at(value: Any, steps: tuple[str, ...]) -> Any:
    if not steps or value is None:
        return value
    if isinstance(value, list):
        if steps[0].isdigit():
            return _at(value[int(steps[0])], steps[1:]) if int(steps[0]) < len(value) else None
        return _all_or_none([_at(item, steps) for item in value])
    if isinstance(value, dict):
        if steps[0] == "*":
            return _all_or_none([_at(item, steps[1:]) for item in value.values()])
        for length in range(len(steps), 0, -1):
            name = ".".join(steps[:length])
            if name in value:
                return _at(value[name], steps[length:])
    return None


def _all_or_none(found: list[Any]) -> list[Any] | None:
    return None if all(item is None for item in found) else found


def leaves(value: Any) -> Iterator[Any]:
    """The values in nested lists, in order, less those that are missing."""
    if isinstance(value, list):
        for item in value:
            yield from leaves(item)
    elif value is not None:
        yield value


def paired(prompts: Any, answers: Any) -> Iterator[tuple[Any, Any]]:
    """Each prompt in nested lists with its answer: the first one at the same place, or the one answer of all."""
    if not isinstance(prompts, list):
        if prompts is not None:
            yield prompts, next(leaves(answers), None)
        return
    parallel = isinstance(answers, list) and len(answers) == len(prompts)
    for number, prompt in enumerate(prompts):
        yield from paired(prompt, answers[number] if parallel else answers)


def common_beginning(a: str, b: str, words: bool = True) -> str:
    """What both texts begin with; with `words`, up to the end of a word, white space included."""
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    while words and length > 0 and not a[length - 1].isspace():
        length -= 1
    return a[:length]
