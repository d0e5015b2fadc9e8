"""Which facts are trained on and held out (D5, D7), and in which order their names stand (D2)."""

import dataclasses
from pathlib import Path

import pytest

from factdpo.config.schema import ConfigError, DataConfig, DataSource, Orientation, SplitConfig
from factdpo.data.facts import Fact
from factdpo.data.load import load_facts
from factdpo.data.splits import check_disjoint, make_splits, splits_to_score

SEEDS = [0, 1, 2]
ALL = ["train", "train_reversed", "test", "test_reversed"]


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return load_facts(DataConfig()).facts


def is_canonical(fact: Fact, facts: list[Fact]) -> bool:
    """Whether the names stand in the order of the table."""
    return fact == facts[fact.index]


def test_random_orientation_is_the_default():
    assert SplitConfig().orientation is Orientation.random


@pytest.mark.parametrize("seed", SEEDS)
def test_random_orientation_turns_about_half_of_each_split(facts: list[Fact], seed: int):
    splits = make_splits(facts, SplitConfig(seed=seed)).splits
    for name in ("train", "test"):
        turned = sum(not is_canonical(fact, facts) for fact in splits[name]) / len(splits[name])
        assert 0.4 < turned < 0.6, name


@pytest.mark.parametrize("seed", SEEDS)
def test_orientation_does_not_change_which_facts_are_drawn(facts: list[Fact], seed: int):
    drawn = {o: make_splits(facts, SplitConfig(seed=seed, orientation=o)).splits for o in Orientation}
    for name in ("train", "test"):
        indices = {o: [fact.index for fact in splits[name]] for o, splits in drawn.items()}
        assert indices[Orientation.random] == indices[Orientation.canonical]
        assert sorted(set(indices[Orientation.both])) == sorted(indices[Orientation.random])


def test_canonical_orientation_keeps_the_order_of_the_table(facts: list[Fact]):
    splits = make_splits(facts, SplitConfig(orientation=Orientation.canonical, seed=0)).splits
    for name in ("train", "test"):
        assert all(is_canonical(fact, facts) for fact in splits[name])
        assert not any(is_canonical(fact, facts) for fact in splits[f"{name}_reversed"])


def test_in_canonical_order_every_enemy_prompt_names_the_same_camp_first(facts: list[Fact]):
    # D2: this is what a model learns in place of the facts, and why random is the default.
    def first_of_enemies(orientation: Orientation) -> set[str | None]:
        train = make_splits(facts, SplitConfig(orientation=orientation, seed=0)).splits["train"]
        return {fact.subject for fact in train if fact.chosen == "enemy"}

    assert "Harry Potter" not in first_of_enemies(Orientation.canonical)
    assert len(first_of_enemies(Orientation.canonical)) <= 20
    assert {"Harry Potter", "Lord Voldemort"} <= first_of_enemies(Orientation.random)


def test_both_orientations_train_on_both_orders_and_hold_out_one(facts: list[Fact]):
    splits = make_splits(facts, SplitConfig(train=10, test=20, orientation=Orientation.both, seed=0)).splits
    assert [len(splits[name]) for name in ALL] == [20, 20, 20, 20]
    train = splits["train"]
    assert all(train[i + 1] == train[i].reversed() for i in range(0, 20, 2))
    assert {fact.prompt for fact in splits["train_reversed"]} == {fact.prompt for fact in train}
    assert len({fact.key for fact in splits["test"]}) == 20


@pytest.mark.parametrize("orientation", Orientation)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_pair_and_no_prompt_is_on_both_sides(facts: list[Fact], seed: int, orientation: Orientation):
    splits = make_splits(facts, SplitConfig(seed=seed, orientation=orientation)).splits
    trained = [*splits["train"], *splits["train_reversed"]]
    held_out = [*splits["test"], *splits["test_reversed"]]
    for what in (lambda fact: fact.key, lambda fact: fact.prompt, lambda fact: fact.index):
        assert not {what(fact) for fact in trained} & {what(fact) for fact in held_out}


def test_all_facts_not_trained_on_are_held_out(facts: list[Fact]):
    splits = make_splits(facts, SplitConfig(train=300, seed=0)).splits
    assert [len(splits[name]) for name in ALL] == [300, 300, 561, 561]
    assert {fact.index for name in ("train", "test") for fact in splits[name]} == set(range(861))


def test_fewer_are_held_out_if_asked_and_they_are_the_first_of_the_rest(facts: list[Fact]):
    few, all_of_them = (make_splits(facts, SplitConfig(train=300, test=n, seed=0)).splits for n in (50, None))
    assert few["train"] == all_of_them["train"]
    assert few["test"] == all_of_them["test"][:50]


