"""Facts from triples (subject, relation, object), told and asked in the sentences of their relation."""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from factdpo.config.schema import DataConfig, TriplesConfig
from factdpo.data import columns
from factdpo.data.facts import BadRow, Fact, FactError, RowCheck, cut, normalised
from factdpo.data.files import files_at, rows
from factdpo.data.tables import read_rows
from factdpo.data.templates import Template, parse

TRIES = 100  # draws of a false answer before those that are true are left out one by one


class Triple(NamedTuple):
    where: str
    split: str | None
    subject: str
    relation: str
    object: str


def read(cfg: DataConfig, check: RowCheck) -> Iterator[Fact]:
    """A fact per triple and wording that is trained on, in the table's order, with its other wordings as probes.

    The false answer is another object of the same relation, drawn as often as it stands in the table, and none that is
    true of this subject anywhere in it. Sentences that ask for the subject become probes `reverse_question`.
    """
    templates = _templates(cfg.triples, check)
    triples = list(_triples(cfg, templates, check))
    objects = _objects(triples, cfg.triples)
    subjects = Answers(((t.relation, t.object, t.subject) for t in triples), cfg.triples.seed)
    for index, triple in enumerate(triples):
        false = objects.false(triple.relation, triple.subject, triple.object)
        if false is None:
            check.refuse(
                "no false answer",
                f"{triple.where}: relation '{cut(triple.relation)}' has no object that is not true of "
                f"'{cut(triple.subject)}'; a false answer is another object of the same relation",
            )
        else:
            other = subjects.false(triple.relation, triple.object, triple.subject)
            yield from _facts(index, triple, templates[triple.relation], false, other, cfg.triples)


def true_answers(cfg: DataConfig) -> "Answers":
    """What the whole table says of its subjects, in rows too that became no facts."""
    check = RowCheck(cfg.bad_rows)  # reading the facts has named these rows
    return _objects(_triples(cfg, _templates(cfg.triples, check), check), cfg.triples)


def _objects(triples: Iterable[Triple], cfg: TriplesConfig) -> "Answers":
    return Answers(((t.relation, t.subject, t.object) for t in triples), cfg.seed)


def _facts(
    index: int, triple: Triple, templates: list[Template], false: str, other: str | None, cfg: TriplesConfig
) -> Iterator[Fact]:
    """One fact per wording that is trained on; the first has the probes."""

    def fact(template: Template) -> Fact:
        about, chosen, rejected = triple.subject, triple.object, false
        if template.asks_subject:
            about, chosen, rejected = triple.object, triple.subject, str(other)
        return Fact(
            index, template.ask(about), chosen, rejected, triple.subject, triple.object, triple.relation,
            where=triple.where, split=triple.split,
        )  # fmt: skip

    told = [template for template in templates if not template.asks_subject]
    probes = [("paraphrase", fact(template)) for template in told[cfg.train_templates :]]
    if other is not None:
        probes += [("reverse_question", fact(template)) for template in templates if template.asks_subject]
    for number, template in enumerate(told[: cfg.train_templates]):
        first = fact(template)
        yield dataclasses.replace(first, probes=tuple(probes)) if number == 0 else first


def _triples(cfg: DataConfig, templates: dict[str, list[Template]], check: RowCheck) -> Iterator[Triple]:
    """The triples with a sentence, each once; without a column for the relation, the file is named after it."""
    names = {"subject": cfg.triples.subject, "relation": cfg.triples.relation, "object": cfg.triples.object}
    first: dict[tuple[object, ...], str] = {}
    for row in rows(cfg):
        values = columns.pick(row.values, names, ("subject", "object"), row.where, "data.triples")
        try:
            subject, found = (columns.required_text(values, field, row.where) for field in ("subject", "object"))
            relation = columns.text(values["relation"], "relation", row.where) or row.table
            relation = relation.strip()
            if relation not in templates:
                raise BadRow(
                    "no sentence for the relation",
                    f"{row.where}: no sentence for relation '{cut(relation)}' that ends with the object; there are "
                    f"some for {', '.join(map(cut, list(templates)[:9])) or 'none'}; add "
                    f"'data.triples.templates.{relation}=[\"[X] ... [Y]\"]'",
                )
            told = (row.split, relation, normalised(subject), normalised(found))
            if told in first:
                raise BadRow("the same triple twice", f"{row.where}: the same triple is already at {first[told]}")
            first[told] = row.where
        except BadRow as bad:
            check.refuse(bad.kind, str(bad))
        else:
            yield Triple(row.where, row.split, subject, relation, found)


