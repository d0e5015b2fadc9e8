"""When a run's numbers are called suspicious because of the answers' lengths (D8); D1 and D6: runs/test_pipeline.py."""

from typing import Any

import pytest

from factdpo.evaluation.warnings import warnings


def of(shorter: tuple[int, float], longer: tuple[int, float], per_token: tuple[float, float] = (0.9, 0.9)) -> list[str]:
    """The warnings of a split; (facts, accuracy) where the true answer is the shorter, and where it is the longer."""
    scores: dict[str, Any] = {"accuracy": 0.9, "reward_accuracy": 0.9}
    for name, (n, accuracy), other in (("shorter", shorter, per_token[0]), ("longer", longer, per_token[1])):
        scores |= {f"n_{name}": n, f"accuracy_{name}": accuracy if n else None}
        scores |= {f"accuracy_per_token_{name}": other if n else None}
    return warnings({"train": scores}, {})


def test_lengths_that_say_nothing_raise_no_warning():
    assert of((50, 0.9), (50, 0.85)) == of((0, 0.0), (0, 0.0)) == []


def test_a_true_answer_that_is_nearly_always_the_longer_is_told():
    (warning,) = of((1, 0.0), (19, 0.0), per_token=(0.0, 0.0))
    assert "more tokens in 19 of 20 facts of train" in warning


@pytest.mark.parametrize(("shorter", "longer"), [(3, 1), (110, 90)])
def test_few_facts_or_a_small_imbalance_are_no_sign(shorter: int, longer: int):
    assert of((shorter, 0.9), (longer, 0.9)) == []


def test_accuracies_that_part_by_length_are_told_with_both_numbers():
    (warning,) = of((100, 0.83), (100, 0.26), per_token=(0.6, 0.5))
    assert warning.endswith("accuracy on train is 0.83 and 0.26")
    (warning,) = of((100, 0.5), (100, 0.5), per_token=(0.2, 0.9))
    assert warning.endswith("accuracy per token on train is 0.20 and 0.90")


def test_accuracies_that_part_by_chance_are_not_told():
    assert of((5, 0.8), (5, 0.4)) == []
    assert of((10_000, 0.80), (10_000, 0.70)) == [], "certain, and small"
