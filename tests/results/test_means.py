import json
import math
from pathlib import Path

import pandas as pd
import pytest
from pytest import approx

from factdpo.results.intervals import wilson
from factdpo.results.means import Facts, means
from factdpo.results.tables import load
from factdpo.store.result import write_result
from tests.helpers.stored import answers, store


def row_of(folder: Path, metric: str = "accuracy/train", by: str = "dpo.beta") -> pd.Series:
    return means(load(folder), [by], [metric]).iloc[0]


def test_a_number_that_is_no_share_has_students_interval(tmp_path: Path):
    for seed, nats in enumerate((2.0, 3.0, 4.0)):
        folder = store(tmp_path, f"{seed}", seed=seed)
        write_result(folder, json.loads((folder / "result.json").read_text()) | {"timing": {"total_seconds": nats}})
    row = row_of(tmp_path, "timing/total_seconds")
    # mean 3, sd 1; t(0.975, 2 degrees of freedom) = 4.302653; 4.302653 / sqrt(3) = 2.484138
    assert list(row[["n", "mean", "sd", "low", "high"]]) == approx([3, 3, 1, 0.515862, 5.484138], abs=1e-6)
    assert row["over"] == "seeds"


def test_one_run_has_wilsons_interval_for_other_facts(tmp_path: Path):
    store(tmp_path, "a", 0.75)
    row = row_of(tmp_path)
    assert (row["n"], row["mean"], row["over"]) == (1, 0.75, "facts") and math.isnan(row["sd"])
    assert (row["low"], row["high"]) == wilson(0.75, 300)
    assert math.isnan(row_of(tmp_path, "timing/total_seconds")["low"])


def test_the_interval_of_a_share_stays_within_0_and_1_and_has_a_width(tmp_path: Path):
    for id, accuracies in {"far": [1.0, 0.9], "same": [1.0, 1.0], "none": [0.0, 0.0], "apart": [0.4, 0.8]}.items():
        for seed, accuracy in enumerate(accuracies):
            store(tmp_path / id, f"{seed}", accuracy, seed=seed)
        for metric in ("accuracy/train", "accuracy/test", "p_other/train", "answer_shares.friend/train"):
            row = row_of(tmp_path / id, metric)
            assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1 and row["high"] - row["low"] > 0.005


def test_the_facts_of_the_runs_narrow_the_interval_if_they_are_there_and_say_the_same(tmp_path: Path):
    for seed, (accuracy, right) in enumerate([(0.5, "++++-----+"), (0.5, "-----+++++")]):
        answers(store(tmp_path, f"{seed}", accuracy, seed=seed), right)
    row = row_of(tmp_path)
    assert row["over"] == "facts and seeds"
    (tmp_path / "run-0" / "items.parquet").write_text("torn")
    by_counts = row_of(tmp_path)
    assert by_counts["over"] == "facts and seeds, by counts"
    answers(tmp_path / "run-0", "++++------")  # 0.4, which the record does not say
    assert row_of(tmp_path).equals(by_counts)


def test_the_same_position_in_other_data_is_another_fact(tmp_path: Path):
    for id, data in (("a", "x"), ("b", "x"), ("c", "y")):
        path = answers(store(tmp_path, id), "+-") / "result.json"
        write_result(path.parent, json.loads(path.read_text()) | {"asked": {"data_sha256": data}})
    runs = load(tmp_path).finished.sort_values("id")
    a, b, c = ([*one.facts] for one in Facts(runs).of("accuracy/train", runs) or [])
    assert a == b == [0, 1] and not {*a} & {*c}


def test_a_group_that_pools_settings_has_no_interval(tmp_path: Path):
    for number, beta in enumerate((0.1, 0.5)):
        store(tmp_path, f"{number}", 0.5, dpo_beta=beta)
    row = row_of(tmp_path, by="model.name")
    assert row["n"] == 2 and row["over"] == "" and math.isnan(row["low"]) and math.isnan(row["high"])


def test_the_same_seed_twice_is_no_other_seed(tmp_path: Path):
    store(tmp_path, "a", 0.5)
    store(tmp_path, "b", 0.6)  # of the same config, as on other data
    assert row_of(tmp_path)["over"] == ""


def test_groups_are_in_the_order_of_their_keys_and_one_without_numbers_stays(tmp_path: Path):
    store(tmp_path, "a", 0.5, dpo_beta=0.5)
    store(tmp_path, "b", 0.75, dpo_beta=0.1)
    store(tmp_path, "c", state="DIVERGED", dpo_beta=0.9)
    store(tmp_path, "d", state="killed", dpo_beta=0.1, seed=1)
    table = means(load(tmp_path), ["dpo.beta"], ["accuracy/train", "accuracy/test"])
    assert table[["dpo.beta", "metric", "n"]].to_numpy().tolist() == [
        [0.1, "accuracy/train", 1], [0.5, "accuracy/train", 1], [0.9, "accuracy/train", 0],
        [0.1, "accuracy/test", 1], [0.5, "accuracy/test", 1], [0.9, "accuracy/test", 0],
    ]  # fmt: skip
    assert table["mean"].tolist()[:2] == [0.75, 0.5] and math.isnan(table["mean"][2])


def test_a_key_that_is_null_in_some_runs_makes_a_group_of_them(tmp_path: Path):
    store(tmp_path, "a", 0.5, split_test=100)
    store(tmp_path, "b", 0.75)
    table = means(load(tmp_path), ["split.test"], ["accuracy/train"])
    assert table["mean"].tolist() == [0.5, 0.75] and table["n"].tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["accuracy", "base/accuracy", "greedy_accuracy"])
def test_each_share_is_counted_in_its_own_column_and_model(tmp_path: Path, kind: str):
    """Base and trained models, and greedy answers, are other answers to the same facts."""
    import json

    rights = {"accuracy": "++--", "base/accuracy": "+---", "greedy_accuracy": "+++-"}
    for seed in (0, 1):
        folder = answers(store(tmp_path, f"{seed}", 0.5, seed=seed), rights["accuracy"])
        items = pd.read_parquet(folder / "items.parquet")
        items.loc[items["model"] == "base", "right"] = [sign == "+" for sign in rights["base/accuracy"]]
        items["greedy"] = [sign == "+" for sign in 2 * rights["greedy_accuracy"]]
        items.to_parquet(folder / "items.parquet")
        result = json.loads((folder / "result.json").read_text())
        result["trained"]["train"] |= {"n": 4, "greedy_accuracy": 0.75}
        result["base"]["train"] |= {"n": 4, "accuracy": 0.25}
        write_result(folder, result)
    row = row_of(tmp_path, f"{kind}/train")
    assert row["over"] == "facts and seeds" and row["mean"] == rights[kind].count("+") / 4
