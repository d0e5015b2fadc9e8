"""What all tests share: no network, no windows, and the fixtures that more than one of them needs."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from factdpo.config.schema import Config
from factdpo.config.validate import validate
from tests.helpers.hub_server import Hub, hub_on_loopback

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads them
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a suite in the background starts would ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # likewise under nohup
for name in ("WANDB_API_KEY", "WANDB_MODE", "HYDRA_FULL_ERROR"):
    os.environ.pop(name, None)


@pytest.fixture
def compose() -> Iterator[Callable[..., Config]]:
    """compose("model=nano", "lora.rank=4"): the validated config of `factdpo model=nano lora.rank=4`."""
    import hydra

    import factdpo.commands.run  # noqa: F401  (registers the schema)
    from factdpo.config.folders import conf_folder

    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield lambda *overrides: validate(hydra.compose("config", overrides=list(overrides)))


@pytest.fixture
def make_tiny_model() -> Callable[[], Any]:
    """make_tiny_model(): a random GPT-NeoX (width 32, 2 layers, 2048 tokens) in eval mode, the same each time."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=2048, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=256, initializer_range=0.3, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip

    def make() -> Any:
        torch.manual_seed(0)
        return GPTNeoXForCausalLM(config).eval()

    return make


@pytest.fixture(scope="session")
def nano_base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedded model as a run loads it; shared by all tests, so none may train it."""
    import torch

    from factdpo.config.schema import ModelConfig
    from factdpo.models.base import load_base

    return load_base(ModelConfig(), torch.device("cpu"), tmp_path_factory.mktemp("cache"))


@pytest.fixture
def trl_trainer(make_tiny_model: Callable[[], Any], nano_base: Any, tmp_path: Any) -> Callable[..., Any]:
    """trl_trainer(pairs, refs): TRL's own DPOTrainer on the tiny model, given token ids and reference log-probs."""
    from trl import DPOConfig

    from factdpo.training import trl_trainers

    def make(pairs: Any, refs: Any) -> Any:
        arguments = DPOConfig(
            output_dir=str(tmp_path / "trl"), precompute_ref_log_probs=True, max_length=None, use_cpu=True, bf16=False,
            gradient_checkpointing=False, per_device_train_batch_size=len(pairs), report_to=[], disable_tqdm=True,
        )  # fmt: skip
        return trl_trainers._PairsTrainer(
            model=make_tiny_model(),
            args=arguments,
            train_dataset=trl_trainers._dataset(pairs, refs),
            processing_class=nano_base.tokenizer,
        )

    return make


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hugging Face hub on loopback, without repositories, which is asked in place of the real one; an empty cache."""
    from huggingface_hub import constants

    with hub_on_loopback() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium under playwright; without either the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()
