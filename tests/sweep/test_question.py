"""What a sweep asks about: read and refused, kept in sweep.json, and shown at its end."""

import json
from pathlib import Path

import pytest

from factdpo.config.schema import ConfigError
from factdpo.results.tables import load
from factdpo.store import sweep_file
from factdpo.store.sweep_file import Metric
from factdpo.sweep import closing, question
from factdpo.sweep.sweep import Sweep
from tests.helpers.stored import store

RETENTION = "across/retention_nats_per_token"


def test_a_number_is_better_as_is_usual_unless_a_sign_says_otherwise() -> None:
    asked = question.read(["accuracy/test", RETENTION, "-accuracy/train", "+rejected_logp_nats/test"])
    assert asked == [
        Metric("accuracy/test"),
        Metric(RETENTION, lower_is_better=True),
        Metric("accuracy/train", lower_is_better=True),
        Metric("rejected_logp_nats/test"),
    ]
    assert question.read([f"-{RETENTION}"]) == [Metric(RETENTION, True)]


@pytest.mark.parametrize(
    "metric", ["margin_nats/train_reversed", "answer_shares.no/test", "timing/total_seconds", "accuracy/portability"]
)
def test_every_number_of_a_trained_run_can_be_asked_about(metric: str) -> None:
    assert question.read([metric])[0].name == metric


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["acuracy/test"], r"metrics=acuracy/test: no such number of a run \(did you mean accuracy/test or "),
        (["accuracy/tset"], r"metrics=accuracy/tset: no such number of a run \(did you mean accuracy/test or "),
        (["~accuracy/test"], r"metrics=~accuracy/test: no such number .*; - before one: lower is better"),
        (["base/accuracy/test"], "no such number of a run"),
        (["accuracy/test", "-accuracy/test"], "accuracy/test stands in it twice; name each number once"),
    ],
)
def test_what_no_run_measures_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        question.read(words)


def test_sweep_json_keeps_it_and_a_command_without_one_leaves_it(tmp_path: Path) -> None:
    asked = [Metric("accuracy/test_reversed"), Metric(RETENTION, True)]
    Sweep(tmp_path, None, [], {}, [], metrics=asked).write()
    Sweep(tmp_path, None, [], {}, []).write()
    assert sweep_file.metrics_asked(sweep_file.read(tmp_path)) == asked
    assert sweep_file.metrics_asked(None) == sweep_file.metrics_asked({"name": "old"}) == []


# ------------------------------------------------------------------------------------------------------- the last lines


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
            path.write_text(json.dumps(result))
    return tmp_path


def told(sweep: Path, *words: str) -> list[str]:
    return [line for line in closing.lines(load(sweep), question.read(words), []) if line]


def test_settings_are_ranked_by_their_means_and_not_by_the_luckiest_run(sweep: Path) -> None:
    assert told(sweep, "accuracy/test") == [
        "best accuracy/test 0.900 (mean of 3 runs; worst 0.667, dpo.beta=0.1): dpo.beta=0.2",
        "  factdpo -m seed=0,1,2",
        closing.FLATTERED,
    ]


def test_each_number_asked_about_has_its_best_and_one_setting_stands_once(sweep: Path) -> None:
    assert told(sweep, RETENTION, "accuracy/test_reversed", "-accuracy/test")[:1] == [
        f"best {RETENTION} 1.000 (mean of 3 runs; worst 2.000, dpo.beta=0.2), "
        "accuracy/test_reversed 0.333 (mean of 3 runs; worst 0.100, dpo.beta=0.2), "
        "accuracy/test 0.667 (mean of 3 runs; worst 0.900, dpo.beta=0.2): dpo.beta=0.1"
    ]
    assert closing.FLATTERED not in told(sweep, RETENTION)  # it chose nothing by held-out facts


def test_without_a_question_the_numbers_that_disagree_with_the_held_out_facts_are_told_too(sweep: Path) -> None:
    first, _, second, command, _ = told(sweep)
    assert first.startswith("best accuracy/test 0.900") and first.endswith("dpo.beta=0.2")
    assert second.startswith("best accuracy/test_reversed 0.333") and f", {RETENTION} 1.000" in second
    assert second.endswith("dpo.beta=0.1") and command == "  factdpo -m dpo.beta=0.1 seed=0,1,2"
    for path in sweep.glob("run-*/result.json"):  # they agree: it is said once
        result = json.loads(path.read_text())
        result["trained"]["test_reversed"]["accuracy"] = result["trained"]["test"]["accuracy"]
        result["across"]["trained"]["retention_nats_per_token"] *= -1
        path.write_text(json.dumps(result))
    assert len(told(sweep)) == 3


def test_without_a_question_the_accuracy_is_that_of_eval_score(sweep: Path) -> None:
    for path in sweep.glob("run-*/result.json"):
        result = json.loads(path.read_text())
        result["config"]["eval"] = {"score": "mean"}
        accuracy = 1 - result["trained"]["test"]["accuracy"]
        result["trained"]["test"] |= {"accuracy_per_token": accuracy, "n_equal": 0}
        path.write_text(json.dumps(result))
    first = told(sweep)[0]
    assert first.startswith("best accuracy_per_token/test 0.333") and first.endswith("dpo.beta=0.1")


def test_one_setting_has_no_best(tmp_path: Path) -> None:
    for seed in range(2):
        store(tmp_path, f"a{seed}", seed=seed)
    assert told(tmp_path, "accuracy/test") == []


def test_facts_set_aside_to_decide_by_decide_and_the_held_out_ones_are_told_once(sweep: Path) -> None:
    for path in sweep.glob("run-*/result.json"):
        result = json.loads(path.read_text())
        result["trained"]["validation"] = result["trained"]["test"] | {
            "accuracy": 0.2 if "-2" in path.parent.name else 0.7
        }
        path.write_text(json.dumps(result))
    assert told(sweep, "accuracy/test") == [
        "best accuracy/validation 0.700 (mean of 3 runs; 0.667 on the held-out facts; worst 0.200, dpo.beta=0.2): "
        "dpo.beta=0.1",
        "  factdpo -m dpo.beta=0.1 seed=0,1,2",
    ]


def test_a_number_that_no_run_has_is_said_to_be_missing(sweep: Path) -> None:
    assert told(sweep, "accuracy/portability") == ["accuracy/portability: no run has this number"]
