"""A job is lost once it has left the queue, and not because Slurm's controller does not answer."""

import subprocess

import pytest

from factdpo.sweep import slurm


def test_a_job_that_two_looks_miss_has_left_and_a_controller_that_is_silent_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = ["1_0\n1_1\n", None, "1_1\n", "1_0\n1_1\n", "1_1\n", None, "1_1\n"]  # requeued, a job is missing once

    def squeue(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        assert command[0] == "squeue" and "--format=%i" in command  # 1_0 of an array, 7 of one that is alone
        said = answers.pop(0)
        return subprocess.CompletedProcess(command, 0 if said is not None else 1, said or "")

    monkeypatch.setattr(slurm, "subprocess", type("", (), {"run": squeue}))
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.0)
    queue, jobs = slurm.Queue(), ["1_0", "1_1"]
    assert [queue.has_left("1_0", jobs) for _ in range(7)] == [False] * 6 + [True]


def test_the_queue_is_looked_at_no_more_often_than_it_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def squeue(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        looks.append(1)
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(slurm, "subprocess", type("", (), {"run": squeue}))
    queue = slurm.Queue()
    assert [queue.has_left("1_0", ["1_0"]) for _ in range(50)] == [False] * 50 and len(looks) == 1
