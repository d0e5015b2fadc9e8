"""The trainings that a cohort of runs wants: from the cache or made now, each for all runs that want its weights."""

import gc
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock

from factdpo import signals
from factdpo.config.schema import EngineConfig, EngineName
from factdpo.runs import halving, progress_bars, record
from factdpo.runs.attempt import Attempt
from factdpo.runs.clock import Clock
from factdpo.runs.scoring import Scores, score
from factdpo.runs.session import Session
from factdpo.runs.stages import Prepared
from factdpo.store import cache
from factdpo.store.history import HISTORY, Row, read_history
from factdpo.training.batched import engine as batched_engine
from factdpo.training.engine import Ended, Engine, Member, Trained
from factdpo.training.schedule import steps_of_run


def open_run(attempt: Attempt, logs: list[logging.Handler]) -> None:
    """Begin a run; its log is among `logs` then, and hears what is logged."""
    attempt.start()
    if attempt.log_file is not None and attempt.log_file not in logs:
        logs.append(attempt.log_file)


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
        open_run(attempt, self.logs)
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


def train_and_score(
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
    for attempt, ending in train_and_score(stages, session, logs, clock) if stages else ():
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

    fit = _fit_of(cfg.engine)
    with bar, signals.held(), closing(fit(trainings[0].run.base, list(members))) as groups:
        for ended in map(keep, groups):  # `map` lets go of a group, and so of its weights, before the next line
            with signals.released():
                if with_trl and ended[0].error is None:
                    del ended[0].run.base  # it is changed: its memory is needed for a fresh one
                    gc.collect()
                    ended[0].run.base = session.base(cfg)
                yield from _scored(ended, prepared, clock)
    signals.raise_waiting()


def _fit_of(engine: EngineConfig) -> Engine:
    """The `fit` of an engine: `trl` leaves a changed base behind, `batched` leaves it as it was."""
    if engine.name is EngineName.trl:
        from factdpo.training import trl_engine, trl_processes  # TRL takes seconds to import

        return trl_engine.fit if engine.processes == 1 else trl_processes.fit
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
