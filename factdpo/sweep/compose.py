"""The configs of a sweep's jobs: equal to what Hydra's `load_sweep_config` composes, in a tenth of its time."""

import pickle
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException


class Composer:
    """Composes the jobs of one sweep.

    Hydra reads and merges all files anew for each job, though the result depends on the chosen options of groups alone.
    So each set of options is composed once, and each job gets a copy in which its values are set.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        """`config` is the sweep's own, as Hydra hands it to sweepers and launchers."""
        self.loader, self.config = loader, config
        self._parser = OverridesParser.create()
        self._groups: dict[str, bool] = {}  # key -> whether it names a config group
        self._composed: dict[tuple[str, ...], bytes] = {}  # options of groups -> config, pickled

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """Return the config of the job with this number, hydra node included; raises what Hydra raises."""
        overrides = list(overrides)
        parsed = self._parser.parse_overrides(overrides)
        job = None
        if not any(map(self._is_unusual, parsed)):
            job = self._with_values(parsed)
        if job is None:  # slower, and right in all cases: errors are Hydra's own
            job = self.loader.load_sweep_config(self.config, overrides)
        with open_dict(job):
            job.hydra.job.id = job.hydra.job.num = number
        return job

    def _is_unusual(self, override: Override) -> bool:
        ours = override.is_hydra_override() or override.key_or_group == "hydra"
        return ours or override.is_sweep_override() or (override.is_delete() and not self._is_option(override))

    def _is_option(self, override: Override) -> bool:
        """Whether this chooses an option of a group; `dpo={beta: 1}` sets values instead."""
        key = override.key_or_group
        if key not in self._groups:
            for_hydra = [str(one) for one in self.config.hydra.overrides.hydra]
            name = self.config.hydra.job.config_name
            self._groups[key] = bool(self.loader.get_group_options(key, None, name, for_hydra))
        return self._groups[key] and not isinstance(override.value(), dict)

    def _with_values(self, overrides: list[Override]) -> DictConfig | None:
        """The job's config; None if a value cannot be set like this."""
        options = tuple(str(one.input_line) for one in overrides if self._is_option(one))
        if options not in self._composed:
            composed = self.loader.load_sweep_config(self.config, list(options))
            self._composed[options] = pickle.dumps(composed, pickle.HIGHEST_PROTOCOL)
        job = pickle.loads(self._composed[options])  # takes a third of the time of a deepcopy
        try:
            if not all(_set(job, one) for one in overrides if not self._is_option(one)):
                return None
        except OmegaConfBaseException:
            return None
        job.hydra.overrides.task = [one.input_line for one in overrides]
        job.hydra.job.override_dirname = _override_dirname(overrides, job.hydra.job.config.override_dirname)
        OmegaConf.copy_cache(from_config=self.config, to_config=job)  # ${now:...} is the same for all jobs
        return job


def _set(job: DictConfig, override: Override) -> bool:
    """Set the value in place; returns whether it could be set."""
    key, value = override.key_or_group, override.value()
    if override.package is not None:
        return False
    merges = isinstance(value, dict | list)
    if override.is_add() and not merges and OmegaConf.select(job, key, throw_on_missing=False) is not None:
        return False
    OmegaConf.update(job, key, value, merge=True, force_add=override.is_add() or override.is_force_add())
    return True


def _override_dirname(overrides: list[Override], rules: DictConfig) -> str:
    """What `${hydra.job.override_dirname}` says, by the rules under hydra.job.config.override_dirname."""
    lines = sorted(str(one.input_line) for one in overrides if one.key_or_group not in rules.exclude_keys)
    return rules.item_sep.join(lines).replace("=", rules.kv_sep)
