"""Weights & Biases: each run as a W&B run, and each finished sweep as one more with its results.

Every attempt at a run logs the whole of its history under the run's own id, and leaves `resume` unset: W&B then writes
from the first line again, over what an earlier attempt sent, be it online or by `wandb sync`. With `resume="allow"` it
would append, and hold each row twice.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from factdpo.config.schema import Config, TrackConfig, to_dict
from factdpo.console import first_line
from factdpo.store import provenance
from factdpo.store.history import Row
from factdpo.store.result import summary
from factdpo.tracking import wandb_offline, wandb_settings
from factdpo.tracking.limits import NoAnswer, within
from factdpo.tracking.wandb_process import process
from factdpo.tracking.wandb_settings import LONGEST, wandb_mode, without_secrets
from factdpo.tracking.wandb_views import AXES, SCORES, STEP, compared, config_of, row_of, scores, summary_of

log = logging.getLogger("factdpo")

INIT_TIMEOUT_SECONDS = 20.0  # for the server's first answer
FINISH_TIMEOUT_SECONDS = 60.0  # for the last uploads; W&B's service ends them
WRITE_SECONDS = 3.0  # for the end of an offline run, which W&B writes a moment after it is finished
TABLE_ROWS = 10_000  # what W&B's tables show; items.parquet has every row
CALL_SECONDS = 20.0  # for what only hands something to W&B's service on this machine


class WandbTracker:
    """One W&B run per config, in the run's folder. Never raises: a failure costs one warning, then it is off.

    Under `wandb agent` the run is the one that the agent opened, under the agent's id and in its sweep's project; ours
    is in its config, as `id`.
    """

    def __init__(self, cfg: Config, run_id: str, name: str, folder: Path) -> None:
        self._cfg, self._id = cfg, run_id
        self._run: Any = None
        self._step = 0
        self._seen: set[str] = set()  # metrics
        self._within(2 * INIT_TIMEOUT_SECONDS + CALL_SECONDS, self._open, name, folder)  # online, else offline

    def log(self, *rows: Row) -> None:
        if self._run is not None:
            self._within(CALL_SECONDS, self._log, rows)

    def finish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        if self._run is not None:
            limit = FINISH_TIMEOUT_SECONDS + 2 * CALL_SECONDS
            self._within(limit, self._finish, result, items, generations, folder)
        self._run = None

    def _within(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        """Make a call that may fail, or take for ever, and does neither to the run."""
        try:
            within(seconds, call, *args)
        except NoAnswer as error:
            _warn("W&B does not answer and is off from here on", error)
            self._run = None
            _leave_service()
        except Exception as error:
            self._give_up(error)

    def _open(self, name: str, folder: Path) -> None:
        agents = agents_run()
        if agents and not process.join(agents, self._id):
            raise RuntimeError("`wandb agent` opens one run per command, and this command has several")
        track, config = self._cfg.track, config_of(self._cfg, self._id) | {"versions": provenance.versions()}
        shown = wandb_settings.display_name(self._cfg, name)
        about = _about(track, shown, self._cfg.sweep, wandb_settings.job_type(track), config)
        _find_room(Path(self._cfg.out))
        self._run = _start(track, folder, agents or self._id, about)
        for axis in AXES:
            self._run.define_metric(axis, hidden=True)
        self._run.define_metric("*", step_metric=STEP)  # W&B's own _step counts rows

    def _log(self, rows: tuple[Row, ...]) -> None:
        for row in map(row_of, rows):
            self._step = row.get(STEP, self._step)
            for metric in row.keys() - self._seen - {*AXES}:
                self._seen.add(metric)
                if how := summary_of(metric):
                    self._run.define_metric(metric, step_metric=STEP, summary=how)
            self._run.log(row)

    def _finish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        run = self._run
        if engine := result.get("engine"):  # known, where the base had to be asked, since it was opened
            asked = to_dict(self._cfg)["engine"]["name"]
            told = {"trained_by": engine, "versions": result["versions"]}
            kept = dict(run.config.get("engine") or {"name": asked}) | {"name": engine.split()[0]}
            run.config.update({"engine": kept, **told}, allow_val_change=True)
        run.summary.update(compared(result))
        self._publish(result, items, generations, folder)
        _finish(run, exit_code=0 if result["state"] == "FINISHED" else 1)
        settings = run.settings
        if settings.mode == "offline" and not wandb_offline.is_whole(Path(settings.sync_file), WRITE_SECONDS):
            log.warning("W&B lost a part of its copy of the run (is the disk full?); the local record is whole")

    def _publish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        """Tables, figures and, if asked for, the adapter."""
        import wandb

        pictures = sorted((folder / "figures").glob("*.png"))
        media: Row = {f"graph/{path.stem}": wandb.Image(str(path)) for path in pictures}
        for name, rows in (("items", items), ("generations", generations)):
            if rows:
                columns: list[Any] = list(rows[0])
                cells: list[Any] = [[row.get(column) for column in columns] for row in rows[:TABLE_ROWS]]
                media[name] = _table(columns, cells)
        numbers: list[Any] = scores(result)
        if numbers:
            media["scores"] = _table([*SCORES], numbers)
        if media:
            self._run.log({STEP: self._step, **media})
        if self._cfg.track.log_adapter and (folder / "adapter").is_dir():
            accuracies = {name: value for name, value in summary(result).items() if name.startswith("accuracy/")}
            _log_adapter(self._run, folder, self._cfg.sweep or self._cfg.model.name, [self._id], accuracies)

    def _give_up(self, error: Exception) -> None:
        _warn("W&B failed and is off for the rest of this run", error)
        run, self._run = self._run, None
        if run is not None:
            _finish_failed(run)


def _table(columns: list[str], rows: list[list[Any]]) -> Any:
    """W&B's table of rows of scalars.

    It takes the types of its columns from row after row, which is most of its time; one row of each combination of
    types tells it the same. NaN has the type of None there.
    """
    import wandb

    one_of_each = {tuple(type(None if cell != cell else cell) for cell in row): row for row in rows}
    table = wandb.Table(columns=[*columns], data=[*one_of_each.values()])
    table.data = rows
    return table


def log_sweep(
    track: TrackConfig, folder: Path, sweep_id: str, config: Row, numbers: Row, media: dict[str, Any],
    page: Path | None, best: Path | None,
) -> None:  # fmt: skip
    """Publish a finished sweep as one W&B run, named like its folder, beside its runs; a failure costs one warning.

    `media` are tables (DataFrames) and pictures (Pillow's), `page` its report, `best` the folder of its best run.
    Replaces what an earlier command published of the sweep.
    """
    opened: list[Any] = []

    def publish() -> None:
        shutil.rmtree(folder / "wandb", ignore_errors=True)
        _find_room(folder.parents[1])
        run = _start(track, folder, sweep_id, _about(track, folder.name[:LONGEST], folder.name, "sweep", config))
        opened.append(run)
        run.summary.update(numbers)
        run.log(_as_media(media, page))
        if track.log_adapter and best is not None and (best / "adapter").is_dir():
            _log_adapter(run, best, folder.name, ["best"], {})
        _finish(run, exit_code=0)

    try:
        within(2 * INIT_TIMEOUT_SECONDS + FINISH_TIMEOUT_SECONDS + 3 * CALL_SECONDS, publish)
    except NoAnswer as error:
        _warn("the sweep as a whole is not in W&B, which does not answer", error)
        _leave_service()
    except Exception as error:
        _warn("the sweep as a whole is not in W&B", error)
        for run in opened:
            _finish_failed(run)


def _as_media(media: dict[str, Any], page: Path | None) -> Row:
    """Tables and pictures as W&B's own, and the report."""
    import pandas as pd
    import wandb

    row: Row = {
        name: wandb.Table(dataframe=_plain(item)) if isinstance(item, pd.DataFrame) else wandb.Image(item)
        for name, item in media.items()
    }
    if page is not None:
        row["report"] = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    return row


def default_entity() -> str:
    """The entity that the API key writes to when none is named; a request to the server."""
    import wandb

    return str(wandb.Api().default_entity)


def agents_run() -> str | None:
    """The id of the run that `wandb agent` opened for this process; None when no agent started it."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def _about(track: TrackConfig, name: str, sweep: str | None, job_type: str, config: Row) -> Row:
    """What W&B shows of a run: name, project, group, tags and config."""
    return {
        "name": name, "project": wandb_settings.project(track), "entity": track.entity,
        "group": track.group or sweep, "job_type": job_type, "tags": wandb_settings.tags(track), "config": config,
    }  # fmt: skip


def _start(track: TrackConfig, folder: Path, run_id: str, about: Row) -> Any:
    """Open a W&B run; offline, with one warning, when the server does not take it."""
    import wandb

    quiet = wandb.Settings(silent=True)
    wandb.setup(settings=quiet)
    mode, _ = wandb_mode(track)
    if mode == "offline":
        return _init("offline", folder, run_id, about)
    try:
        return _init("online", folder, run_id, about)
    except Exception as error:
        reason = first_line(error)
        log.warning("W&B offline: the server did not take the run (%s); `factdpo sync` uploads it later", reason)
        process.server_failed = True
        if not process.open_runs:  # teardown would end those too
            wandb.teardown()  # its service holds on to the id of the run that failed to start
            wandb.setup(settings=quiet)
        return _init("offline", folder, run_id, about)


def _find_room(out: Path) -> None:
    """Where the user's home cannot be written W&B loses tables: then what it keeps there goes into `out`."""
    from wandb import env

    homes = {env.DATA_DIR: env.get_data_dir(), env.CACHE_DIR: env.get_cache_dir()}
    for name, home in homes.items():
        place = Path(home).absolute()
        there = next(path for path in (place, *place.parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            os.environ[name] = str(out.absolute() / "wandb" / name.lower())


def _leave_service() -> None:
    """End W&B's service, a child of this process that does not answer: the process would wait for it at its end."""
    process.stopped = True
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended by itself
            if child.name().startswith("wandb-core"):
                child.kill()
    import wandb

    with suppress(Exception):  # it has nothing to tear down any more, and unregisters what would try at the end
        within(CALL_SECONDS, wandb.teardown)


def _init(mode: str, folder: Path, run_id: str, about: Row) -> Any:
    import wandb

    settings = wandb.Settings(
        silent=True, console="off",
        init_timeout=INIT_TIMEOUT_SECONDS, finish_timeout=FINISH_TIMEOUT_SECONDS, finish_timeout_raises=True,
        # Nothing about the machine, its user or its code is sent; the local record has versions and hardware.
        disable_git=True, disable_code=True, save_code=False, host="-",
        x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
    )  # fmt: skip
    with _without_logging_errors():
        run = wandb.init(
            **without_secrets(about, os.environ),
            id=run_id,
            dir=str(folder),
            mode=mode,  # pyright: ignore[reportArgumentType]
            reinit="create_new",  # two runs in one process are two runs, and a run of the caller's own goes on
            settings=settings,
        )
    process.open_runs.add(run.id)
    for handler in logging.getLogger("wandb").handlers:  # its debug.log: a full disk is not worth a traceback
        handler.handleError = lambda record: None
        handler.close = partial(_close, handler.close)
    return run


@contextmanager
def _without_logging_errors() -> Iterator[None]:
    """W&B writes the config to its debug.log as it starts: on a full disk, logging would print a traceback a line."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


def _close(close: Callable[[], None]) -> None:
    with suppress(OSError):
        close()


def _log_adapter(run: Any, folder: Path, collection: str, aliases: list[str], metadata: Row) -> None:
    """Log an adapter as a version of an artifact per sweep, or else per model, with the given aliases.

    The same files logged twice are one version, which gets the aliases of both.
    """
    import wandb

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"adapter-{collection}")
    artifact = wandb.Artifact(name, type="adapter", metadata=metadata)
    artifact.add_dir(str(folder / "adapter"))
    run.log_artifact(artifact, aliases=aliases)


def _plain(frame: Any) -> Any:
    """A DataFrame for W&B's tables: None in place of pandas' own missing values."""
    return frame.astype(object).where(frame.notna(), None)


def _finish(run: Any, exit_code: int) -> None:
    process.open_runs.discard(run.id)
    run.finish(exit_code=exit_code)


def _finish_failed(run: Any) -> None:
    try:
        within(FINISH_TIMEOUT_SECONDS + CALL_SECONDS, _finish, run, 1)
    except NoAnswer:
        _leave_service()
    except Exception as second:
        log.debug("W&B could not be closed either: %s", second)


def _warn(what: str, error: Exception) -> None:
    log.warning("%s (%s: %s); the local record is whole", what, type(error).__name__, first_line(error))
