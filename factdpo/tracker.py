"""Where a run is written down while it runs: history.jsonl is the record, Weights & Biases a view of it.

The two fail differently on purpose. A local record that cannot be written raises: without it no result is worth
keeping. Weights & Biases is never in the way: whatever goes wrong there costs one warning, then the run goes on
without it.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from factdpo import cache, wandb_env
from factdpo.config import Config, to_dict
from factdpo.wandb_env import wandb_mode, without_secrets

log = logging.getLogger("factdpo")

Row = dict[str, Any]

HISTORY = "history.jsonl"
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
INIT_TIMEOUT_SECONDS = 20.0  # for the server's first answer
FINISH_TIMEOUT_SECONDS = 60.0  # for the last uploads
TABLE_ROWS = 10_000  # what W&B's tables show; items.parquet has every row

_agents_run: dict[str, str] = {}  # id of the run that `wandb agent` started -> id of ours that joined it


@runtime_checkable
class Tracker(Protocol):
    def log(self, *rows: Row) -> None:
        """Write down rows of the history: flat, numbers under TRL's names, with `step`."""
        ...

    def finish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        """Write down the end of the run; its state (FINISHED or otherwise) is read from the result."""
        ...


@dataclass
class Trackers:
    """Many trackers as one, the local record first."""

    each: list[Tracker]
    rows: int = 0  # that they were told

    def log(self, *rows: Row) -> None:
        self.rows += len(rows)
        for tracker in self.each:
            tracker.log(*rows)

    def finish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        for tracker in self.each:
            tracker.finish(result, items, generations, folder)


def open_trackers(cfg: Config, run_id: str, name: str, folder: Path) -> Trackers:
    """The trackers that the config asks for; `run_id` is the run's id in W&B too, `name` what a person reads there."""
    trackers: list[Tracker] = [LocalTracker(folder)]
    if wandb_mode(cfg.track)[0] != "disabled":
        trackers.append(WandbTracker(cfg, run_id, name, folder))
    return Trackers(trackers)


# ---------------------------------------------------------------------------------------------------- the local record


class LocalTracker:
    """history.jsonl in the run's folder: a row per line, on the disk before `log` returns; raises OSError if not."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / HISTORY).open("w", encoding="utf-8")  # a history of an earlier attempt is cut off

    def log(self, *rows: Row) -> None:
        with cache.writing(Path(self._file.name)):
            for row in rows:
                values = {key: _jsonable(value) for key, value in row.items()}
                self._file.write(json.dumps(values, allow_nan=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        with suppress(OSError):  # of rows that could not be written: `log` has raised it
            self._file.close()


def read_history(path: Path) -> list[Row]:
    """Rows of a history.jsonl, NaN and infinities as floats again; a last line torn by a kill is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line else None
        except json.JSONDecodeError as error:
            if number == len(lines):  # only the last line can be without its newline
                break
            raise ValueError(
                f"{path}:{number}: not a row of a history ({error}); delete the file and run again"
            ) from None
        if row is not None:
            rows.append(
                {key: NOT_FINITE.get(value, value) if isinstance(value, str) else value for key, value in row.items()}
            )
    return rows


def _jsonable(value: Any) -> Any:
    """A row's value as JSON has it: numbers as numbers, NaN and infinities as the strings of NOT_FINITE."""
    if value is None or isinstance(value, bool | int | str):
        return value
    number = float(value)  # also numpy's and torch's scalars
    return number if math.isfinite(number) else str(number)


# ---------------------------------------------------------------------------------------------------- Weights & Biases


