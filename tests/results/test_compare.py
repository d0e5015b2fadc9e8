import math
from pathlib import Path

import pandas as pd
import pytest
from pytest import approx

from factdpo.config.schema import ConfigError
from factdpo.results.compare import paired, side
from factdpo.results.tables import load
from tests.helpers.stored import answers, store

# ----------------------------------------------------------------------------------------------- who is meant by a side


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for number, (beta, seed) in enumerate([(0.1, 0), (0.1, 1), (0.5, 0), (0.5, 1), (0.5, 2)]):
        answers(store(tmp_path, f"{number}abc", dpo_beta=beta, seed=seed), "++-" if beta == 0.1 else "+--")
    return tmp_path


def test_a_side_is_an_id_or_its_beginning_a_folder_or_a_filter(runs: Path):
    results = load(runs)
    for asked, ids in [
        ("0abc", ["0abc"]), ("3", ["3abc"]), (str(runs / "run-2abc"), ["2abc"]), ("dpo.beta=0.1", ["0abc", "1abc"]),
        ("dpo.beta=5e-1,seed=2", ["4abc"]), ("dpo.beta=.1,model=nano,dpo.loss=[sigmoid]", ["0abc", "1abc"]),
        ("lora.dora=false,dpo.beta=0.5", ["2abc", "3abc", "4abc"]),
    ]:  # fmt: skip
        assert side(results, asked).runs["id"].tolist() == ids
    assert side(results, "dpo.beta=0.5").seeds == ["0", "1", "2"]


def test_a_folder_of_runs_is_a_side_too_even_one_that_was_not_loaded(
    runs: Path, tmp_path_factory: pytest.TempPathFactory
):
    other = tmp_path_factory.mktemp("other")
    for seed in (0, 1):
        answers(store(other, f"{seed}f", seed=seed), "+++")
    assert side(load(runs), str(other)).runs["id"].tolist() == ["0f", "1f"]


def test_what_is_nobody_or_too_many_is_refused(runs: Path):
    store(runs, "9abc", state="DIVERGED", dpo_beta=0.9)
    store(runs, "99bc", state="killed", dpo_beta=0.5, seed=3)
    results = load(runs)
    for asked, why in [
        ("zz", "zz: no folder, and the beginning of 0 ids of runs"),
        ("9", "9: no folder, and the beginning of 2 ids of runs"),
        ("dpo.beta=0.3", "dpo.beta=0.3: no such run; dpo.beta is 0.1, 0.5, 0.9"),
        ("dpo.bta=0.3", r"dpo.bta: no such key \(did you mean dpo.beta\?\)"),
        ("seed=0", r"seed=0: 2 runs that differ in more than their seed \(dpo.beta is 0.1, 0.5\)"),
        ("dpo.beta=0.9", r"dpo.beta=0.9: no finished run \(run 9abc DIVERGED\)"),
    ]:
        with pytest.raises(ConfigError, match=f"^{why}"):
            side(results, asked)
    assert side(results, "dpo.beta=0.5").unfinished == 1


# --------------------------------------------------------------------------------------------------------- fact by fact


def two(tmp_path: Path, a: str, b: str, **more):
    """Two runs that were asked the same facts: `+` is right."""
    answers(store(tmp_path, "a"), a)
    answers(store(tmp_path, "b", dpo_beta=0.5), b, **more)
    results = load(tmp_path)
    return side(results, "a"), side(results, "b")


def test_pairs_are_counted_and_mcnemars_p_is_exact(tmp_path: Path):
    a, b = two(tmp_path, "+------+++", "-+++++++-+")
    row = paired(a, b).iloc[0]
    # only A: facts 0 and 8; only B: 1 to 6. P(at most 2 of 8 at 1/2) = (1 + 8 + 28) / 256, twice
    assert (row["only_a"], row["only_b"]) == (2, 6) and row["p"] == approx(2 * 37 / 256)
    assert (row["split"], row["seed"], row["pairs"], row["facts_a"], row["facts_b"]) == ("train", "", 10, 10, 10)
    assert (row["accuracy_a"], row["accuracy_b"], row["difference"]) == (0.4, 0.8, approx(0.4))


def test_the_bootstraps_interval_is_that_of_resampled_facts(tmp_path: Path):
    # Differences 1, 0, 0, 0, 0: their mean is k / 5 with k of Binomial(5, 1/5); P(k = 0) = 0.33, P(k > 3) = 0.007.
    a, b = two(tmp_path, "-++++", "+++++")
    row = paired(a, b).iloc[0]
    assert (row["difference"], row["low"], row["high"]) == (approx(0.2), 0.0, approx(0.6))
    assert paired(a, b).equals(paired(a, b))  # its seed is fixed


def test_sides_that_agree_in_everything_may_differ_on_other_facts(tmp_path: Path):
    row = paired(*two(tmp_path, "+-+-+", "+-+-+")).iloc[0]
    assert [row[name] for name in ("difference", "only_a", "only_b", "p")] == [0, 0, 0, 1]
    # Wilson's upper bound of 0 of 5: z^2 / (5 + z^2) = 3.8415 / 8.8415
    assert [row["low"], row["high"]] == approx([-0.4345, 0.4345], abs=1e-4)


