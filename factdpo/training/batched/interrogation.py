"""Is a base one that the batched engine computes exactly? It is asked before anything trains, and not believed.

Pairs of all the lengths that the data has share a row, those of two runs a forward, under adapters that are not zero.
Each answer's log-prob and each adapter's gradient must be those of PEFT's model with that answer alone, whatever the
architecture is called: windows, recurrence, positions by place, state of a whole forward and layers that are called
twice all show here. So must the auxiliary loss of its routers, and what PEFT saves of an adapter must load back.
"""

import dataclasses
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
from factdpo.models.soundness import CANNOT, NATS, in_float32
from factdpo.training.batched.adapter import Adapter, check_linear, with_adapter
from factdpo.training.batched.packing import pack
from factdpo.training.batched.routing import LEFT_OUT, Router, auxiliary_losses, router_of, token_weights
from factdpo.training.batched.stacked_lora import Stack, stacked

RANK = 4  # of the adapters that it is asked with
GRADIENT = 1e-3  # difference of an adapter's gradient, relative to its norm; a leak of one token gives a hundredth
SMALL = 1e-4  # of the largest gradient: below it rounding is all there is
ROUTER_LOSS = 1e-4  # difference of a router's auxiliary loss, which is about the number of experts that a token gets
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


class Findings(NamedTuple):
    """Sentences; None where nothing is wrong."""

    no_engine: str | None = None  # why PEFT's model itself does not compute, or does not load back
    not_batched: str | None = None  # why the batched engine would compute something else


def interrogate(base: Base, cfg: Config, probes: Pairs) -> Findings:
    """Whether this run can be trained with adapters on this base, and by the batched engine.

    `probes`: few pairs, the longest and the shortest among them (`soundness.extremes`).
    """
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices), in_float32(base.model):
        try:
            targets = f"lora.target_modules={cfg.lora.target_modules}"
            with _understood(f"{targets}: PEFT's adapters on them do not compute; name the layers"):
                asked, unlike = _asked_of_peft(base, cfg, probes)
                _check_saved(base, cfg)
        except (Unfit, ConfigError) as error:
            return Findings(no_engine=str(error))
        if unlike:
            return Findings(not_batched=unlike)
        try:
            with _understood("its forward does not take several pairs in a row"):
                _compare(base, asked)
            if router := router_of(base):
                with _understood(f"the auxiliary loss of its router cannot be computed; {LEFT_OUT}"):
                    _compare_router_loss(base, cfg, asked, router)
        except Unfit as error:
            return Findings(not_batched=str(error))
    return Findings()


# ------------------------------------------------------------------------------------------------------- PEFT's answer


def _asked_of_peft(base: Base, cfg: Config, probes: Pairs) -> tuple[list[Asked], str | None]:
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


def _check_saved(base: Base, cfg: Config) -> None:
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
            f"{_layers(layers)}; name others"
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
            for total, grad in zip(sums, torch.autograd.grad(weight * logp, leaves, allow_unused=True), strict=True):
                if grad is not None:
                    total += grad
    return Asked(pairs, adapter, logps, _by_layer(layers, [total.cpu() for total in sums]))


def _put_on(layers: dict[str, LoraLayer], adapter: Adapter) -> list[Tensor]:
    """Give PEFT's layers these weights; returns A and B of each, to differentiate by."""
    with torch.no_grad():
        for name, both in adapter.layers.items():
            for tensor, value in zip(_pair_of(layers[name]), both, strict=True):
                tensor.copy_(value)
    return [tensor.requires_grad_() for module in layers.values() for tensor in _pair_of(module)]


def _by_layer(layers: Iterable[str], of_leaves: Sequence[Any]) -> dict[str, tuple[Any, Any]]:
    """What stands for A and B of each layer in turn, by the layer's name."""
    return dict(zip(layers, zip(of_leaves[::2], of_leaves[1::2], strict=True), strict=True))


def _not_decayed(model: Any) -> str | None:
    """The Trainer exempts parameters from weight decay by their names."""
    decayed = set(Trainer.get_decay_parameter_names(cast(Trainer, None), model))
    exempt = [name for name, p in model.named_parameters() if p.requires_grad and name not in decayed]
    if not exempt:
        return None
    return f"transformers' Trainer exempts {len(exempt)} of its adapters from dpo.weight_decay by name, as {exempt[0]}"


# ---------------------------------------------------------------------------------------------------- and the stack's


def _compare(base: Base, asked: list[Asked]) -> None:
    """Raises Unfit unless all runs in one forward, each in one row, give what PEFT's model gave one by one."""
    runs = [(of_run.pairs, list(range(len(of_run.pairs)))) for of_run in asked]
    sorted_runs = [(pairs, sorted(rows, key=lambda row, pairs=pairs: pairs.prompt_ids[row])) for pairs, rows in runs]
    with stacked(base, [of_run.adapter for of_run in asked], RANK) as stack:
        leaves = _differentiable(stack)
        with _called_once(stack):
            answers = stack.answers(pack(runs, rows_each=1).to(base.device))
        _compare_logps(asked, answers.logps.detach().cpu(), [rows for _, rows in runs], "where pairs share a row")
        signs = torch.tensor([CHOSEN, REJECTED], device=base.device)[:, None, None]
        grads = torch.autograd.grad((signs * answers.logps).sum(), leaves, allow_unused=True)
        blind = [name for name, both in _by_layer(stack.layers, grads).items() if None in both]
        if blind:
            raise Unfit(f"the adapted layer {blind[0]} has no part in the predictions")
        _compare_grads([of_run.grads for of_run in asked], _by_layer(stack.layers, grads), "")
        with torch.no_grad():
            shared = stack.answers(pack(sorted_runs, share=True, rows_each=1).to(base.device))
        where = "where prompts share their beginning"
        _compare_logps(asked, shared.logps.cpu(), [rows for _, rows in sorted_runs], where)


