"""The answer to what was asked: a run's stored result, or a new one, whatever happens to it.

Light to import: a config that cannot be run, and a run that is finished, are answered without torch. A run that is to
be done reads the tokenizer of its model first, for which transformers is imported, but for nano's.
"""

import json
import resource
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from factdpo import console, signals
from factdpo.config.schema import Config, ConfigError, EngineName
from factdpo.config.validate import validate
from factdpo.runs import summary
from factdpo.runs.attempt import Attempt, Outcome
from factdpo.runs.clock import Clock
from factdpo.runs.identity import RunSpec, look_up
from factdpo.runs.session import Session, current
from factdpo.store import index, layout
from factdpo.store import result as record
from factdpo.store.history import HISTORY, read_history
from factdpo.store.run_lock import lock
from factdpo.store.shapes import DamagedFile
from factdpo.tracking import wandb_settings, wandb_tracker

SPARE_FILES = 512  # that a process has open beside the locks of its runs


class RunFailed(Exception):
    """The run ended without a result; its folder says why. `state` is FAILED, DIVERGED, PREEMPTED or killed."""

    def __init__(self, state: str, message: str, exit_code: int):
        super().__init__(state, message, exit_code)  # all three: it may come from another process
        self.state, self.message, self.exit_code = state, message, exit_code

    def __str__(self) -> str:
        return self.message


def ask(cfg: Config) -> dict[str, Any]:
    """The result of the run that a config asks for, as `answer` returns it."""
    session = current()
    return answer(look_up(validate(cfg), kept=session.facts), session)


def answer(spec: RunSpec, session: Session) -> dict[str, Any]:
    """The result of one run; raises ConfigError if it cannot be run, and RunFailed if it ended badly."""
    ((_, outcome),) = answers([spec], session)
    return result_of(spec, outcome)


def result_of(spec: RunSpec, outcome: Outcome | ConfigError) -> dict[str, Any]:
    """The result of a run that came to its end; raises what stands in its place, as `answer` does."""
    if isinstance(outcome, ConfigError):
        raise outcome
    if outcome.exit_code:
        raise RunFailed(outcome.state, f"{outcome.state}: {spec.folder / 'run.log'}", outcome.exit_code)
    return outcome.result


def answers(specs: list[RunSpec], session: Session) -> Iterator[tuple[RunSpec, Outcome | ConfigError]]:
    """How each run ended, printed and yielded as it ends: from its record if that has the answer, else done now.

    A run that another process is doing is waited for at the end. Raises KeyboardInterrupt after Ctrl-C, and Preempted
    (a SystemExit) after another signal or a failure under fail_fast=true: the records are written before that.
    """
    console.quiet_libraries()
    specs = list({spec.folder: spec for spec in specs}.values())
    _allow_open_files(len(specs) + SPARE_FILES)
    locks: dict[RunSpec, FileLock] = {}
    busy: list[RunSpec] = []
    with signals.handled():
        try:
            for spec in specs:
                try:
                    locks[spec] = lock(spec.folder, wait=len(specs) == 1)
                    stored = _stored(spec)
                except Timeout:
                    busy.append(spec)
                except ConfigError as error:
                    if spec in locks:
                        locks.pop(spec).release()
                    yield spec, error
                else:
                    if stored is not None:
                        _show_stored(spec, stored)
                        locks.pop(spec).release()
                        yield spec, stored
            yield from _executed([Attempt(spec) for spec in specs if spec in locks], locks, session)
        finally:
            for held in locks.values():
                held.release()
        for spec in busy:
            yield from answers([spec], session)


def _executed(
    attempts: list[Attempt], locks: dict[RunSpec, FileLock], session: Session
) -> Iterator[tuple[RunSpec, Outcome]]:
    """Do these runs; those that FAILED are tried again as often as `retries` says, when the others have ended."""
    clock = Clock()
    while attempts:
        with console.stage("importing torch and transformers"):
            from factdpo.runs.pipeline import execute
        clock.charge([[attempt] for attempt in attempts])
        if len(attempts) > 1 and (first := attempts[0].spec).cfg.track.wandb:
            console.say(wandb_settings.wandb_sentence(first.cfg.track, first.folder.parent), screen=session.screen)
        again: list[Attempt] = []
        try:
            with closing(execute(attempts, session, clock)) as running:
                for attempt, outcome in running:
                    spec = attempt.spec
                    if outcome.state == "FAILED" and attempt.number <= spec.cfg.retries:
                        _print_retry(attempt, outcome)
                        again.append(Attempt(spec, attempt.number + 1))
                        continue
                    locks.pop(spec).release()
                    print_outcome(spec, outcome, session.screen)
                    yield spec, outcome  # before it stops the others: a worker tells its command how this run ended
                    if stop := fail_fast(spec, outcome):
                        running.throw(stop)
        except BaseException:
            outcomes = {attempt.spec: attempt.outcome for attempt in attempts if attempt.outcome is not None}
            print_preempted(outcomes, alone=len(attempts) == 1, screen=session.screen)
            raise
        attempts = again


