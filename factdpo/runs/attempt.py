"""One attempt at a run: its folder is emptied, log and trackers are opened, and result.json says what came of it."""

import json
import logging
import shutil
import signal
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from factdpo import console, signals
from factdpo.config.schema import Config, ConfigError, EngineName, to_dict
from factdpo.runs.identity import Run
from factdpo.store import cache, provenance
from factdpo.store import result as record
from factdpo.store.history import Row
from factdpo.store.layout import lock_file
from factdpo.tracking import tracker, wandb_settings

log = logging.getLogger("factdpo")

Outcome = tuple[Row, int]  # what result.json says, and the exit code


def lock(run: Run, wait: bool = True) -> FileLock:
    """One process per run; a killed holder's lock is free at once. Raises Timeout if it is held and not waited for."""
    folder = run.folder
    held = FileLock(lock_file(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0.05, poll_interval=0.01)  # not 0: `factdpo status` may be asking, for microseconds
    except Timeout:
        if not wait:
            raise
        console.console.print(f"{folder} is being run by another process; waiting for it", highlight=False)
        held.acquire()
    except OSError as error:
        raise ConfigError(f"out: {folder.parent} cannot be written ({error}); give another out=") from None
    return held


def finished(run: Run) -> dict[str, Any] | None:
    """The stored result of a run that is FINISHED; says why a stored one is not good. Its lock is held."""
    _refuse_another_run(run.folder, run.asked)
    stored = record.read_result(run.folder)
    if stored.result is None and (run.folder / "result.json").exists():
        console.console.print(f"run again: {stored.reason}", highlight=False, soft_wrap=True)
    return stored.result if stored.result is not None and stored.result["state"] == "FINISHED" else None


def _refuse_another_run(folder: Path, asked: dict[str, Any]) -> None:
    """A folder is one run's: raises ConfigError if it was made for another config."""
    path = folder / "asked.json"
    if not path.is_file():
        return
    try:
        same = json.loads(path.read_text(encoding="utf-8")) == asked
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); move the folder away, or give another out=") from None
    if not same:
        raise ConfigError(f"{folder}: holds another run (see its asked.json); move it away, or give another out=")


