"""hydra/launcher=batched: the runs of a sweep are answered together, those that train on one base in one cohort.

No `from __future__ import annotations` here: a scanned plugin module that has it breaks every start of Hydra.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class BatchedLauncherConf:
    _target_: str = "hydra_plugins.factdpo_launcher.BatchedLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="batched", node=BatchedLauncherConf, provider="factdpo")


class BatchedLauncher(Launcher):
    """Hands all jobs to factdpo at once; another Hydra application's run as under the basic launcher."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from factdpo.sweep.jobs import run_together

        return run_together(self.hydra_context, self.config, self.task_function, job_overrides, initial_job_idx)