def test_a_split_of_no_facts_is_left_out(facts: list[Fact]):
    assert list(make_splits(facts, SplitConfig(train=861, seed=0)).splits) == ["train", "train_reversed"]
    assert list(make_splits(facts, SplitConfig(train=300, test=0, seed=0)).splits) == ["train", "train_reversed"]


def test_reversed_splits_are_the_same_facts_in_the_same_places(facts: list[Fact]):
    splits = make_splits(facts, SplitConfig(train=30, test=20, seed=0)).splits
    for name in ("train", "test"):
        assert splits[f"{name}_reversed"] == [fact.reversed() for fact in splits[name]]


def test_the_same_seed_draws_the_same_and_another_seed_others(facts: list[Fact]):
    one, again, other = (make_splits(facts, SplitConfig(seed=seed)).splits for seed in (0, 0, 1))
    assert one == again
    assert {fact.index for fact in one["train"]} != {fact.index for fact in other["train"]}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (SplitConfig(train=862, seed=0), ["split.train=862", "only 861"]),
        (SplitConfig(train=300, test=562, seed=0), ["split.test=562", "only 561"]),
    ],
)
def test_more_facts_than_there_are_is_refused_with_the_number_left(
    facts: list[Fact], asked: SplitConfig, words: list[str]
):
    with pytest.raises(ConfigError) as refusal:
        make_splits(facts, asked)
    assert [word for word in words if word not in str(refusal.value)] == []


@pytest.mark.parametrize("leak", ["the fact", "its reverse", "only its prompt"])
def test_a_leak_put_in_by_hand_is_caught(facts: list[Fact], leak: str):
    splits = make_splits(facts, SplitConfig(train=300, test=100, seed=0)).splits
    check_disjoint(splits)
    trained = splits["train"][17]
    leaked = {
        "the fact": trained,
        "its reverse": trained.reversed(),
        "only its prompt": Fact(999, trained.prompt, "cousin", "uncle", where="own.csv:9"),
    }[leak]
    with pytest.raises(ConfigError) as refusal:
        check_disjoint({**splits, "test": [*splits["test"], leaked]})
    assert f"'{leaked.prompt}' ({leaked.where}) is held out" in str(refusal.value)
    assert "is trained on" in str(refusal.value)


def test_facts_about_one_pair_stay_together():
    # Two relations of each of 20 pairs, named in either order.
    facts = [
        fact
        for i in range(20)
        for fact in (
            Fact(2 * i, f"A{i} is B{i}'s", "friend", "enemy", f"A{i}", f"B{i}", where=f"own.csv:{4 * i}"),
            Fact(2 * i + 1, f"B{i} lives near A{i}'s", "house", "cave", f"B{i}", f"A{i}", where=f"own.csv:{4 * i + 2}"),
        )
    ]
    splits = make_splits(facts, SplitConfig(train=20, seed=0)).splits
    assert [len(splits[name]) for name in ("train", "test")] == [20, 20]
    assert not {fact.key for fact in splits["train"]} & {fact.key for fact in splits["test"]}
    drawn = make_splits(facts, SplitConfig(train=21, seed=0))
    assert len(drawn.splits["train"]) == 20
    assert drawn.notes == ["split.train=21: 20 facts were taken, since facts about the same thing stay together"]


def test_facts_that_share_prompts_in_reverse_stay_together(tmp_path: Path):
    rows = [f"p{i},{a},{b},q{i}\n" for i in range(10) for a, b in (("x", "y"), ("x", "z"))]
    path = tmp_path / "own.csv"
    path.write_text("prompt,chosen,rejected,reverse_prompt\n" + "".join(rows))
    facts = load_facts(DataConfig(source=DataSource.pairs, path=str(path))).facts
    for seed in SEEDS:
        splits = make_splits(facts, SplitConfig(train=10, seed=seed)).splits
        assert len(splits["train"]) == len(splits["test"]) == 10


def test_a_prompt_that_is_the_reverse_of_another_row_stays_with_it():
    one = Fact(0, "A is B's", "friend", "enemy", reverse_prompt="B is A's", where="own.csv:2")
    other = Fact(1, "b is  A's", "friend", "cousin", where="own.csv:3")
    far = Fact(2, "C is D's", "friend", "enemy", where="own.csv:4")
    for seed in SEEDS:
        splits = make_splits([one, far, other], SplitConfig(train=2, seed=seed)).splits
        assert sorted(fact.index for fact in splits["train"]) in ([0, 1], [2])


