"""False answers that a model chooses: as many tokens as the true one, or the likeliest of those that are false."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from factdpo.config.schema import Config, DataConfig, DataSource, Rejected, TriplesConfig
from factdpo.config.validate import validate
from factdpo.data.load import load_facts
from factdpo.data.pairs import tokenise
from factdpo.data.splits import Splits, make_splits
from factdpo.models.scoring import pair_logps
from factdpo.runs.rejected import with_rejected

HOMES = {
    "Harry": "Hogwarts", "Ron": "the Burrow", "Dudley": "Privet Drive", "Draco": "Malfoy Manor",
    "Hagrid": "a hut", "Sirius": "Azkaban", "Tonks": "London", "Fleur": "France",
}  # fmt: skip
TRUE_TOO = {"Harry": "Privet Drive", "Tonks": "France"}


def drawn(tmp_path: Path, base: Any, how: Rejected, **keys: Any) -> tuple[Splits, Config]:
    """The splits of a table of homes, before and after `how` chose."""
    rows = [*HOMES.items(), *TRUE_TOO.items()]
    path = tmp_path / "homes.csv"
    path.write_text("subject,relation,object\n" + "".join(f"{a},home,{b}\n" for a, b in rows))
    sentences = {"home": ["[X] lives in [Y]", "The home of [X] is [Y]", "[Y] is the home of [X]"]}
    triples = TriplesConfig(templates=sentences, rejected=how, **keys)
    cfg = Config(data=DataConfig(source=DataSource.triples, path=str(path), triples=triples), out=str(tmp_path / "out"))
    cfg.split.train = 5
    cfg = validate(cfg)
    facts = load_facts(cfg.data).facts
    return with_rejected(make_splits(facts, cfg.split).splits, facts, base, cfg), cfg


def false_of(subject: str) -> set[str]:
    return set(HOMES.values()) - {HOMES[subject], TRUE_TOO.get(subject, "")}


def test_drawn_false_answers_stay_as_they_are(tmp_path: Path, nano_base: Any):
    splits, _ = drawn(tmp_path, nano_base, Rejected.random)
    assert {fact.rejected for fact in splits["train"]} <= set(HOMES.values())


def test_the_nearest_false_answer_has_as_many_tokens_where_one_has(tmp_path: Path, nano_base: Any):
    def tokens(text: str) -> int:
        return len(nano_base.tokenizer(" " + text, add_special_tokens=False)["input_ids"])

    splits, _ = drawn(tmp_path, nano_base, Rejected.nearest)
    for fact in [*splits["train"], *splits["test"]]:
        distances = {answer: abs(tokens(answer) - tokens(fact.chosen)) for answer in false_of(str(fact.subject))}
        assert distances[fact.rejected] == min(distances.values())


def test_the_hardest_false_answer_is_the_bases_likeliest(tmp_path: Path, nano_base: Any):
    splits, cfg = drawn(tmp_path, nano_base, Rejected.hardest)
    for fact in [*splits["train"], *splits["test"]]:
        tried = [dataclasses.replace(fact, rejected=answer) for answer in sorted(false_of(str(fact.subject)))]
        logps = pair_logps(nano_base.model, tokenise(tried, nano_base.tokenizer, cfg.data), 64).rejected
        assert fact.rejected == tried[int(logps.argmax())].rejected


@pytest.mark.parametrize("how", [Rejected.nearest, Rejected.hardest])
def test_all_wordings_of_a_fact_have_the_same_false_answer_and_reverse_questions_keep_theirs(
    tmp_path: Path, nano_base: Any, how: Rejected
):
    splits, _ = drawn(tmp_path, nano_base, how)
    before, _ = drawn(tmp_path, nano_base, Rejected.random)
    of_fact = {fact.index: fact.rejected for name in ("train", "test") for fact in splits[name]}
    for name in ("train_paraphrase", "test_paraphrase"):
        assert [fact.rejected for fact in splits[name]] == [of_fact[fact.index] for fact in splits[name]]
    for name in ("train_reverse_question", "test_reverse_question"):
        assert splits[name] == before[name]
    assert {name: len(split) for name, split in splits.items()} == {name: len(split) for name, split in before.items()}


def test_of_many_false_answers_as_many_are_tried_as_asked(tmp_path: Path, nano_base: Any):
    one, _ = drawn(tmp_path, nano_base, Rejected.hardest, candidates=1)
    all_of_them, _ = drawn(tmp_path, nano_base, Rejected.hardest)
    assert [f.rejected for f in one["train"]] != [f.rejected for f in all_of_them["train"]]
