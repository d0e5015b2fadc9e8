"""The command line: `factdpo [overrides]`, `factdpo eval run=<folder>`, `factdpo doctor`. Everything else is Hydra's."""

import os
import sys

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from factdpo.config import Config, validate
from hydra_plugins.factdpo_searchpath import conf_folder

ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("factdpo_keys", lambda: "", replace=True)


@hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")
def _run(cfg: DictConfig) -> None:
    asked = validate(cfg)
    from factdpo import job  # only now: what cannot run is refused before anything heavy is imported

    job.execute(asked)


def main() -> None:
    _run()


if __name__ == "__main__":
    main()
