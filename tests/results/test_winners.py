"""The best settings that a sweep and `factdpo results` end with."""

import json
from pathlib import Path

import pytest

from factdpo.results import winners
from factdpo.results.best import FLATTERED, RETENTION
from factdpo.results.tables import load
from factdpo.store.result import write_result
from factdpo.sweep import question
from tests.helpers.stored import store


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two betas of three seeds: 0.1 has the luckiest run, 0.2 the better mean on held-out facts and the worse English.

    Swapped, 0.1 is better.
    """
    scores = {0.1: [0.99, 0.5, 0.51], 0.2: [0.9, 0.91, 0.89]}
    for beta, of_seeds in scores.items():
        for seed, accuracy in enumerate(of_seeds):
            id = f"{round(beta * 10)}{seed}"
            path = store(tmp_path, id, dpo_beta=beta, seed=seed) / "result.json"
            result = json.loads(path.read_text())
            trained = result["trained"]
            trained["test"]["accuracy"] = accuracy
            trained["test_reversed"] = trained["test"] | {"accuracy": 1 - accuracy}
            result["across"]["trained"]["retention_nats_per_token"] = 10 * beta
            write_result(path.parent, result)
    return tmp_path


def told(sweep: Path, *words: str) -> list[str]:
    return [line for line in winners.lines(load(sweep), question.read(words), []) if line]


def test_settings_are_ranked_by_their_means_and_not_by_the_luckiest_run(sweep: Path) -> None:
    assert told(sweep, "accuracy/test") == [
        "best accuracy/test 0.90 [0.86, 0.93] (mean of 3 runs; worst 0.667, dpo.beta=0.1): dpo.beta=0.2",
        "  factdpo -m seed=0,1,2",
        f"by accuracy/test: {FLATTERED}",
    ]


def test_each_number_asked_about_has_its_best_and_one_setting_stands_once(sweep: Path) -> None:
    assert told(sweep, RETENTION, "accuracy/test_reversed", "-accuracy/test")[:1] == [
        f"best {RETENTION} 1.000 ± 0.000 (mean of 3 runs; worst 2.000, dpo.beta=0.2), "
        "accuracy/test_reversed 0.33 [0.06, 0.79] (mean of 3 runs; worst 0.100, dpo.beta=0.2), "
        "accuracy/test 0.67 [0.21, 0.94] (mean of 3 runs; worst 0.900, dpo.beta=0.2): dpo.beta=0.1"
    ]
    assert not any(FLATTERED in line for line in told(sweep, RETENTION))  # it chose nothing by held-out facts


def test_without_a_question_the_numbers_that_disagree_with_the_held_out_facts_are_told_too(sweep: Path) -> None:
    first, _, second, command, _ = told(sweep)
    assert first.startswith("best accuracy/test 0.90 [") and first.endswith("dpo.beta=0.2")
    assert second.startswith("best accuracy/test_reversed 0.33 [") and f", {RETENTION} 1.000" in second
    assert second.endswith("dpo.beta=0.1") and command == "  factdpo -m dpo.beta=0.1 seed=0,1,2"
    for path in sweep.glob("run-*/result.json"):  # they agree: it is said once
        result = json.loads(path.read_text())
        result["trained"]["test_reversed"]["accuracy"] = result["trained"]["test"]["accuracy"]
        result["across"]["trained"]["retention_nats_per_token"] *= -1
        write_result(path.parent, result)
    assert len(told(sweep)) == 3


def test_one_setting_has_no_best_but_a_command(tmp_path: Path) -> None:
    for seed in range(2):
        store(tmp_path, f"a{seed}", seed=seed)
    assert told(tmp_path, "accuracy/test") == ["to repeat it:", "  factdpo -m seed=0,1"]


def test_facts_set_aside_to_decide_by_decide_and_the_held_out_ones_are_told_once(sweep: Path) -> None:
    for path in sweep.glob("run-*/result.json"):
        result = json.loads(path.read_text())
        result["trained"]["validation"] = result["trained"]["test"] | {
            "accuracy": 0.2 if "run-2" in path.parent.name else 0.7
        }
        write_result(path.parent, result)
    assert told(sweep, "accuracy/test") == [
        "best accuracy/validation 0.70 [0.66, 0.74] (mean of 3 runs; worst 0.200, dpo.beta=0.2): dpo.beta=0.1",
        "  factdpo -m dpo.beta=0.1 seed=0,1,2",
        "  chosen on the validation facts; accuracy/test 0.67 [0.21, 0.94]",
        "  chosen on the validation facts; accuracy/test_reversed 0.33 [0.06, 0.79]",
    ]


def test_a_number_that_no_run_has_is_said_to_be_missing(sweep: Path) -> None:
    lines = told(sweep, "accuracy/portability")
    assert "accuracy/portability: no run has this number" in lines and lines[:-2] == told(sweep)[:-1]
