"""A search: its trials, drawn by Optuna, are run as jobs of a sweep, batch by batch.

The space is written in Hydra's own grammar, as for hydra-optuna-sweeper: choice(8,16,32) or 8,16,32; range(2,9);
interval(0.01,1), tag(log,interval(0.01,1)) and int(interval(2,64)). Keys that end in `seed` are not searched: each
trial is a run per seed, and its value their mean.
"""

from dataclasses import dataclass, field, replace

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from factdpo.config.schema import ConfigError
from factdpo.runs.answer import RunFailed, is_answered
from factdpo.runs.identity import RunSpec
from factdpo.runs.session import current
from factdpo.store.sweep_file import Metric
from factdpo.sweep import grid, question, search_report
from factdpo.sweep.jobs import Planner, launch
from factdpo.sweep.search import FILE, Objective, Search
from factdpo.sweep.search_space import Distribution, edges
from factdpo.sweep.sweep import Sweep

ANSWERS = (
    "FINISHED",
    "STOPPED",
    "DIVERGED",
)  # states of a run that need no other try: that settings diverge is worth knowing


def run(
    context: HydraContext,
    config: DictConfig,
    launcher: Launcher,
    words: list[str],
    metrics: list[str],
    objective: Objective,
) -> None:
    """Run the trials that are missing. Raises ConfigError, before the first run, for a search that cannot be."""
    last_words = grid.parse(context, words)
    swept = {key: override for key, override in last_words.items() if override.is_sweep_override()}
    seeds = {key: _seeds(key, override) for key, override in swept.items() if key.endswith("seed")}
    space = {key: distribution(key, override) for key, override in swept.items() if key not in seeds}
    repeats = grid.product([last_words[key] for key in last_words if key not in space])
    # The folder's name depends on the keys alone, and the search must know its folder.
    sweep = grid.new_sweep(config, context, {key: [] for key in swept})
    sweep.metrics, sweep.names_best = _metrics(metrics, objective), False
    search = Search(sweep.folder, space, seeds, objective, sweep.metrics[0])
    sweep.axes = search.axes()
    trials = Trials(launcher, Planner(context, config, current()), sweep, search, repeats)
    if not (sweep.folder / FILE).exists():
        trials.check_edges()
    with search.opened(read_only=config.dry_run):
        trials.plan_earlier()
        search_report.print_plan(search)
        if config.dry_run:
            return
        try:
            with grid.under_way(sweep):
                trials.run()
        except RunFailed:
            if not all(run.state() in ANSWERS for run in sweep.runs.values()):
                raise
        finally:
            search_report.print_best(search, sweep.conf_folders)
            search_report.keep_importance(search)


def _metrics(words: list[str], objective: Objective) -> list[Metric]:
    """What the search asks about: first what it searches for, the accuracy on held-out facts if nothing is named."""
    asked = question.read(words)
    if objective.metric is not None or not asked:
        first = question.read([objective.metric or "accuracy/test"], "hydra.sweeper.metric")
        asked = [*first, *(metric for metric in asked if metric.name != first[0].name)]
    if objective.direction is not None:
        asked[0] = Metric(asked[0].name, objective.direction == "minimize")
    return asked


@dataclass
class Trials:
    """A search's trials as jobs of a sweep: a trial is a job per seed."""

    launcher: Launcher
    planner: Planner
    sweep: Sweep
    search: Search
    repeats: list[list[str]]  # a trial's jobs beside its settings: a seed each, and what all jobs have
    incomplete: list[FrozenTrial] = field(default_factory=list)  # with a value, though a run of them is not there

    def check_edges(self) -> None:
        """Look up a run for each end of each key's range and each choice, the other keys at their first.

        So that a key that is not there, or a value that cannot be, is refused before anything is written.
        """
        jobs = [self._jobs(settings)[0] for settings in edges(self.search.space)]
        grid.plan(replace(self.sweep, runs={}, before={}), self.planner, jobs, 0)
        self.planner.session.jobs.clear()  # these are not launched

    def plan_earlier(self) -> None:
        """Look up the runs of the trials that there are; raises ConfigError if the command asks for others now."""
        for trial in self.search.trials():
            if self.search.has_runs(trial):
                runs = self._plan(trial)
                self.search.keep_runs(trial, runs)
                if self.search.is_answered(trial) and not all(map(is_answered, runs)):
                    self.incomplete.append(trial)

    def run(self) -> None:
        """Run what is missing, batch by batch."""
        batch = [*self.incomplete, *self.search.next_batch()]
        while batch:
            self._run(batch)
            batch = self.search.next_batch()

    def _run(self, batch: list[FrozenTrial]) -> None:
        runs: dict[int, list[RunSpec]] = {}
        for trial in batch:
            try:
                runs[trial.number] = self._plan(trial)
            except ConfigError as error:
                search_report.print_pruned(trial, str(error))
                self.search.prune(trial)
            else:
                self.search.keep_runs(trial, runs[trial.number])
        if not (batch := [trial for trial in batch if trial.number in runs]):
            return
        search_report.print_batch(self.search, batch)
        self.sweep.write()
        jobs = [job for trial in batch for job in self._jobs(self.search.settings(trial))]
        for first, together in grid.batches(jobs, grid.AT_ONCE):
            launch(self.launcher, together, first)
        for trial in batch:
            self.search.tell(trial, runs[trial.number])

    def _plan(self, trial: FrozenTrial) -> list[RunSpec]:
        jobs = self._jobs(self.search.settings(trial))
        return grid.plan(self.sweep, self.planner, jobs, trial.number * len(jobs))

    def _jobs(self, settings: dict[str, str]) -> list[list[str]]:
        words = [f"{key}={value}" for key, value in settings.items()]
        return [grid.name_job([*words, *repeat], self.sweep, list(self.sweep.axes)) for repeat in self.repeats]


def distribution(key: str, override: Override) -> Distribution:
    """Where Optuna draws a key's values from; raises ConfigError for a range that is none."""
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
    if override.is_interval_sweep():
        values = override.get_value_string()
        raise ConfigError(f"{key}={values}: seeds repeat each trial and are not searched; list them, as in {key}=0,1,2")
    return list(override.sweep_string_iterator())
