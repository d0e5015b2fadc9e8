"""Small inputs that failed or misled once, in ../shared/cases: which are read, and what is said."""

from pathlib import Path

import pytest

from factdpo.config.schema import DataConfig, DataSource, RelationKind, SplitConfig
from factdpo.data.facts import FactError
from factdpo.data.load import load_facts
from factdpo.data.splits import make_splits

CASES = Path(__file__).parents[3] / "shared" / "cases"
WHITE_SPACE = "white space at the ends of its texts was removed"

# File -> facts, and words of the notes.
READ: dict[str, tuple[int, list[str]]] = {
    "alpaca_dpo.jsonl": (1, []),
    "answer_is_article.jsonl": (2, []),
    "answer_newline.jsonl": (1, [f"1 row changed: {WHITE_SPACE}"]),
    "answer_punct.jsonl": (4, []),
    "array_oneline_named_jsonl.jsonl": (8, []),
    "array_pretty.json": (8, []),
    "bom_crlf.csv": (8, []),
    "bom_crlf.jsonl": (8, []),
    "category.parquet": (2, []),
    "chinese.jsonl": (4, []),
    "counterfact_nested.jsonl": (1, []),
    "emoji_zwj.jsonl": (2, []),
    "gz.csv.gz": (8, []),
    "header_case.csv": (8, []),
    "houses_three_sides.csv": (190, []),
    "html_script.jsonl": (4, []),
    "hubs_bag_of_names.jsonl": (20, []),
    "int_answers.parquet": (1, []),
    "length_bias.jsonl": (20, []),
    "long_prompt.jsonl": (1, []),
    "nan_optional.jsonl": (2, []),
    "nan_optional.parquet": (2, []),
    "nested_never_right.jsonl": (8, []),
    "numbers.jsonl": (4, []),
    "object_is_the_answer.jsonl": (12, []),
    "ok.jsonl": (8, []),
    "one_long_row_among_ten.jsonl": (10, []),
    "one_row.jsonl": (1, []),
    "one_to_one_below_chance.jsonl": (20, []),
    "pandas_index.csv": (8, []),
    "paraphrase_grouped.jsonl": (16, []),
    "paraphrase_leak_subject_only.jsonl": (16, []),
    "prompt_ends_newline.jsonl": (1, [f"1 row changed: {WHITE_SPACE}"]),
    "prompt_ends_space.jsonl": (1, [f"1 row changed: {WHITE_SPACE}"]),
    "prompt_lists_options.jsonl": (2, []),
    "self_named.jsonl": (2, []),
    "semicolon_excel_de.csv": (8, []),
    "sheet.xlsx": (8, []),
    "slash_dot_answers.jsonl": (8, []),
    "tab.tsv": (8, []),
    "trl_conversational.jsonl": (2, []),
    "trl_conversational.parquet": (2, []),
    "trl_conversational_implicit.jsonl": (2, []),
    "trl_implicit.jsonl": (2, []),
    "trl_standard.jsonl": (2, [f"2 rows changed: {WHITE_SPACE}"]),
    "with_index_column.csv": (8, []),
}
# File -> words that the refusal must hold.
REFUSED = {
    "contradiction_with_columns.jsonl": [":2: ", "the opposite is already at", "data.relation_kind=directed"],
    "dup_whitespace.jsonl": [":2: ", "the same fact is already at", ":3: ", "the opposite is already at"],
    "empty.jsonl": ["holds no facts"],
    "header_only.csv": ["holds no facts"],
    "latin1.csv": [":10: byte 0xed is not UTF-8", "iconv"],
    "null_answer.jsonl": [":1: rejected is empty"],
    "same_after_nfc.jsonl": [
        ":1: chosen and rejected are both 'Zu\u0308rich'",
        "two Unicode forms",
        "data.bad_rows=drop",
    ],
    "trl_prompt_completion.jsonl": [
        ":1: has a completion and no rejected one",
        "add a column rejected",
        "draw_rejected=true",
    ],
    "trl_unpaired.jsonl": [":1: ", "unpaired", "DPO needs pairs"],
}
GROUPED = ["paraphrase_leak_subject_only.jsonl", "paraphrase_grouped.jsonl"]