def _differentiable(stack: Stack) -> list[Tensor]:
    """A and B of each layer, by which what the stack computes can be differentiated from now on."""
    weights = {name: (a.requires_grad_(), b.requires_grad_()) for name, (a, b) in stack.views(stack.masters).items()}
    stack.use(weights, stack.scales)
    return [leaf for both in weights.values() for leaf in both]


def _compare_router_loss(base: Base, cfg: Config, asked: list[Asked], router: Router) -> None:
    """Raises Unfit unless packed runs give the auxiliary loss, and its gradients, of the model's own forward."""
    own, own_grads = [], []
    with _small_adapter(base, cfg) as (model, layers):
        for of_run in asked:
            leaves, batch = _put_on(layers, of_run.adapter), collate(of_run.pairs, list(range(len(of_run.pairs))))
            ids, attention = batch.ids.to(base.device), batch.attention.to(base.device)
            output = model(input_ids=ids, attention_mask=attention, use_cache=False, output_router_logits=True)
            if output.aux_loss is None:
                raise Unfit(f"its forward computes no auxiliary loss of its router; {LEFT_OUT}")
            own.append(output.aux_loss.item())
            own_grads.append(_by_layer(layers, [grad.cpu() for grad in _grads_of(output.aux_loss, leaves)]))
    with stacked(base, [of_run.adapter for of_run in asked], RANK) as stack:
        leaves, runs = _differentiable(stack), [(of_run.pairs, list(range(len(of_run.pairs)))) for of_run in asked]
        packed = pack(runs, rows_each=1, whole=True)
        weights = token_weights(packed, [(pairs, [rows], 2) for pairs, rows in runs]).to(base.device)
        answers = stack.answers(packed.to(base.device), with_routers=True)
        losses = auxiliary_losses(answers.router_logits, weights, router.top_k).squeeze(1)
        grads = _grads_of(losses.sum(), leaves)
    _compare_logps(asked, answers.logps.detach().cpu(), [rows for _, rows in runs], "where whole pairs share a row")
    apart = max(abs(ours - theirs) for ours, theirs in zip(losses.tolist(), own, strict=True))
    if not apart <= ROUTER_LOSS:
        raise Unfit(f"where pairs share a row, its router's auxiliary loss is {apart:.2g} off")
    _compare_grads(own_grads, _by_layer(stack.layers, grads), "of its router's loss ")


def _grads_of(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Zeros where the loss does not depend on a leaf, as on adapters past the last router."""
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True))


@contextmanager
def _understood(what: str) -> Iterator[None]:
    """What torch says of a model that cannot be asked this way at all, as Unfit."""
    try:
        yield
    except (Unfit, ConfigError, torch.OutOfMemoryError):
        raise
    except CANNOT as error:
        raise Unfit(f"{what} ({type(error).__name__}: {first_line(error)})") from error


@contextmanager
def _called_once(stack: Stack) -> Iterator[None]:
    """Raises Unfit unless every stacked layer is called exactly once within, with gradient."""
    calls: dict[str, list[bool]] = {name: [] for name in stack.layers}

    def count(name: str, _layer: object, _given: object, y: Tensor) -> None:
        calls[name].append(y.requires_grad)

    hooks = [layer.register_forward_hook(partial(count, name)) for name, layer in stack.layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if other := [name for name, of_layer in calls.items() if len(of_layer) != 1]:
        times = len(calls[other[0]])
        raise Unfit(f"a forward calls {_layers(other)} {times} times, and the shortcuts of a batch take one call")
    if blocked := [name for name, of_layer in calls.items() if of_layer != [True]]:
        raise Unfit(f"a forward computes {_layers(blocked)} without gradient")


def _layers(names: list[str]) -> str:
    return f"the adapted layer {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _compare_logps(asked: list[Asked], packed: Float[Tensor, "2 R B"], orders: list[list[int]], where: str) -> None:
    apart = 0.0
    for run, (of_run, order) in enumerate(zip(asked, orders, strict=True)):
        difference = (packed[:, run, : len(order)] - of_run.logps[:, order]).abs().max().item()
        apart = max(apart, difference) if difference == difference else torch.inf
    if not apart <= NATS:
        raise Unfit(f"{where}, an answer's log-prob is up to {apart:.2g} nats from the one that it has alone")


def _compare_grads(expected: list[Grads], grads: Grads, of_what: str) -> None:
    """`expected` of each run; `grads` of each layer's A [R, K, d_in] and B [R, d_out, K], all runs at once."""
    largest = max(grad.norm().item() for of_run in expected for both in of_run.values() for grad in both)
    worst, where = 0.0, ""
    for name, both in grads.items():
        for side, grad in enumerate(both):
            for run, of_run in enumerate(expected):
                alone = of_run[name][side]
                apart = (grad[run].cpu() - alone).norm().item() / max(alone.norm().item(), SMALL * largest, 1e-30)
                if not apart <= worst:
                    worst, where = apart, name
    if not worst <= GRADIENT:
        raise Unfit(f"where pairs share a row, the gradient {of_what}of {where} is {worst:.2g} of its norm off")
