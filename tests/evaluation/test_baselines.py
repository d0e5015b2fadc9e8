"""What rules that understand nothing score: the notebook's pattern (D2), and small cases with every number by hand."""

import random
import time
from pathlib import Path

import pytest

from factdpo.config.schema import DataConfig, DataSource, Orientation, SplitConfig, SyntheticConfig
from factdpo.data.facts import Fact
from factdpo.data.load import load_facts, sides
from factdpo.data.pairs import Pairs
from factdpo.data.splits import make_splits
from factdpo.evaluation import baselines as module
from factdpo.evaluation.baselines import Baselines, named
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


def rules_of(train: list[Fact], splits: dict[str, list[Fact]], sides: int | None = None) -> Baselines:
    """The baselines with a token per word."""
    pairs = {
        name: Pairs(
            facts,
            [[1]] * len(facts),
            [[1] * len(fact.chosen.split()) for fact in facts],
            [[1] * len(fact.rejected.split()) for fact in facts],
            pad_id=0,
        )
        for name, facts in splits.items()
    }
    return module.baselines(train, pairs, sides)


def baselines(train: list[Fact], splits: dict[str, list[Fact]]) -> dict[str, dict[str, float | None]]:
    return rules_of(train, splits).accuracies


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
    train = [fact(a, b, answer) for a, b, answer in (("A", "B", "friend"), ("A", "G", "friend"),
                                                     ("C", "D", "enemy"), ("C", "H", "enemy"))]  # fmt: skip
    found = baselines(train, {"train": train, "test": [fact("E", "F", "friend"), fact("A", "F", "friend")]})
    assert found["train"] == {
        "chance": 0.5, "shorter": 0.5, "majority": 0.5, "answer_counts": 0.5, "first_name": 1.0, "second_name": 1.0,
        "additive": 1.0, "bag_of_names": 1.0, "implied": 1.0,
    }  # fmt: skip
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


def test_facts_without_names_have_no_rules_about_names():
    train = [Fact(0, "p", "x", "y"), Fact(1, "q", "x", "y"), Fact(2, "r", "y", "x"), Fact(3, "s", "x", "y")]
    found = rules_of(train, {"train": train})
    assert found.accuracies["train"] == {
        "chance": 0.5, "shorter": 0.5, "majority": 0.75, "answer_counts": 0.75, "first_name": None,
        "second_name": None, "additive": None, "bag_of_names": None, "implied": None,
    }  # fmt: skip
    assert found.coverage == {"train": {"named": 0, "implied": None, "contradictions": None, "sides": None}}
    assert best_baseline(found.accuracies["train"]) == ("majority", 0.75)


def test_with_one_answer_only_no_regression_is_fitted():
    train = [fact("A", "B", "friend"), fact("A", "C", "friend")]
    found = baselines(train, {"train": train})["train"]
    assert (found["majority"], found["first_name"], found["implied"]) == (1.0, 1.0, 1.0)
    assert found["additive"] is found["bag_of_names"] is None


def test_a_majority_of_answers_that_are_no_closed_set_is_a_table_to_look_facts_up():
    """As for cities of birth, one per person: it would score 1.00 on the training facts."""
    train = [Fact(i, f"{i} was born in", f"city{i}", f"city{i + 1}") for i in range(10)]
    assert baselines(train, {"train": train})["train"]["majority"] is None
    thrice = [Fact(i, f"{i} was born in", f"city{i % 21}", "Rome") for i in range(63)]
    assert baselines(thrice[:60], {"train": thrice})["train"]["majority"] is None, "21 answers"
    assert baselines(thrice[:20] * 2, {"train": thrice[:20]})["train"]["majority"] == 1.0, "20, each of two facts"


def test_one_weight_per_name_wherever_it_stands_also_ranks_the_swapped_facts():
    """Vex is everybody's enemy: as first name in training, as second name in the swapped facts."""
    train = [
        *[fact("Vex", f"N{i}", "enemy") for i in range(4)],
        *[fact("Hal", f"N{i}", "friend") for i in range(4)],
    ]
    swapped = [fact("N5", "Vex", "enemy"), fact("N5", "Hal", "friend")]
    found = baselines(train, {"test": swapped})["test"]
    assert (found["bag_of_names"], found["additive"], found["first_name"]) == (1.0, 0.5, 0.5)


def test_an_answer_that_was_rejected_more_often_than_chosen_is_not_predicted():
    train = [Fact(i, f"p{i}", "red", "blue") for i in range(3)] + [Fact(9, "q", "blue", "green")] * 2
    test = [Fact(10, "r", "green", "blue"), Fact(11, "s", "blue", "grey"), Fact(12, "t", "grey", "pink")]
    found = rules_of(train, {"test": test}).accuracies["test"]
    assert found["answer_counts"] == pytest.approx(0.5 / 3)  # blue -1, green -2, grey and pink 0: wrong, wrong, a tie


def test_the_shorter_answer_is_the_one_of_fewer_tokens():
    facts = [Fact(0, "p", "New York", "Rome"), Fact(1, "q", "Rome", "New York"), Fact(2, "r", "Rome", "Bonn")]
    assert baselines(facts, {"train": facts})["train"]["shorter"] == 0.5
    assert baselines(facts, {"train": facts[:1]})["train"]["shorter"] == 0.0
    assert baselines(facts, {"train": facts[1:]})["train"]["shorter"] == 0.75