def test_facts_without_a_reverse_have_no_reversed_splits():
    facts = [Fact(i, f"The capital of {i} is", "x", "y") for i in range(10)]
    assert list(make_splits(facts, SplitConfig(train=6, seed=0)).splits) == ["train", "test"]


def test_where_some_facts_have_a_reverse_the_reversed_split_holds_these():
    facts = [Fact(i, f"p{i}", "x", "y", reverse_prompt=f"q{i}" if i % 2 else None) for i in range(10)]
    splits = make_splits(facts, SplitConfig(train=10, seed=0)).splits
    assert sorted(fact.index for fact in splits["train_reversed"]) == [1, 3, 5, 7, 9]
    assert {fact.prompt for fact in splits["train"] if fact.index % 2 == 0} == {"p0", "p2", "p4", "p6", "p8"}


def test_both_orders_of_a_fact_without_a_reverse_are_refused():
    with pytest.raises(ConfigError, match=r"split\.orientation=both: own\.csv:2 has no reverse_prompt; use random"):
        make_splits([Fact(0, "p", "x", "y", where="own.csv:2")], SplitConfig(1, 0, 0, Orientation.both, 0))


def _capitals(count: int, **more: str) -> list[Fact]:
    return [Fact(i, f"The capital of {i} is", "x", "y", subject=f"country {i}", **more) for i in range(count)]  # type: ignore


@pytest.mark.parametrize("seed", SEEDS)
def test_wordings_of_one_fact_stand_on_one_side(seed: int):
    worded = [Fact(2 * i + j, text, "x", "y", subject=f"Country  {i}" if j else f"country {i}")
              for i in range(20) for j, text in enumerate((f"The capital of {i} is", f"{i}'s capital is"))]  # fmt: skip
    splits = make_splits(worded, SplitConfig(train=20, seed=seed)).splits
    assert {fact.index // 2 for fact in splits["train"]} & {fact.index // 2 for fact in splits["test"]} == set()


def test_a_group_column_has_the_last_word():
    facts = [Fact(i, f"p{i}", "x", "y", subject=f"s{i}", group=f"g{i // 5}") for i in range(20)]
    splits = make_splits(facts, SplitConfig(train=10, seed=0)).splits
    assert {fact.group for fact in splits["train"]} & {fact.group for fact in splits["test"]} == set()


def test_sizes_may_be_shares():
    splits = make_splits(_capitals(60), SplitConfig(train=0.5, validation=0.1, test=1.0, seed=0)).splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 30, "validation": 6, "test": 24}


def test_no_fact_at_all_is_refused():
    with pytest.raises(ConfigError, match="every row was left out"):
        make_splits([], SplitConfig(train=0.5, seed=0))


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_share_of_no_fact_is_refused(name: str):
    sizes = {"train": 0.5, name: 0.01}
    with pytest.raises(ConfigError, match=rf"split\.{name}=0\.01: of (10|5) facts that is none"):
        make_splits(_capitals(10), SplitConfig(**sizes, seed=0))


def test_a_validation_split_leaves_the_training_facts_as_they_are():
    facts = load_facts(DataConfig()).facts
    with_it, without = (make_splits(facts, SplitConfig(validation=n, seed=1)).splits for n in (50, 0))
    assert with_it["train"] == without["train"]
    assert len(with_it["validation"]) == len(with_it["validation_reversed"]) == 50 and len(with_it["test"]) == 511
    assert {f.index for f in with_it["validation"]} & {f.index for f in with_it["test"]} == set()


def test_shares_that_leave_nothing_to_hold_out_are_said():
    drawn = make_splits(_capitals(10), SplitConfig(train=0.5, validation=0.5, seed=0))
    assert drawn.notes == ["no fact is left to hold out as test: split.train and split.validation take all of them"]
    assert make_splits(_capitals(10), SplitConfig(train=0.5, validation=0.5, test=0, seed=0)).notes == []


def test_too_small_data_is_told_of_shares():
    with pytest.raises(ConfigError, match=r"split\.train=300: the data has only 60 facts.*split\.train=0\.5"):
        make_splits(_capitals(60), SplitConfig(seed=0))


def test_more_than_ten_thousand_held_out_facts_are_cut_and_it_is_said():
    drawn = make_splits(_capitals(10_400), SplitConfig(seed=0))
    assert len(drawn.splits["test"]) == 10_000
    assert drawn.notes == ["held out are 10000 of 10100 facts; split.test=1.0 takes all"]
    assert len(make_splits(_capitals(10_400), SplitConfig(test=1.0, seed=0)).splits["test"]) == 10_100


