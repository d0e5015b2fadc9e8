"""Trackers: where the rows of a run's history go while it runs."""

from pathlib import Path
from typing import TYPE_CHECKING

from factdpo.config.schema import Config
from factdpo.store.history import LocalTracker
from factdpo.tracking.trackio_tracker import TrackioTracker
from factdpo.tracking.wandb_settings import wandb_mode
from factdpo.tracking.wandb_tracker import WandbTracker

if TYPE_CHECKING:
    pass

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from factdpo.store.history import Row


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
    each: list[Tracker] = [LocalTracker(folder)]
    if wandb_mode(cfg.track)[0] != "disabled":
        each.append(WandbTracker(cfg, run_id, name, folder))
    if cfg.track.trackio:
        each.append(TrackioTracker(cfg, run_id, name))
    return Trackers(each)
