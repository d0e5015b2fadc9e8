"""What rules that understand nothing score: the notebook's pattern (D2), and small cases with every number by hand."""

import pytest

from factdpo.config.schema import DataConfig, Orientation, SplitConfig
from factdpo.data.facts import Fact
from factdpo.data.load import load_facts
from factdpo.data.splits import make_splits
from factdpo.evaluation.baselines import baselines
from factdpo.store.result import best_baseline

SEEDS = [0, 1, 2]


def fact(subject: str, object: str, chosen: str, rejected: str | None = None) -> Fact:
    other = rejected or {"friend": "enemy", "enemy": "friend"}[chosen]
    return Fact(0, f"{subject} is {object}'s", chosen, other, subject, object, same_side=chosen == "friend")


# friend 3 times, enemy twice. First names: A friend 2 of 3, B enemy, C friend. Second names: B friend, C and D a tie.
SMALL = [
    fact("A", "B", "friend"),
    fact("A", "C", "friend"),
    fact("A", "D", "enemy"),
    fact("B", "C", "enemy"),
    fact("C", "D", "friend"),
]


def of_harry_potter(orientation: Orientation, seed: int) -> dict[str, dict[str, float | None]]:
    splits = make_splits(
        load_facts(DataConfig()).facts, SplitConfig(train=300, orientation=orientation, seed=seed)
    ).splits
    return baselines(splits["train"], splits)


@pytest.mark.parametrize("seed", SEEDS)
def test_in_canonical_order_rules_about_names_show_the_notebooks_reversal(seed: int):
    found = of_harry_potter(Orientation.canonical, seed)
    for rule in ("first_name", "second_name"):
        assert 0.70 < found["train"][rule] < 0.85  # type: ignore[operator]
        assert 0.15 < found["train_reversed"][rule] < 0.35  # type: ignore[operator]
    assert found["train"]["additive"] >= 0.97 and found["test"]["additive"] >= 0.97  # type: ignore[operator]
    for split in ("train_reversed", "test_reversed"):
        assert 0.35 < found[split]["additive"] < 0.5  # type: ignore[operator]


@pytest.mark.parametrize("seed", SEEDS)
def test_in_random_order_no_rule_about_names_is_better_than_chance_on_held_out_facts(seed: int):
    found = of_harry_potter(Orientation.random, seed)
    for split in ("test", "test_reversed"):
        for rule in ("majority", "first_name", "second_name", "additive"):
            assert 0.4 < found[split][rule] < 0.56, (split, rule)  # type: ignore[operator]


@pytest.mark.parametrize("orientation", Orientation)
def test_300_facts_imply_all_others(orientation: Orientation):
    for split, values in of_harry_potter(orientation, seed=0).items():
        assert values["implied"] == 1.0, split


def test_every_rule_has_the_accuracy_counted_by_hand():
    held_out = [
        fact("E", "F", "friend"),  # names never seen: the majority
        fact("B", "F", "enemy"),  # first name B: enemy; F unseen: friend
        fact("E", "B", "friend"),  # second name B: friend
        fact("B", "D", "enemy"),  # B: enemy; D: a tie, so the majority; implied: A-B, A-C, B-C contradict each other
    ]
    found = baselines(SMALL, {"train": SMALL, "test": held_out})
    assert found["train"]["majority"] == 3 / 5
    assert found["train"]["first_name"] == 4 / 5  # all but A-D
    assert found["train"]["second_name"] == 3 / 5  # all but A-D and B-C
    assert found["test"]["majority"] == 2 / 4
    assert found["test"]["first_name"] == 4 / 4
    assert found["test"]["second_name"] == 2 / 4


def test_a_tie_counts_one_half():
    train = [fact("A", "B", "friend"), fact("C", "D", "enemy")]
    found = baselines(train, {"train": train, "test": [fact("E", "F", "friend"), fact("A", "F", "friend")]})
    assert found["train"] == {"majority": 0.5, "first_name": 1.0, "second_name": 1.0, "additive": 1.0, "implied": 1.0}
    assert found["test"]["majority"] == 0.5
    assert found["test"]["first_name"] == 0.75  # E was never seen: one half; A is right
    assert found["test"]["second_name"] == 0.5
    assert found["test"]["implied"] == 0.5


def test_an_additive_rule_cannot_learn_an_interaction_of_the_names():
    names = [("A", "C", "friend"), ("A", "D", "enemy"), ("B", "C", "enemy"), ("B", "D", "friend")]
    train = [fact(*row) for row in names]
    assert baselines(train, {"train": train})["train"]["additive"] == 0.5


def test_an_additive_rule_adds_up_what_it_knows_of_both_names():
    train = [
        *[fact("good", other, "friend") for other in ("C", "D", "E")],
        *[fact("bad", other, "enemy") for other in ("C", "D", "E")],
    ]
    found = baselines(train, {"test": [fact("good", "F", "friend"), fact("bad", "F", "enemy")]})
    assert found["test"]["additive"] == 1.0 and found["test"]["second_name"] == 0.5


def test_an_answer_never_seen_in_training_is_never_predicted():
    # beside A, `cat` is rarer than `dog`, and `cow` was in no training fact
    train = [*[fact("A", str(i), "dog", "cat") for i in range(9)], fact("B", "9", "cat", "dog")]
    test = [fact("A", "0", "cat", "cow"), fact("A", "0", "cow", "cat")]
    for rule in ("majority", "first_name", "second_name", "additive"):
        found = baselines(train, {"first": test[:1], "second": test[1:]})
        assert (found["first"][rule], found["second"][rule]) == (1.0, 0.0), rule


def test_friends_of_friends_and_enemies_of_enemies_are_implied():
    train = [fact("A", "B", "friend"), fact("B", "C", "enemy"), fact("C", "D", "enemy"), fact("X", "Y", "friend")]
    implied = [
        fact("A", "C", "enemy"),  # the enemy of a friend
        fact("A", "D", "friend"),  # the enemy of an enemy
        fact("D", "B", "friend"),  # in the other order too
        fact("Y", "X", "friend"),
    ]
    unknown = [fact("A", "X", "friend"), fact("Z", "A", "enemy")]  # not connected, never seen: a tie of 2 and 2
    found = baselines(train, {"implied": implied, "unknown": unknown})
    assert found["implied"]["implied"] == 1.0
    assert found["unknown"]["implied"] == 0.5


def test_nothing_is_implied_where_the_relation_tells_no_sides():
    train = [Fact(i, f"{i} is", "x", "y", f"A{i}", f"B{i}") for i in range(4)]
    assert baselines(train, {"train": train})["train"]["implied"] is None


def test_facts_without_names_have_the_majority_only():
    train = [Fact(0, "p", "x", "y"), Fact(1, "q", "x", "y"), Fact(2, "r", "y", "x")]
    found = baselines(train, {"train": train})["train"]
    assert found == {"majority": 2 / 3, "first_name": None, "second_name": None, "additive": None, "implied": None}
    assert best_baseline(found) == ("majority", 2 / 3)


def test_with_one_answer_only_no_additive_rule_is_fitted():
    train = [fact("A", "B", "friend"), fact("A", "C", "friend")]
    found = baselines(train, {"train": train})["train"]
    assert found == {"majority": 1.0, "first_name": 1.0, "second_name": 1.0, "additive": None, "implied": None}


def test_the_best_rule_is_the_best_that_understands_nothing():
    values = {"majority": 0.5, "first_name": 0.7, "second_name": 0.6, "additive": None, "implied": 1.0}
    assert best_baseline(values) == ("first_name", 0.7)
