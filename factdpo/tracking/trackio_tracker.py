"""trackio: a dashboard that is entirely on this machine. It has names and groups, but no ids, tags or summaries."""

import contextlib
import contextvars
import importlib.metadata
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from factdpo.config.schema import Config, ConfigError, TrackConfig, to_dict
from factdpo.console import first_line
from factdpo.store.history import Row
from factdpo.store.result import summary, without_equal_lengths
from factdpo.tracking.limits import within
from factdpo.tracking.wandb_settings import without_secrets

log = logging.getLogger("factdpo")

OLDEST = (0, 43)  # version of trackio
LIMIT_SECONDS = 60.0  # for each call
TABLE_ROWS = 1000  # trackio keeps a table as JSON in one cell of its database


def check_installed(track: TrackConfig) -> None:
    """Raises ConfigError if track.trackio=true and trackio is not installed or too old."""
    if not track.trackio:
        return
    try:
        version = importlib.metadata.version("trackio")
    except importlib.metadata.PackageNotFoundError:
        problem = "trackio is not installed"
    else:
        if tuple(map(int, version.split(".")[:2])) >= OLDEST:
            return
        problem = f"trackio {version} is too old"
    oldest = ".".join(map(str, OLDEST))
    raise ConfigError(f"track.trackio=true: {problem}; pip install 'trackio>={oldest}' (or track=offline)")


class TrackioTracker:
    """One trackio run per config, named with its id. Never raises: a failure costs one warning, then it is off.

    Its data is in `out`/trackio, unless TRACKIO_DIR names another folder. Another attempt at a run replaces the earlier
    one.
    """

    def __init__(self, cfg: Config, run_id: str, name: str) -> None:
        self._run: Any = None
        self._within(self._open, cfg, run_id, name)

    def log(self, *rows: Row) -> None:
        if self._run is not None:
            self._within(self._log, rows)

    def finish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        if self._run is not None:
            self._within(self._finish, result, items, generations, folder)
        self._run = None

    def _within(self, call: Callable[..., None], *args: Any) -> None:
        """Make a call that may fail, or take for ever, and does neither to the run."""
        try:
            within(LIMIT_SECONDS, call, *args)
        except Exception as error:
            self._give_up(error)

    def _open(self, cfg: Config, run_id: str, name: str) -> None:
        _make_folder(cfg)
        with _quiet():
            self._run = _start(cfg, run_id, name)

    def _log(self, rows: tuple[Row, ...]) -> None:
        with _quiet():
            for row in rows:
                self._run.log({name: value for name, value in row.items() if name != "step"}, step=row.get("step"))

    def _finish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        media = {
            name: trackio.Table(data=[list(row.values()) for row in rows[:TABLE_ROWS]], columns=list(rows[0]))
            for name, rows in (("items", items), ("generations", generations))
            if rows
        }
        pictures = {f"graph/{path.stem}": path for path in sorted((folder / "figures").glob("*.png"))}
        with _quiet():
            scores = without_equal_lengths(summary(result))
            self._run.log(scores | media | {k: trackio.Image(str(path)) for k, path in pictures.items()})
            self._run.finish()

    def _give_up(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {first_line(error)}"
        log.warning("trackio failed and is off for the rest of this run (%s)", reason)
        self._run = None


def _make_folder(cfg: Config) -> None:
    """Make the folder of trackio's data, and log how to see it, unless it is there."""
    # trackio reads the variable once, when it is imported; its own default is in the user's home.
    folder = Path(os.environ.setdefault("TRACKIO_DIR", str(Path(cfg.out).absolute() / "trackio")))
    if not folder.exists():
        folder.mkdir(parents=True)
        log.info("trackio: TRACKIO_DIR=%s trackio show --project %s", folder, cfg.track.project)


def _start(cfg: Config, run_id: str, name: str) -> Any:
    import trackio  # pyright: ignore[reportMissingImports]

    unique_name = f"{name} ({run_id})"
    for earlier in _runs(cfg.track.project):
        if earlier.name == unique_name:
            earlier.delete()
    # `init` ends the run that is open in its context: runs that train together each get a context of their own.
    return contextvars.Context().run(
        trackio.init, project=cfg.track.project, name=unique_name, group=cfg.track.group or cfg.sweep,
        config={"id": run_id, **without_secrets(to_dict(cfg), os.environ)},
        embed=False, auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip


def _runs(project: str) -> Any:
    """The runs of a project; [] before its first."""
    import trackio  # pyright: ignore[reportMissingImports]

    try:
        return trackio.Api().runs(project)
    except ValueError:  # that there is no such project, and nothing else
        return []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what trackio prints, and turn its warnings into errors: it warns where other libraries raise."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield
