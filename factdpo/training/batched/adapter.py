"""One run's LoRA weights: as PEFT starts them, and as PEFT's files hold them."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from factdpo.config.schema import Config, ConfigError
from factdpo.models.base import Base
from factdpo.training.adapters import lora_config

KEY = "base_model.model.{}.lora_{}.weight"  # of a tensor in PEFT's adapter_model.safetensors


class Adapter(NamedTuple):
    """One run's LoRA weights, float32 on the CPU, per layer A [K, d_in] and B [d_out, K]; and PEFT's config of them."""

    layers: dict[str, tuple[Tensor, Tensor]]
    config: LoraConfig
    frozen: int = 0  # of the K inner rows, the last, which training leaves as they are

    @property
    def scale(self) -> float:
        """What the product is multiplied by: alpha / K, or alpha / sqrt(K) (rsLoRA, 2312.03732)."""
        return self.config.lora_alpha / (self.config.r**0.5 if self.config.use_rslora else self.config.r)

    @property
    def trained(self) -> int:
        """The inner rows that are trained, the first."""
        return self.config.r - self.frozen

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(self.trained * (a.shape[1] + len(b)) for a, b in self.layers.values())

    def on_top_of(self, start: "Adapter") -> "Adapter":
        """One adapter that computes this one and a frozen `start` beneath it, at this one's scale.

        Ranks add up: [B, s B'] [A; A'] = B A + s B' A', where s makes up for the other scale of `start`.
        """
        ratio = start.scale / self.scale
        layers = {
            name: (torch.cat([a, start.layers[name][0]]), torch.cat([b, start.layers[name][1] * ratio], dim=1))
            for name, (a, b) in self.layers.items()
        }
        config = copy(self.config)
        config.r, config.use_rslora = self.config.r + start.config.r, False
        config.lora_alpha = self.scale * config.r  # type: ignore[assignment]
        return Adapter(layers, config, frozen=start.config.r)

    def save(self, folder: Path) -> None:
        """In PEFT's format."""
        self.config.inference_mode = True
        self.config.save_pretrained(str(folder))
        tensors = {
            KEY.format(name, side): weight
            for name, both in self.layers.items()
            for side, weight in zip("AB", both, strict=True)
        }
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def fresh_adapter(cfg: Config, base: Base) -> Adapter:
    """What PEFT starts this run's adapter with: A random by dpo.seed, B zero, number for number as under TRL.

    PEFT draws more random numbers than A's own, so it is PEFT that draws them. Raises ConfigError for a target that is
    no linear layer.
    """
    set_seed(cfg.dpo.seed)
    with with_adapter(cfg, base) as model:
        adapter = adapter_of(model)
    adapter.config.base_model_name_or_path = base.weights.name
    return adapter


def adapter_of(model: Any, name: str = "default") -> Adapter:
    """The adapter of this name in PEFT's model; raises ConfigError for a target that is no linear layer."""
    modules = model.base_model.model.named_modules()
    adapted = {layer: module for layer, module in modules if isinstance(module, LoraLayer)}
    for layer, module in adapted.items():
        check_linear(layer, module)
    # PEFT would ask the hub whether the vocabulary was changed; no embedding is ever trained here.
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    layers = {n: (_copied(tensors[KEY.format(n, "A")]), _copied(tensors[KEY.format(n, "B")])) for n in adapted}
    return Adapter(layers, cast(LoraConfig, model.peft_config[name]))


@contextmanager
def with_adapter(cfg: Config, base: Base) -> Iterator[Any]:
    """PEFT's model around the base, as it starts; the base is as it was when the context ends."""
    modules = dict(base.model.named_modules())
    try:
        model: Any = get_peft_model(base.model, lora_config(cfg, base))  # type: ignore[arg-type]
    except ValueError as error:  # with some of the targets adapted already
        for name, module in modules.items():
            if name and base.model.get_submodule(name) is not module:
                base.model.set_submodule(name, module)
        raise ConfigError(f"lora.target_modules={cfg.lora.target_modules}: {error}") from error
    try:
        yield model
    finally:
        model.unload()


def check_linear(name: str, module: LoraLayer) -> None:
    """Raises ConfigError for a target that is no linear layer, or one whose weights are packed integers."""
    inner: Any = module.get_base_layer()
    if not isinstance(inner, nn.Linear | Conv1D) or not cast(Tensor, inner.weight).is_floating_point():
        raise ConfigError(
            f"lora.target_modules: {name} is a {type(inner).__name__}, and only ordinary linear layers can be "
            "adapted together"
        )


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter in PEFT's format."""
    tensors = load_file(folder / "adapter_model.safetensors")
    head, tail = KEY.format("|", "A").split("|")
    names = [key[len(head) : -len(tail)] for key in tensors if key.endswith(tail)]
    layers = {name: (tensors[KEY.format(name, "A")], tensors[KEY.format(name, "B")]) for name in names}
    return Adapter(layers, cast(LoraConfig, LoraConfig.from_pretrained(str(folder))))
