"""Runs from their facts to their records, a list of them; a run alone is a list of length one.

facts -> splits -> tokenised pairs -> reference log-probs -> training -> scores per split -> record
"""

import gc
import logging
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock

from factdpo import console, signals
from factdpo.config.schema import EngineName
from factdpo.runs import halving, progress_bars, record, verdict
from factdpo.runs.attempt import Attempt, Measured, Outcome
from factdpo.runs.clock import Clock
from factdpo.runs.identity import cohorts
from factdpo.runs.scoring import Scores, score
from factdpo.runs.session import Session
from factdpo.runs.stages import Prepared, prepare
from factdpo.store import cache
from factdpo.store.history import HISTORY, Row, read_history
from factdpo.training.batched import checkpoints
from factdpo.training.batched import engine as batched_engine
from factdpo.training.engine import Ended, Engine, Member, Trained
from factdpo.training.schedule import steps_of_run

log = logging.getLogger("factdpo")


def execute(attempts: list[Attempt], session: Session, clock: Clock) -> Generator[tuple[Attempt, Outcome], None, None]:
    """Do these runs, each to its record; yields each as it ends, and what goes wrong with one ends that one only.

    A run is opened when its training begins, or at once where it is alone. After a signal, or an exception thrown in,
    the runs under way are recorded with it and stay resumable; those that have not begun stay as they are.
    """
    logs: list[logging.Handler] = [logging.NullHandler()]  # of the runs under way
    _clear_checkpoints(attempts)
    try:
        with console.logging_to(logs):
            of_spec = {attempt.spec: attempt for attempt in attempts}
            for specs in cohorts(list(of_spec)):
                cohort = [of_spec[spec] for spec in specs]
                yield from _execute_cohort(cohort, session, logs, clock, alone=len(attempts) == 1)
        _clear_checkpoints(attempts)  # of a batch that a kill ended, and of which others have trained the rest
    except BaseException as error:
        under_way = [attempt for attempt in attempts if attempt.under_way]
        scored = [attempt for attempt in under_way if attempt.stage == "score"]  # the training of others waits for them
        clock.charge([[attempt] for attempt in scored or under_way])
        for attempt in under_way:
            _complete(attempt, partial(_raise, error), clock)
        raise


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
                _open(attempt, logs)
                clock.charge([[attempt]])
            attempt.stage = "reference"
            prepared |= _prepared(attempt, session)
            clock.charge([[attempt]])
            attempt.stage = "train"
        except Exception as error:
            yield attempt, _close(attempt, logs, partial(_raise, error), clock)
    try:
        for attempt, ending in _train_and_score(prepared, session, logs, clock):
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


def _open(attempt: Attempt, logs: list[logging.Handler]) -> None:
    attempt.start()
    if attempt.log_file is not None and attempt.log_file not in logs:
        logs.append(attempt.log_file)


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


# ------------------------------------------------------------------------------------------------------------ training


@dataclass(eq=False)
class Training:
    """One training, and the runs that want its weights: what goes wrong with one of these ends no other."""

    run: Prepared
    logs: list[logging.Handler]
    bar: progress_bars.Bar | progress_bars.CohortBar | None = None
    attempts: list[Attempt] = field(default_factory=list)
    error: Exception | None = None
    begun: bool = False

    def member(self, name: str, bar: progress_bars.Bar | progress_bars.CohortBar) -> Member:
        """What the engine trains; the bar, where it has this name, gets the rows of the history as the runs do."""
        run = self.run
        self.bar, show = bar, bar.run(name, self.steps)
        steps, epochs = run.done_before

        def log_rows(*rows: Row) -> None:
            rows = tuple({**row, "step": row["step"] + steps, "epoch": row["epoch"] + epochs} for row in rows)
            self._each(lambda attempt: attempt.log(*rows))
            self._sound()
            show(*progress_bars.leading(rows, run.cfg.eval.score))

        return Member(
            run.trained.name,
            run.cfg,
            run.training,
            run.training_refs,
            run.curves,
            run.curve_point,
            log_rows,
            self._start,
            go_on=self._check_halving,
            begins_with=run.sft.trained if run.sft else None,
            retained=run.retained,
            stored=False,
        )

    def keep(self, member: Member, ending: Trained | Exception) -> None:
        """Put the weights into the cache, with the history that a run of them has written."""
        if isinstance(ending, Exception):
            self.error = ending
            return
        try:
            history = self._sound()[0].spec.folder / HISTORY
            cache.fetch(self.run.trained, partial(_save, ending, history))
            member.stored = True
        except Exception as error:
            self.error = error

    @property
    def steps(self) -> int:
        """Up to its end, those of an SFT before it included."""
        return steps_of_run(len(self.run.training), self.run.cfg)

    def _start(self) -> None:
        self.begun = True
        if self.bar is not None:
            self.bar.begin()
        with signals.released():
            self._each(lambda attempt: self._open(attempt))

    def _check_halving(self, row: Row) -> None:
        """Raises Stopped when none of the runs goes on; the SFT before DPO comes to no rung."""
        steps = row["step"] + self.run.done_before[0]
        for attempt in self._sound():
            if attempt.spec.cfg.method.name is self.run.cfg.method.name:
                try:
                    halving.check(attempt.spec, {**row, "step": steps})
                except halving.Stopped as stopped:
                    attempt.error = stopped
        self._sound()

    def _open(self, attempt: Attempt) -> None:
        _open(attempt, self.logs)
        attempt.plan(steps_of_run(len(self.run.training), attempt.spec.trains))
        if attempt.trackers.rows:
            return  # it has trained already: this is DPO after the SFT, or the training begins again
        with attempt.logged():
            record.log_inputs(self.run)
        if self.run.sft is not None:  # which was found in the cache
            attempt.log(*read_history(self.run.sft.trained / HISTORY))

    def _sound(self) -> list[Attempt]:
        """The runs that are well; raises if none is left: nobody wants the training any more."""
        sound = [attempt for attempt in self.attempts if attempt.error is None]
        if not sound:
            assert self.attempts[0].error is not None
            raise self.attempts[0].error
        return sound

    def _each(self, call: Callable[[Attempt], None]) -> None:
        for attempt in self.attempts:
            try:
                if attempt.error is None:
                    call(attempt)
            except Exception as error:
                attempt.error = error


