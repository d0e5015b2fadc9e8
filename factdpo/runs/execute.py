"""One job: what was asked -> the stored result, or a run of it, whatever happens to it. Many jobs: trained together.

Light to import: a config that cannot be run, and a run that is finished, are answered without torch.
"""

import json
import logging
import resource
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from factdpo import console, signals
from factdpo.config.schema import Config, ConfigError, EngineName
from factdpo.config.validate import validate
from factdpo.runs import summary
from factdpo.runs.attempt import Attempt, Outcome, finished, lock
from factdpo.runs.identity import Run, look_up
from factdpo.store import history
from factdpo.tracking import wandb_settings, wandb_tracker

log = logging.getLogger("factdpo")

SPARE_FILES = 512  # what a process has open beside the locks of its runs


class RunFailed(Exception):
    """The run ended without a result; its folder says why. `state` is FAILED or DIVERGED."""

    def __init__(self, state: str, message: str, exit_code: int):
        super().__init__(state, message, exit_code)  # all three: it may come from another process
        self.state, self.message, self.exit_code = state, message, exit_code

    def __str__(self) -> str:
        return self.message


_told: dict[Path, Outcome] = {}  # what came of the runs that `warm` did, by folder


def execute(cfg: Config) -> dict[str, Any]:
    """The result of the run that a config asks for, as `answer` gives it; raises ConfigError for what cannot be run."""
    return answer(look_up(validate(cfg)))


def answer(run: Run) -> dict[str, Any]:
    """The result of a run: the stored one if it is FINISHED, else a new one; printed either way.

    Raises ConfigError for what cannot be run; after the record is written RunFailed for a run that ended badly, and
    SystemExit if that, or a signal, is to stop a whole sweep.
    """
    console.quiet_libraries()
    outcome = _told.get(run.folder)
    if outcome is None or _to_be_tried_again(outcome, run):
        with signals.handled():
            held = lock(run)
            try:
                if (stored := finished(run)) is not None:
                    _show_stored(run, stored)
                    return stored
                outcome = _attempts(run, outcome[0]["attempts"] if outcome else 0)
            finally:
                held.release()
        if run.folder in _told:
            _told[run.folder] = outcome
    result, exit_code = outcome
    if result["state"] == "PREEMPTED":
        raise SystemExit(exit_code)  # not an Exception: a sweep must stop, and not start its next run
    if exit_code and run.cfg.fail_fast:
        console.console.print("fail_fast=true: no other run is started", highlight=False)
        raise SystemExit(exit_code)
    if exit_code:
        raise RunFailed(result["state"], f"{result['state']}: {run.folder / 'run.log'}", exit_code)
    return result


def _attempts(run: Run, made: int) -> Outcome:
    """Try a run until it has ended otherwise than FAILED, or has been tried often enough, and print how."""
    while True:
        made += 1
        outcome = Attempt(run, made).complete()
        if not _to_be_tried_again(outcome, run):
            show = summary.print_line if run.cfg.sweep else summary.print_result
            show(outcome[0], run.folder, console.console)
            return outcome
        _say_that_it_is_tried_again(outcome, run)


def _to_be_tried_again(outcome: Outcome, run: Run) -> bool:
    return outcome[0]["state"] == "FAILED" and outcome[0]["attempts"] <= run.cfg.retries