class Attempt:
    """A run that is being done, by whoever holds its lock."""

    def __init__(self, run: Run, number: int = 1):
        self.run, self.number = run, number  # 1 + how often this command has tried it before
        self.started: str | None = None  # UTC, ISO 8601
        self.log_file: console.LogFile | None = None
        self.trackers = tracker.Trackers([])
        self._logs: list[logging.Handler] = [logging.NullHandler()]

    def start(self) -> None:
        """Empty the folder of what an earlier attempt left, and open log and trackers; does so once."""
        if self.started is not None:
            return
        run, folder = self.run, self.run.folder
        self.started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        folder.mkdir(exist_ok=True)
        self._empty()
        shutil.rmtree(folder / "wandb", ignore_errors=True)
        if self.number == 1:
            (folder / "run.log").unlink(missing_ok=True)
        cache.write_atomic(folder / "asked.json", json.dumps(run.asked, indent=1, sort_keys=True, ensure_ascii=False))
        config = yaml.safe_dump(to_dict(run.cfg), sort_keys=False, allow_unicode=True)
        cache.write_atomic(folder / "config.yaml", config)
        self.log_file = console.LogFile(folder / "run.log")
        self._logs.append(self.log_file)
        with self.logged():
            log.info("%s  %s", run.name, folder)
            log.info("engine: %s", run.engine)
            if self.number > 1:
                log.info("attempt %d of %d", self.number, run.cfg.retries + 1)
            if run.cfg.track.wandb:
                log.info(wandb_settings.wandb_sentence(run.cfg.track, folder))
            self.trackers = tracker.open_trackers(run.cfg, run.id, run.name, folder)

    def log(self, *rows: Row) -> None:
        """Rows of the history, for whoever follows the run."""
        self.trackers.log(*rows)

    def logged(self) -> AbstractContextManager[None]:
        """What is logged within goes to the run's own file."""
        return console.logging_to(self._logs, quiet=self.run.cfg.sweep is not None)

    def complete(self, ending: BaseException | None = None) -> Outcome:
        """Do the run, with what is in the cache already, and write result.json last and atomically.

        `ending` is what ended its training, if that ended badly in a batch: then only that is written down.
        """
        result, exit_code = self._result(), 0
        rows: list[Row] = []
        generations: list[Row] = []
        with self.logged():
            try:
                self.start()
                result["started"] = self.started
                if ending is not None:
                    raise ending
                from factdpo.runs.pipeline import run as do  # torch, transformers: seconds

                scores, rows, generations = do(self.run.cfg, self.run.folder, self.trackers)
                if self.log_file is not None and self.log_file.error is not None:
                    raise OSError(f"{self.log_file.baseFilename}: {self.log_file.error}")
                result |= scores
                result["hardware"]["device"] = result.pop("device")
                result["files"] = {
                    file: sha
                    for file, sha in cache.folder_sha256(self.run.folder).items()
                    if not file.startswith("wandb/") and file not in ("run.log", "result.json")
                }
                result["state"] = "FINISHED"
            except BaseException as error:
                result["state"], result["error"], exit_code = _ending(error, self.run.cfg)
                log.error("%s", result["error"], exc_info=True)
            if (error := self._write(result)) and not exit_code:
                result["state"], result["error"], exit_code = "FAILED", error, 1
            self.trackers.finish(result, rows, generations, self.run.folder)
        if self.log_file is not None:
            self.log_file.close()
        if self.run.cfg.sweep is not None:
            from factdpo.store.index import update_index

            update_index(self.run.folder.parent)
        return result, exit_code

    def _empty(self) -> None:
        """Remove what a run leaves at its end."""
        folder = self.run.folder
        for name in ["result.json", "items.parquet", "generations.json", *(p.name for p in folder.glob(".*.part"))]:
            (folder / name).unlink(missing_ok=True)
        for name in ("adapter", "model", "figures"):
            shutil.rmtree(folder / name, ignore_errors=True)

    def _write(self, result: Row) -> str | None:
        """Write result.json, without the rest if there is room for it alone: the run FAILED, for the reason given."""
        path = self.run.folder / "result.json"
        try:
            cache.write_atomic(path, json.dumps(result, indent=1, ensure_ascii=False))
            return None
        except OSError as error:
            why = f"{path} cannot be written ({error}); make room, then the same command again"
        self._empty()
        left = self._result() | {"started": self.started, "state": result["state"], "error": result["error"]}
        if left["state"] == "FINISHED":
            left |= {"state": "FAILED", "error": why}
        try:
            cache.write_atomic(path, json.dumps(left, indent=1, ensure_ascii=False))
        except OSError:
            print(f"factdpo: {why}", file=sys.stderr)
        return why

    def _result(self) -> Row:
        run, asked = self.run, self.run.asked
        return {
            "id": run.id,
            "name": run.name,
            "state": "FAILED",
            "error": None,
            "attempts": self.number,
            "config": to_dict(run.cfg),
            "asked": {"data_sha256": asked["data"], "model": asked["model"], "stage_versions": asked["versions"]},
            "versions": provenance.versions(),
            "hardware": provenance.hardware(),
            "started": self.started,
        }


def _ending(error: BaseException, cfg: Config) -> tuple[str, str, int]:
    """State, message and exit code of a run that did not finish.

    After a signal any error is its doing: compiled code turns the signal's exception into one of its own.
    """
    number = signals.received()
    if isinstance(error, KeyboardInterrupt | signals.Preempted) or number is not None:
        if isinstance(error, signals.Preempted):
            why, exit_code = error.why, int(str(error.code))
        elif isinstance(error, KeyboardInterrupt) or number == signal.SIGINT:
            why, exit_code = "interrupted from the keyboard", 128 + signal.SIGINT
        else:
            why, exit_code = "ended by SIGTERM", 128 + signal.SIGTERM
        kept = cfg.engine.name is EngineName.batched
        then = "goes on from its last checkpoint" if kept else "begins it again: engine=trl keeps no checkpoints"
        return "PREEMPTED", f"{why}; the same command {then}", exit_code
    diverged = type(error).__name__ == "Diverged"  # logps.Diverged, which cannot be imported without torch
    message = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    return "DIVERGED" if diverged else "FAILED", message, 1
