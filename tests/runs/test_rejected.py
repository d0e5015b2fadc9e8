"""False answers that a model chooses: as many tokens as the true one, or the likeliest of those that are false."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from factdpo.config.schema import BadRows, Config, DataConfig, DataSource, Rejected, TooLong, TriplesConfig
from factdpo.config.validate import validate
from factdpo.data.load import load_facts
from factdpo.data.pairs import tokenise
from factdpo.data.splits import Splits, make_splits
from factdpo.data.tokens import Checked
from factdpo.models.scoring import pair_logps
from factdpo.runs.identity import usable_facts
from factdpo.runs.rejected import with_rejected

HOMES = {
    "Harry": "Hogwarts", "Ron": "the Burrow", "Dudley": "Privet Drive", "Draco": "Malfoy Manor",
    "Hagrid": "a hut", "Sirius": "Azkaban", "Tonks": "London", "Fleur": "France",
}  # fmt: skip
TRUE_TOO = {"Harry": "Privet Drive", "Tonks": "France"}


SENTENCES = ["[X] lives in [Y]", "The home of [X] is [Y]", "[Y] is the home of [X]"]


def asked(tmp_path: Path, rows: list[tuple[str, str]], sentences: list[str], how: Rejected, **keys: Any) -> Config:
    """A run on a table of homes; one of its facts, or half of them, is trained on."""
    path = tmp_path / "homes.csv"
    path.write_text("subject,relation,object\n" + "".join(f"{a},home,{b}\n" for a, b in rows))
    of_triples = TriplesConfig(templates={"home": sentences}, rejected=how)
    for name in ("candidates", "seed"):
        setattr(of_triples, name, keys.pop(name, getattr(of_triples, name)))
    data = DataConfig(source=DataSource.triples, path=str(path), triples=of_triples, **keys)
    cfg = Config(data=data, out=str(tmp_path / "out"))
    cfg.split.train = len(rows) // 2
    return validate(cfg)


def chosen(cfg: Config, base: Any) -> Checked:
    """The facts with their false answers, as a run has them."""
    return with_rejected(usable_facts(cfg, base.encoder, base.identity, {})[0], base, cfg)


def drawn(tmp_path: Path, base: Any, how: Rejected, **keys: Any) -> tuple[Splits, Config]:
    """The splits of the table of homes, as `how` chose their false answers."""
    cfg = asked(tmp_path, [*HOMES.items(), *TRUE_TOO.items()], SENTENCES, how, **keys)
    return make_splits(chosen(cfg, base).facts, cfg.split).splits, cfg


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


@pytest.mark.parametrize("how", [Rejected.nearest, Rejected.hardest])
def test_a_row_that_became_no_fact_still_says_what_is_true_and_what_is_false(
    tmp_path: Path, nano_base: Any, how: Rejected
):
    """Both of Harry's rows lack a false answer; what they say is all that is false of Ron."""
    rows = [("Harry", "London"), ("Harry", "Azkaban"), ("Ron", "London")]
    cfg = asked(tmp_path, rows, SENTENCES[:1], how, bad_rows=BadRows.drop)
    assert [(fact.subject, fact.rejected) for fact in chosen(cfg, nano_base).facts] == [("Ron", "Azkaban")]


STREET = [("Nymphadora Tonks", "a house in London"), ("Ron", "a big house in London"), ("Harry", "Hogwarts")]


def street(tmp_path: Path, base: Any, how: Rejected, too_long: TooLong) -> Config:
    """Of Nymphadora, Hogwarts is the drawn answer and Ron's home the chosen one; that makes her paraphrase too long."""
    wordings = ["[X] lives in [Y]", "The home where you will find [X] is [Y]"]
    (longest,) = base.encoder.encode(["The home where you will find Nymphadora Tonks is a house in London"])
    tries = {"candidates": 1} if how is Rejected.hardest else {}
    cfg = asked(tmp_path, STREET, wordings, how, max_length=len(longest), too_long=too_long, seed=10, **tries)
    assert load_facts(cfg.data).facts[0].rejected == "Hogwarts"
    return cfg


@pytest.mark.parametrize("how", [Rejected.nearest, Rejected.hardest])
def test_an_answer_that_one_wording_cannot_take_is_passed_over(tmp_path: Path, nano_base: Any, how: Rejected):
    """Too long in the paraphrase alone, which a run would refuse after its facts were found good."""
    facts = chosen(street(tmp_path, nano_base, how, TooLong.refuse), nano_base).facts
    assert facts[0].rejected == facts[0].probes[0][1].rejected == "Hogwarts"


@pytest.mark.parametrize("how", [Rejected.nearest, Rejected.hardest])
def test_what_is_cut_off_is_counted_with_the_answers_that_are_trained_on(tmp_path: Path, nano_base: Any, how: Rejected):
    cfg = street(tmp_path, nano_base, how, TooLong.truncate)
    before, after = usable_facts(cfg, nano_base.encoder, nano_base.identity, {})[0], chosen(cfg, nano_base)
    assert after.facts[0].rejected == "a big house in London"
    assert (before.truncated, after.truncated) == (0, 1)
    assert after.warnings() == ["data.too_long=truncate: the beginning of the prompt is cut off in 1 facts"]
