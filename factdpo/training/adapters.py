"""Trained weights on disk: PEFT's adapters (or whole models), how their training went, and proof that they reload."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from factdpo.config.schema import Config, ConfigError, Method
from factdpo.models.base import Base
from factdpo.models.scoring import PairLogps
from factdpo.models.weights import ADAPTER
from factdpo.training.sanity_checks import SanityCheckError

PROBE_PAIRS = 64  # training pairs whose scores the reloaded model must reproduce
# Between two scorings of the same weights on the same device: other rows in a batch round otherwise, and the more so in
# half precision, where a log-prob of 20 nats is rounded to 0.06.
RELOAD_TOLERANCE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.05}


def write_fit(folder: Path, facts: dict[str, Any], probe: PairLogps) -> None:
    """Write fit.json, and the trained model's scores of the first PROBE_PAIRS training pairs (for check_probe)."""
    save_file(vars(probe), folder / "probe.safetensors")
    (folder / "fit.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def load_trained(base: Base, folder: Path) -> nn.Module:
    """Load the trained weights in `folder`: an adapter on the base (until `unload`), or a whole model. In eval mode."""
    weights = trained_weights(folder)
    if weights.name == "adapter":
        return PeftModel.from_pretrained(base.model, weights).eval()  # type: ignore[arg-type]
    own = {"dtype": base.model.dtype, "attn_implementation": base.model.config._attn_implementation}
    full = type(base.model).from_pretrained(weights, use_safetensors=True, **own)
    return full.to(base.device).eval()  # type: ignore[arg-type]


def load_adapter(base: Base, folder: Path) -> nn.Module:
    """Load any PEFT adapter on the base, in eval mode; raises ConfigError unless it is all there and fits the base."""
    weights = folder / "adapter_model.safetensors"
    for file in (folder / ADAPTER, weights):
        if not file.is_file():
            raise ConfigError(f"adapter={folder}: {file.name} is missing; PEFT's save_pretrained writes it")
    try:
        model = PeftModel.from_pretrained(base.model, folder).eval()  # type: ignore[arg-type]
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"adapter={folder}: does not fit {base.weights.name} ({said})") from error
    with safe_open(weights, "pt") as file:
        apart = {*file.keys()} ^ {*get_peft_model_state_dict(model, save_embedding_layers=False)}
    if apart:
        raise ConfigError(
            f"adapter={folder}: does not fit {base.weights.name}: {len(apart)} tensors are in one of them alone, first "
            f"{min(apart)}"
        )
    return model


def merge(model: nn.Module) -> nn.Module:
    """The base of an adapter that `load_trained` loaded, with the adapter's product added to its weights for good."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model  # type: ignore[operator]


def unload(model: nn.Module) -> None:
    """Take the adapter off a base that `load_trained` put it on; the base is then as it was."""
    if isinstance(model, PeftModel):
        model.unload()


def trained_weights(folder: Path) -> Path:
    """adapter/ (PEFT's format), or, after full fine-tuning, model/ (a whole model)."""
    return folder / ("adapter" if (folder / "adapter").is_dir() else "model")


def check_probe(folder: Path, reloaded: PairLogps, dtype: torch.dtype) -> None:
    """Raises SanityCheckError unless the reloaded weights score the first training pairs as they did in training."""
    trained = PairLogps(**load_file(folder / "probe.safetensors"))
    apart = max(
        (reloaded.chosen - trained.chosen).abs().max().item(), (reloaded.rejected - trained.rejected).abs().max().item()
    )
    if apart > (tolerance := RELOAD_TOLERANCE_NATS[dtype]):
        raise SanityCheckError(
            f"{trained_weights(folder)}: loaded from disk into a fresh base it scores the training pairs up to "
            f"{apart:.4g} nats apart from the model that was trained (tolerance {tolerance})"
        )


def peak_gib(device: torch.device) -> float:
    """Highest memory so far: of the GPU's allocator, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def check_targets(cfg: Config, base: Base) -> None:
    """Raises ConfigError if lora.target_modules names a module that the base does not have, or its head."""
    targets = cfg.lora.target_modules
    if cfg.lora.method is Method.full or targets == ["all-linear"]:
        return
    modules = dict(base.model.named_modules())
    named = {target: [n for n in modules if n == target or n.endswith(f".{target}")] for target in targets}
    head = base.model.get_output_embeddings()
    if heads := [target for target, names in named.items() if any(modules[n] is head for n in names)]:
        raise ConfigError(
            f"lora.target_modules={targets}: {', '.join(heads)} is the head, which no engine can adapt; leave it out"
        )
    if unknown := [target for target, names in named.items() if not names]:
        linear = [n for n, m in base.model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
        leaves = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ConfigError(
            f"lora.target_modules={targets}: {base.weights.name} has no module {', '.join(unknown)}; "
            f"its linear layers are {', '.join(leaves)}"
        )


def lora_config(cfg: Config, base: Base) -> LoraConfig:
    """PEFT's config for lora.*."""
    lora, targets = cfg.lora, cfg.lora.target_modules
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    # PEFT would record the folder that the base was loaded from, which is a local path.
    base.model.name_or_path = base.weights.name
    adapter.revision = base.weights.commit
    return adapter
