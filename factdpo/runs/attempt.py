"""One attempt at a run: its folder is emptied, log and trackers are opened, and result.json says how it ended."""

import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple

import yaml

from factdpo import console, signals
from factdpo.config.schema import ConfigError, EngineName, to_dict
from factdpo.runs.identity import RunSpec
from factdpo.store import cache, provenance
from factdpo.store import result as record
from factdpo.store.history import Row
from factdpo.store.layout import PLAN
from factdpo.tracking import tracker, wandb_settings

log = logging.getLogger("factdpo")

STAGES = ("open", "reference", "train", "score")
NOT_PROVEN = ("wandb/", "run.log", "result.json", PLAN)  # files without a sha256 in result.json


class Outcome(NamedTuple):
    """How a run ended: its result.json, and the exit code of a command that asked for nothing else."""

    result: Row
    exit_code: int

    @property
    def state(self) -> str:
        return self.result["state"]


class Measured(NamedTuple):
    """What a run that came to its end leaves: keys of result.json, the rows per fact, and the continuations."""

    scores: Row
    items: list[Row]
    generations: list[Row]


class Attempt:
    """A run that is being done, by whoever holds its lock."""

    def __init__(self, spec: RunSpec, number: int = 1):
        self.spec, self.number = spec, number  # 1 + how often this command has tried it before
        self.started: str | None = None  # UTC, ISO 8601
        self.outcome: Outcome | None = None
        self.error: Exception | None = None  # what one of its trackers, or its log, could not do
        self.log_file: console.LogFile | None = None
        self.trackers = tracker.Trackers([])
        self.stage = "open"  # of STAGES, that it is in
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)  # its share of the time of each stage
        self._logs: list[logging.Handler] = [logging.NullHandler()]

    @property
    def under_way(self) -> bool:
        return self.started is not None and self.outcome is None

    def start(self) -> None:
        """Empty the folder of what an earlier attempt left, and open log and trackers; does so once."""
        if self.started is not None:
            return
        spec, folder = self.spec, self.spec.folder
        self.started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        folder.mkdir(exist_ok=True)
        self._empty()
        shutil.rmtree(folder / "wandb", ignore_errors=True)
        if self.number == 1:
            (folder / "run.log").unlink(missing_ok=True)
        cache.write_atomic(folder / "asked.json", json.dumps(spec.asked, indent=1, sort_keys=True, ensure_ascii=False))
        self._write_config()
        self.log_file = console.LogFile(folder / "run.log")
        self._logs.append(self.log_file)
        with self.logged():
            log.info("%s  %s", spec.name, folder)
            log.info("engine: %s", spec.engine)
            if self.number > 1:
                log.info("attempt %d of %d", self.number, spec.cfg.retries + 1)
            if spec.cfg.track.wandb:
                log.info(wandb_settings.wandb_sentence(spec.cfg.track, folder))
            self.trackers = tracker.open_trackers(spec.trains, spec.id, spec.name, folder)

    def engine_found(self) -> None:
        """Say which engine trains it, where that had to be asked of the base."""
        with self.logged():
            log.info("engine: %s", self.spec.engine)
        self._write_config()

    def _write_config(self) -> None:
        """The config, which is that of the id, under a line on the engine, which under engine=auto may be another."""
        config = yaml.safe_dump(to_dict(self.spec.cfg), sort_keys=False, allow_unicode=True)
        engine = " ".join(self.spec.engine.split())
        cache.write_atomic(self.spec.folder / "config.yaml", f"# trained by {engine}\n{config}")

    def plan(self, steps: int) -> None:
        """Write down how many optimizer steps the training has, for whoever watches it."""
        cache.write_atomic(self.spec.folder / PLAN, json.dumps({"steps": steps}))

    def log(self, *rows: Row) -> None:
        """Rows of the history, for whoever follows the run."""
        self.trackers.log(*rows)

    def logged(self) -> AbstractContextManager[None]:
        """What is logged within goes to the run's own file."""
        return console.logging_to(self._logs, quiet=self.spec.cfg.sweep is not None)

    def timing(self) -> Row:
        """The run's share of its command's time, as result.json has it; what runs did together is divided."""
        stages = {f"{stage}_seconds": self.seconds[stage] for stage in STAGES[1:]}
        return stages | {"total_seconds": sum(self.seconds.values())}

    def complete(self, measure: Callable[[], Measured], charge: Callable[[], None]) -> Outcome:
        """Write result.json, last and atomically: what `measure` returns, or which exception ended the run.

        `charge` brings the run's share of the time up to now; it is called when all but the record is written.
        """
        result, exit_code = self._result(), 0
        items: list[Row] = []
        generations: list[Row] = []
        with self.logged():
            try:
                self.start()
                result["started"] = self.started
                scores, items, generations = measure()
                result |= scores
                if self.log_file is not None and self.log_file.error is not None:
                    result["warnings"].append(f"run.log is not complete: {self.log_file.error}")
                result["hardware"]["device"] = result.pop("device")
                result["files"] = {
                    name: sha
                    for name, sha in cache.folder_sha256(self.spec.folder).items()
                    if not name.startswith(NOT_PROVEN)
                }
                charge()
                result["timing"] |= self.timing()
                result["state"] = "FINISHED"
            except BaseException as error:
                charge()
                result["state"], result["error"], exit_code = _ending(error, self.spec)
                result["timing"] = self.timing()
                if result["state"] == "STOPPED":
                    log.info("%s", result["error"])
                else:
                    log.error("%s", result["error"], exc_info=True)
            if (error := self._write(result)) and not exit_code:
                result["state"], result["error"], exit_code = "FAILED", error, 1
            self.outcome = Outcome(result, exit_code)  # written: what is interrupted from here on changes it no more
            self.trackers.finish(result, items, generations, self.spec.folder)
        if self.log_file is not None:
            self.log_file.close()
        return self.outcome

    def _empty(self) -> None:
        """Remove what a run leaves at its end."""
        folder = self.spec.folder
        names = ["result.json", "items.parquet", "generations.json", PLAN]
        for name in [*names, *(path.name for path in folder.glob(".*.part"))]:
            (folder / name).unlink(missing_ok=True)
        for name in ("adapter", "model", "figures"):
            shutil.rmtree(folder / name, ignore_errors=True)

    def _write(self, result: Row) -> str | None:
        """Write result.json, alone if there is no room for the rest: the run FAILED, for the reason returned."""
        path = self.spec.folder / "result.json"
        try:
            record.write_result(self.spec.folder, result)
            return None
        except OSError as error:
            why = f"{path} cannot be written ({error}); make room, then the same command again"
        with suppress(OSError):
            self._empty()
        left = self._result() | {"started": self.started, "state": result["state"], "error": result["error"]}
        if left["state"] == "FINISHED":
            left |= {"state": "FAILED", "error": why}
        try:
            record.write_result(self.spec.folder, left)
        except OSError:
            print(f"factdpo: {why}", file=sys.stderr)
        return why

    def _result(self) -> Row:
        spec, asked = self.spec, self.spec.asked
        return {
            "id": spec.id,
            "name": spec.name,
            "kind": spec.kind,
            "state": "FAILED",
            "error": None,
            "attempts": self.number,
            "config": to_dict(spec.cfg),
            "engine": spec.engine,
            "asked": {"data_sha256": asked["data"], "model": asked["model"], "stage_versions": asked["versions"]},
            "versions": provenance.versions(),
            "hardware": provenance.hardware(),
            "started": self.started,
        }