def _save(trained: Trained, history: Path, target: Path) -> None:
    trained.save(target)
    shutil.copyfile(history, target / HISTORY)


def _train_and_score(
    prepared: dict[Attempt, Prepared], session: Session, logs: list[logging.Handler], clock: Clock
) -> Iterator[tuple[Attempt, Scores | Exception]]:
    """Each run of a cohort with its scores, or with what ended it, as soon as there are any.

    A training that the cache has is not made again; one that several runs want is made once.
    """
    trainings: dict[Path, Training] = {}
    yield from _begin_with_sft(prepared, session, logs, clock)
    for attempt, run in prepared.items():
        if run.sft is not None and run.sft_logps is None:
            continue  # its SFT failed, and it was yielded with what ended it
        trainings.setdefault(run.trained, Training(run, logs)).attempts.append(attempt)
    missing = [training for path, training in trainings.items() if cache.damage(path) is not None]
    yield from _scored([training for training in trainings.values() if training not in missing], prepared, clock)
    if len(missing) == 1:  # another process may be making it, for a run that differs in what is scored alone
        path = missing[0].run.trained
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.training.lock")):
            if cache.damage(path) is not None:
                yield from _train(missing, prepared, session, clock)
            else:
                yield from _scored(missing, prepared, clock)
    elif missing:
        yield from _train(missing, prepared, session, clock)


def _begin_with_sft(
    prepared: dict[Attempt, Prepared], session: Session, logs: list[logging.Handler], clock: Clock
) -> Iterator[tuple[Attempt, Exception]]:
    """Train and score what runs of method=sft_dpo begin with; yields those that cannot go on."""
    stages = {attempt: run.sft for attempt, run in prepared.items() if run.sft is not None}
    for attempt in stages:
        del prepared[attempt].base  # TRL changes it, and then wants the memory for a fresh one
    for attempt, ending in _train_and_score(stages, session, logs, clock) if stages else ():
        if isinstance(ending, Exception):
            yield attempt, ending
        else:
            prepared[attempt].base, prepared[attempt].sft_logps = stages[attempt].base, ending.logps
            attempt.stage = "train"


def _train(
    trainings: list[Training], prepared: dict[Attempt, Prepared], session: Session, clock: Clock
) -> Iterator[tuple[Attempt, Scores | Exception]]:
    cfg = trainings[0].run.cfg
    with_trl = cfg.engine.name is EngineName.trl
    bar = progress_bars.bar_of(len(trainings), cfg.track.progress, session.screen)
    labels = progress_bars.labels([training.run.cfg for training in trainings])
    members = {training.member(label, bar): training for training, label in zip(trainings, labels, strict=True)}
    if with_trl:
        session.drop_base()  # training changes it: no other run may get it

    def keep(group: Ended) -> list[Training]:
        bar.end()
        in_training = [training.attempts for training in members.values() if training.begun]
        ended = [members.pop(member) for member, _ in group]
        for training, (member, ending) in zip(ended, group, strict=True):
            training.keep(member, ending)
        clock.charge(in_training)
        return ended

    fit = _fit_of(cfg.engine.name)
    with bar, signals.held(), closing(fit(trainings[0].run.base, list(members))) as groups:
        for ended in map(keep, groups):  # `map` lets go of a group, and so of its weights, before the next line
            with signals.released():
                if with_trl and ended[0].error is None:
                    del ended[0].run.base  # it is changed: its memory is needed for a fresh one
                    gc.collect()
                    ended[0].run.base = session.base(cfg)
                yield from _scored(ended, prepared, clock)
    signals.raise_waiting()


def _fit_of(engine: EngineName) -> Engine:
    """The `fit` of an engine: `trl` leaves a changed base behind, `batched` leaves it as it was."""
    if engine is EngineName.trl:
        from factdpo.training import trl_engine  # TRL takes seconds to import

        return trl_engine.fit
    return batched_engine.fit


def _scored(
    trainings: list[Training], prepared: dict[Attempt, Prepared], clock: Clock
) -> Iterator[tuple[Attempt, Scores | Exception]]:
    """The runs of trainings that have ended, each with its scores or its error."""
    sound: dict[Prepared, Attempt] = {}
    for training in trainings:
        for attempt in training.attempts:
            error = attempt.error or training.error
            if error is not None:
                yield attempt, error
            else:
                sound[prepared[attempt]] = attempt
                attempt.stage = "score"
    for part in score(list(sound)):
        clock.charge([[sound[run]] for run, _ in part])
        yield from ((sound[run], scores) for run, scores in part)