def _stored(spec: RunSpec) -> Outcome | None:
    """The stored answer, if there is one; says why a stored result is none. The run's lock is held."""
    if spec.folder.is_symlink() and not spec.folder.exists():
        raise ConfigError(
            f"{spec.folder}: a link to {spec.folder.readlink()}, which is gone; bring it back, or remove it"
        )
    if spec.folder.exists() and not spec.folder.is_dir():
        raise ConfigError(f"{spec.folder}: a file, where the run's folder is to be; move it away")
    damage = None
    try:
        if layout.read_asked(spec.folder) != spec.asked:
            raise ConfigError(
                f"{spec.folder}: holds another run (see its asked.json); move it away, or give another out="
            )
    except FileNotFoundError:
        pass
    except DamagedFile as error:
        damage = error  # the folder's name says whose it is
    stored = record.read_result(spec.folder)
    if stored.result is None:
        if (spec.folder / "result.json").exists():
            console.say(f"run again: {stored.reason}")
        elif damage is not None:
            console.say(f"run again: {damage}")
        elif spec.cfg.sweep is None and spec.folder.name in index.finished(spec.folder.parent):  # a sweep says it
            console.say(f"{spec.name}: was FINISHED when it was last listed, and is redone: {stored.reason}", "yellow")
        return None
    if _is_answer(spec, stored.result["state"]):
        _check_engine(spec, stored.result)
        return Outcome(stored.result, int(stored.result["state"] not in ("FINISHED", "STOPPED")))
    return None


def is_answered(spec: RunSpec) -> bool:
    """Whether there is nothing to do: its record has the answer."""
    return _is_answer(spec, spec.state())


def _is_answer(spec: RunSpec, state: str) -> bool:
    return ended_well(spec, state) or (state == "DIVERGED" and not spec.cfg.retry_diverged)


def ended_well(spec: RunSpec, state: str) -> bool:
    """Whether the run is what was asked for: finished, or stopped where halving may do that."""
    return state == "FINISHED" or (state == "STOPPED" and spec.cfg.halving.keep is not None)


def _check_engine(spec: RunSpec, stored: dict[str, Any]) -> None:
    """Raises ConfigError if TRL trained what engine=auto asked for, and now the batched engine is insisted on."""
    trained_by = stored.get("engine", spec.engine)  # records of old have none
    if spec.cfg.engine.name is EngineName.batched and not spec.is_auto and trained_by.startswith("trl"):
        raise ConfigError(f"engine=batched: {spec.folder} has this run by {trained_by}; use engine=auto, or engine=trl")


def _show_stored(spec: RunSpec, stored: Outcome) -> None:
    """Print the answer of a run alone; show W&B one that it has not seen, since it ran with track=none."""
    if not spec.cfg.sweep:
        summary.print_result(stored.result, spec.folder, console.console, stored=True)
    if stored.state != "FINISHED":
        return
    shown = (spec.folder / "wandb").exists() and wandb_tracker.agents_run() is None  # an agent opens a new one
    if shown or wandb_settings.wandb_mode(spec.cfg.track)[0] == "disabled":
        return
    import pyarrow.parquet

    console.say(wandb_settings.wandb_sentence(spec.cfg.track, spec.folder))
    view = wandb_tracker.WandbTracker(spec.cfg, spec.id, spec.name, spec.folder)
    view.log(*read_history(spec.folder / HISTORY))
    items = pyarrow.parquet.read_table(spec.folder / "items.parquet").to_pylist()
    generations = json.loads((spec.folder / "generations.json").read_text(encoding="utf-8"))
    view.finish(stored.result, items, generations, spec.folder)


def fail_fast(spec: RunSpec, outcome: Outcome) -> signals.Preempted | None:
    """What stops all other runs, if this outcome is to."""
    if not (outcome.exit_code and spec.cfg.fail_fast):
        return None
    console.say("fail_fast=true: no other run is started")
    return signals.Preempted(
        outcome.exit_code, f"stopped by fail_fast=true: {spec.cfg.label or spec.name} {outcome.state}"
    )


def print_outcome(spec: RunSpec, outcome: Outcome, screen: Console) -> None:
    """A run of a sweep in a line, a run alone with its table."""
    if spec.cfg.sweep:
        summary.print_line(outcome.result, spec.folder, screen)
    else:
        summary.print_result(outcome.result, spec.folder, screen)


def _print_retry(attempt: Attempt, outcome: Outcome) -> None:
    name, tries = attempt.spec.cfg.label or attempt.spec.name, attempt.spec.cfg.retries + 1
    sentence = f"{name}: attempt {attempt.number} of {tries} FAILED ({outcome.result['error']}); it is tried again"
    console.say(sentence, "yellow")


def print_preempted(outcomes: dict[RunSpec, Outcome], alone: bool, screen: Console) -> None:
    """Those of these runs that a signal ended: their number, or a run alone as it is shown otherwise."""
    preempted = [(spec, outcome) for spec, outcome in outcomes.items() if outcome.state == "PREEMPTED"]
    if alone and preempted:
        print_outcome(*preempted[0], screen)
    elif preempted:
        runs = "1 run was" if len(preempted) == 1 else f"{len(preempted)} runs were"
        console.say(f"{runs} interrupted; rerun the same command to resume", screen=screen)


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files to so many, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        limit = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
