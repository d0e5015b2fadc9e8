"""One attempt at a run: its folder is emptied, log and trackers are opened, and result.json says what came of it."""

import json
import logging
import shutil
import signal
import sys
import time
from contextlib import AbstractContextManager
from typing import Any

import yaml

from factdpo import cache, display, provenance, signals, tracker, trackers, wandb_env
from factdpo.config import Config, ConfigError, EngineName, to_dict
from factdpo.identity import Run

log = logging.getLogger("factdpo")

Row = dict[str, Any]
Outcome = tuple[Row, int]  # what result.json says, and the exit code


class Attempt:
    """A run that is being done, by whoever holds its lock."""

    def __init__(self, run: Run, number: int = 1):
        self.run, self.number = run, number  # 1 + how often this command has tried it before
        self.started: str | None = None  # UTC, ISO 8601
        self.log_file: display.LogFile | None = None
        self.trackers = tracker.Trackers([])
        self._logs: list[logging.Handler] = [logging.NullHandler()]

    def start(self) -> None:
        """Empty the folder of what an earlier attempt left, and open log and trackers; does so once."""
        if self.started is not None:
            return
        run, folder = self.run, self.run.folder
        self.started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        folder.mkdir(exist_ok=True)
        old = ["result.json", "items.parquet", "generations.json", *(p.name for p in folder.glob(".*.part"))]
        for name in old if self.number > 1 else [*old, "run.log"]:
            (folder / name).unlink(missing_ok=True)
        for name in ("adapter", "model", "figures", "wandb"):
            shutil.rmtree(folder / name, ignore_errors=True)
        cache.write_atomic(folder / "asked.json", json.dumps(run.asked, indent=1, sort_keys=True, ensure_ascii=False))
        config = yaml.safe_dump(to_dict(run.cfg), sort_keys=False, allow_unicode=True)
        cache.write_atomic(folder / "config.yaml", config)
        self.log_file = display.LogFile(folder / "run.log")
        self._logs.append(self.log_file)
        with self.logged():
            log.info("%s  %s", run.name, folder)
            log.info("engine: %s", run.engine)
            if self.number > 1:
                log.info("attempt %d of %d", self.number, run.cfg.retries + 1)
            if run.cfg.track.wandb:
                log.info(wandb_env.wandb_sentence(run.cfg.track, folder))
            self.trackers = trackers.open_trackers(run.cfg, run.id, run.name, folder)

    def log(self, *rows: Row) -> None:
        """Rows of the history, for whoever follows the run."""
        self.trackers.log(*rows)

    def logged(self) -> AbstractContextManager[None]:
        """What is logged within goes to the run's own file."""
        return display.logging_to(self._logs, quiet=self.run.cfg.sweep is not None)

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
                from factdpo.run import run as do  # torch, transformers: seconds

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
            try:
                cache.write_atomic(self.run.folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False))
            except OSError as error:
                why = f"{self.run.folder / 'result.json'} cannot be written ({error})"
                print(f"factdpo: {why}; make room, then the same command again", file=sys.stderr)
                if not exit_code:
                    result["state"], result["error"], exit_code = "FAILED", why, 1
            self.trackers.finish(result, rows, generations, self.run.folder)
        if self.log_file is not None:
            self.log_file.close()
        if self.run.cfg.sweep is not None:
            from factdpo.index import update_index

            update_index(self.run.folder.parent)
        return result, exit_code

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
