"""Facts as token ids: prompt, separator, answer; every row is checked, and all bad ones are named at once (D1)."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from factdpo.config.schema import BadRows, Boundary, ConfigError, DataConfig, TooLong
from factdpo.data.encoder import Encoder
from factdpo.data.facts import LISTED, Fact, FactError, cut

AT_ONCE = 2048  # facts that are tokenised together
ROW_TOKENS = 64  # of a neutral text, which is cut into rows

# What is wrong with a row -> (what it says of the rows, what to do); the order of the messages.
PROBLEMS = {
    "same tokens": (
        "chosen and rejected are the same tokens, so that no model can tell them apart",
        "make them differ in what the tokenizer keeps (not in case, accents or unknown words alone)",
    ),
    "boundary": ("the prompt's tokens are not a prefix of the whole's", ""),
    "no tokens": (
        "an answer adds no tokens to those of its prompt",
        "give it text that the tokenizer keeps, and end the prompt where a token ends",
    ),
    "nested": (
        "one answer begins with the other, and the tokenizer has no end-of-text or line break to end them with",
        "give other answers",
    ),
    "too long": (
        "the row is longer than the limit (the model's own, or data.max_length if that is less)",
        "shorten it, or data.too_long=drop or truncate, which cuts the prompt's beginning",
    ),
    "unknown token": (
        "a token has no vector in the model: the tokenizer has more tokens than the model's embedding has rows",
        "resize the embedding (resize_token_embeddings) and save the model again, or leave the token out",
    ),
    "told twice": ("another row is the same tokens: one fact told twice", "keep one of them"),
    "contradiction": ("another row is the same tokens with the answers swapped", "keep one of them"),
    "same prompt": (
        "another row has the same tokens in its prompt, though other text: one could be trained on, the other held out",
        "write both prompts alike, or give both rows the same group (data.columns.group)",
    ),
}  # fmt: skip


class Row(NamedTuple):
    """A fact as token ids, in one order of its names; `problem` says why it cannot be used."""

    fact: Fact
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    nested: bool = False  # one answer's tokens begin with the other's: the end of both is part of them
    truncated: bool = False
    problem: tuple[str, str] | None = None  # its kind, and the row in words


def encoded_rows(
    facts: Iterable[Fact], encoder: Encoder, cfg: DataConfig, boundary: Boundary = Boundary.space
) -> Iterator[Row]:
    """Each fact as token ids: prompt, separator, answer, and EOS if data.eos is set.

    The tokens of the prompt must be a prefix of the tokens of prompt + answer, else training and evaluation would see
    another prompt than the model does. boundary=none reproduces a mistake that TRL makes with strings: no separator,
    and where the prompt's last token merges with an answer, the completion starts at the first token that differs.
    Where one answer's tokens begin with the other's, no model can prefer the longer one: both get their end.
    """
    if cfg.eos and encoder.eos_id is None:
        raise ConfigError("data.eos=true: the model's tokenizer has no end-of-text token; leave it at false")
    shape = _Shape(encoder, cfg, boundary, separator(cfg) if boundary is Boundary.space else "", encoder.end())
    facts = iter(facts)
    while part := list(itertools.islice(facts, AT_ONCE)):
        prompts = [fact.prompt for fact in part]
        encoded = encoder.encode(prompts)
        between = [shape.between if fact.separator is None else fact.separator for fact in part]
        chosen = [space + fact.chosen for space, fact in zip(between, part, strict=True)]
        rejected = [space + fact.rejected for space, fact in zip(between, part, strict=True)]
        answers = encoder.encode_after(prompts, encoded, chosen), encoder.encode_after(prompts, encoded, rejected)
        for fact, prompt, true, false in zip(part, encoded, *answers, strict=True):
            yield _row(fact, prompt, true, false, shape)


class _Shape(NamedTuple):
    """What is the same for all rows."""

    encoder: Encoder
    cfg: DataConfig
    boundary: Boundary
    between: str
    end: list[int]

    @property
    def limit(self) -> int:
        return min(self.cfg.max_length or self.encoder.longest, self.encoder.longest)


def _row(fact: Fact, prompt: list[int], chosen: list[int], rejected: list[int], shape: _Shape) -> Row:
    encoder, cfg = shape.encoder, shape.cfg
    start = len(prompt)
    if not chosen[:start] == rejected[:start] == prompt:
        start = min(common_prefix(prompt, chosen), common_prefix(prompt, rejected))
    answers = chosen[start:], rejected[start:]

    def bad(kind: str, detail: str = "") -> Row:
        row = f"{fact.where} '{cut(fact.prompt)}' + '{cut(fact.chosen)}' / '{cut(fact.rejected)}'"
        return Row(fact, prompt, *answers, problem=(kind, row + (f" ({detail})" if detail else "")))

    if start <= encoder.first or (start < len(prompt) and shape.boundary is Boundary.space):
        whole = chosen if common_prefix(prompt, chosen) == start else rejected
        parts = [" ".join(encoder.tokens(ids[max(0, start - 2) : start + 4])) for ids in (prompt, whole)]
        return bad("boundary", f"the prompt has … {parts[0]}, the whole has … {parts[1]}; {_advice(fact, shape)}")
    if not all(answers):
        return bad("no tokens", " ".join(encoder.tokens(min(chosen, rejected, key=len))))
    if answers[0] == answers[1]:
        return bad("same tokens", " ".join(encoder.tokens(answers[0])))
    shorter = min(len(answers[0]), len(answers[1]))
    nested = not cfg.eos and answers[0][:shorter] == answers[1][:shorter]
    if nested and not shape.end:
        return bad("nested")
    if nested or cfg.eos:
        answers = answers[0] + shape.end, answers[1] + shape.end
    prompt = prompt[:start]
    highest = max(max(prompt), max(answers[0]), max(answers[1]))
    if encoder.rows is not None and highest >= encoder.rows:
        token = encoder.tokens([highest])[0]
        return bad("unknown token", f"{token} has id {highest}, the embedding has {encoder.rows} rows")
    room = shape.limit - max(len(answers[0]), len(answers[1]))
    if start <= room:
        return Row(fact, prompt, *answers, nested)
    if cfg.too_long is TooLong.truncate and room > encoder.first:
        kept = prompt[: encoder.first] + prompt[start - room + encoder.first :]
        return Row(fact, kept, *answers, nested, truncated=True)
    return bad("too long", f"{shape.limit - room + start} tokens, and the limit is {shape.limit}")


def _advice(fact: Fact, shape: _Shape) -> str:
    if shape.between and fact.prompt[-1:].isspace():
        return "the prompt ends with white space: remove that, or data.separator="
    if not shape.between:
        return "nothing stands between them: end the prompt where a token ends, or data.separator=' '"
    return "end the prompt where a token ends"


def separator(cfg: DataConfig) -> str:
    r"""What stands between prompt and answer; \n and \t, as they are typed, are a line break and a tab."""
    return cfg.separator.replace("\\n", "\n").replace("\\t", "\t")


# ------------------------------------------------------------------------------------------------------- all the rows


@dataclass(frozen=True)
class Checked:
    """The facts whose token ids can be trained on and scored, in either order of their names; how many are special."""

    facts: list[Fact]
    dropped: Counter[str] = field(default_factory=Counter)  # kind of problem -> facts
    nested: int = 0  # facts with an answer that begins with the other
    truncated: int = 0  # facts with a prompt whose beginning is cut off
    example: Fact | None = None  # of nested answers
    end: str = ""  # what ends nested answers
    rows: dict[str, int] = field(default_factory=dict)  # rows that were no facts -> how many were left out
    left_off: str = ""  # what the tokenizer adds to every text by itself

    def warnings(self) -> list[str]:
        """Each thing that became of rows as a sentence."""
        said = []
        if self.nested and self.example:
            said.append(
                f"in {self.nested} of {len(self.facts)} facts one answer begins with the other, as in "
                f"'{cut(self.example.chosen)}' and '{cut(self.example.rejected)}' ({self.example.where}): both are "
                f"trained and scored with their end, {self.end!r}, without which the shorter is always the likelier"
            )
        if self.truncated:
            said.append(f"data.too_long=truncate: the beginning of the prompt is cut off in {self.truncated} facts")
        total = len(self.facts) + self.dropped.total()
        said += [f"{count} of {total} facts were dropped: {PROBLEMS[kind][0]}" for kind, count in self.dropped.items()]
        if self.left_off:
            said.append(f"the tokenizer ends every text with {self.left_off!r} by itself, which is left off")
        return said

    def record(self) -> dict[str, object]:
        """The counts as result.json has them."""
        dropped = self.rows | self.dropped
        return {
            "facts": len(self.facts),
            "nested": self.nested,
            "truncated": self.truncated,
            "dropped": {kind.replace(" ", "_"): count for kind, count in dropped.items()},
        }


def check_tokens(facts: list[Fact], encoder: Encoder, cfg: DataConfig) -> Checked:
    """The facts that can be used under this tokenizer; raises ConfigError that names all others, a line per kind.

    Both orders of a fact's names are looked at. With data.bad_rows=drop, or data.too_long=drop for what is too long,
    the others are left out and counted. Two facts of the same tokens are one told twice, whatever their texts: without
    this, one could be trained on and the other held out.
    """
    bad: dict[str, dict[int, str]] = {kind: {} for kind in PROBLEMS}  # kind -> place in `facts` -> words
    told, nested, truncated = _Told(facts), set(), set()
    for boundary in boundaries(cfg):
        for place, is_probe, row in _all_rows(facts, encoder, cfg, boundary):
            problem = row.problem
            if problem is None and boundary is Boundary.space and not is_probe:
                problem = told.before(place, row)
            if problem is not None:
                bad[problem[0]].setdefault(place, problem[1])
            nested.update([place] * row.nested)
            truncated.update([place] * row.truncated)
    drop = {kind for kind in bad if cfg.bad_rows is BadRows.drop and kind != "too long"}
    drop |= {"too long"} if cfg.too_long is TooLong.drop else set()
    if refused := [_refusal(kind, bad[kind], len(facts)) for kind in bad if bad[kind] and kind not in drop]:
        raise FactError("\n".join(refused))
    out: dict[int, str] = {}
    for kind in bad:
        out = dict.fromkeys(bad[kind], kind) | out  # the first kind counts
    checked = Checked(
        [fact for place, fact in enumerate(facts) if place not in out] if out else facts,
        Counter(out.values()),
        left_off=" ".join(encoder.tokens(encoder.encode_all(["a"])[0][-encoder.last :])) if encoder.last else "",
    )
    left = nested - out.keys()
    return _counted(checked, len(left), len(truncated - out.keys()), facts[min(left)] if left else None, encoder)


def recounted(checked: Checked, facts: list[Fact], encoder: Encoder, cfg: DataConfig) -> Checked:
    """The same facts with other false answers, all of them usable: what is nested or truncated is counted anew."""
    nested, truncated = set(), set()
    for boundary in boundaries(cfg):
        for place, _, row in _all_rows(facts, encoder, cfg, boundary):
            nested.update([place] * row.nested)
            truncated.update([place] * row.truncated)
    first = facts[min(nested)] if nested else None
    return _counted(replace(checked, facts=facts), len(nested), len(truncated), first, encoder)


def _counted(checked: Checked, nested: int, truncated: int, example: Fact | None, encoder: Encoder) -> Checked:
    end = " ".join(encoder.tokens(encoder.end())) if nested else ""
    return replace(checked, nested=nested, truncated=truncated, example=example, end=end)


def boundaries(cfg: DataConfig) -> list[Boundary]:
    """The boundary that evaluation reads, and that of training if it is another."""
    return list(dict.fromkeys((Boundary.space, cfg.boundary)))


def _all_rows(
    facts: list[Fact], encoder: Encoder, cfg: DataConfig, boundary: Boundary
) -> Iterator[tuple[int, bool, Row]]:
    """(place of the fact, is it a probe, row) of every fact, of its reverse and of its probes."""
    told = ((place, is_probe, each) for place, fact in enumerate(facts) for is_probe, each in _told_by(fact))
    places, each = itertools.tee(told)
    rows = encoded_rows((fact for _, _, fact in each), encoder, cfg, boundary)
    return ((place, is_probe, row) for (place, is_probe, _), row in zip(places, rows, strict=True))


def _told_by(fact: Fact) -> Iterator[tuple[bool, Fact]]:
    """(is it a probe, fact) of everything that is trained on or scored for a fact."""
    yield False, fact
    if fact.reverse_prompt is not None:
        yield False, fact.reversed()
    yield from ((True, probe) for _, probe in fact.probes)


class _Told:
    """Which fact has which tokens, by hashes of 64 bits: of a million facts none collides by chance."""

    def __init__(self, facts: list[Fact]) -> None:
        self.facts = facts
        self.first: dict[int, int] = {}  # hash of a row, or of its prompt -> place of the first fact with it

    def before(self, place: int, row: Row) -> tuple[str, str] | None:
        """What a fact before this one in its split makes of it, and the row in words; None if it is new."""
        fact, prompt = self.facts[place], tuple(row.prompt)
        chosen, rejected = tuple(row.chosen), tuple(row.rejected)
        keys = {
            "told twice": hash((fact.split, prompt, chosen, rejected)),
            "contradiction": hash((fact.split, prompt, rejected, chosen)),
            "same prompt": hash((fact.split, prompt)),
        }
        for kind, key in keys.items():
            other = self.facts[self.first.get(key, place)]
            if other is not fact and not (kind == "same prompt" and _stay_together(fact, other)):
                return kind, f"{row.fact.where} '{cut(row.fact.prompt)}', already at {other.where}"
        for kind in ("told twice", "same prompt"):
            self.first.setdefault(keys[kind], place)
        return None


def _stay_together(fact: Fact, other: Fact) -> bool:
    """Whether no draw parts these two; the splits of the data's own are not drawn."""
    return fact.split is not None or fact.key == other.key or bool(set(fact.prompts) & set(other.prompts))


def _refusal(kind: str, rows: dict[int, str], total: int) -> str:
    """One line for all rows of a kind: how many, the first of them, and what to do."""
    (what, cure), shown = PROBLEMS[kind], list(rows.values())[:LISTED]
    more = f"; and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
    drop = "" if kind == "too long" else "data.bad_rows=drop leaves such rows out"
    return "; ".join(filter(None, (f"{len(rows)} of {total} facts: {what}: {'; '.join(shown)}{more}", cure, drop)))


def text_tokens(text: str, encoder: Encoder, key: str) -> list[int]:
    """A text as token ids; raises ConfigError, with its key, for one that does not fill a row and the token before."""
    (ids,) = encoder.encode([text])
    if len(ids) <= ROW_TOKENS:
        raise ConfigError(f"{key}: the text has {len(ids)} tokens; give more than {ROW_TOKENS}")
    return ids


def common_prefix(a: list[int], b: list[int]) -> int:
    """The number of tokens with which both begin."""
    if b[: len(a)] == a:  # mostly, and quickly seen
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
