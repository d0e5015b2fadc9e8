"""Runs from their facts to their records, a list of them; a run alone is a list of length one.

facts -> splits -> tokenised pairs -> reference log-probs -> training -> scores per split -> record
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

from factdpo import console, signals
from factdpo.runs import record, verdict
from factdpo.runs.attempt import Attempt, Measured, Outcome
from factdpo.runs.clock import Clock
from factdpo.runs.identity import cohorts
from factdpo.runs.session import Session
from factdpo.runs.stages import Prepared, prepare
from factdpo.runs.trainings import open_run, train_and_score
from factdpo.store import index
from factdpo.training.batched import checkpoints

INDEX_SECONDS = 10.0  # between two updates of the index, which take the longer the more runs its folder has


def execute(attempts: list[Attempt], session: Session, clock: Clock) -> Generator[tuple[Attempt, Outcome], None, None]:
    """Do these runs, each to its record; yields each as it ends, and what goes wrong with one ends that one only.

    A run is opened when its training begins, or at once where it is alone. After a signal, or an exception thrown in,
    the runs under way are recorded with it and stay resumable; those that have not begun stay as they are.
    """
    logs: list[logging.Handler] = [logging.NullHandler()]  # of the runs under way
    _clear_checkpoints(attempts)
    indexed = time.monotonic()
    try:
        with console.logging_to(logs):
            of_spec = {attempt.spec: attempt for attempt in attempts}
            for specs in cohorts(list(of_spec)):
                cohort = [of_spec[spec] for spec in specs]
                for ending in _execute_cohort(cohort, session, logs, clock, alone=len(attempts) == 1):
                    yield ending
                    if time.monotonic() - indexed >= INDEX_SECONDS:
                        _update_index(attempts)
                        clock.skip()
                        indexed = time.monotonic()
        _clear_checkpoints(attempts)  # of a batch that a kill ended, and of which others have trained the rest
    except BaseException as error:
        under_way = [attempt for attempt in attempts if attempt.under_way]
        scored = [attempt for attempt in under_way if attempt.stage == "score"]  # the training of others waits for them
        clock.charge([[attempt] for attempt in scored or under_way])
        for attempt in under_way:
            _complete(attempt, partial(_raise, error), clock)
        raise
    finally:
        _update_index(attempts)


def _update_index(attempts: list[Attempt]) -> None:
    for home in {attempt.spec.folder.parent for attempt in attempts if attempt.spec.cfg.sweep is not None}:
        index.update_index(home)


def _clear_checkpoints(attempts: list[Attempt]) -> None:
    for folder in {Path(attempt.spec.cfg.out) / "cache" for attempt in attempts}:
        checkpoints.clear(folder / "batches", folder / "adapters")


def _execute_cohort(
    cohort: list[Attempt], session: Session, logs: list[logging.Handler], clock: Clock, alone: bool
) -> Iterator[tuple[Attempt, Outcome]]:
    """The runs of a cohort; those whose base turns out to need TRL come last, since training by TRL changes it."""
    prepared: dict[Attempt, Prepared] = {}
    for attempt in cohort:
        try:
            if alone:
                open_run(attempt, logs)
                clock.charge([[attempt]])
            attempt.stage = "reference"
            prepared |= _prepared(attempt, session)
            clock.charge([[attempt]])
            attempt.stage = "train"
        except Exception as error:
            yield attempt, _close(attempt, logs, partial(_raise, error), clock)
    try:
        for attempt, ending in train_and_score(prepared, session, logs, clock):
            yield attempt, _close(attempt, logs, partial(record.measure, attempt, prepared[attempt], ending), clock)
    except Exception as error:  # of the cohort as a whole: it ends the runs that have no record yet
        left = [attempt for attempt in prepared if attempt.outcome is None]
        clock.charge([[attempt] for attempt in left])
        for attempt in left:
            yield attempt, _close(attempt, logs, partial(_raise, error), clock)
    prepared.clear()  # and with it the base, of which TRL wants a fresh one
    for attempt in [attempt for attempt in cohort if attempt.outcome is None]:
        yield from _execute_cohort([attempt], session, logs, clock, alone)


def _prepared(attempt: Attempt, session: Session) -> dict[Attempt, Prepared]:
    """The run before its training; nothing where its base, asked now, needs TRL and not the engine of the cohort.

    Raises ConfigError for a base that no engine can train, or not the one that the config insists on.
    """
    engine = attempt.spec.engine
    run = prepare(attempt.spec.trains, session)
    verdict.apply(verdict.verdict(run, attempt.spec.asked, session.verdicts), attempt.spec)
    if attempt.spec.engine == engine:
        return {attempt: run}
    attempt.engine_found()
    return {}


def _close(attempt: Attempt, logs: list[logging.Handler], measure: Callable[[], Measured], clock: Clock) -> Outcome:
    """The record of a run; raises what a signal raises if one came meanwhile."""
    if attempt.log_file is not None and attempt.log_file in logs:
        logs.remove(attempt.log_file)
    outcome = _complete(attempt, measure, clock)
    if outcome.state == "PREEMPTED":
        raise signals.stop(outcome.exit_code - 128)
    return outcome


def _complete(attempt: Attempt, measure: Callable[[], Measured], clock: Clock) -> Outcome:
    """The record of a run; what its trackers take after it is in no record, and not the next run's."""
    outcome = attempt.complete(measure, partial(clock.charge, [[attempt]]))
    clock.skip()
    return outcome


def _raise(error: BaseException) -> Measured:
    raise error
