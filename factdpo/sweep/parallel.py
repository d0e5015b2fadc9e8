"""The runs of a command, done by workers: started, watched, replaced once where one is lost, and shown as one command.

What a worker does is read from the folders that it writes, so that it may be a process here or anywhere that sees them:
the rows of its runs from their histories, how they ended from its share (sweep/worker.py).
"""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree

from filelock import FileLock

from factdpo import console, signals
from factdpo.config.schema import ConfigError, Executor, to_dict
from factdpo.runs import answer, progress_bars
from factdpo.runs.attempt import Outcome
from factdpo.runs.identity import RunSpec
from factdpo.runs.session import Session
from factdpo.store import layout, result
from factdpo.store.history import HISTORY, Row, finite_or_not
from factdpo.sweep import executors, worker
from factdpo.sweep.shares import costs_of, cut
from factdpo.tracking import wandb_settings

POLL_SECONDS = 0.2
END_SECONDS = 10.0  # that workers have after a second signal

Ending = tuple[RunSpec, Outcome | ConfigError]


def answers(specs: list[RunSpec], session: Session) -> Iterator[Ending]:
    """How each run ended, as `runs.answer.answers` has it, by the workers that engine.executor and .workers ask for.

    Runs with a stored answer are answered here. Raises what `runs.answer.answers` raises; that the executor can be
    used was checked when the runs were looked up.
    """
    specs = list({spec.folder: spec for spec in specs}.values())
    to_do = [spec for spec in specs if not answer.is_answered(spec)]
    here = not to_do or (to_do[0].cfg.engine.executor is Executor.local and _count(to_do) == 1)
    yield from answer.answers(specs if here else [spec for spec in specs if spec not in to_do], session)
    if not here:
        folder = Path(to_do[0].cfg.out) / "cache" / "shares"
        folder.mkdir(parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(dir=folder))
        with FileLock(home / "lock"), closing(_by_workers(to_do, home)) as endings:  # the lock: `factdpo clean` asks
            yield from endings


def _by_workers(to_do: list[RunSpec], home: Path) -> Generator[Ending, None, None]:
    """What `answers` yields of runs to do; a signal goes to all workers, and is raised when they have ended."""
    cfg = to_do[0].cfg
    workers = executors.workers_of(cfg.engine, _count(to_do), home / "jobs")
    if len(to_do) > 1 and cfg.track.wandb:
        console.say(wandb_settings.wandb_sentence(cfg.track, to_do[0].folder.parent))
    bar = progress_bars.bar_of(len(to_do), cfg.track.progress)
    watched, crew = Watched(to_do, bar), Crew(to_do, workers, home)
    try:
        with signals.handled(), bar, signals.held():
            crew.start()
            while crew.shares:
                time.sleep(POLL_SECONDS)
                if signals.waiting() and (number := signals.received()):
                    crew.stop(number, signals.stop(number))
                watched.update()
                for lines, endings in crew.poll():
                    for line in lines:
                        console.say(line, "yellow")
                    if endings:
                        bar.end()
                    yield from map(crew.told, endings)
            if not crew.lost:
                rmtree(home, ignore_errors=True)
            if crew.stopped is not None:
                bar.end()
                _print_preempted(to_do)
                raise crew.stopped
    except BaseException:  # a second signal, for one: they end at once
        crew.end()
        raise


def _print_preempted(to_do: list[RunSpec]) -> None:
    stored = {spec: result.record_or_none(spec.folder) for spec in to_do}
    outcomes = {spec: Outcome(row, 1) for spec, row in stored.items() if row is not None}
    answer.print_preempted(outcomes, alone=len(to_do) == 1, screen=console.console)


def _count(to_do: list[RunSpec]) -> int:
    return min(to_do[0].cfg.engine.workers, len(to_do))


@dataclass(eq=False)
class Share:
    """The runs that one worker does, and how far what it says has been read."""

    folder: Path
    specs: list[RunSpec]
    number: int  # 1 + how often a worker of it was lost before
    read: dict[str, int] = field(default_factory=dict)  # file -> bytes

    def write(self) -> "Share":
        worker.write_share(self.folder, self.specs)
        return self

    def said(self) -> list[str]:
        """The lines that the worker has said since."""
        return _new_lines(self.folder / worker.SAID, self.read)

    def ended(self) -> list[Ending]:
        """The runs that have ended since; they are no longer among `specs`."""
        endings: list[Ending] = []
        for line in map(json.loads, _new_lines(self.folder / worker.ENDED, self.read)):
            spec = next((spec for spec in self.specs if spec.id == line["id"]), None)
            if spec is None:
                continue  # told before its worker was requeued, and by its record once more
            self.specs.remove(spec)
            endings.append((spec, ConfigError(line["refused"]) if "refused" in line else _outcome(spec, line)))
        return endings


def _outcome(spec: RunSpec, line: Row) -> Outcome:
    stored = result.record_or_none(spec.folder)
    return _lost(spec) if stored is None else Outcome(stored, line["exit_code"])


