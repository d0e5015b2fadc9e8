"""What all tests share: no network, no windows, and the composed config of a command line."""

import os
from collections.abc import Callable, Iterator

import pytest

from factdpo.config import Config, validate

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads them
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
for name in ("WANDB_API_KEY", "WANDB_MODE", "HYDRA_FULL_ERROR"):
    os.environ.pop(name, None)


@pytest.fixture
def compose() -> Iterator[Callable[..., Config]]:
    """compose("model=nano", "lora.rank=4"): the validated config of `factdpo model=nano lora.rank=4`."""
    import hydra

    import factdpo.__main__  # noqa: F401  (registers the schema)
    from hydra_plugins.factdpo_searchpath import conf_folder

    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield lambda *overrides: validate(hydra.compose("config", overrides=list(overrides)))