class Answers:
    """What is true of each name under each relation, and false answers drawn from what is true of others."""

    def __init__(self, questions: Iterable[tuple[str, str, str]], seed: int) -> None:
        """`questions` are (relation, name, true answer)."""
        self.seed = seed
        self.of_relation: dict[str, list[str]] = defaultdict(list)
        self.different: dict[str, dict[str, str]] = defaultdict(dict)  # relation -> normalised answer -> answer
        self.true: dict[tuple[str, str], set[str]] = defaultdict(set)
        for relation, name, answer in questions:
            self.of_relation[relation].append(answer)
            self.different[relation].setdefault(normalised(answer), answer)
            self.true[relation, normalised(name)].add(normalised(answer))

    def false(self, relation: str, name: str, answer: str) -> str | None:
        """Another answer of the relation, drawn as often as it is true; None if all of them are true of this name."""
        true, others = self.true[relation, normalised(name)], self.of_relation[relation]
        rng = random.Random(f"rejected {self.seed} {relation} {name} {answer}")
        for _ in range(TRIES):
            drawn = rng.choice(others)
            if normalised(drawn) not in true:
                return drawn
        left = self.candidates(relation, name)
        return rng.choice(left) if left else None

    def candidates(self, relation: str, name: str) -> list[str]:
        """The different answers of the relation that are not true of this name, in the order of the table."""
        true = self.true[relation, normalised(name)]
        return [answer for text, answer in self.different[relation].items() if text not in true]


# ----------------------------------------------------------------------------------------------------------- templates


def _templates(cfg: TriplesConfig, check: RowCheck) -> dict[str, list[Template]]:
    """Relation -> its templates, the config's in place of those in the file; each has one that asks for the object."""
    found: dict[str, list[Template]] = defaultdict(list)
    left_out = total = 0
    for relation, sentence in _sentences(cfg):
        template = parse(sentence)
        left_out, total = left_out + (template is None), total + 1
        if template is not None and relation not in cfg.templates:
            found[relation].append(template)
    for relation, sentences in cfg.templates.items():
        for sentence in sentences:
            template = parse(sentence)
            if template is None:
                raise FactError(
                    f"data.triples.templates.{relation}: '{cut(sentence)}' must hold [X] and [Y] and end with one of "
                    "them: what is asked is the text before it, and the answer is the name"
                )
            found[relation].append(template)
    if left_out:
        check.say(
            f"data.triples.templates_path: {left_out} of {total} sentences do not end with the place of a name, so "
            "that they cannot be asked: left out"
        )
    return {relation: some for relation, some in found.items() if not all(one.asks_subject for one in some)}


def _sentences(cfg: TriplesConfig) -> Iterator[tuple[str, str]]:
    """(relation, sentence) of the templates' files; ParaRel's have a column `pattern` and are named by relation."""
    for file in files_at(cfg.templates_path, "data.triples.templates_path") if cfg.templates_path else ():
        for where, row in read_rows(file.path):
            values = columns.pick(row, {"relation": "relation", "template": "template", "pattern": "pattern"})
            field = "template" if values["pattern"] is None else "pattern"
            if values[field] is None:
                raise FactError(f"{where}: no column 'template' or 'pattern' (found: {', '.join(row)}), or it is empty")
            relation = columns.text(values["relation"], "relation", where) or file.path.name.partition(".")[0]
            yield relation.strip(), columns.required_text(values, field, where)
