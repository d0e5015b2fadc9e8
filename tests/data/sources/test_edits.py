"""Knowledge edits of each known set, and of one by dotted paths: the rewrite, and the prompts about it."""

import json
from pathlib import Path
from typing import Any

import pytest

from factdpo.config.schema import DataConfig, DataSource, EditsConfig, EditTarget, SplitConfig
from factdpo.data.facts import Fact, FactError
from factdpo.data.load import load_facts
from factdpo.data.paths import common_beginning, paired, value_at
from factdpo.data.splits import make_splits
from tests.helpers.edits import counterfact, mquake, ripple, zsre

Said = tuple[str, str, str]


def own(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> DataConfig:
    path = tmp_path / "edits.json"
    path.write_text(json.dumps(rows))
    return DataConfig(source=DataSource.edits, path=str(path), edits=EditsConfig(**changes))


def said(fact: Fact) -> Said:
    return fact.prompt, fact.chosen, fact.rejected


def probes(fact: Fact) -> list[tuple[str, Said]]:
    return [(kind, said(probe)) for kind, probe in fact.probes]


def test_counterfact_has_paraphrases_and_neighbours(tmp_path: Path):
    facts, notes, _ = load_facts(own(tmp_path, counterfact(3)))
    assert said(facts[0]) == ("Person 0 plays the sport of", "tennis", "golf") and facts[0].subject == "Person 0"
    assert probes(facts[0]) == [
        ("paraphrase", ("The sport of Person 0 is", "tennis", "golf")),
        ("locality", ("Neighbour 0 plays the sport of", "golf", "tennis")),
    ]
    assert [fact.index for fact in facts] == [0, 1, 2] == [fact.probes[0][1].index for fact in facts]
    assert notes == []


def test_the_true_answer_can_be_trained_instead(tmp_path: Path):
    (fact,) = load_facts(own(tmp_path, counterfact(1), target=EditTarget.old)).facts
    assert said(fact) == ("Person 0 plays the sport of", "golf", "tennis")
    assert probes(fact)[1] == ("locality", ("Neighbour 0 plays the sport of", "golf", "tennis"))


@pytest.mark.parametrize("kind", ["flattened", "plain", "tracing", "knowedit"])
def test_flat_variants_are_the_same_edit(tmp_path: Path, kind: str):
    nested = counterfact(1)[0]
    prompt, rest = "Person 0 plays the sport of", {"subject": "Person 0", "target_new": "tennis"}
    row = {
        "flattened": {
            "requested_rewrite.prompt": "{} plays the sport of",
            "requested_rewrite.subject": "Person 0",
            "requested_rewrite.target_new.str": "tennis",
            "requested_rewrite.target_true.str": "golf",
            "paraphrase_prompts": nested["paraphrase_prompts"],
        },
        "plain": {"prompt": prompt, **rest, "target_true": "golf"},
        "tracing": {"prompt": prompt, "subject": "Person 0", "target_true": " golf", "target_false": " tennis"},
        "knowedit": {
            "prompt": prompt, **rest, "ground_truth": ["golf"],
            "locality": {"Relation_Specificity": [{"prompt": "His town is", "ground_truth": [["Bath"], ["Rome"]]}]},
            "portability": {"Reasoning": [{"prompt": "He holds a", "ground_truth": [["racket"]]}], "Other": []},
        },
    }[kind]  # fmt: skip
    (fact,) = load_facts(own(tmp_path, [row])).facts
    assert said(fact) == (prompt, "tennis", "golf")
    if kind == "knowedit":
        assert probes(fact) == [
            ("portability", ("He holds a", "racket", "golf")),
            ("locality", ("His town is", "Bath", "tennis")),
        ]


def test_zsre_takes_alt_for_the_edit_and_the_first_answer_for_the_truth(tmp_path: Path):
    (fact,) = load_facts(own(tmp_path, zsre(1))).facts
    assert said(fact) == ("What city was Person 0 born in?", "Lyon", "Bath")
    assert probes(fact) == [
        ("paraphrase", ("Which was the birth city of Person 0?", "Lyon", "Bath")),
        ("locality", ("nq question: who wrote book 0", "Author 0", "Lyon")),
    ]


@pytest.mark.parametrize("kind", ["locality", "subject"])
def test_a_path_that_no_row_has_is_refused(tmp_path: Path, kind: str):
    with pytest.raises(FactError, match=f"data.edits.{kind}: no row has a value at nothere; correct the path"):
        load_facts(own(tmp_path, zsre(2), **{kind: "nothere" if kind == "subject" else ["loc", "nothere"]}))


def test_zsre_without_alt_is_refused_by_the_missing_path_and_read_when_it_is_named(tmp_path: Path):
    rows = [{key: value for key, value in row.items() if key != "alt"} for row in zsre(2)]
    with pytest.raises(FactError, match=r"edits.json: element 1: .* nearest is zsRE, without alt .*data.edits.new="):
        load_facts(own(tmp_path, rows))
    facts = load_facts(own(tmp_path, rows, new="answers[0]", old="pred")).facts
    assert said(facts[0]) == ("What city was Person 0 born in?", "Bath", "Rome") and len(facts[0].probes) == 2


def test_a_row_without_a_part_is_a_bad_row_and_one_without_probes_lacks_them(tmp_path: Path):
    rows = counterfact(3)
    del rows[1]["requested_rewrite"]["target_true"], rows[2]["neighborhood_prompts"]
    with pytest.raises(FactError, match=r"element 2: requested_rewrite.target_true.str is missing"):
        load_facts(own(tmp_path, rows))
    cfg = own(tmp_path, [rows[0], rows[2]])
    assert [kind for kind, _ in load_facts(cfg).facts[1].probes] == ["paraphrase"]


def test_mquake_rewrites_of_a_row_stay_together_and_ask_their_questions_once(tmp_path: Path):
    facts, notes, _ = load_facts(own(tmp_path, mquake(3)))
    # each row has its own rewrite, and one that it shares with all others
    assert [fact.prompt for fact in facts] == [
        "Person 0 is a citizen of", "The capital of Peru is", "Person 1 is a citizen of", "Person 2 is a citizen of",
    ]  # fmt: skip
    assert len({fact.key for fact in facts}) == 1
    assert notes == ["2 rows changed: its rewrite is one with that of an earlier row"]
    assert probes(facts[0]) == [
        ("paraphrase", ("Which country is Person 0 a citizen of?", "Peru", "Chile")),
        ("portability", ("In which capital does Person 0 vote?", "Cusco", "Santiago")),
        ("portability", ("Where does Person 0 sit?", "Cusco", "Santiago")),
    ]
    apart = load_facts(own(tmp_path, mquake(3, shared=False))).facts
    assert len({fact.key for fact in apart}) == 3 and len(apart) == 6
    drawn = make_splits(apart, SplitConfig(train=2, seed=0)).splits
    assert {name: len(split) for name, split in drawn.items()} == {
        "train": 2, "test": 4, "train_paraphrase": 2, "portability": 2, "test_paraphrase": 4,
    }  # fmt: skip


def test_ripple_edits_are_parted_where_their_statements_differ(tmp_path: Path):
    (fact,) = load_facts(own(tmp_path, ripple(1))).facts
    assert said(fact) == ("The country of Person 0 is", "Peru", "Chile")
    assert probes(fact) == [
        ("paraphrase", ("The country of P0 is", "Peru", "Chile")),
        ("portability", ("The capital of Person 0's country is", "Lima", "Chile")),
        ("locality", ("The mother of Person 0 is", "Mother 0", "Peru")),
    ]


def test_a_neighbour_that_is_trained_on_itself_is_left_out_and_counted(tmp_path: Path):
    rows = counterfact(6)
    for number, row in enumerate(rows):  # of the same relation: the subject of the next edit
        row["neighborhood_prompts"].append(f"What does Person {(number + 1) % 6} play? It is")
    facts = load_facts(own(tmp_path, rows)).facts
    every = make_splits(facts, SplitConfig(train=6, seed=0))
    assert len(every.splits["locality"]) == 6 and all("Neighbour" in f.prompt for f in every.splits["locality"])
    assert every.notes == ["6 of 12 locality prompts are left out: their answer is itself trained on"]
    one = make_splits(facts, SplitConfig(train=1, seed=0))
    assert len(one.splits["locality"]) == 2 and one.notes == []


def test_a_probe_whose_answers_are_the_same_is_left_out_and_counted(tmp_path: Path):
    rows = zsre(1)
    rows[0]["loc_ans"] = "Lyon"
    facts, notes, _ = load_facts(own(tmp_path, rows))
    assert [kind for kind, _ in facts[0].probes] == ["paraphrase"]
    assert notes == ["1 row changed: a locality prompt was left out, since both of its answers are the same"]


def test_other_sets_are_read_by_paths(tmp_path: Path):
    row = {
        "edit": {"ask": "{} lives in", "who": "Ann", "says": ["Rome", "Roma"]},
        "old": "Bath",
        "same": {"q": "Bob is in"},
    }
    cfg = own(
        tmp_path, [row], prompt="edit.ask", subject="edit.who", new="edit.says[0]", old="old", locality=["same.q"]
    )
    (fact,) = load_facts(cfg).facts
    assert said(fact) == ("Ann lives in", "Rome", "Bath")
    assert probes(fact) == [("locality", ("Bob is in", "Bath", "Rome"))]


def test_paths_reach_into_lists_and_objects():
    row = {"a.b": 1, "a": {"c": [{"d": "x"}, {"d": "y"}, {}], "e": {"k": {"d": "z"}}}, "list": ["p", "q"]}
    assert value_at(row, "a.b") == 1
    assert value_at(row, "a.c.d") == ["x", "y", None] and value_at(row, "a.c[1].d") == "y"
    assert value_at(row, "a.e.*.d") == ["z"] and value_at(row, "list[0]") == value_at(row, "list.0") == "p"
    assert value_at(row, "list[2]") is value_at(row, "a.c.none") is value_at(row, "no.where") is None
    assert list(paired([["p"], ["q", "r"]], [["1"], [["2", "3"], "4"]])) == [("p", "1"), ("q", "2"), ("r", "4")]
    assert list(paired(["p", "q"], "1")) == [("p", "1"), ("q", "1")] and list(paired(None, "1")) == []


def test_a_common_beginning_ends_with_a_word():
    assert common_beginning("The sun is in the sky.", "The sun is in the sea.") == "The sun is in the "
    assert common_beginning("巴黎是法国", "巴黎是德国", words=False) == "巴黎是"
    assert common_beginning("Paris", "Pisa") == "" == common_beginning("", "x")


def test_a_prompt_that_its_row_has_before_is_left_out_and_counted(tmp_path: Path):
    rows = counterfact(1)
    rows[0]["paraphrase_prompts"] += ["person 0  plays the sport of"]
    facts, notes, _ = load_facts(own(tmp_path, rows))
    assert [kind for kind, _ in facts[0].probes] == ["paraphrase", "locality"]
    assert notes == ["1 row changed: a paraphrase prompt was left out that its row has before"]
