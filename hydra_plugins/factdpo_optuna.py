"""hydra/sweeper=optuna: the runs of a sweep are not a grid but trials that Optuna draws, learning from those before.

The space is written in Hydra's own grammar, as for hydra-optuna-sweeper: choice(8,16,32) or 8,16,32; range(2,9);
interval(0.01,1), tag(log,interval(0.01,1)) and int(interval(2,64)). Keys that end in `seed` are not searched: each
trial is a run per seed, and its value their mean.

No `from __future__ import annotations` here: a scanned plugin module that has it breaks every start of Hydra.
"""

import importlib.util
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from factdpo.runs.identity import Run
    from factdpo.sweep.search import Search
    from factdpo.sweep.search_space import Distribution
    from factdpo.sweep.sweep import Sweep

ANSWERS = ("FINISHED", "DIVERGED")  # states of a run that need no other try: that settings diverge is worth knowing


class Direction(Enum):
    maximize = "maximize"
    minimize = "minimize"


class Sampler(Enum):
    tpe = "tpe"
    random = "random"


@dataclass
class OptunaConf:
    _target_: str = "hydra_plugins.factdpo_optuna.OptunaSweeper"
    n_trials: int = 24  # in all: the same command again goes on with those that are missing
    batch_size: int = 8  # trials drawn at a time, which train together; what they teach helps later batches only
    metric: str = "accuracy/test"  # of result.json, under the names of W&B's summary
    direction: Direction = Direction.maximize
    sampler: Sampler = Sampler.tpe
    seed: int = 0  # of the sampler
    params: dict[str, str] | None = field(default_factory=dict)  # what is searched, as on the command line


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaConf, provider="factdpo")