def _say_that_it_is_tried_again(outcome: Outcome, run: Run) -> None:
    made, error = outcome[0]["attempts"], outcome[0]["error"]
    said = f"{run.cfg.label or run.name}: attempt {made} of {run.cfg.retries + 1} FAILED ({error}); it is tried again"
    console.console.print(said, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _show_stored(run: Run, stored: dict[str, Any]) -> None:
    """A run alone is printed; one that W&B has not seen (it ran with track=none) is shown to it from the record."""
    if not run.cfg.sweep:
        summary.print_result(stored, run.folder, console.console)
    shown = (run.folder / "wandb").exists() and wandb_tracker.agents_run() is None  # an agent opens a new one
    if wandb_settings.wandb_mode(run.cfg.track)[0] == "disabled" or shown:
        return
    import pyarrow.parquet

    console.console.print(wandb_settings.wandb_sentence(run.cfg.track, run.folder), highlight=False, soft_wrap=True)
    view = wandb_tracker.WandbTracker(run.cfg, run.id, run.name, run.folder)
    view.log(*history.read_history(run.folder / history.HISTORY))
    items = pyarrow.parquet.read_table(run.folder / "items.parquet").to_pylist()
    generations = json.loads((run.folder / "generations.json").read_text(encoding="utf-8"))
    view.finish(stored, items, generations, run.folder)


# ------------------------------------------------------------------------------------------------------- many at once


@contextmanager
def warm(runs: list[Run]) -> Iterator[None]:
    """Do together what of these runs can be, each to its end; `answer`, called for each of them within, finds it done.

    Runs that are FINISHED, that another process is doing, or that only TRL can do are left to `answer`.
    """
    with signals.handled():
        try:
            if claimed := _claim(runs):
                console.quiet_libraries()
                _do_together(claimed)
            yield
        finally:
            _told.clear()


def _claim(runs: list[Run]) -> list[tuple[Run, FileLock]]:
    """Those of the runs that can be trained together and are to be done, locked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(runs) + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
    claimed: dict[Path, tuple[Run, FileLock]] = {}
    for run in runs:
        if run.cfg.engine.name is not EngineName.batched or run.folder in claimed:
            continue
        try:
            held = lock(run, wait=False)
        except (Timeout, ConfigError):
            continue  # another process does it, or its job says what is wrong
        try:
            if finished(run) is None:
                claimed[run.folder] = run, held
        except ConfigError:
            pass  # of this run alone: its job says so
        finally:
            if run.folder not in claimed:
                held.release()
    return list(claimed.values())


def _do_together(claimed: list[tuple[Run, FileLock]]) -> None:
    """Do these runs; each is closed, and its lock released, as soon as it has ended. No lock is waited for meanwhile.

    Raises SystemExit when a signal came, or a run went wrong and fail_fast is set: then those that train are PREEMPTED,
    and those that have not begun stay as they are.
    """
    attempts = [Attempt(run) for run, _ in claimed]
    logs: list[logging.Handler] = [logging.NullHandler()]  # of the runs that train

    def start(attempt: Attempt) -> None:
        attempt.start()
        if attempt.log_file is not None and attempt.log_file not in logs:
            logs.append(attempt.log_file)

    def close(number: int, ending: BaseException | None) -> Outcome:
        (run, held), attempt = claimed[number], attempts[number]
        if attempt.log_file in logs:
            logs.remove(attempt.log_file)
        outcome = _told[run.folder] = attempt.complete(ending)
        held.release()
        return outcome

    try:
        with console.logging_to(logs):
            if (first := claimed[0][0]).cfg.track.wandb:
                log.info(wandb_settings.wandb_sentence(first.cfg.track, first.folder.parent))
            from factdpo.runs.warm import Wanted, train  # torch, transformers: seconds

            wanted = [Wanted(a.run.cfg, a.run.folder, partial(start, a), a.log) for a in attempts]
            with closing(train(wanted)) as endings:
                for number, ending in endings:
                    _tell(claimed[number][0], close(number, ending))
    except BaseException as error:
        under_way = [n for n, attempt in enumerate(attempts) if attempt.started and claimed[n][0].folder not in _told]
        outcomes = [close(number, error) for number in under_way]
        if isinstance(error, Exception) and signals.received() is None:
            console.console.print(f"{type(error).__name__}: {error}; what is left is done run by run", markup=False)
            for number, outcome in zip(under_way, outcomes, strict=True):
                _tell(claimed[number][0], outcome)
            return
        stopped = sum(result["state"] == "PREEMPTED" for result, _ in _told.values())
        console.console.print(f"{stopped} runs interrupted; the same command goes on with them", highlight=False)
        if isinstance(error, Exception):
            raise signals.stop(signals.received() or signal.SIGTERM) from error
        raise
    finally:
        for _, held in claimed:
            held.release()


def _tell(run: Run, outcome: Outcome) -> None:
    """Print how a run ended; raises what stops the others, if it does."""
    result, exit_code = outcome
    if result["state"] == "PREEMPTED":
        raise signals.stop(exit_code - 128)
    if _to_be_tried_again(outcome, run):
        _say_that_it_is_tried_again(outcome, run)
        return
    summary.print_line(result, run.folder, console.console)
    if exit_code and run.cfg.fail_fast:
        raise signals.Preempted(exit_code, f"stopped by fail_fast=true: {run.cfg.label or run.name} {result['state']}")
