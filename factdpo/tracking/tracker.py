"""Trackers: where the rows of a run's history go while it runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from factdpo.config.schema import Config
from factdpo.store.history import LocalTracker, Row
from factdpo.tracking.trackio_tracker import TrackioTracker
from factdpo.tracking.wandb_settings import wandb_mode
from factdpo.tracking.wandb_tracker import WandbTracker


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

    trackers: list[Tracker]
    rows: int = 0  # logged so far

    def log(self, *rows: Row) -> None:
        self.rows += len(rows)
        for tracker in self.trackers:
            tracker.log(*rows)

    def finish(self, result: Row, items: list[Row], generations: list[Row], folder: Path) -> None:
        for tracker in self.trackers:
            tracker.finish(result, items, generations, folder)


def open_trackers(cfg: Config, run_id: str, name: str, folder: Path) -> Trackers:
    """The trackers that the config asks for; `run_id` is the run's id in W&B too, `name` what a person reads there."""
    trackers: list[Tracker] = [LocalTracker(folder)]
    if wandb_mode(cfg.track)[0] != "disabled":
        trackers.append(WandbTracker(cfg, run_id, name, folder))
    if cfg.track.trackio:
        trackers.append(TrackioTracker(cfg, run_id, name))
    return Trackers(trackers)
