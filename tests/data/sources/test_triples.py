"""data=triples: sentences per relation, paraphrases, reverse questions, and false answers that are false."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factdpo.config.schema import BadRows, Config, ConfigError, DataConfig, DataSource, SplitConfig, TriplesConfig
from factdpo.config.validate import validate
from factdpo.data.facts import FactError
from factdpo.data.load import Loaded, load_facts
from factdpo.data.sources.triples import Answers
from factdpo.data.splits import make_splits

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo", "Peru": "Lima", "Chad": "Ndjamena"}
TABLE = "subject,relation,object\n" + "".join(f"{a},P36,{b}\n" for a, b in CAPITALS.items())
P36 = ["The capital of [X] is [Y] .", "[X] is governed from [Y].", "{subject}'s capital is {object}"]
REVERSE = "[Y] is the capital of [X] ."

Triples = Callable[..., Loaded]


@pytest.fixture
def triples(tmp_path: Path) -> Triples:
    """triples(text, templates=...): the facts of this table, with keys of data.triples, or of data as data_<key>."""

    def load(text: str, name: str = "triples.csv", **keys: Any) -> Loaded:
        (tmp_path / name).write_text(text)
        data = {key.removeprefix("data_"): value for key, value in keys.items() if key.startswith("data_")}
        own = {key: value for key, value in keys.items() if not key.startswith("data_")}
        path = str(tmp_path / name)
        return load_facts(DataConfig(source=DataSource.triples, path=path, triples=TriplesConfig(**own), **data))

    return load


def test_a_triple_is_told_in_the_first_sentence_and_asked_in_the_others(triples: Triples):
    loaded = triples(TABLE, templates={"P36": [*P36, REVERSE]})
    first = loaded.facts[0]
    assert (first.prompt, first.chosen, first.where[-14:]) == ("The capital of France is", "Paris", "/triples.csv:2")
    assert (first.subject, first.object, first.relation) == ("France", "Paris", "P36")
    assert [(kind, probe.prompt, probe.chosen) for kind, probe in first.probes] == [
        ("paraphrase", "France is governed from", "Paris"),
        ("paraphrase", "France's capital is", "Paris"),
        ("reverse_question", "Paris is the capital of", "France"),
    ]
    assert all(probe.rejected == first.rejected for kind, probe in first.probes if kind == "paraphrase")
    assert first.probes[2][1].rejected in CAPITALS.keys() - {"France"}
    splits = make_splits(loaded.facts, SplitConfig(train=4, seed=0)).splits
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 4, "train_paraphrase": 8, "train_reverse_question": 4,
        "test": 2, "test_paraphrase": 4, "test_reverse_question": 2,
    }  # fmt: skip


def test_more_wordings_to_train_on_are_rows_of_the_same_fact(triples: Triples):
    loaded = triples(TABLE, templates={"P36": [*P36, REVERSE]}, train_templates=2)
    assert len(loaded.facts) == 12 and {fact.index for fact in loaded.facts} == set(range(6))
    splits = make_splits(loaded.facts, SplitConfig(train=8, seed=0)).splits
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 8, "train_paraphrase": 4, "train_reverse_question": 4,
        "test": 4, "test_paraphrase": 2, "test_reverse_question": 2,
    }  # fmt: skip
    assert not {fact.subject for fact in splits["train"]} & {fact.subject for fact in splits["test"]}


def test_the_false_answer_is_never_true_of_the_subject_and_the_same_each_time(triples: Triples):
    text = TABLE + "Spain,P36,Seville\nSpain,P36,Toledo\nPeru,P17,South America\nChad,P17,Africa\n"
    templates = {"P36": P36, "P17": ["[X] lies in [Y]"]}
    facts = triples(text, templates=templates).facts
    assert facts == triples(text, templates=templates).facts
    assert facts != triples(text, templates=templates, seed=1).facts
    true = {"Madrid", "Seville", "Toledo"}
    for fact in facts:
        if fact.relation == "P36":
            assert fact.rejected in {*CAPITALS.values(), *true} and fact.rejected != fact.chosen
            assert fact.subject != "Spain" or fact.rejected not in true
        else:
            assert {fact.chosen, fact.rejected} == {"South America", "Africa"}


def test_false_answers_are_drawn_as_often_as_they_are_true():
    common, rare = [("r", f"c{i}", "common") for i in range(90)], [("r", f"d{i}", "rare") for i in range(10)]
    answers = Answers([*common, *rare, ("r", "x", "other")], seed=0)
    drawn = [Answers([*common, *rare, ("r", "x", "other")], seed).false("r", "x", "other") for seed in range(200)]
    assert 160 < drawn.count("common") < 195 and drawn.count("other") == 0
    assert answers.candidates("r", "x") == ["common", "rare"]
    skewed = Answers([*[("r", f"c{i}", "common") for i in range(10_000)], ("r", "x", "other")], seed=0)
    assert skewed.false("r", "c1", "common") == "other"  # found though hardly ever drawn


def test_a_relation_with_one_object_has_no_false_answer(triples: Triples):
    text = TABLE + "Rome,P30,Europe\nOslo,P30,Europe\n"
    templates = {"P36": P36, "P30": ["[X] is in [Y]"]}
    with pytest.raises(FactError, match=r"triples\.csv:8: relation 'P30' has no object that is not true of 'Rome'"):
        triples(text, templates=templates)
    loaded = triples(text, templates=templates, data_bad_rows=BadRows.drop)
    assert len(loaded.facts) == 6 and loaded.notes == ["2 rows left out: no false answer"]


def test_rows_that_are_no_triples_are_named_by_line(triples: Triples):
    text = TABLE + "France,P36,paris\nFrance,P99,x\n,P36,y\n"
    with pytest.raises(FactError) as refusal:
        triples(text, templates={"P36": P36})
    for words in ("triples.csv:8: the same triple is already at", "triples.csv:2", "triples.csv:9: no sentence for "
                  "relation 'P99'", "there are some for P36", "triples.csv:10: subject is empty"):  # fmt: skip
        assert words in str(refusal.value)


def test_pararels_files_are_read_and_what_cannot_be_asked_is_left_out_and_counted(triples: Triples, tmp_path: Path):
    patterns = tmp_path / "patterns"
    patterns.mkdir()
    rows = [*P36[:2], "[Y], the capital of [X], is old .", "[X], whose capital is [Y], is a country .", REVERSE]
    (patterns / "P36.jsonl").write_text("".join(json.dumps({"pattern": row, "tense": "past"}) + "\n" for row in rows))
    (patterns / "P17.jsonl").write_text(json.dumps({"pattern": "[Y] is where [X] lies ."}) + "\n")
    trex = [{"sub_label": a, "obj_label": b, "uuid": str(i)} for i, (a, b) in enumerate(CAPITALS.items())]
    text = "".join(json.dumps(row) + "\n" for row in trex)
    loaded = triples(text, "P36.jsonl", subject="sub_label", object="obj_label", templates_path=str(patterns))
    assert loaded.facts[1].prompt == "The capital of Italy is" and loaded.facts[1].relation == "P36"
    assert [kind for kind, _ in loaded.facts[1].probes] == ["paraphrase", "reverse_question"]
    assert loaded.notes == [
        "data.triples.templates_path: 3 of 6 sentences do not end with the place of a name, so that they cannot be "
        "asked: left out"
    ]


def test_one_table_of_sentences_and_the_config_in_its_place(triples: Triples, tmp_path: Path):
    table = tmp_path / "templates.csv"
    table.write_text('relation,template\nP36,The capital of [X] is [Y]\nP36,"[X]\'s capital, it seems, is [Y]"\n')
    loaded = triples(TABLE, templates_path=str(table))
    assert loaded.facts[0].probes[0][1].prompt == "France's capital, it seems, is"
    loaded = triples(TABLE, templates_path=str(table), templates={"P36": ["In [X] one governs from [Y]"]})
    assert loaded.facts[0].prompt == "In France one governs from" and loaded.facts[0].probes == ()
    table.write_text("relation,text\nP36,The capital of [X] is [Y]\n")
    with pytest.raises(FactError, match=r"templates\.csv:2: no column 'template' or 'pattern' \(found: relation, text"):
        triples(TABLE, templates_path=str(table))


def test_a_sentence_of_the_config_that_cannot_be_asked_is_refused(triples: Triples):
    with pytest.raises(FactError, match=r"data\.triples\.templates\.P36: '\[X\] has \[Y\] as its capital' must hold"):
        triples(TABLE, templates={"P36": ["[X] has [Y] as its capital"]})


def test_triples_without_sentences_are_refused():
    with pytest.raises(ConfigError, match=r"data\.triples\.templates: missing"):
        validate(Config(data=DataConfig(source=DataSource.triples, path="a.csv")))