class OptunaSweeper(BasicSweeper):
    """Runs trials as the grid sweeper runs its jobs, batch by batch, and tells the study what came of them."""

    def __init__(
        self,
        n_trials: int,
        batch_size: int,
        metric: str,
        direction: Direction,
        sampler: Sampler,
        seed: int,
        params: dict[str, str] | None,
    ) -> None:
        super().__init__(max_batch_size=None, params=params)
        self.n_trials, self.batch_size, self.metric, self.seed = n_trials, batch_size, metric, seed
        self.direction, self.sampler = direction.value, sampler.value

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are missing. Raises ConfigError, before the first run, for a search that cannot be."""
        from factdpo.config.schema import ConfigError

        if importlib.util.find_spec("optuna") is None:
            raise ConfigError("hydra/sweeper=optuna: Optuna is not installed; pip install 'optuna>=5,<6'")
        from factdpo.runs.execute import RunFailed
        from factdpo.sweep.search import FILE, Search
        from hydra_plugins.factdpo_sweeper import new_sweep, under_way

        assert self.config is not None and self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = parser.parse_overrides([*self._parse_config(), *arguments])
        asked = {override.get_key_element(): override for override in parsed}  # the last word on each key
        swept = {key: override for key, override in asked.items() if override.is_sweep_override()}
        seeds = {key: _seeds(key, override) for key, override in swept.items() if key.endswith("seed")}
        space = {key: distribution(key, override) for key, override in swept.items() if key not in seeds}
        (repeats,) = self.split_arguments([asked[key] for key in asked if key not in space], None)
        # The folder's name depends on the keys alone, and the search must know its folder.
        sweep = new_sweep(self.config, self.hydra_context, {key: [] for key in swept})
        search = Search(
            sweep.folder, space, seeds, self.metric, self.direction, self.sampler, self.seed, self.n_trials,
            self.batch_size,
        )  # fmt: skip
        sweep.axes, sweep.best_of = search.axes(), ()
        jobs = Jobs(self, sweep, search, repeats)
        if not (sweep.folder / FILE).exists():
            jobs.check_edges()
        with search.opened(only_look=self.config.dry_run):
            jobs.plan_earlier()
            search.print_plan()
            if self.config.dry_run:
                return
            try:
                with under_way(sweep):
                    jobs.run()
            except RunFailed:
                if not all(run.state() in ANSWERS for run in sweep.runs.values()):
                    raise
            finally:
                search.print_best(sweep.conf_folders)


class Jobs:
    """A search's trials as jobs of a sweep: a trial is a job per seed."""

    def __init__(self, sweeper: OptunaSweeper, sweep: "Sweep", search: "Search", repeats: list[list[str]]) -> None:
        assert sweeper.hydra_context is not None and sweeper.config is not None and sweeper.launcher is not None
        self.context, self.config, self.launcher = sweeper.hydra_context, sweeper.config, sweeper.launcher
        self.sweep, self.search = sweep, search
        self.repeats = repeats  # what a trial's jobs are told beside its settings: a seed, and what all are told
        self.again: list[FrozenTrial] = []  # trials with an answer, of which a run is not there (any more)

    def check_edges(self) -> None:
        """Look up a run for each end of each key's range and each choice, the other keys at their first.

        So that a key that is not there, or a value that cannot be, is refused before anything is written.
        """
        from factdpo.sweep.search_space import edges
        from hydra_plugins.factdpo_sweeper import plan

        jobs = [self._jobs(settings)[0] for settings in edges(self.search.space)]
        plan(replace(self.sweep, runs={}, before={}), self.context, self.config, jobs, 0)

    def plan_earlier(self) -> None:
        """Look up the runs of the trials that there are; raises ConfigError if the command asks for others now."""
        for trial in self.search.trials():
            if self.search.has_runs(trial):
                runs = self._plan(trial)
                self.search.keep_runs(trial, runs)
                if self.search.is_told(trial) and not all(run.state() in ANSWERS for run in runs):
                    self.again.append(trial)

    def run(self) -> None:
        """Run what is missing, batch by batch."""
        batch = [*self.again, *self.search.next_batch()]
        while batch:
            self._run(batch)
            batch = self.search.next_batch()

    def _run(self, batch: "list[FrozenTrial]") -> None:
        from factdpo.config.schema import ConfigError
        from hydra_plugins.factdpo_sweeper import AT_ONCE, batches, launch

        runs: dict[int, list[Run]] = {}
        for trial in batch:
            try:
                runs[trial.number] = self._plan(trial)
            except ConfigError as error:
                self.search.prune(trial, str(error))
            else:
                self.search.keep_runs(trial, runs[trial.number])
        if not (batch := [trial for trial in batch if trial.number in runs]):
            return
        self.search.print_batch(batch)
        self.sweep.write()
        jobs = [job for trial in batch for job in self._jobs(self.search.settings(trial))]
        for first, together in batches(jobs, AT_ONCE):
            launch(self.launcher, together, first)
        for trial in batch:
            self.search.tell(trial, runs[trial.number])

    def _plan(self, trial: "FrozenTrial") -> "list[Run]":
        from hydra_plugins.factdpo_sweeper import plan

        jobs = self._jobs(self.search.settings(trial))
        return plan(self.sweep, self.context, self.config, jobs, trial.number * len(jobs))

    def _jobs(self, settings: dict[str, str]) -> list[list[str]]:
        from hydra_plugins.factdpo_sweeper import named

        told = [f"{key}={value}" for key, value in settings.items()]
        return [named([*told, *repeat], self.sweep, list(self.sweep.axes)) for repeat in self.repeats]


def distribution(key: str, override: Override) -> "Distribution":
    """Where Optuna draws a key's values from; raises ConfigError for a range that is none."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from factdpo.config.schema import ConfigError

    space, typed = override.value(), override.get_value_string()
    if not isinstance(space, IntervalSweep | RangeSweep):
        return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    log = "log" in space.tags
    if unknown := sorted(space.tags - {"log"}):
        raise ConfigError(f"{key}={typed}: no such tag, {', '.join(unknown)}; there is tag(log, ...)")
    try:
        if isinstance(space, IntervalSweep):
            assert space.start is not None and space.end is not None
            if isinstance(space.start, int) and isinstance(space.end, int):
                return IntDistribution(space.start, space.end, log=log)
            return FloatDistribution(space.start, space.end, log=log)
        values = sorted(space.range())  # without its end, as everywhere in Hydra
        if not values:
            raise ValueError("the range is empty")
        if all(isinstance(value, int) for value in values):
            return IntDistribution(values[0], values[-1], step=abs(int(space.step)), log=log)
        high = float(f"{values[-1]:.12g}")  # 0.3, where adding up steps of 0.2 gave 0.30000000000000004
        return FloatDistribution(values[0], high, step=abs(space.step), log=log)
    except ValueError as error:
        raise ConfigError(f"{key}={typed}: {error}") from None


def _seeds(key: str, override: Override) -> list[str]:
    from factdpo.config.schema import ConfigError

    if override.is_interval_sweep():
        values = override.get_value_string()
        raise ConfigError(f"{key}={values}: seeds repeat each trial and are not searched; list them, as in {key}=0,1,2")
    return list(override.sweep_string_iterator())
