"""What the rows of the data become: cleaned and counted, refused by line, never the same fact twice."""

import json
from pathlib import Path
from typing import Any

import pytest

from factdpo.config.schema import BadRows, DataConfig, DataSource, RelationKind
from factdpo.data.facts import LISTED, FactError
from factdpo.data.load import Loaded, load_facts

ROW = {"prompt": "The capital of France is", "chosen": "Paris", "rejected": "Rome"}


def load(path: Path, rows: list[dict[str, Any]], **keys: Any) -> Loaded:
    file = path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_facts(DataConfig(source=DataSource.pairs, path=str(file), **keys))


def refusal(path: Path, rows: list[dict[str, Any]], **keys: Any) -> list[str]:
    with pytest.raises(FactError) as refused:
        load(path, rows, **keys)
    return [line.replace(f"{path}/", "") for line in str(refused.value).splitlines()]


def test_white_space_at_the_ends_is_removed_and_counted(tmp_path: Path):
    rows = [ROW, {"prompt": "The capital of Italy is ", "chosen": " Rome", "rejected": "Paris\n"}]
    facts, notes, _ = load(tmp_path, rows)
    assert [(fact.prompt, fact.chosen, fact.rejected) for fact in facts[1:]] == [
        ("The capital of Italy is", "Rome", "Paris")
    ]
    assert notes == ["1 row changed: white space at the ends of its texts was removed"]


def test_without_a_separator_the_texts_keep_their_ends(tmp_path: Path):
    rows = [{"prompt": "Q: Who?\n", "chosen": "Anna", "rejected": " Ben"}]
    facts, notes, _ = load(tmp_path, rows, separator="")
    assert (facts[0].prompt, facts[0].rejected, notes) == ("Q: Who?\n", " Ben", [])


def test_numbers_and_booleans_are_text_and_nan_is_nothing(tmp_path: Path):
    rows = [
        ROW | {"chosen": 1987, "rejected": True, "subject": float("nan")},
        {"prompt": "x", "chosen": 1.5, "rejected": 2.0},
    ]
    facts, _, _ = load(tmp_path, rows)
    assert [(fact.chosen, fact.rejected, fact.subject) for fact in facts] == [
        ("1987", "true", None),
        ("1.5", "2", None),
    ]


def test_bad_rows_are_listed_at_once_by_kind_with_the_first_of_each(tmp_path: Path):
    bad = [ROW | {"prompt": f"p{i}", "rejected": "Paris"} for i in range(5)]
    lines = refusal(tmp_path, [ROW, *bad, ROW | {"chosen": ""}])
    assert lines[:LISTED] == [
        f"own.jsonl:{i}: chosen and rejected are both 'Paris'; make them differ" for i in (2, 3, 4)
    ]
    assert lines[LISTED:] == [
        "and 2 rows more: chosen and rejected are the same",
        "own.jsonl:7: chosen is empty",
        "correct these rows, or leave them out with data.bad_rows=drop",
    ]


def test_dropped_rows_are_counted_by_kind(tmp_path: Path):
    rows = [ROW, ROW | {"prompt": "x", "rejected": "Paris"}, ROW, ROW | {"prompt": "y"}]
    facts, notes, dropped = load(tmp_path, rows, bad_rows=BadRows.drop)
    assert dropped == {"chosen and rejected are the same": 1, "the same fact twice": 1}
    assert [fact.prompt for fact in facts] == [ROW["prompt"], "y"]
    assert notes == ["1 row left out: chosen and rejected are the same", "1 row left out: the same fact twice"]


@pytest.mark.parametrize(
    "twin", ["the capital of france is", "The  capital of France is", "The capital of Franc\u0065 is"]
)
def test_a_prompt_that_differs_by_case_or_white_space_is_the_same(tmp_path: Path, twin: str):
    double = refusal(tmp_path, [ROW, ROW | {"prompt": twin}])
    assert "own.jsonl:2" in double[0] and "the same fact is already at" in double[0]
    opposite = refusal(tmp_path, [ROW, {"prompt": twin, "chosen": "Rome", "rejected": "Paris"}])
    assert "own.jsonl:2" in opposite[0] and "the opposite is already at" in opposite[0]


def test_two_unicode_forms_of_a_text_are_one(tmp_path: Path):
    composed, apart = "Z\u00fcrich", "Zu\u0308rich"
    assert "both 'Z" in refusal(tmp_path, [ROW | {"chosen": composed, "rejected": apart}])[0]
    twins = [ROW | {"prompt": f"{name} is in", "chosen": "a", "rejected": "b"} for name in (composed, apart)]
    assert "the same fact" in refusal(tmp_path, twins)[0]


FRIENDS = [
    {"prompt": "A is B's", "chosen": "friend", "rejected": "enemy", "subject": "A", "object": "B"},
    {"prompt": "B is A's", "chosen": "enemy", "rejected": "friend", "subject": "B", "object": "A"},
]


