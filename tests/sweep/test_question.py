"""What a sweep asks about: read and refused, and kept in sweep.json."""

from pathlib import Path

import pytest

from factdpo.config.schema import ConfigError
from factdpo.store import sweep_file
from factdpo.store.sweep_file import Metric
from factdpo.sweep import question
from factdpo.sweep.sweep import Sweep

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