def case(name: str, **changes: object) -> DataConfig:
    """The config of a case, under the source that its kind of rows has."""
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is not here")
    sources = {"trl": DataSource.preference, "alpaca": DataSource.preference, "counterfact": DataSource.edits}
    sources |= {"houses": DataSource.harry_potter}
    cfg = DataConfig(source=sources.get(name.split("_")[0], DataSource.pairs), path=str(CASES / name))
    for key, value in changes.items():
        setattr(cfg, key, value)
    return cfg


@pytest.mark.parametrize("name", READ)
def test_a_case_is_read_with_all_its_facts(name: str):
    count, words = READ[name]
    facts, notes, _ = load_facts(case(name))
    assert len(facts) == count
    assert notes == words
    assert all(fact.prompt and fact.chosen and fact.rejected for fact in facts)


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_is_refused_with_where_and_what_to_do(name: str):
    with pytest.raises(FactError) as refusal:
        load_facts(case(name))
    assert [word for word in REFUSED[name] if word not in str(refusal.value)] == []
    assert max(map(len, str(refusal.value).splitlines())) < 400 + 2 * len(str(CASES))


def test_every_case_is_named_above():
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is not here")
    assert {path.name for path in CASES.iterdir() if path.suffix != ".md"} == {*READ, *REFUSED}


def test_numbers_become_text():
    assert [fact.chosen for fact in load_facts(case("numbers.jsonl")).facts] == ["1987", "1988", "1989", "1990"]
    assert all(isinstance(fact.chosen, str) for fact in load_facts(case("int_answers.parquet")).facts)


def test_nan_in_an_optional_column_is_empty():
    assert [fact.subject for fact in load_facts(case("nan_optional.jsonl")).facts] == [None, "Italy"]


def test_nothing_stands_between_chinese_texts_if_asked():
    facts = load_facts(case("chinese.jsonl", separator="")).facts
    assert (facts[0].prompt, facts[0].chosen) == ("法国的首都是", "巴黎")
    newline = load_facts(case("prompt_ends_newline.jsonl", separator="")).facts[0]
    assert newline.prompt.endswith("A:\n")


def test_contradicting_facts_are_two_where_the_order_of_names_matters():
    facts, _, _ = load_facts(case("contradiction_with_columns.jsonl", relation_kind=RelationKind.directed))
    assert len(facts) == 16


@pytest.mark.parametrize("name", GROUPED)
def test_wordings_of_a_fact_are_on_one_side_and_whole_groups_are_taken(name: str):
    drawn = make_splits(load_facts(case(name)).facts, SplitConfig(train=7, seed=0))
    trained = {fact.subject for fact in drawn.splits["train"]}
    assert len(drawn.splits["train"]) == 6 and not trained & {fact.subject for fact in drawn.splits["test"]}
    assert "split.train=7: 6 facts were taken" in drawn.notes[0]


def test_an_edit_is_a_fact_with_a_paraphrase_and_a_prompt_that_must_not_change():
    splits = make_splits(load_facts(case("counterfact_nested.jsonl")).facts, SplitConfig(train=1, seed=0)).splits
    rows = {name: [(f.prompt, f.chosen, f.rejected) for f in split] for name, split in splits.items()}
    assert rows == {
        "train": [("Person A professionally plays the sport", "baseball", "basketball")],
        "train_paraphrase": [("Person A's sport is", "baseball", "basketball")],
        "locality": [("Person B plays", "basketball", "baseball")],
    }


def test_preferences_of_every_format_are_the_same_fact():
    names = ["trl_standard.jsonl", "trl_implicit.jsonl"]
    assert [load_facts(case(name)).facts[0].prompt for name in names] == ["The sky is"] * 2
    for name in ("trl_conversational.jsonl", "trl_conversational.parquet", "trl_conversational_implicit.jsonl"):
        fact = load_facts(case(name)).facts[0]
        assert (fact.prompt, fact.chosen) == ("user: What color is the sky?\nassistant:", "It is blue.")
        assert fact.conversation and fact.conversation.chosen == (("assistant", "It is blue."),)
