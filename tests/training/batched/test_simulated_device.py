"""What a GPU would meet, on a device that is simulated: nothing mixes, no step waits, memory is planned."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # a process of its own, since a backend in Python is for good

# float32 rounds at 6e-8, and torch does some operations on the device in other parts than on the CPU.
TOLERANCE = 1e-5  # relative above 1


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/helpers/simulated_runs.py prints, and its warnings."""
    command = [sys.executable, "-m", "tests.helpers.simulated_runs", str(tmp_path_factory.mktemp("runs"))]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[3]
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"warnings": done.stderr}


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same rows and adapters; in the first step both rewards are 0, and rounding says which is more."""
    assert found["sums"] == pytest.approx(expected["sums"], rel=TOLERANCE, abs=TOLERANCE)
    for row, other in zip(found["rows"], expected["rows"], strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - ({"rewards/accuracies"} if row["step"] == 1 else set()):
            assert row[key] == pytest.approx(other[key], rel=TOLERANCE, abs=TOLERANCE), (key, row, other)


def test_a_training_gives_the_numbers_of_the_cpu(said: dict[str, Any]) -> None:
    assert_alike(said["device"], said["cpu"])
    assert said["device"]["together"] == [4, 4, 4, 4]


@pytest.mark.parametrize("run", ["device", "bf16"])
def test_a_step_reads_nothing_back_and_makes_one_copy_to_the_device(said: dict[str, Any], run: str) -> None:
    assert said[run]["steps"] == [{"reads": [], "copies": 1}] * 3
    assert said[run]["together"] == [4, 4, 4, 4], "all came to their end"


def test_continuations_retention_and_scores_are_those_of_the_cpu(said: dict[str, Any]) -> None:
    for key, expected in said["cpu_says"].items():
        assert said["device_says"][key] == (expected if key == "says" else pytest.approx(expected, rel=TOLERANCE))


def test_the_plan_keeps_a_cohort_within_a_small_memory(said: dict[str, Any]) -> None:
    planned = said["planned"]
    assert_alike(planned, said["cpu"])
    assert max(planned["together"]) < 4 and planned["peak_bytes"] <= planned["memory_bytes"]
    assert said["warnings"].count("out of memory") == 1, "that of the training without a plan"


def test_out_of_memory_the_cohort_is_halved_and_gives_the_same_numbers(said: dict[str, Any]) -> None:
    assert "out of memory with 4 runs at once: on with 2" in said["warnings"]
    assert said["unplanned"]["together"] == [2, 2, 2, 2]
    assert said["unplanned"]["sums"] == pytest.approx(said["cpu"]["sums"], rel=TOLERANCE, abs=TOLERANCE)
