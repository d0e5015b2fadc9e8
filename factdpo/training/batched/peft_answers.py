"""What PEFT's model makes of answers one by one, under adapters that are not zero, for interrogation.py to compare."""

import dataclasses
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import Trainer

from factdpo.config.schema import Config, ConfigError, LoraConfig
from factdpo.console import first_line
from factdpo.data.pairs import Pairs, collate
from factdpo.models.base import Base
from factdpo.models.logps import completion_logps
from factdpo.models.soundness import CANNOT
from factdpo.training.batched.adapter import Adapter, check_linear, with_adapter
from factdpo.training.batched.routing import LEFT_OUT

RANK = 4  # of the adapters that it is asked with
CHOSEN, REJECTED = 1.0, -0.7  # weights of the answers in what is differentiated: what both share does not cancel


class Unfit(Exception):
    """The batched engine would compute something else; the message is the sentence that says what."""


Grads = dict[str, tuple[Tensor, Tensor]]  # of each layer's A and B


class Asked(NamedTuple):
    """What a run is asked with: its rows of pairs, and what PEFT's model makes of each answer alone."""

    pairs: Pairs
    adapter: Adapter
    logps: Float[Tensor, "2 B"]
    grads: Grads


@contextmanager
def understood(what: str) -> Iterator[None]:
    """What torch says of a model that cannot be asked this way at all, as Unfit."""
    try:
        yield
    except (Unfit, ConfigError, torch.OutOfMemoryError):
        raise
    except CANNOT as error:
        raise Unfit(f"{what} ({type(error).__name__}: {first_line(error)})") from error


def asked_of_peft(base: Base, cfg: Config, probes: Pairs) -> tuple[list[Asked], str | None]:
    """Two runs, each with every other of the probes and random weights of its own, as PEFT's model computes them.

    With them, why PEFT's model is none that could be stacked, as a sentence.
    """
    with _small_adapter(base, cfg) as (model, layers):
        unlike = _not_linear(layers) or (_not_decayed(model) if cfg.dpo.weight_decay else None)
        adapters = [_random_adapter(layers, model.active_peft_config, seed) for seed in range(2)] if not unlike else []
        asked = []
        for run, adapter in enumerate(adapters):
            rows = list(range(run, len(probes), 2)) or [0]
            asked.append(_answers_alone(base, model, layers, adapter, probes.select(rows)))
        if unlike:
            ids = torch.tensor([probes.prompt_ids[0]], device=base.device)
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return asked, unlike


def check_saved(base: Base, cfg: Config) -> None:
    """Raises Unfit unless PEFT loads back all that it saves of an adapter: it renames where transformers does."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is missing: what follows is about it
        with _small_adapter(base, cfg) as (model, _):
            saved = {name: p.data.normal_() for name, p in model.named_parameters() if p.requires_grad}
            model.save_pretrained(folder, save_embedding_layers=False)
            model.load_adapter(folder, "loaded")
            found = {
                name.replace(".loaded", ".default"): p for name, p in model.named_parameters() if ".loaded" in name
            }
            lost = [name for name, weight in saved.items() if not torch.equal(found[name].cpu(), weight.cpu())]
    if lost:
        layers = list(dict.fromkeys(name.removeprefix("base_model.model.").partition(".lora_")[0] for name in lost))
        raise Unfit(
            f"lora.target_modules={cfg.lora.target_modules}: PEFT does not load back what it saves of "
            f"{layer_names(layers)}; name others"
        )


@contextmanager
def _small_adapter(base: Base, cfg: Config) -> Iterator[tuple[Any, dict[str, LoraLayer]]]:
    """PEFT's model with adapters on the run's targets while the context lasts, and its adapted layers."""
    lora = LoraConfig(rank=RANK, alpha=float(RANK), target_modules=cfg.lora.target_modules)
    with with_adapter(dataclasses.replace(cfg, lora=lora), base) as model:
        yield model, {n: m for n, m in model.base_model.model.named_modules() if isinstance(m, LoraLayer)}


def _not_linear(layers: dict[str, LoraLayer]) -> str | None:
    try:
        for name, module in layers.items():
            check_linear(name, module)
    except ConfigError as error:
        return str(error)
    return None


def _random_adapter(layers: dict[str, LoraLayer], config: Any, seed: int) -> Adapter:
    """A and B random, so that each product is about a tenth as large as the layer's own."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in layers.items():
        a, b = _pair_of(module)
        size = max(1e-3, cast(Tensor, module.get_base_layer().weight).float().pow(2).mean().sqrt().item())
        weights[name] = (
            torch.randn(a.shape, generator=generator) / a.shape[1] ** 0.5,
            torch.randn(b.shape, generator=generator) * 0.1 * size * (a.shape[1] / RANK) ** 0.5,
        )
    return Adapter(weights, config)


