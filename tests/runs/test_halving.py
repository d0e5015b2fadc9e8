"""Successive halving: which settings go on, that those train as they would alone, and what cannot decide."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from factdpo.config.schema import Config, ConfigError
from factdpo.runs import halving
from factdpo.runs.answer import answers, is_answered
from factdpo.runs.identity import RunSpec
from factdpo.store.history import HISTORY, read_history
from factdpo.store.layout import PLAN
from tests.helpers.runs import WEIGHTS, new_session, small, spec_of

RATES = (1e-5, 3e-3, 1e-3, 1e-4)


def settings(out: Path, keep: float | None = 0.5, **changes: Any) -> list[Config]:
    """Four rates over two seeds, 12 steps each, scored every 3: rungs after 3 and 6."""
    cfgs = []
    for rate in RATES:
        for seed in (0, 1):
            cfg = small(out, eval_every="3", split_validation=24, dpo_learning_rate=rate, dpo_seed=seed, **changes)
            cfg.sweep, cfg.halving.keep = "rates", keep
            cfgs.append(cfg)
    return cfgs


def run(cfgs: list[Config]) -> dict[RunSpec, dict[str, Any]]:
    specs = [spec_of(cfg) for cfg in cfgs]
    return {spec: outcome.result for spec, outcome in answers(specs, new_session())}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> dict[RunSpec, dict[str, Any]]:
    return run(settings(tmp_path_factory.mktemp("halved")))


def test_half_of_the_settings_go_on_at_each_rung_by_the_mean_of_their_seeds(
    halved: dict[RunSpec, dict[str, Any]],
) -> None:
    steps = {
        (spec.cfg.dpo.learning_rate, spec.cfg.dpo.seed): read_history(spec.folder / HISTORY)[-1]["step"]
        for spec in halved
    }
    by_rate = {rate: {steps[rate, seed] for seed in (0, 1)} for rate in RATES}
    assert all(len(ends) == 1 for ends in by_rate.values()), "seeds of a setting end together"
    assert sorted(ends.pop() for ends in by_rate.values()) == [3, 3, 6, 12]
    states = sorted(result["state"] for result in halved.values())
    assert states == ["FINISHED"] * 2 + ["STOPPED"] * 6
    (why,) = {result["error"] for spec, result in halved.items() if steps[spec.cfg.dpo.learning_rate, 0] == 6}
    assert "at step 6 its setting was number 2 of 2" in why and "the best 1 go on (halving.keep=0.5)" in why
    assert all(is_answered(spec) for spec in halved)


def test_the_winner_is_what_it_would_have_been_alone(halved: dict[RunSpec, dict[str, Any]], tmp_path: Path) -> None:
    winner = next(spec for spec, result in halved.items() if result["state"] == "FINISHED")
    rate, seed = winner.cfg.dpo.learning_rate, winner.cfg.dpo.seed
    alone = small(tmp_path, eval_every="3", split_validation=24, dpo_learning_rate=rate, dpo_seed=seed)
    (spec,) = run([alone])
    assert spec.id == winner.id, "halving is in no id"
    weights = load_file(winner.folder / WEIGHTS)
    assert all(torch.allclose(w, weights[name], atol=1e-5) for name, w in load_file(spec.folder / WEIGHTS).items())


def test_a_stopped_run_is_an_answer_until_it_is_asked_for_without_halving(
    halved: dict[RunSpec, dict[str, Any]],
) -> None:
    stopped = next(spec for spec, result in halved.items() if result["state"] == "STOPPED")
    cfg = spec_of(stopped.cfg).cfg
    cfg.halving.keep = None
    (result,) = run([cfg]).values()
    assert (result["state"], result["id"]) == ("FINISHED", stopped.id)


def told(spec: RunSpec, accuracy: float, margin: float = 0.0, steps: int | None = 12) -> dict[str, Any]:
    """Leave a run's folder as it is after its third step, with this score; returns the row. None: not planned yet."""
    spec.folder.mkdir(parents=True)
    row = {"step": 3, "eval/validation/accuracy": accuracy, "eval/validation/margin_nats": margin}
    (spec.folder / HISTORY).write_text(json.dumps(row) + "\n")
    (spec.folder / "asked.json").write_text(json.dumps(spec.asked))
    if steps is not None:
        (spec.folder / PLAN).write_text(json.dumps({"steps": steps}))
    return row


def test_a_run_is_judged_by_those_that_have_come_to_its_rung(tmp_path: Path) -> None:
    first, second, third, fourth = (spec_of(cfg) for cfg in settings(tmp_path)[::2])
    halving.check(first, told(first, 0.5))  # nobody to compare it with
    halving.check(second, told(second, 0.5, margin=1.0))  # equal accuracy, the larger margin
    with pytest.raises(halving.Stopped, match="number 3 of 3 on the validation facts"):
        halving.check(third, told(third, 0.4))
    halving.check(fourth, told(fourth, 0.9))
    halving.check(third, {"step": 9})  # at no rung


def test_one_that_has_not_come_to_the_rung_or_is_just_being_opened_does_not_count(tmp_path: Path) -> None:
    first, second, third, _ = (spec_of(cfg) for cfg in settings(tmp_path)[::2])
    told(first, 0.9, steps=100)
    told(second, 0.9, steps=None)
    halving.check(third, told(third, 0.1))


def test_at_its_last_step_no_run_is_stopped(tmp_path: Path) -> None:
    first, second = (spec_of(cfg) for cfg in settings(tmp_path)[::2][:2])
    told(first, 0.9, steps=3)
    halving.check(second, told(second, 0.1, steps=3))


def test_a_run_whose_history_is_damaged_does_not_count_and_stops_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (spec_of(cfg) for cfg in settings(tmp_path)[::2][:2])
    told(first, 0.9)
    (first.folder / HISTORY).write_text("[]\n" + (first.folder / HISTORY).read_text())
    halving.check(second, told(second, 0.1))
    assert f"{first.folder} does not count in halving" in caplog.text


def test_runs_that_retain_different_texts_are_different_settings(tmp_path: Path) -> None:
    first, second = (spec_of(cfg) for cfg in settings(tmp_path)[:2])
    for spec, digest in ((first, "a"), (second, "b")):
        spec.asked["retained"] = digest
    halving.check(first, told(first, 0.9))
    with pytest.raises(halving.Stopped, match="number 2 of 2"):
        halving.check(second, told(second, 0.1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split_validation": 0}, r"halving\.keep=0\.5: decides by validation facts, and there are none"),
        ({"halving_rungs": [0.5, 0.25]}, r"halving\.rungs=\[0\.5, 0\.25\]: shares of the steps"),
        ({"halving_keep": 1.0}, r"halving\.keep=1: a share below 1"),
        ({"eval_every": "never"}, r"eval\.every=never: halving\.keep decides by the scores on the way"),
    ],
)
def test_what_cannot_decide_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    cfg = settings(tmp_path)[0]
    for key, value in changes.items():
        group, _, name = key.partition("_")
        setattr(getattr(cfg, group), name, value)
    with pytest.raises(ConfigError, match=said):
        spec_of(cfg)


def test_a_run_alone_is_not_halved(tmp_path: Path) -> None:
    cfg = settings(tmp_path)[0]
    cfg.sweep = None
    with pytest.raises(ConfigError, match=r"halving\.keep=0\.5: has no effect in a run alone"):
        spec_of(cfg)