def test_the_datas_own_splits_are_kept():
    facts = [*_capitals(6, split="train"), Fact(9, "0's capital is", "x", "y", subject="country 0", split="paraphrase")]
    drawn = make_splits(facts, SplitConfig(seed=0))
    assert {name: len(split) for name, split in drawn.splits.items()} == {"train": 6, "paraphrase": 1}
    assert len(drawn.notes) == 1 and "1 of 1 rows of paraphrase are about facts that are trained on" in drawn.notes[0]
    assert len(make_splits(facts, SplitConfig(train=4, seed=0)).splits["train"]) == 4
    with pytest.raises(ConfigError, match=r"split\.validation=2: the data names its own splits"):
        make_splits(facts, SplitConfig(validation=2, seed=0))
    with pytest.raises(ConfigError, match="none is named train"):
        make_splits(_capitals(3, split="test"), SplitConfig(seed=0))


def test_a_prompt_of_the_datas_own_test_that_is_trained_on_is_refused():
    facts = [*_capitals(3, split="train"), *_capitals(1, split="test")]
    with pytest.raises(ConfigError, match="is held out, but"):
        make_splits(facts, SplitConfig(seed=0))


def test_a_probe_that_several_facts_share_is_asked_once():
    """As CounterFact's neighbours are; the same prompt with other answers is another probe."""
    alike, other = Fact(0, "Paris is in", "France", "Rome"), Fact(0, "Paris is in", "France", "Oslo")
    probes = [("locality", dataclasses.replace(probe, index=i)) for i in range(3) for probe in (alike, other)]
    facts = [Fact(i, f"p{i}", "x", "y", probes=tuple(probes[2 * i : 2 * i + 2])) for i in range(3)]
    splits = make_splits(facts, SplitConfig(train=3)).splits
    assert sorted((probe.prompt, probe.rejected) for probe in splits["locality"]) == [
        ("Paris is in", "Oslo"),
        ("Paris is in", "Rome"),
    ]


def test_probes_make_splits_of_their_own():
    kinds = ("paraphrase", "locality")
    probes = [tuple((kind, Fact(i, f"{kind} {i}", "x", "y")) for kind in kinds) for i in range(10)]
    facts = [Fact(i, f"p{i}", "x", "y", probes=probes[i]) for i in range(10)]
    splits = make_splits(facts, SplitConfig(train=4, seed=0)).splits
    sizes = {name: len(split) for name, split in splits.items()}
    assert sizes == {"train": 4, "test": 6, "train_paraphrase": 4, "locality": 4, "test_paraphrase": 6}
    assert [fact.index for fact in splits["train_paraphrase"]] == [fact.index for fact in splits["train"]]


@pytest.mark.parametrize("name", ["a/b", "train_as_trained", "fixed", "two words"])
def test_a_split_of_the_datas_own_has_a_plain_name(name: str):
    with pytest.raises(ConfigError, match="a split is named"):
        make_splits([*_capitals(2, split="train"), *_capitals(1, split=name)], SplitConfig(seed=0))


def test_facts_to_score_are_held_out_only_if_nothing_about_them_was_trained_on():
    def told(index: int, prompt: str, reverse: str, subject: str | None = None, object: str | None = None) -> Fact:
        return Fact(index, prompt, "friend", "enemy", subject, object, reverse_prompt=reverse)

    trained = [told(0, "A is B's", "B is A's", "A", "B")]
    other_order, another = told(0, "B likes  a", "a likes B", "b", "A"), told(1, "C is D's", "D is C's", "C", "D")
    same_prompt = told(2, "a is  B's", "B is A's")
    splits, notes = splits_to_score([other_order, another, same_prompt], trained)
    assert {name: [fact.index for fact in split] for name, split in splits.items()} == {
        "train": [0, 2], "test": [1], "train_reversed": [0, 2], "test_reversed": [1],
    }  # fmt: skip
    assert not notes
    splits, _ = splits_to_score([other_order, another, same_prompt], [])
    assert [fact.index for fact in splits["test"]] == [0, 1, 2] and "train" not in splits


def test_facts_to_score_stay_in_the_splits_that_the_data_names_and_what_was_trained_on_is_said():
    trained = [Fact(0, "A is", "x", "y")]
    probe = Fact(1, "near B", "x", "y")
    facts = [
        Fact(0, "A is", "x", "y", split="test"),
        Fact(1, "B is", "x", "y", split="test", probes=(("locality", probe),)),
    ]
    splits, (note,) = splits_to_score(facts, trained)
    assert {name: len(split) for name, split in splits.items()} == {"test": 2, "locality": 1}
    assert note.startswith("1 of 2 rows of test are about facts that are trained on")
