"""hydra/sweeper=factdpo and hydra/sweeper=optuna: how the runs of a sweep are chosen, a grid or a search.

No `from __future__ import annotations` here: a scanned plugin module that has it breaks every start of Hydra.
"""

import importlib.util
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Direction(Enum):
    maximize = "maximize"
    minimize = "minimize"


class Sampler(Enum):
    tpe = "tpe"
    random = "random"


@dataclass
class GridConf:
    _target_: str = "hydra_plugins.factdpo_sweeper.GridSweeper"
    max_batch_size: int | None = 250  # jobs that a launcher gets at once: each holds files open
    metrics: list[str] = field(default_factory=list)  # what the sweep asks about, the deciding one first; -: lower wins
    params: dict[str, str] | None = field(default_factory=dict)  # what is swept, as on the command line


@dataclass
class OptunaConf:
    _target_: str = "hydra_plugins.factdpo_sweeper.OptunaSweeper"
    n_trials: int = 24  # in all: the same command again goes on with those that are missing
    batch_size: int = 8  # trials drawn at a time, which train together; what they teach helps later batches only
    metric: str | None = None  # of result.json, under the names of W&B's summary; null: the first of metrics
    direction: Direction | None = None  # null: as is usual for the metric
    metrics: list[str] = field(default_factory=list)  # as for a grid; without any the accuracy on held-out facts
    sampler: Sampler = Sampler.tpe
    seed: int = 0  # of the sampler
    params: dict[str, str] | None = field(default_factory=dict)  # what is searched, as on the command line


ConfigStore.instance().store(group="hydra/sweeper", name="factdpo", node=GridConf, provider="factdpo")
ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaConf, provider="factdpo")


class GridSweeper(Sweeper):
    """A run for each combination of the swept values."""

    def __init__(self, max_batch_size: int | None, metrics: list[str], params: dict[str, str] | None) -> None:
        self.max_batch_size, self.metrics, self.params = max_batch_size, list(metrics), params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from factdpo.sweep import grid

        assert self.hydra_context is not None and self.config is not None and self.launcher is not None
        words = self._words(arguments)
        return grid.run(self.hydra_context, self.config, self.launcher, words, self.metrics, self.max_batch_size)

    def _words(self, arguments: list[str]) -> list[str]:
        """What is swept by the file, then what is by the command line, which has the last word."""
        return [*(f"{key}={value}" for key, value in self.params.items()), *arguments]


class OptunaSweeper(GridSweeper):
    """Trials that Optuna draws, learning from those before."""

    def __init__(
        self,
        n_trials: int,
        batch_size: int,
        metric: str | None,
        direction: Direction | None,
        metrics: list[str],
        sampler: Sampler,
        seed: int,
        params: dict[str, str] | None,
    ) -> None:
        super().__init__(None, metrics, params)
        named = direction.value if direction else None
        self.objective = (n_trials, batch_size, metric, named, sampler.value, seed)

    def sweep(self, arguments: list[str]) -> Any:
        from factdpo.config.schema import ConfigError

        if importlib.util.find_spec("optuna") is None:
            raise ConfigError("hydra/sweeper=optuna: Optuna is not installed; pip install 'optuna>=5,<6'")
        from factdpo.sweep import trials

        assert self.hydra_context is not None and self.config is not None and self.launcher is not None
        words, objective = self._words(arguments), trials.Objective(*self.objective)
        trials.run(self.hydra_context, self.config, self.launcher, words, self.metrics, objective)
