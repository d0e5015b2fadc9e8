"""Loads the facts of a config: read by its source, checked row by row and against each other (D5)."""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterator
from operator import attrgetter

from factdpo.config.schema import DataConfig, DataSource, RelationKind
from factdpo.data.facts import BadRow, Fact, FactError, Loaded, RowCheck, cut, normalised
from factdpo.data.files import place
from factdpo.data.sources import characters, edits, graph, pairs, preference, synthetic, triples

SOURCES: dict[DataSource, Callable[[DataConfig, RowCheck], Iterator[Fact]]] = {
    DataSource.harry_potter: characters.read,
    DataSource.pairs: pairs.read,
    DataSource.triples: triples.read,
    DataSource.graph: graph.read,
    DataSource.edits: edits.read,
    DataSource.preference: preference.read,
    DataSource.synthetic: synthetic.read,
}

TEXTS = ("prompt", "chosen", "rejected", "subject", "object", "relation", "reverse_prompt", "group")
_texts_of = attrgetter(*TEXTS)


def load_facts(cfg: DataConfig) -> Loaded:
    """All facts of the data; raises FactError, with file and line, for rows that are no facts (data.bad_rows)."""
    check = RowCheck(cfg.bad_rows)
    facts = []
    for fact in SOURCES[cfg.source](cfg, check):
        try:
            facts.append(_clean(fact, cfg, check))
        except BadRow as bad:
            check.refuse(bad.kind, str(bad))
    facts = _without_doubles(facts, cfg, check)
    notes = check.notes()
    if not facts:
        raise FactError(f"{place(cfg)}: holds no facts; it needs a header and at least one row")
    if cfg.relation_kind is RelationKind.sides:
        facts = _with_sides(facts, cfg)
    return Loaded(facts, notes, check.dropped)


def sides(cfg: DataConfig) -> dict[str, int] | None:
    """Name -> number of its side, for figures; None for data without a table of sides."""
    if cfg.source is DataSource.synthetic:
        return synthetic.camps(cfg.synthetic)
    if cfg.source is not DataSource.harry_potter:
        return None
    side_of = characters.sides(cfg)
    numbers = {side: number for number, side in enumerate(dict.fromkeys(side_of.values()))}
    return {name: numbers[side] for name, side in side_of.items()}


# --------------------------------------------------------------------------------------------------------- row by row


def _clean(fact: Fact, cfg: DataConfig, check: RowCheck) -> Fact:
    """The fact without white space at the ends of its texts; raises BadRow if it is none."""
    fact = _stripped(fact, cfg, check)
    for name in ("prompt", "chosen", "rejected"):
        if not getattr(fact, name).strip():
            raise BadRow(f"{name} is empty", f"{fact.where}: {name} is empty")
    if not all(text is None or text.isascii() or _is_unicode(text) for text in _all_texts(fact)):
        raise BadRow(
            "half of a character (a lone surrogate)",
            f"{fact.where}: holds half of a character (a lone surrogate); write the whole one, or remove it",
        )
    if unicodedata.normalize("NFC", fact.chosen) == unicodedata.normalize("NFC", fact.rejected):
        forms = "" if fact.chosen == fact.rejected else ", in two Unicode forms"
        raise BadRow(
            "chosen and rejected are the same",
            f"{fact.where}: chosen and rejected are both '{cut(fact.chosen)}'{forms}; make them differ",
        )
    if _is_self_pair(fact, cfg):
        raise BadRow(
            "subject and object are the same name",
            f"{fact.where}: subject and object are both '{fact.subject}'; remove the row, a self-pair is no fact",
        )
    if fact.reverse_prompt is not None:
        _check_reverse(fact, fact.reverse_prompt)
    return fact


def _stripped(fact: Fact, cfg: DataConfig, check: RowCheck) -> Fact:
    """Exactly data.separator stands between prompt and answer; where that is empty, the texts' own ends decide."""
    changed = {
        name: text.strip()
        for name, text in zip(TEXTS, _texts_of(fact), strict=True)
        if text and (text[0].isspace() or text[-1].isspace()) and (cfg.separator or name == "reverse_prompt")
    }
    if not changed:
        return fact
    check.change("white space at the ends of its texts was removed")
    return dataclasses.replace(fact, **{name: value or None for name, value in changed.items()})  # type: ignore


def _all_texts(fact: Fact) -> Iterator[str | None]:
    yield from (fact.prompt, fact.chosen, fact.rejected, fact.reverse_prompt, fact.subject, fact.object, fact.group)
    for _, probe in fact.probes:
        yield from (probe.prompt, probe.chosen, probe.rejected)


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 has all of its characters: JSON can name halves of some."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_self_pair(fact: Fact, cfg: DataConfig) -> bool:
    """Whether the fact relates a name to itself: `Ireland` named after `Ireland` stands in its prompt once only."""
    if fact.subject is None or fact.object is None or normalised(fact.subject) != normalised(fact.object):
        return False
    symmetric = cfg.relation_kind is RelationKind.sides or fact.same_side is not None
    return symmetric or normalised(fact.prompt).count(normalised(fact.subject)) > 1


