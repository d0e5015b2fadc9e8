"""data=synthetic: invented names in camps, with noise, from the seed alone."""

from collections import Counter

import pytest

from factdpo.config.schema import Config, ConfigError, DataConfig, DataSource, SplitConfig, SyntheticConfig
from factdpo.config.validate import validate
from factdpo.data.load import Loaded, load_facts, sides
from factdpo.data.sources.synthetic import invented_names
from factdpo.data.splits import make_splits


def invent(**keys: float) -> Loaded:
    return load_facts(DataConfig(source=DataSource.synthetic, synthetic=SyntheticConfig(**keys)))  # type: ignore


def test_each_pair_of_names_is_a_fact_of_friends_in_a_camp_and_enemies_across():
    facts = invent(names=9, camps=3).facts
    camp = sides(DataConfig(source=DataSource.synthetic, synthetic=SyntheticConfig(names=9, camps=3)))
    assert camp is not None and Counter(camp.values()) == {0: 3, 1: 3, 2: 3}
    assert len(facts) == 36 and Counter(fact.chosen for fact in facts) == {"friend": 9, "enemy": 27}
    for fact in facts:
        same = camp[str(fact.subject)] == camp[str(fact.object)]
        assert fact.same_side is same and fact.chosen == ("friend" if same else "enemy")
        assert fact.prompt == f"{fact.subject} is {fact.object}'s"
        assert fact.reverse_prompt == f"{fact.object} is {fact.subject}'s"


def test_names_are_different_and_depend_on_the_seed_alone():
    names = invented_names(3000, seed=1)
    assert len({name.casefold() for name in names}) == 3000 and names[:100] == invented_names(100, seed=1)
    assert not set(names[:100]) & set(invented_names(100, seed=2))


def test_noise_turns_its_share_of_the_statements_round_and_is_said():
    clean, noisy = invent(names=20), invent(names=20, noise=0.1)
    turned = [b for a, b in zip(clean.facts, noisy.facts, strict=True) if a.chosen != b.chosen]
    assert len(turned) == 19 and noisy.notes == ["data.synthetic.noise=0.1: 19 of 190 facts are told the wrong way"]
    assert [fact.prompt for fact in clean.facts] == [fact.prompt for fact in noisy.facts] and clean.notes == []
    assert all(fact.same_side is (fact.chosen == "friend") for fact in turned)  # as told, so that logic sees it


def test_a_file_is_refused_since_nothing_would_read_it():
    with pytest.raises(ConfigError, match=r"data\.path=a\.csv: has no effect with data=synthetic"):
        validate(Config(data=DataConfig(source=DataSource.synthetic, path="a.csv")))


def test_many_facts_are_held_out_up_to_the_cap():
    loaded = invent(names=150)  # 11,175 facts
    drawn = make_splits(loaded.facts, SplitConfig(seed=0))
    assert {name: len(split) for name, split in drawn.splits.items()} == {
        "train": 300, "train_reversed": 300, "test": 10_000, "test_reversed": 10_000,
    }  # fmt: skip
    assert drawn.notes == ["held out are 10000 of 10875 facts; split.test=1.0 takes all"]