def _pair_of(module: LoraLayer) -> tuple[Tensor, Tensor]:
    """The weights A and B of a layer of PEFT's."""
    return cast(Tensor, module.lora_A["default"].weight), cast(Tensor, module.lora_B["default"].weight)


def _answers_alone(base: Base, model: Any, layers: dict[str, LoraLayer], adapter: Adapter, pairs: Pairs) -> Asked:
    """Each answer in a row and a forward of its own."""
    leaves = _put_on(layers, adapter)
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    logps = torch.zeros(2, len(pairs))
    for side, (column, weight) in enumerate(((pairs.chosen_ids, CHOSEN), (pairs.rejected_ids, REJECTED))):
        for number, (prompt, answer) in enumerate(zip(pairs.prompt_ids, column, strict=True)):
            ids = torch.tensor([prompt + answer], device=base.device)
            mask = torch.arange(ids.shape[1], device=base.device)[None] >= len(prompt)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            (logp,) = completion_logps(logits, ids, mask)
            logps[side, number] = logp.detach().cpu()
            for total, grad in zip(sums, grads_of(weight * logp, leaves), strict=True):
                total += grad
    return Asked(pairs, adapter, logps, by_layer(layers, [total.cpu() for total in sums]))


def _put_on(layers: dict[str, LoraLayer], adapter: Adapter) -> list[Tensor]:
    """Give PEFT's layers these weights; returns A and B of each, to differentiate by."""
    with torch.no_grad():
        for name, both in adapter.layers.items():
            for tensor, value in zip(_pair_of(layers[name]), both, strict=True):
                tensor.copy_(value)
    return [tensor.requires_grad_() for module in layers.values() for tensor in _pair_of(module)]


def by_layer(layers: Iterable[str], of_leaves: Sequence[Any]) -> dict[str, tuple[Any, Any]]:
    """What stands for A and B of each layer in turn, by the layer's name."""
    return dict(zip(layers, zip(of_leaves[::2], of_leaves[1::2], strict=True), strict=True))


def _not_decayed(model: Any) -> str | None:
    """The Trainer exempts parameters from weight decay by their names."""
    decayed = set(Trainer.get_decay_parameter_names(cast(Trainer, None), model))
    exempt = [name for name, p in model.named_parameters() if p.requires_grad and name not in decayed]
    if not exempt:
        return None
    return f"transformers' Trainer exempts {len(exempt)} of its adapters from dpo.weight_decay by name, as {exempt[0]}"


def router_losses(base: Base, cfg: Config, asked: list[Asked]) -> tuple[list[float], list[Grads]]:
    """The auxiliary loss of each run's answers, all in one batch of whole rows, and its gradients."""
    losses, grads = [], []
    with _small_adapter(base, cfg) as (model, layers):
        for of_run in asked:
            leaves, batch = _put_on(layers, of_run.adapter), collate(of_run.pairs, list(range(len(of_run.pairs))))
            ids, attention = batch.ids.to(base.device), batch.attention.to(base.device)
            output = model(input_ids=ids, attention_mask=attention, use_cache=False, output_router_logits=True)
            if output.aux_loss is None:
                raise Unfit(f"its forward computes no auxiliary loss of its router; {LEFT_OUT}")
            losses.append(output.aux_loss.item())
            grads.append(by_layer(layers, [grad.cpu() for grad in grads_of(output.aux_loss, leaves)]))
    return losses, grads


def grads_of(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Zeros where the loss does not depend on a leaf, as on adapters past the last router."""
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True))


def layer_names(names: list[str]) -> str:
    return f"the adapted layer {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