def _lost(spec: RunSpec) -> Outcome:
    """What stands for the result of a run whose workers were all killed: there is none."""
    error = "its workers were lost; the same command goes on from its last checkpoint"
    row = {"id": spec.id, "name": spec.name, "state": result.KILLED, "error": error, "config": to_dict(spec.cfg)}
    return Outcome(row, 1)


def _new_lines(path: Path, read: dict[str, int]) -> list[str]:
    """The whole lines that were added to a file since; from its beginning if it was written anew."""
    start = read.get(path.name, 0)
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < start:
                start = 0
            file.seek(start)
            added = file.read()
    except FileNotFoundError:
        return []
    added = added[: added.rfind(b"\n") + 1]
    read[path.name] = start + len(added)
    return added.decode("utf-8", errors="replace").splitlines()


class Watched:
    """The runs of a command as its one progress bar shows them, from the histories that they write."""

    def __init__(self, specs: list[RunSpec], bar: progress_bars.Bar | progress_bars.CohortBar):
        self.bar = bar
        names = progress_bars.labels([spec.cfg for spec in specs])
        self.names = dict(zip(specs, names, strict=True))
        # What a run wrote at its beginning, plan.json, is another file once a worker of ours has begun it.
        self.begun = {spec: layout.file_stamp(spec.folder / layout.PLAN) for spec in specs}
        self.shown: dict[RunSpec, Callable[..., None]] = {}
        self.read: dict[RunSpec, dict[str, int]] = {}

    def update(self) -> None:
        """Show the rows that have come since."""
        for spec, name in self.names.items():
            stamp = layout.file_stamp(spec.folder / layout.PLAN)
            if stamp is not None and stamp != self.begun[spec]:
                plan = layout.read_json(spec.folder / layout.PLAN)
                if plan is None:  # it is just being begun once more
                    continue
                self.begun[spec], self.read[spec] = stamp, {}
                if spec not in self.shown:
                    self.shown[spec] = self.bar.run(name, plan["steps"])
            if spec in self.shown and (lines := _new_lines(spec.folder / HISTORY, self.read[spec])):
                rows = [finite_or_not(json.loads(line)) for line in lines]
                self.shown[spec](*progress_bars.leading(rows, spec.cfg.eval.score))


class Crew:
    """The workers of a command, a share each."""

    def __init__(self, to_do: list[RunSpec], workers: executors.Workers, home: Path):
        self.to_do, self.workers, self.home, self.made = to_do, workers, home, 0
        self.shares: list[Share] = []  # that a worker is doing
        self.stopped: BaseException | None = None  # what is raised once all have ended
        self.lost = False  # whether runs were, with their second worker

    def start(self) -> None:
        count = _count(self.to_do)
        parts = cut(self.to_do, count, costs_of(self.to_do, count))
        self._start([Share(self._folder(), part, 1) for part in parts])

    def poll(self) -> Iterator[tuple[list[str], list[Ending]]]:
        """Of each share: what its worker has said since, and the runs that have ended. Replaces lost workers."""
        lost = []
        for share in [*self.shares]:
            gone = self.workers.is_gone(share.folder)  # asked first: what it left is whole then
            yield share.said(), share.ended()
            if gone:
                self.shares.remove(share)
                lost += [share] if share.specs and not self.stopped else []
        again = [share for share in lost if share.number <= max(1, share.specs[0].cfg.retries)]
        for share in again:
            what = f"a worker was lost with {console.plural(len(share.specs), 'run')} to do"
            yield [f"{what}; another one goes on from their last checkpoint"], []
        self._start([Share(self._folder(), share.specs, share.number + 1) for share in again])
        for share in (share for share in lost if share not in again):
            self.lost = True
            yield [f"another worker was lost with them; what it left is in {self.home}"], []
            yield [], [(spec, _lost(spec)) for spec in share.specs]

    def told(self, ending: Ending) -> Ending:
        """The same, once it is printed; one that is to stop all others does."""
        spec, outcome = ending
        if isinstance(outcome, Outcome):
            answer.print_outcome(spec, outcome, console.console)
            if stop := answer.fail_fast(spec, outcome):
                self.stop(signal.SIGTERM, stop)
        return ending

    def stop(self, number: int, error: BaseException) -> None:
        """Pass a signal on to all workers, once; `error` is why."""
        if self.stopped is None:
            self.stopped = error
            self.workers.stop(number)

    def end(self) -> None:
        """End those that are left: told once more to stop, they have seconds to write that they were stopped."""
        if self.shares:
            self.workers.stop(signals.received() or signal.SIGTERM)
        last = time.monotonic() + END_SECONDS
        try:
            while time.monotonic() < last and not all(self.workers.is_gone(share.folder) for share in self.shares):
                time.sleep(POLL_SECONDS)
        finally:
            self.workers.kill()

    def _start(self, shares: list[Share]) -> None:
        if shares:
            self.workers.start([share.write().folder for share in shares])
            self.shares += shares

    def _folder(self) -> Path:
        self.made += 1
        return self.home / f"{self.made:03d}"
