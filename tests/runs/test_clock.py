"""What runs took adds up to what a wall clock shows, whatever they did together."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from factdpo.config.schema import Config
from factdpo.runs import clock, pipeline, trainings
from factdpo.runs.answer import answers
from factdpo.runs.attempt import Attempt
from factdpo.runs.clock import Clock
from factdpo.runs.session import Session
from factdpo.store.result import Result
from factdpo.tracking.tracker import Trackers
from tests.helpers.runs import new_session, small, spec_of


def attempt_of(**changes: Any) -> Attempt:
    return Attempt(spec_of(small(Path("unused"), **changes)))


def test_every_moment_is_charged_once_and_divided_among_those_it_was_spent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(clock.time, "monotonic", lambda: now)
    a, b, c = (attempt_of(dpo_seed=seed) for seed in range(3))
    ours = Clock()
    now = 104.0
    a.stage = "reference"
    ours.charge([[a]])
    now = 105.0
    ours.charge([])  # left to the next
    now = 116.0
    a.stage = b.stage = c.stage = "train"
    ours.charge([[a], [b, c]])  # b and c want the same training
    now = 123.0
    ours.skip()  # nobody's
    now = 124.0
    a.stage = "score"
    ours.charge([[a]])
    assert a.timing() == {"reference_seconds": 4.0, "train_seconds": 6.0, "score_seconds": 1.0, "total_seconds": 11.0}
    of_b = {"reference_seconds": 0.0, "train_seconds": 3.0, "score_seconds": 0.0, "total_seconds": 3.0}
    assert b.timing() == c.timing() == of_b


def timed(*cfgs: Config) -> tuple[list[Result], float]:
    """The results of runs that one command does, and how long it took, s."""
    began = time.monotonic()
    outcomes = [outcome for _, outcome in answers([spec_of(cfg) for cfg in cfgs], new_session())]
    return [outcome.result for outcome in outcomes], time.monotonic() - began  # type: ignore[union-attr]


def total(results: list[Result]) -> float:
    return sum(result["timing"]["total_seconds"] for result in results)


def short(out: Path, **changes: Any) -> Config:
    """A run of one step."""
    return small(out, dpo_max_steps=1, eval_every="never", eval_generations=0, **changes)


@pytest.mark.slow
def test_what_trackers_take_after_the_record_is_not_charged_to_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Trackers.finish
    monkeypatch.setattr(Trackers, "finish", lambda *args: (finish(*args), time.sleep(1.0)))
    results, seconds = timed(short(tmp_path), short(tmp_path, dpo_adam_beta1=0.8))  # a cohort each
    assert [result["state"] for result in results] == ["FINISHED"] * 2
    assert total(results) < seconds - 2.0


def test_a_run_that_cannot_be_prepared_pays_for_the_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cfg: Config, _: Session) -> None:
        time.sleep(0.6 if cfg.dpo.seed == 0 else 0.1)
        raise MemoryError

    monkeypatch.setattr(pipeline, "prepare", fail)
    (long, quick), _ = timed(short(tmp_path), short(tmp_path, dpo_seed=1))
    assert long["timing"]["reference_seconds"] > 0.6 > quick["timing"]["reference_seconds"] > 0.1


@pytest.mark.parametrize(("stage", "where"), [("reference", "prepare"), ("score", "score")])
def test_an_interrupted_run_is_charged_for_the_stage_that_it_was_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, where: str
) -> None:
    def interrupt(asked: object, *_: object) -> Any:
        if asked == []:  # nothing to score in the cache
            return []
        time.sleep(1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline if where == "prepare" else trainings, where, interrupt)
    spec = spec_of(short(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        list(answers([spec], new_session()))
    timing = json.loads((spec.folder / "result.json").read_text())["timing"]
    assert timing[f"{stage}_seconds"] > 1.0 and max(timing, key=timing.get) == "total_seconds"
    assert (timing["train_seconds"] > 0) == (where == "score")


@pytest.mark.slow
def test_the_runs_of_a_sweep_take_together_what_the_clock_shows(tmp_path: Path) -> None:
    """Of unequal length, two that share a training, one in a cohort of its own; then again, from the cache."""
    many = [
        small(tmp_path, dpo_max_steps=24),
        small(tmp_path, dpo_seed=1),
        small(tmp_path, dpo_seed=1, eval_generations=2),
        small(tmp_path, dpo_adam_beta1=0.8),
    ]
    results, seconds = timed(*many)
    assert 0.5 * seconds < total(results) < 1.05 * seconds
    long, one, same, alone = sorted(results, key=many_order)
    assert one["timing"]["train_seconds"] == same["timing"]["train_seconds"] > 0
    assert long["timing"]["train_seconds"] > 2 * one["timing"]["train_seconds"]  # one of two, then alone
    assert alone["timing"]["train_seconds"] >= alone["timing"]["batch_seconds"]
    assert long["timing"]["batch_seconds"] > one["timing"]["batch_seconds"] == same["timing"]["batch_seconds"]

    (again,), seconds = timed(small(tmp_path, dpo_seed=1, eval_generations=3))
    assert again["timing"]["train_seconds"] == 0 < again["timing"]["batch_seconds"] == one["timing"]["batch_seconds"]
    assert 0.5 * seconds < total([again]) < 1.05 * seconds


def many_order(result: Result) -> tuple[float, int, int]:
    config = result["config"]
    return -config["dpo"]["adam_beta1"], config["dpo"]["seed"], config["eval"]["generations"]


@pytest.mark.slow
def test_a_run_that_fails_has_its_share_too(tmp_path: Path) -> None:
    (failed, other), seconds = timed(small(tmp_path, dpo_learning_rate=1e30), small(tmp_path, dpo_seed=1))
    assert (failed["state"], other["state"]) == ("DIVERGED", "FINISHED")
    assert 0 < failed["timing"]["total_seconds"] < seconds and "batch_seconds" not in failed["timing"]