def test_only_facts_in_common_are_compared_and_none_is_refused(tmp_path: Path):
    row = paired(*two(tmp_path, "++-", "-+-", first=1)).iloc[0]  # facts 0, 1, 2 and 1, 2, 3
    assert (row["facts"], row["facts_a"], row["facts_b"]) == (2, 3, 3)
    assert (row["accuracy_a"], row["accuracy_b"]) == (0.5, 0.5)  # of 1 and 2: A right and wrong, B wrong and right
    answers(tmp_path / "run-b", "+++", words=" best")
    results = load(tmp_path)
    with pytest.raises(ConfigError, match=r"^a and b: no fact in common"):
        paired(side(results, "a"), side(results, "b"))


def test_one_fact_says_next_to_nothing(tmp_path: Path):
    row = paired(*two(tmp_path, "+", "-")).iloc[0]
    # Wilson's upper bound of 0 of 1: 3.8415 / 4.8415
    assert [row["difference"], row["low"], row["high"], row["p"]] == approx([-1, -1, -0.2065, 1], abs=1e-4)


def test_facts_are_counted_once_however_many_seeds_answer_them(runs: Path):
    results = load(runs)
    table = paired(side(results, "dpo.beta=0.1"), side(results, "dpo.beta=0.5"))
    assert table[["facts", "facts_a", "facts_b", "pairs"]].to_numpy().tolist() == [
        [3, 3, 3, 6],
        [3, 3, 3, 3],
        [3, 3, 3, 3],
    ]


def test_a_split_without_facts_in_common_is_no_row(tmp_path: Path):
    a, b = two(tmp_path, "++-", "-+-")
    for one, first in ((a, 0), (b, 5)):
        folder = Path(one.runs["folder"].iloc[0])
        train = pd.read_parquet(folder / "items.parquet")
        test = pd.read_parquet(answers(folder, "+-", "test", first) / "items.parquet")
        pd.concat([train, test]).to_parquet(folder / "items.parquet")
    assert paired(a, b)["split"].tolist() == ["train"]


def test_groups_are_paired_by_seed_and_mcnemars_test_stands_with_each_seed_alone(runs: Path):
    results = load(runs)
    table = paired(side(results, "dpo.beta=0.1"), side(results, "dpo.beta=0.5"))
    assert table["seed"].tolist() == ["", "0", "1"] and table["pairs"].tolist() == [6, 3, 3]
    assert table["only_a"].tolist() == [2, 1, 1] and table["only_b"].tolist() == [0, 0, 0]
    assert math.isnan(table["p"][0]) and table["p"].tolist()[1:] == [1, 1]
    assert table["difference"].tolist() == approx([-1 / 3] * 3)


def test_all_answers_about_a_fact_are_drawn_together(runs: Path):
    # Both seeds say the same of each fact, so the interval of both is that of one: more seeds are not more facts.
    results = load(runs)
    table = paired(side(results, "dpo.beta=0.1"), side(results, "dpo.beta=0.5"))
    assert table[["low", "high"]].to_numpy().tolist()[0] == table[["low", "high"]].to_numpy().tolist()[1] == [-1, 0]


def test_a_fact_asked_in_both_orders_is_one_fact(tmp_path: Path):
    a, b = two(tmp_path, "+--", "-++")
    for one, right in ((a, "+--"), (b, "-++")):
        folder = Path(one.runs["folder"].iloc[0])
        both = answers(folder, right) / "items.parquet"
        turned = pd.read_parquet(both).assign(prompt=lambda table: "turned " + table["prompt"])
        pd.concat([pd.read_parquet(both), turned]).to_parquet(both)
    row = paired(a, b).iloc[0]
    assert row["pairs"] == 6 and math.isnan(row["p"])  # two answers about a fact are not independent


def test_a_probe_that_facts_share_counts_once_though_records_of_old_have_it_for_each(tmp_path: Path):
    a, b = two(tmp_path, "+--", "-+-")
    for one in (a, b):
        path = Path(one.runs["folder"].iloc[0]) / "items.parquet"
        items = pd.read_parquet(path)
        shared = items.loc[items["fact"] == 1].assign(fact=2)
        pd.concat([items, shared]).to_parquet(path)
    row = paired(a, b).iloc[0]
    assert (row["pairs"], row["only_a"], row["only_b"]) == (3, 1, 1)


def test_one_run_against_another_needs_no_common_seed_and_groups_do(runs: Path):
    results = load(runs)
    assert paired(side(results, "0"), side(results, "3"))["pairs"].tolist() == [3]
    assert paired(side(results, "1"), side(results, "dpo.beta=0.5"))["pairs"].tolist() == [3]
    with pytest.raises(ConfigError, match=r"^no seed in common: 4 has 2, dpo.beta=0.1 has 0, 1"):
        paired(side(results, "4"), side(results, "dpo.beta=0.1"))