@pytest.mark.parametrize(
    ("prompt", "subject", "object", "expected"),
    [
        ("Ann is Ben's", "Ann", "Ben", True),
        ("ann  is\nBEN's", "Ann", "Ben", True),  # case and spaces apart
        ("Annie is Ben's", "Ann", "Ben", False),  # a part of a word is no name
        ("Zo\u0065\u0308 is Ben's", "Zo\u00eb", "Ben", True),  # two Unicode forms of one name
        ("Mr. (X) is Ben's", "Mr. (X)", "Ben", True),
        ("张三是李四的", "张三", "李四", True),  # no spaces between words
        ("N10 is N1's", "N1", "N10", True),
        ("N10 is N11's", "N1", "N10", False),
        ("The native language of Anna is", "Anna", "French", False),
        ("French or Dutch? Anna speaks", "Anna", "French", False),  # stands there, and is the answer
        ("Anna is", "Anna", None, False),
    ],
)
def test_a_fact_is_named_where_both_names_stand_in_its_prompt(prompt, subject, object, expected):
    assert named(Fact(0, prompt, "French", "Dutch", subject, object)) is expected


def test_a_row_without_names_does_not_take_the_rules_from_the_others():
    nameless = Fact(9, "The sky is", "enemy", "friend")
    train = [*SMALL, nameless]
    found = rules_of(train, {"train": train, "test": [nameless]})
    assert found.accuracies["train"]["first_name"] == (4 + 0.5) / 6  # 4 of 5, and a tie
    assert found.coverage["train"]["named"] == 5
    assert found.accuracies["test"]["first_name"] is None and found.coverage["test"]["named"] == 0


def test_the_best_rule_is_the_best_that_understands_nothing():
    values = {"majority": 0.5, "first_name": 0.7, "second_name": 0.6, "additive": None, "implied": 1.0}
    assert best_baseline(values) == ("first_name", 0.7)


# --------------------------------------------------------------------------------------- the cases beside the project


def of_case(file: str, train: int, seed: int = 0, source: DataSource = DataSource.pairs) -> Baselines:
    path = Path(__file__).parents[3] / "shared" / "cases" / file
    if not path.exists():
        pytest.skip(f"{path} is not there")
    facts = load_facts(DataConfig(source=source, path=str(path))).facts
    splits = make_splits(facts, SplitConfig(train=train, seed=seed)).splits
    return rules_of(splits["train"], splits)


def test_length_bias_has_its_rule():
    for split, values in of_case("length_bias.jsonl", 10).accuracies.items():
        assert values["shorter"] == 0.0, split


def test_hubs_are_found_by_a_bag_of_names():
    found = of_case("hubs_bag_of_names.jsonl", 14, seed=1).accuracies
    assert [found[split]["bag_of_names"] for split in ("train", "test", "test_reversed")] == [1.0, 1.0, 1.0]
    assert best_baseline(found["test_reversed"]) == ("bag_of_names", 1.0)


def test_no_best_baseline_is_below_chance():
    found = of_case("one_to_one_below_chance.jsonl", 10).accuracies["test"]
    assert found["majority"] is None
    best = best_baseline(found)
    assert best is not None and best[1] >= 0.5


def test_an_object_that_is_the_answer_is_no_name():
    found = of_case("object_is_the_answer.jsonl", 8)
    assert found.accuracies["test"]["second_name"] is None and found.coverage["test"]["named"] == 0


SHOWN = "assuming 3 sides, as the training facts show"


def test_three_sides_are_implied_by_logic():
    found = of_case("houses_three_sides.csv", 100, source=DataSource.harry_potter)
    assert [found.accuracies[split]["implied"] for split in ("train", "test")] == [1.0, 1.0]
    assert found.coverage["train"] == {"named": 100, "implied": 100, "contradictions": 0, "sides": SHOWN}
    assert found.coverage["test"]["implied"] == 90


def test_of_twenty_camps_few_training_facts_say_that_there_are_more_than_two():
    """Two sides, the guess of old, make friends of most enemies; that there are 20 is known."""
    cfg = DataConfig(source=DataSource.synthetic, synthetic=SyntheticConfig(camps=20))
    splits = make_splits(load_facts(cfg).facts, SplitConfig(train=300)).splits
    enemies = sum(fact.chosen == "enemy" for fact in splits["test"]) / len(splits["test"])
    names = sides(cfg)
    assert names is not None
    found = rules_of(splits["train"], splits, len(set(names.values())))
    assert (found.accuracies["test"]["implied"] or 0) >= enemies > 0.9
    assert found.coverage["train"]["sides"] == "20, as the data has them"


@pytest.mark.slow
def test_a_hundred_thousand_facts_take_seconds():
    rng = random.Random(0)
    names = [f"N{i}" for i in range(20_000)]
    facts = [fact(*rng.sample(names, 2), rng.choice(["friend", "enemy"])) for _ in range(100_000)]
    begun = time.process_time()
    rules_of(facts[:90_000], {"train": facts[:90_000], "test": facts[90_000:]})
    assert time.process_time() - begun < 20
