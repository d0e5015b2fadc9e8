"""Whatever happens: signals, failures, full disks and two commands at once lose no run and finish none falsely."""

import json
import re
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from factdpo import console, signals
from factdpo.config.schema import Config, Figures
from factdpo.evaluation import belief_graph
from factdpo.runs import answer, attempt
from factdpo.runs.attempt import Outcome
from factdpo.runs.identity import RunSpec
from factdpo.store import result
from factdpo.store.history import LocalTracker, read_history
from tests.helpers.runs import WEIGHTS, new_session, small, spec_of


def tiny(out: Path, **changes: Any) -> Config:
    """A run of the sweep `s`: 12 steps and nothing but its end scored."""
    cfg = small(out, **{"eval_every": "never", "eval_generations": 0} | changes)
    cfg.sweep = "s"
    return cfg


def runs_of(cfgs: list[Config]) -> list[RunSpec]:
    return [spec_of(cfg) for cfg in cfgs]


def states(cfgs: list[Config]) -> list[str]:
    return [run.state() for run in runs_of(cfgs)]


def sweep(cfgs: list[Config]) -> None:
    """As hydra/launcher=batched does them; a signal or fail_fast ends it with what they raise."""
    for _, outcome in answer.answers(runs_of(cfgs), new_session()):
        assert isinstance(outcome, Outcome) and outcome.exit_code in (0, 1)


def result_of(cfg: Config) -> dict[str, Any]:
    return json.loads((spec_of(cfg).folder / "result.json").read_text())