def _ending(error: BaseException, spec: RunSpec) -> tuple[str, str, int]:
    """State, message and exit code of a run that did not finish.

    After a signal any error is its doing: compiled code turns the signal's exception into one of its own.
    """
    number = signals.received()
    if number is not None and not isinstance(error, KeyboardInterrupt | signals.Preempted):
        error = signals.stop(number)
    if isinstance(error, GeneratorExit):
        error = signals.Preempted(1, "left by the command that asked for it")
    if isinstance(error, KeyboardInterrupt | signals.Preempted):
        if isinstance(error, signals.Preempted):
            why, exit_code = error.why, int(str(error.code))
        else:
            why, exit_code = "interrupted from the keyboard", 128 + signal.SIGINT
        if spec.kind == record.EVALUATION:
            then = "begins it again"
        elif spec.trains.engine.name is EngineName.batched:
            then = "goes on from its last checkpoint"
        else:
            then = "begins it again: engine=trl keeps no checkpoints"
        return "PREEMPTED", f"{why}; the same command {then}", exit_code
    if type(error).__name__ == "Stopped":  # halving.Stopped, as the next
        return "STOPPED", str(error), 0
    diverged = type(error).__name__ == "Diverged"  # logps.Diverged, which cannot be imported without torch
    message = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    return "DIVERGED" if diverged else "FAILED", message, 1