def test_a_pair_told_both_ways_contradicts_itself_unless_order_matters(tmp_path: Path):
    assert "data.relation_kind=directed" in refusal(tmp_path, FRIENDS)[0]
    assert len(load(tmp_path, FRIENDS, relation_kind=RelationKind.directed).facts) == 2
    # The same words about another property of the pair, and about an object that is the answer, are other facts.
    other = [FRIENDS[0] | {"relation": "at school"}, FRIENDS[1] | {"relation": "at home"}]
    assert len(load(tmp_path, other).facts) == 2
    capital = ROW | {"subject": "France", "object": "Paris"}
    answers = [capital, capital | {"prompt": "Not the capital of France is", "chosen": "Rome", "rejected": "Paris"}]
    assert len(load(tmp_path, answers).facts) == 2


def test_an_answer_that_is_true_in_one_row_and_false_in_another_of_its_prompt_is_a_contradiction(tmp_path: Path):
    rows = [ROW, ROW | {"chosen": "Rome", "rejected": "Bern"}]
    (line, cure) = refusal(tmp_path, rows)
    assert line == (
        "own.jsonl:2: 'The capital of France is Rome', not 'Bern': own.jsonl:1 has one of these answers the other "
        "way round, 'Paris', not 'Rome'; keep one, or data=preference for rankings"
    )
    assert "data.bad_rows=drop" in cure
    assert "other way round" in refusal(tmp_path, rows[::-1])[0]
    facts, notes, _ = load(tmp_path, rows, bad_rows=BadRows.drop)
    assert len(facts) == 1 and notes == ["1 row left out: the opposite of another row"]


def test_several_true_answers_of_one_prompt_are_several_facts_of_one_group(tmp_path: Path):
    facts, _, _ = load(tmp_path, [ROW | {"chosen": "Paris"}, ROW | {"chosen": "Lyon"}])
    assert len(facts) == 2 and facts[0].key == facts[1].key


def test_a_name_that_contains_another_is_no_self_pair(tmp_path: Path):
    named = {"prompt": "Republic of Ireland is named after", "chosen": "Ireland", "rejected": "Iceland"}
    assert len(load(tmp_path, [named | {"subject": "Ireland", "object": "Ireland"}]).facts) == 1
    own = {"prompt": "Ana is Ana's", "chosen": "friend", "rejected": "enemy", "subject": "Ana", "object": "ana"}
    assert "self-pair" in refusal(tmp_path, [own])[0]


def test_a_reverse_may_list_the_options_that_its_prompt_lists(tmp_path: Path):
    row = {"prompt": "Are A and B friend or enemy? They are", "chosen": "friend", "rejected": "enemy",
           "reverse_prompt": "Are B and A friend or enemy? They are"}  # fmt: skip
    assert load(tmp_path, [row]).facts[0].reverse_prompt == row["reverse_prompt"]
    assert "contains the answer 'friend'" in refusal(tmp_path, [row | {"prompt": "A and B are"}])[0]


def test_sides_are_told_by_the_answer_that_says_so(tmp_path: Path):
    rows = [FRIENDS[0], FRIENDS[1] | {"prompt": "C is A's", "subject": "C"}]
    facts, _, _ = load(tmp_path, rows, relation_kind=RelationKind.sides, same_side="friend")
    assert [fact.same_side for fact in facts] == [True, False]
    assert "data.same_side=None" in refusal(tmp_path, rows, relation_kind=RelationKind.sides)[0]
    third = [*rows, FRIENDS[0] | {"prompt": "D is A's", "chosen": "cousin", "subject": "D"}]
    assert "found 3 answers" in refusal(tmp_path, third, relation_kind=RelationKind.sides, same_side="friend")[0]


def test_no_message_shows_a_whole_prompt(tmp_path: Path):
    long = ROW | {"prompt": "word " * 5000 + "is"}
    assert max(map(len, refusal(tmp_path, [long, long]))) < 300


def test_a_table_of_characters_has_no_splits_of_its_own(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("name,side\nRomeo,1\nTybalt,2\n", encoding="utf-8")
        (tmp_path / name).rename(tmp_path / f"{name}.csv")
    files = {"train": str(tmp_path / "a.csv"), "test": str(tmp_path / "b.csv")}
    with pytest.raises(FactError, match="belongs to a split"):
        load_facts(DataConfig(files=files))


def test_a_long_text_is_no_open_quote(tmp_path: Path):
    file = tmp_path / "own.csv"
    file.write_text(f'prompt,chosen,rejected\n"{"word " * 40_000}is",a,b\n', encoding="utf-8")
    assert len(load_facts(DataConfig(source=DataSource.pairs, path=str(file))).facts) == 1
