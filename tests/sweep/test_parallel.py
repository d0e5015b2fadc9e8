"""A command whose runs are done by workers: yielded once each, whatever becomes of a worker, and shown as one command.

Here the workers are calls in this process; real ones, killed, are in test_workers.py.
"""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from factdpo import console, signals
from factdpo.config.validate import validate
from factdpo.runs.attempt import Outcome
from factdpo.runs.identity import RunSpec, look_up
from factdpo.runs.session import Session
from factdpo.store import result
from factdpo.store.result import write_result
from factdpo.sweep import executors, parallel, worker
from tests.helpers.runs import small


class Called:
    """Workers that are calls of `does`, one after the other, and gone when it returns."""

    def __init__(self, does: Callable[[Path], object]):
        self.does, self.started = does, list[Path]()
        self.stopped: list[int] = []

    def start(self, shares: list[Path]) -> None:
        for share in shares:
            self.started.append(share)
            self.does(share)

    def is_gone(self, share: Path) -> bool:
        return share in self.started

    def stop(self, number: int) -> None:
        self.stopped.append(number)

    def kill(self) -> None:
        pass


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], object]], Called]:
    """called(does): the workers of the commands from now on."""
    monkeypatch.setattr(parallel, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(console.console, "is_interactive", False)

    def make(does: Callable[[Path], object]) -> Called:
        workers = Called(does)
        monkeypatch.setattr(executors, "workers_of", lambda *_: workers)
        return workers

    return make


def asked(out: Path, *seeds: int, **changes: object) -> list[RunSpec]:
    """Runs of a sweep that differ in their seed, by two workers."""
    specs = []
    for seed in seeds:
        cfg = small(out, dpo_max_steps=4, eval_every="never", engine_workers=2, dpo_seed=seed)
        cfg.sweep, cfg.label = "s", f"seed={seed}"
        for key, value in changes.items():
            setattr(cfg, key, value)
        specs.append(look_up(validate(cfg)))
    return specs


def ends(specs: list[RunSpec]) -> dict[str, str]:
    """Label -> state, of a command's runs as they are yielded, each once."""
    told = [(spec.cfg.label or "", outcome) for spec, outcome in parallel.answers(specs, Session())]
    assert len(dict(told)) == len(told)
    return {label: outcome.state if isinstance(outcome, Outcome) else str(outcome) for label, outcome in told}


def fail(share: Path) -> None:
    """What a worker leaves of runs that all FAILED."""
    specs, _ = worker.read_share(share)
    for spec in specs:
        spec.folder.mkdir(parents=True, exist_ok=True)
        state = {"id": spec.id, "state": "FAILED", "error": "no reason", "config": {"label": spec.cfg.label}}
        write_result(spec.folder, state)
        with (share / worker.ENDED).open("a") as ended:
            ended.write(json.dumps({"id": spec.id, "exit_code": 1}) + "\n")


@pytest.mark.slow
def test_two_workers_share_the_runs_of_a_command(tmp_path: Path, called: Callable[..., Called]) -> None:
    workers = called(worker.work)
    with console.console.capture() as said:
        assert ends(asked(tmp_path / "two", 0, 1)) == {"seed=0": "FINISHED", "seed=1": "FINISHED"}
    lines = said.get().splitlines()
    assert len(workers.started) == 2 and not any((tmp_path / "two/cache/shares").iterdir())
    assert [line.split()[:2] for line in lines if "FINISHED" in line] == [["FINISHED", f"seed={n}"] for n in (0, 1)]
    workers.does = pytest.fail
    assert len(ends(asked(tmp_path / "two", 0, 1))) == 2, "answered from their records"


def test_a_lost_worker_is_replaced_once_and_has_only_the_runs_that_are_left(
    tmp_path: Path, called: Callable[..., Called]
) -> None:
    left: list[list[str | None]] = []

    def lose_first(share: Path) -> None:
        if share.name == "001":
            fail(share)
            ended = share / worker.ENDED
            ended.write_text(ended.read_text().splitlines(keepends=True)[0])
        else:
            fail(share)
            left.append([spec.cfg.label for spec in worker.read_share(share)[0]])

    called(lose_first)
    with console.console.capture() as said:
        assert set(ends(asked(tmp_path, 0, 1, 2, 3)).values()) == {"FAILED"}
    assert left == [["seed=2", "seed=3"], ["seed=1"]]
    assert "a worker was lost with 1 run to do; another one goes on from their last checkpoint\n" in said.get()


def test_runs_whose_workers_are_lost_again_and_again_are_told_as_killed(
    tmp_path: Path, called: Callable[..., Called]
) -> None:
    workers = called(lambda share: None)
    with console.console.capture() as said:
        assert ends(asked(tmp_path, 0, 1)) == {"seed=0": result.KILLED, "seed=1": result.KILLED}
    assert len(workers.started) == 4, "each twice"
    assert "its workers were lost; the same command goes on" in said.get()
    (home,) = (tmp_path / "cache/shares").iterdir()
    assert f"what it left is in {home}\n" in said.get()


def test_retries_are_for_lost_workers_too(tmp_path: Path, called: Callable[..., Called]) -> None:
    workers = called(lambda share: None)
    ends(asked(tmp_path, 0, 1, retries=3))
    assert len(workers.started) == 8


def test_what_a_worker_says_is_shown_and_a_refusal_of_one_is_handed_on(
    tmp_path: Path, called: Callable[..., Called]
) -> None:
    def refuse(share: Path) -> None:
        specs, _ = worker.read_share(share)
        (share / worker.SAID).write_text("warning: no room\nhalf a li")
        (share / worker.ENDED).write_text(json.dumps({"id": specs[0].id, "refused": "out: full"}) + "\n")

    called(refuse)
    with console.console.capture() as said:
        assert ends(asked(tmp_path, 0, 1)) == {"seed=0": "out: full", "seed=1": "out: full"}
    assert said.get() == "warning: no room\n" * 2


def test_a_worker_that_was_requeued_tells_its_runs_again_and_each_counts_once(
    tmp_path: Path, called: Callable[..., Called]
) -> None:
    def twice(share: Path) -> None:
        fail(share)
        ended = share / worker.ENDED
        ended.write_text(ended.read_text() * 2)

    called(twice)
    with console.console.capture():
        assert set(ends(asked(tmp_path, 0, 1, 2, 3)).values()) == {"FAILED"}


def test_fail_fast_stops_the_other_workers(tmp_path: Path, called: Callable[..., Called]) -> None:
    workers = called(fail)
    with pytest.raises(signals.Preempted, match="1"), console.console.capture():
        ends(asked(tmp_path, 0, 1, fail_fast=True))
    assert workers.stopped[0] == signal.SIGTERM


def test_a_signal_goes_to_the_workers_and_is_raised_when_they_have_ended(
    tmp_path: Path, called: Callable[..., Called]
) -> None:
    workers = called(lambda share: signal.raise_signal(signal.SIGINT) if share.name == "002" else None)
    with pytest.raises(KeyboardInterrupt):
        ends(asked(tmp_path, 0, 1))
    assert workers.stopped == [signal.SIGINT] and len(workers.started) == 2, "no lost worker is replaced"


def test_the_bar_shows_the_steps_of_all_runs_from_the_files_that_they_write(tmp_path: Path) -> None:
    specs = asked(tmp_path, 0, 1)
    for spec in specs:
        spec.folder.mkdir(parents=True)
    (specs[1].folder / "plan.json").write_text('{"steps": 9}')  # of an earlier command
    (specs[1].folder / "history.jsonl").write_text('{"step": 7, "loss": 0.5}\n')
    bar = parallel.progress_bars.CohortBar(2, enabled=False)
    watched = parallel.Watched(specs, bar)
    watched.update()
    assert bar.steps == {}
    for spec in specs:
        (spec.folder / "plan.json").write_text('{"steps": 10}')
    (specs[0].folder / "history.jsonl").write_text('{"step": 1, "loss": "nan"}\n{"step": 2, "lo')
    watched.update()
    with (specs[0].folder / "history.jsonl").open("a") as history:
        history.write('ss": 0.7}\n{"step": 3, "loss": 0.7, "eval/test/accuracy": 0.5}\n')
    watched.update()
    assert list(bar.totals.values()) == [10, 10] and sum(bar.steps.values()) == 3 + 7
    assert list(bar.scores.values()) == [{"test": 0.5}]


def test_workers_alone_or_with_nothing_to_do_are_not_started(tmp_path: Path, called: Callable[..., Called]) -> None:
    called(pytest.fail)
    assert ends(asked(tmp_path, 0)) == {"seed=0": "FINISHED"}
    assert list(parallel.answers([], Session())) == []