def at_step(step: int, do: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something in the bookkeeping of the step that tells the first run of this step."""
    log, done = LocalTracker.log, []

    def spy(self: LocalTracker, *rows: Any) -> None:
        log(self, *rows)
        if not done and any(row["step"] >= step for row in rows):
            done.append(step)
            do()

    monkeypatch.setattr(LocalTracker, "log", spy)


# -------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_sweep_that_is_stopped_goes_on_from_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, exit_code: int
) -> None:
    """Two train, with dropout; the third has not begun. To the same bits as a sweep that was left in peace."""

    def cfgs(out: str) -> list[Config]:
        asked = [tiny(tmp_path / out, dpo_beta=beta, lora_dropout=0.1, eval_every="4") for beta in (0.1, 0.2, 0.3)]
        for cfg in asked:
            cfg.engine.max_runs = 2
        return asked

    with monkeypatch.context() as stopped:
        at_step(4, lambda: signal.raise_signal(number), stopped)
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else signals.Preempted):
            sweep(cfgs("stopped"))
    assert states(cfgs("stopped")) == ["PREEMPTED", "PREEMPTED", "to do"]
    assert not runs_of(cfgs("stopped"))[2].folder.exists()
    assert "the same command goes on from its last checkpoint" in result_of(cfgs("stopped")[0])["error"]
    (checkpoint,) = (tmp_path / "stopped/cache/batches").glob("*/[0-9]*/state.json")
    assert json.loads(checkpoint.read_text())["step"] == 5, "the step after the one in which it came"
    sweep(cfgs("stopped"))
    sweep(cfgs("peace"))
    for one, other in zip(runs_of(cfgs("stopped")), runs_of(cfgs("peace")), strict=True):
        assert one.state() == other.state() == "FINISHED"
        assert (one.folder / WEIGHTS).read_bytes() == (other.folder / WEIGHTS).read_bytes()
        assert len(read_history(one.folder / "history.jsonl")) == 12 + 3


def test_a_run_alone_that_is_stopped_goes_on_from_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as stopped:
        at_step(4, lambda: signal.raise_signal(signal.SIGINT), stopped)
        with pytest.raises(KeyboardInterrupt):
            answer.ask(small(tmp_path / "a", eval_every="4"))
    assert list((tmp_path / "a/cache/batches").glob("*/[0-9]*/state.json"))
    again, peace = (answer.ask(small(tmp_path / out, eval_every="4")) for out in "ab")
    assert again["files"][WEIGHTS] == peace["files"][WEIGHTS]


def test_a_signal_while_figures_are_drawn_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfgs = [tiny(tmp_path, dpo_beta=beta, eval_figures=Figures.always) for beta in (0.1, 0.2, 0.3)]
    write, drawn = belief_graph.write_graphs, []

    def write_and_stop(*asked: Any) -> None:
        drawn.append(write(*asked))
        if len(drawn) == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as stopped:
        stopped.setattr(belief_graph, "write_graphs", write_and_stop)
        with pytest.raises(signals.Preempted):
            sweep(cfgs)
    assert states(cfgs) == ["FINISHED", "PREEMPTED", "PREEMPTED"]
    monkeypatch.setattr("factdpo.training.batched.engine.fit_many", lambda *_: pytest.fail("it trained again"))
    sweep(cfgs)
    assert states(cfgs) == ["FINISHED"] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "stopped"]
)
@pytest.mark.parametrize("steps", [(12, 12), (12, 16)], ids=["all end", "one goes on"])
def test_a_training_that_could_not_be_stored_goes_on_from_its_last_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: BaseException,
    steps: Any,
) -> None:
    """Of its checkpoints none is removed, or replaced by one without it, before its weights are in the cache."""
    cfgs = [tiny(tmp_path, dpo_beta=beta, dpo_max_steps=number) for beta, number in zip((0.1, 0.2), steps, strict=True)]
    for cfg in cfgs:
        cfg.engine.save_every = 4
    with monkeypatch.context() as faulty:

        def save(*_: Any) -> None:
            raise fault

        faulty.setattr("factdpo.runs.trainings._save", save)
        with suppress(KeyboardInterrupt):
            sweep(cfgs)
    assert states(cfgs)[0] == ("FAILED" if isinstance(fault, OSError) else "PREEMPTED")
    sweep(cfgs)
    assert states(cfgs) == ["FINISHED"] * 2
    assert "going on from step 8 of a batch of 2 runs" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- failures


def test_of_eight_runs_one_raises_and_one_diverges_and_six_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfgs = [tiny(tmp_path, dpo_beta=beta / 10) for beta in range(1, 7)]
    wild = tiny(tmp_path, dpo_learning_rate=1e30, dpo_max_grad_norm=0.0)
    broken = tiny(tmp_path, dpo_beta=0.9)
    folder, log = spec_of(broken).folder, attempt.Attempt.log

    def log_or_raise(self: attempt.Attempt, *rows: Any) -> None:
        if self.spec.folder == folder and rows[-1]["step"] > 1:
            raise RuntimeError("this one alone")
        log(self, *rows)

    monkeypatch.setattr(attempt.Attempt, "log", log_or_raise)
    sweep([*cfgs[:3], wild, broken, *cfgs[3:]])
    assert states(cfgs) == ["FINISHED"] * 6 and states([wild, broken]) == ["DIVERGED", "FAILED"]
    assert result_of(broken)["error"] == "RuntimeError: this one alone"
    assert "Traceback" in (folder / "run.log").read_text()
    said = capsys.readouterr().out
    assert [said.count(state) for state in ("FINISHED", "DIVERGED", "FAILED")] == [6, 1, 1]


def failing(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """The first figures of a run cannot be drawn; the list grows with each try."""
    write, tries = belief_graph.write_graphs, []

    def write_or_fail(*asked: Any) -> None:
        tries.append(len(tries))
        if len(tries) <= times:
            raise RuntimeError("no ink")
        write(*asked)

    monkeypatch.setattr(belief_graph, "write_graphs", write_or_fail)
    return tries


@pytest.mark.parametrize("together", [True, False])
def test_a_run_that_fails_is_tried_again_as_often_as_retries_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny(tmp_path, eval_figures=Figures.always)
    cfg.retries = 2
    tries = failing(monkeypatch, times=2)
    if together:
        sweep([cfg])
    else:
        answer.ask(cfg)
    assert (result_of(cfg)["state"], result_of(cfg)["attempts"], len(tries)) == ("FINISHED", 3, 3)
    log = (spec_of(cfg).folder / "run.log").read_text()
    assert log.count("RuntimeError: no ink") >= 2 and "attempt 3 of 3" in log
    assert "attempt 1 of 3 FAILED (RuntimeError: no ink); it is tried again" in capsys.readouterr().out


def test_a_run_that_fails_more_often_than_that_is_failed_and_a_diverged_one_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tiny(tmp_path, eval_figures=Figures.always)
    wild = tiny(tmp_path, dpo_learning_rate=1e30, dpo_max_grad_norm=0.0)
    bad.retries = wild.retries = 1
    failing(monkeypatch, times=9)
    sweep([bad, wild, bad])
    assert [(result_of(cfg)["state"], result_of(cfg)["attempts"]) for cfg in (bad, wild)] == [
        ("FAILED", 2),
        ("DIVERGED", 1),
    ]


def test_fail_fast_stops_a_sweep_at_its_first_run_that_goes_wrong(tmp_path: Path) -> None:
    """One of the batch diverges at once; the other leaves a checkpoint; the third has not begun."""
    cfgs = [tiny(tmp_path, dpo_learning_rate=1e30, dpo_max_grad_norm=0.0), tiny(tmp_path), tiny(tmp_path, dpo_beta=0.9)]
    for cfg in cfgs:
        cfg.fail_fast, cfg.engine.max_runs, cfg.engine.save_every = True, 2, 4
    told = []
    with pytest.raises(SystemExit) as exit:
        told += (outcome.state for _, outcome in answer.answers(runs_of(cfgs), new_session()))  # type: ignore[union-attr]
    assert (exit.value.code, told) == (1, ["DIVERGED"]), "a worker tells its command of it before it ends"
    assert states(cfgs) == ["DIVERGED", "PREEMPTED", "to do"]
    assert "stopped by fail_fast=true" in result_of(cfgs[1])["error"]
    assert list((tmp_path / "cache/batches").glob("*/[0-9]*/state.json"))
    cfgs[0].retry_diverged = True
    with pytest.raises(SystemExit) as exit:  # under a launcher that does one after the other
        answer.ask(cfgs[0])
    assert exit.value.code == 1


# ----------------------------------------------------------------------------------------------------------- full disks


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """In bytes; a write beyond raises OSError (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "size", [0, 20_000, 1_000_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (1_000, 3_000, 200_000))]
)
def test_what_cannot_be_written_costs_the_run_and_is_named(
    tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each limit stops another file; without it the same command finishes all."""
    cfgs = [tiny(tmp_path, dpo_beta=beta, lora_rank=rank) for beta in (0.1, 0.2) for rank in (4, 128)]
    with no_file_larger_than(size):
        sweep(cfgs)
    said = capsys.readouterr()
    for run, state in zip(runs_of(cfgs), states(cfgs), strict=True):
        if state == "FINISHED":
            assert result.read_result(run.folder).reason is None and size == 1_000_000
        elif state == "FAILED":
            stored = json.loads((run.folder / "result.json").read_text())
            assert re.search(rf"File too large: '{tmp_path}/\S+'", stored["error"]), stored["error"]
        else:
            assert state == "to do"
            assert f"{run.folder / 'result.json'} cannot be written" in said.err
    assert "FINISHED" not in states(cfgs)[1::2], "of rank 128"
    sweep(cfgs)
    assert states(cfgs) == ["FINISHED"] * 4


def test_a_log_whose_disk_is_full_costs_a_warning_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfgs, log_file = [tiny(tmp_path, dpo_beta=beta) for beta in (0.1, 0.2)], console.LogFile
    monkeypatch.setattr(console, "LogFile", lambda path: log_file(Path("/dev/full")))
    sweep(cfgs)
    assert states(cfgs) == ["FINISHED"] * 2
    for cfg in cfgs:
        assert "run.log is not complete: [Errno 28] No space left on device" in result_of(cfg)["warnings"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_compiled_code_made_an_error_of_its_own_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def mangled(*_: object) -> None:
        with suppress(signals.Preempted, KeyboardInterrupt):
            signal.raise_signal(number)
        raise RuntimeError("interrupted in a kernel")

    monkeypatch.setattr(belief_graph, "write_graphs", mangled)
    cfg = tiny(tmp_path)
    cfg.eval.figures = Figures.always
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else signals.Preempted):
        sweep([cfg])
    why = "interrupted from the keyboard" if number == signal.SIGINT else f"ended by {number.name}"
    assert result_of(cfg)["error"].startswith(why)