def _check_reverse(fact: Fact, reverse: str) -> None:
    if reverse == fact.prompt:
        raise BadRow(
            "reverse_prompt equals prompt",
            f"{fact.where}: reverse_prompt equals prompt; leave it empty where there is no reverse",
        )
    for answer in (fact.chosen, fact.rejected):
        if answer not in reverse:
            continue
        word = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")
        if len(word.findall(reverse)) > len(word.findall(fact.prompt)):
            raise BadRow(
                "reverse_prompt contains an answer",
                f"{fact.where}: reverse_prompt '{cut(reverse)}' contains the answer '{cut(answer)}'; a reverse swaps "
                "the names and takes the same answers; leave it empty where there is none",
            )


# ------------------------------------------------------------------------------------------------------ between facts


def _without_doubles(facts: list[Fact], cfg: DataConfig, check: RowCheck) -> list[Fact]:
    """The facts less those that an earlier row of their split tells already, or tells the other way round."""
    # (split, topic, true answer, false one) -> the first fact that says so; by its hash: 64 bits are short, and enough
    seen: dict[int, Fact] = {}
    judged: dict[int, Fact] = {}  # (split, prompt, answer, is it true) -> the first fact that says so; by its hash
    kept = []
    for fact in facts:
        chosen, rejected = normalised(fact.chosen), normalised(fact.rejected)
        prompts = [normalised(prompt) for prompt in (fact.prompt, fact.reverse_prompt) if prompt]
        topics = [*prompts, *_pair_topics(fact, cfg)]
        says = [hash((fact.split, topic, chosen, rejected)) for topic in topics]
        denies = [hash((fact.split, topic, rejected, chosen)) for topic in topics]
        double = next((seen[token] for token in says[: len(prompts)] if token in seen), None)
        opposite = next((seen[token] for token in denies if token in seen), None)
        verdicts, denied = _verdicts(fact, prompts, chosen, rejected) if cfg.source is DataSource.pairs else ([], [])
        other = next((judged[token] for token in denied if token in judged), None)
        if double is None and opposite is None and other is None:
            kept.append(fact)
            for token in says:
                seen.setdefault(token, fact)
            for token in verdicts:
                judged.setdefault(token, fact)
            continue
        told = f"{fact.where}: '{cut(fact.prompt)} {cut(fact.chosen)}'"
        if double is not None:
            check.refuse("the same fact twice", f"{told}: the same fact is already at {double.where}; keep one of them")
        elif opposite is not None:
            directed = normalised(opposite.prompt) not in prompts
            hint = " (or data.relation_kind=directed, if the order of the names matters)" if directed else ""
            check.refuse(
                "the opposite of another row",
                f"{told}: the opposite is already at {opposite.where}; keep one of them{hint}",
            )
        elif other is not None:
            check.refuse(
                "the opposite of another row",
                f"{told}, not '{cut(fact.rejected)}': {other.where} has one of these answers the other way round, "
                f"'{cut(other.chosen)}', not '{cut(other.rejected)}'; keep one, or data=preference for rankings",
            )
    return kept


def _verdicts(fact: Fact, prompts: list[str], chosen: str, rejected: str) -> tuple[list[int], list[int]]:
    """What a fact says of its two answers to its prompts, each by its hash; and the opposite of it."""
    both = ((prompt, answer, true) for prompt in prompts for answer, true in ((chosen, True), (rejected, False)))
    said = [(fact.split, prompt, answer, true) for prompt, answer, true in both]
    return [hash(one) for one in said], [hash((*one[:3], not one[3])) for one in said]


def _pair_topics(fact: Fact, cfg: DataConfig) -> list[tuple[object, ...]]:
    """What a statement about two names is about, in either order; nothing where the object is the answer."""
    if cfg.relation_kind is RelationKind.directed or fact.subject is None or fact.object is None:
        return []
    if normalised(fact.object) not in normalised(fact.prompt):
        return []
    relation = None if fact.relation in (fact.chosen, fact.rejected) else fact.relation
    return [(frozenset((normalised(fact.subject), normalised(fact.object))), relation)]


def _with_sides(facts: list[Fact], cfg: DataConfig) -> list[Fact]:
    """The facts with `same_side`, as their answers tell it; those that a source gave it keep theirs."""
    answers = sorted({answer for fact in facts for answer in (fact.chosen, fact.rejected)})
    if all(fact.same_side is not None for fact in facts):
        return facts
    if len(answers) != 2 or cfg.same_side not in answers:
        raise FactError(
            "data.relation_kind=sides: needs two answers, and data.same_side naming that for names on the same side; "
            f"found {len(answers)} answers ({', '.join(map(cut, answers[:4]))}), data.same_side={cfg.same_side}"
        )
    for fact in facts:
        if fact.subject is None or fact.object is None:
            raise FactError(f"{fact.where}: no subject or no object, which data.relation_kind=sides needs")
    return [dataclasses.replace(fact, same_side=fact.chosen == cfg.same_side) for fact in facts]
