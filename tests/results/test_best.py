"""Which number chooses among settings, and who is first by it."""

import math

import pytest

from factdpo.results.best import RETENTION, choosing, metric_of, rank, told
from factdpo.store.sweep_file import Metric

RETAINED = Metric(RETENTION, lower_is_better=True)
TEST, REVERSED, SET_ASIDE = Metric("accuracy/test"), Metric("accuracy/test_reversed"), Metric("accuracy/validation")
PER_TOKEN, TRAIN = Metric("accuracy_per_token/test"), Metric("accuracy/train")


def one(*metrics: Metric) -> list[str]:
    return [metric.name for metric in metrics]


@pytest.mark.parametrize(
    ("measured", "kind", "asked", "chooses"),
    [
        ([TRAIN, TEST, REVERSED, RETAINED], "accuracy", [], [TEST, REVERSED, RETAINED]),
        ([TEST, PER_TOKEN, RETAINED], "accuracy_per_token", [], [PER_TOKEN, RETAINED]),
        ([TEST, PER_TOKEN], "accuracy_per_token", [TEST], [PER_TOKEN]),  # by what eval.score says
        ([TRAIN, RETAINED], "accuracy", [], [TRAIN, RETAINED]),  # nothing is held out
        ([TEST, REVERSED, SET_ASIDE], "accuracy", [], [SET_ASIDE, REVERSED]),
        ([SET_ASIDE, RETAINED], "accuracy", [], [SET_ASIDE, RETAINED]),
        ([TEST, REVERSED, SET_ASIDE], "accuracy", [TEST, SET_ASIDE], [SET_ASIDE]),
        ([TEST, SET_ASIDE, RETAINED], "accuracy", [RETAINED, TEST], [RETAINED, SET_ASIDE]),
        ([TEST, SET_ASIDE], "accuracy", [Metric(TEST.name, True)], [Metric(SET_ASIDE.name, True)]),  # its sign stays
        ([TEST, TRAIN], "accuracy", [RETAINED], [TEST]),  # what is asked is not there (yet)
        ([], "accuracy", [TEST], []),
    ],
)
def test_validation_facts_choose_then_what_is_asked_then_the_usual(
    measured: list[Metric], kind: str, asked: list[Metric], chooses: list[Metric]
) -> None:
    assert choosing(one(*measured), kind, asked) == chooses


def test_of_the_one_that_validation_chose_test_is_told_and_of_others_nothing() -> None:
    measured = ["accuracy/test", "accuracy/test_reversed", "accuracy/tests", "margin_nats/test", "accuracy/train"]
    assert told("accuracy/validation", measured) == ["accuracy/test", "accuracy/test_reversed"]
    assert told("accuracy/validation_reversed", measured) == ["accuracy/test_reversed"]
    assert told("accuracy/test", measured) == told(RETENTION, measured) == []


def test_equals_share_a_place_in_the_order_in_which_they_came() -> None:
    ranked = rank(TEST, {"a": 0.1, "b": 0.3, "c": 0.1 + 0.2, "d": 0.2})
    assert (ranked.first, ranked.order, ranked.flattered) == (["b", "c"], ["b", "c", "d", "a"], True)
    lower = rank(metric_of(RETENTION), {"a": 2.0, "b": 1.0})
    assert (lower.best, lower.flattered, rank(TEST, {"a": 1.0}).flattered) == ("b", False, False)
    with pytest.raises(ValueError, match="accuracy/test: no setting"):
        rank(TEST, {})


def test_a_setting_without_a_number_is_last_wherever_it_came() -> None:
    means = {"none": math.nan, "a": 0.1, "also": math.nan, "b": 0.3}
    ranked, lower = rank(TEST, means), rank(metric_of(RETENTION), means)
    assert (ranked.order, ranked.first) == (["b", "a", "none", "also"], ["b"])
    assert (lower.order, lower.first) == (["a", "b", "none", "also"], ["a"])
