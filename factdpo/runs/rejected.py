"""False answers of triples that only a model can choose: the nearest in tokens, and the likeliest for the base."""

import dataclasses
import itertools
import random
from pathlib import Path

from factdpo.config.schema import Config, DataSource, Rejected
from factdpo.data.facts import Fact
from factdpo.data.pairs import tokenise
from factdpo.data.sources.triples import Answers, true_answers
from factdpo.data.splits import make_splits
from factdpo.data.tokens import Checked, boundaries, encoded_rows, recounted, separator
from factdpo.models.base import Base
from factdpo.models.scoring import reference_logps

TRIES = 10  # of the nearest answers, before the drawn one stays
Ranked = dict[int, list[str]]  # fact's index -> false answers, the best one first


def with_rejected(checked: Checked, base: Base, cfg: Config) -> Checked:
    """The facts with the false answers that data.triples.rejected asks for; they have drawn ones.

    Facts that the splits draw get the best one that all their wordings can be trained on with, by the first wording;
    questions for the subject keep theirs, and so does a fact for which there is none. What is true of a subject
    anywhere in the data is no false answer.
    """
    how = cfg.data.triples.rejected
    if cfg.data.source is not DataSource.triples or how is Rejected.random:
        return checked
    drawn = {fact.index for split in make_splits(checked.facts, cfg.split).splits.values() for fact in split}
    wordings: dict[int, list[Fact]] = {}
    for fact in checked.facts:
        if fact.index in drawn:
            told = [probe for kind, probe in fact.probes if _is_told(kind)]
            wordings.setdefault(fact.index, []).extend([fact, *told])
    rank = _nearest if how is Rejected.nearest else _hardest
    ranked = rank([of_fact[0] for of_fact in wordings.values()], true_answers(cfg.data), base, cfg)
    false = _first_usable(ranked, wordings, base, cfg)
    return recounted(checked, [_with(fact, false.get(fact.index)) for fact in checked.facts], base.encoder, cfg.data)


def _is_told(kind: str) -> bool:
    """Whether probes of this kind have the fact's own answers."""
    return kind != "reverse_question"


def _with(fact: Fact, false: str | None) -> Fact:
    """The fact and its probes with this false answer, or as they are."""
    if false is None:
        return fact
    probes = [(kind, _with(probe, false) if _is_told(kind) else probe) for kind, probe in fact.probes]
    return dataclasses.replace(fact, rejected=false, probes=tuple(probes))


def _nearest(asked: list[Fact], answers: Answers, base: Base, cfg: Config) -> Ranked:
    """By how near their number of tokens is to the true answer's; the first is drawn among equals."""
    texts = list({answer for of_relation in answers.of_relation.values() for answer in of_relation})
    ids = base.encoder.encode([separator(cfg.data) + text for text in texts])
    tokens = {text: len(of_text) for text, of_text in zip(texts, ids, strict=True)}
    ranked = {}
    for fact in asked:
        relation, subject, true = str(fact.relation), str(fact.subject), tokens[fact.chosen]
        by_distance: dict[int, list[str]] = {}
        for answer in answers.candidates(relation, subject):
            by_distance.setdefault(abs(tokens[answer] - true), []).append(answer)
        rng = random.Random(f"nearest {cfg.data.triples.seed} {relation} {subject} {fact.chosen}")
        first = rng.choice(by_distance[min(by_distance)])
        others = (answer for distance in sorted(by_distance) for answer in by_distance[distance] if answer != first)
        ranked[fact.index] = [first, *itertools.islice(others, TRIES - 1)]
    return ranked


def _hardest(asked: list[Fact], answers: Answers, base: Base, cfg: Config) -> Ranked:
    """By their log-prob under the base; of many, `candidates` drawn ones."""
    tried = []
    for fact in asked:
        relation, subject = str(fact.relation), str(fact.subject)
        candidates = answers.candidates(relation, subject)
        if len(candidates) > cfg.data.triples.candidates:
            rng = random.Random(f"candidates {cfg.data.triples.seed} {relation} {subject} {fact.chosen}")
            candidates = rng.sample(candidates, cfg.data.triples.candidates)
        tried += [dataclasses.replace(fact, rejected=answer) for answer in candidates]
    tried = [row.fact for row in encoded_rows(tried, base.encoder, cfg.data) if row.problem is None]
    if not tried:
        return {}
    pairs = tokenise(tried, base.tokenizer, cfg.data)
    logps = reference_logps(base, pairs, cfg.eval.batch_size, Path(cfg.out) / "cache").rejected.tolist()
    ranked: Ranked = {}
    for _, fact in sorted(zip(logps, tried, strict=True), key=lambda scored: -scored[0]):  # of equals, the first
        ranked.setdefault(fact.index, []).append(fact.rejected)
    return ranked


def _first_usable(ranked: Ranked, wordings: dict[int, list[Fact]], base: Base, cfg: Config) -> dict[int, str]:
    """Fact's index -> the first of its answers with which the token ids of all its wordings can be trained on."""
    found: dict[int, str] = {}
    while ranked:
        tried = {index: answers[0] for index, answers in ranked.items()}
        told = [_with(wording, answer) for index, answer in tried.items() for wording in wordings[index]]
        bad = {
            row.fact.index
            for boundary in boundaries(cfg.data)
            for row in encoded_rows(told, base.encoder, cfg.data, boundary)
            if row.problem is not None
        }
        found |= {index: answer for index, answer in tried.items() if index not in bad}
        ranked = {index: ranked[index][1:] for index in tried if index in bad and len(ranked[index]) > 1}
    return found
