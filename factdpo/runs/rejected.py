"""False answers of triples that only a model can choose: the nearest in tokens, and the likeliest for the base."""

import dataclasses
import random
from pathlib import Path

from factdpo.config.schema import Config, DataSource, Rejected
from factdpo.data.facts import Fact
from factdpo.data.pairs import tokenise
from factdpo.data.sources.triples import Answers
from factdpo.data.splits import Splits
from factdpo.data.tokens import encoded_rows, separator
from factdpo.models.base import Base
from factdpo.models.scoring import reference_logps


def with_rejected(splits: Splits, facts: list[Fact], base: Base, cfg: Config) -> Splits:
    """The splits with the false answers that data.triples.rejected asks for; they have drawn ones.

    One is chosen per fact, by its first wording, for all its wordings; questions for the subject keep theirs, and so
    does a fact for which none can be told from the true one by its tokens. `facts` are all facts of the data: what is
    true of a subject is no false answer, even if the row was dropped.
    """
    how = cfg.data.triples.rejected
    if cfg.data.source is not DataSource.triples or how is Rejected.random:
        return splits
    answers = Answers(((str(f.relation), str(f.subject), str(f.object)) for f in facts), cfg.data.triples.seed)
    asked: dict[int, Fact] = {}
    for name in _about_objects(splits):
        for fact in splits[name]:
            asked.setdefault(fact.index, fact)
    choose = _nearest if how is Rejected.nearest else _hardest
    false = choose(list(asked.values()), answers, base, cfg)
    return splits | {
        name: [dataclasses.replace(fact, rejected=false.get(fact.index, fact.rejected)) for fact in splits[name]]
        for name in _about_objects(splits)
    }


def _about_objects(splits: Splits) -> list[str]:
    return [name for name in splits if not name.endswith("reverse_question")]


def _nearest(asked: list[Fact], answers: Answers, base: Base, cfg: Config) -> dict[int, str]:
    """Fact's index -> a false answer with as many tokens as the true one, or nearly; drawn among equals."""
    texts = list({answer for of_relation in answers.of_relation.values() for answer in of_relation})
    ids = base.encoder.encode([separator(cfg.data) + text for text in texts])
    tokens = {text: len(of_text) for text, of_text in zip(texts, ids, strict=True)}
    chosen = []
    for fact in asked:
        relation, subject = str(fact.relation), str(fact.subject)
        by_distance: dict[int, list[str]] = {}
        for answer in answers.candidates(relation, subject):
            by_distance.setdefault(abs(tokens[answer] - tokens[fact.chosen]), []).append(answer)
        rng = random.Random(f"nearest {cfg.data.triples.seed} {relation} {subject} {fact.chosen}")
        chosen.append(dataclasses.replace(fact, rejected=rng.choice(by_distance[min(by_distance)])))
    return {fact.index: fact.rejected for fact in _usable(chosen, base, cfg)}


def _hardest(asked: list[Fact], answers: Answers, base: Base, cfg: Config) -> dict[int, str]:
    """Fact's index -> the false answer with the highest log-prob under the base, of at most `candidates` drawn ones."""
    tried = []
    for fact in asked:
        relation, subject = str(fact.relation), str(fact.subject)
        candidates = answers.candidates(relation, subject)
        if len(candidates) > cfg.data.triples.candidates:
            rng = random.Random(f"candidates {cfg.data.triples.seed} {relation} {subject} {fact.chosen}")
            candidates = rng.sample(candidates, cfg.data.triples.candidates)
        tried += [dataclasses.replace(fact, rejected=answer) for answer in candidates]
    tried = _usable(tried, base, cfg)
    pairs = tokenise(tried, base.tokenizer, cfg.data)
    logps = reference_logps(base, pairs, cfg.eval.batch_size, Path(cfg.out) / "cache").rejected.tolist()
    best: dict[int, tuple[float, str]] = {}
    for fact, logp in zip(tried, logps, strict=True):
        if fact.index not in best or logp > best[fact.index][0]:
            best[fact.index] = logp, fact.rejected
    return {index: answer for index, (_, answer) in best.items()}


def _usable(facts: list[Fact], base: Base, cfg: Config) -> list[Fact]:
    """Those that can be trained on as token ids."""
    return [row.fact for row in encoded_rows(facts, base.encoder, cfg.data) if row.problem is None]