class WandbTracker:
    """One W&B run per config, in the run's folder. Never raises: a failure costs one warning, then it is off.

    Under `wandb agent` the run is the one that the agent opened, under the agent's id and in its sweep's project; ours
    is in its config, as `id`.
    """

    def __init__(self, cfg: Config, run_id: str, name: str, folder: Path) -> None:
        self._adapter = cfg.track.log_adapter
        self._run: Any = None
        self._step = 0
        mode, _ = wandb_mode(cfg.track)
        try:
            self._run = _start(cfg, run_id, name, folder, mode)
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")  # W&B's own _step starts at 0 again after a restart
        except Exception as error:
            self._give_up(error)

    def log(self, *rows: Row) -> None:
        if self._run is None:
            return
        try:
            for row in rows:
                self._step = row.get("step", self._step)
                self._run.log(row)
        except Exception as error:
            self._give_up(error)

    def finish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        if self._run is None:
            return
        try:
            self._run.summary.update(summary(result))
            self._publish(items, generations, folder)
            self._run.finish(exit_code=0 if result["state"] == "FINISHED" else 1)
        except Exception as error:
            self._give_up(error)
        self._run = None

    def _publish(self, items: list[Row], generations: list[Row], folder: Path) -> None:
        """Tables, figures and, if asked for, the adapter."""
        import wandb

        media: Row = {
            f"graph/{path.stem}": wandb.Image(str(path)) for path in sorted((folder / "figures").glob("*.png"))
        }
        for name, rows in (("items", items), ("generations", generations)):
            if rows:
                columns: list[Any] = list(rows[0])
                media[name] = wandb.Table(
                    columns=columns, data=[[row.get(c) for c in columns] for row in rows[:TABLE_ROWS]]
                )
        if media:
            self._run.log({"step": self._step, **media})
        if self._adapter and (folder / "adapter").is_dir():
            artifact = wandb.Artifact(f"adapter-{self._run.id}", type="adapter")
            artifact.add_dir(str(folder / "adapter"))
            self._run.log_artifact(artifact)

    def _give_up(self, error: Exception) -> None:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning(
            "W&B failed and is off for the rest of this run (%s: %s); the local record is whole",
            type(error).__name__,
            what,
        )
        run, self._run = self._run, None
        if run is not None:
            try:
                run.finish(exit_code=1)
            except Exception as second:
                log.debug("W&B could not be closed either: %s", second)


def _start(cfg: Config, run_id: str, name: str, folder: Path, mode: str) -> Any:
    """A W&B run; offline, with one warning, when the server does not take it."""
    import wandb

    agents = agents_run()
    if agents and _agents_run.setdefault(agents, run_id) != run_id:  # W&B would write both into one
        raise RuntimeError("`wandb agent` opens one run per command, and this command has several")
    quiet = wandb.Settings(silent=True)
    wandb.setup(settings=quiet)
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_TIMEOUT_SECONDS,
        finish_timeout=FINISH_TIMEOUT_SECONDS,
        finish_timeout_raises=True,
        # Nothing about the machine, its user or the code around us leaves it; the record has versions and hardware.
        disable_git=True,
        disable_code=True,
        save_code=False,
        host="-",
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )

    def start(mode: str) -> Any:
        return wandb.init(
            id=agents or run_id,
            name=name,
            project=cfg.track.project,
            entity=cfg.track.entity,
            group=cfg.track.group,
            job_type=cfg.track.job_type,
            tags=cfg.track.tags,
            config={"id": run_id, **without_secrets(to_dict(cfg), os.environ)},
            dir=str(folder),
            mode=mode,  # pyright: ignore[reportArgumentType]
            reinit="create_new",  # two runs in one process are two runs, and a run of the caller's own goes on
            settings=settings,
        )

    if mode == "offline":
        return start("offline")
    try:
        return start("online")
    except Exception as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("W&B offline: the server did not take the run (%s); `wandb sync` uploads it later", what)
        wandb_env.server_failed = True
        wandb.teardown()  # its service holds on to the id of the run that failed to start
        wandb.setup(settings=quiet)
        return start("offline")


def agents_run() -> str | None:
    """The id of the run that `wandb agent` opened for this process; None when no agent started it."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def summary(result: Row) -> Row:
    """The flat view of a result: `accuracy/<split>` and the rest after training, the same under `base/` before it."""
    flat: Row = {"state": result["state"]}
    for prefix, model in (("", "trained"), ("base/", "base")):
        for split, scores in (result.get(model) or {}).items():
            flat |= {f"{prefix}{metric}/{split}": value for metric, value in _leaves(scores)}
        flat |= {
            f"{prefix}across/{name}": value for name, value in _leaves((result.get("across") or {}).get(model) or {})
        }
    for split, scores in (result.get("baselines") or {}).items():
        flat |= {f"baseline/{rule}/{split}": value for rule, value in _leaves(scores)}
    flat |= {f"timing/{name}": value for name, value in _leaves(result.get("timing") or {})}
    return flat


def _leaves(scores: Row) -> Iterator[tuple[str, Any]]:
    """(`name` or `name.inner`, value) of a nested dict, less what is unknown (null)."""
    for name, value in scores.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", leaf) for inner, leaf in _leaves(value))
        elif value is not None:
            yield name, value
