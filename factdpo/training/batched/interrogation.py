"""Is a base one that the batched engine computes exactly? It is asked before anything trains, and not believed.

Pairs of all the lengths that the data has share a row, those of two runs a forward, under adapters that are not zero.
Each answer's log-prob and each adapter's gradient must be those of PEFT's model with that answer alone, whatever the
architecture is called: windows, recurrence, positions by place, state of a whole forward and layers that are called
twice all show here. So must the auxiliary loss of its routers, and what PEFT saves of an adapter must load back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from factdpo.config.schema import Config, ConfigError
from factdpo.data.pairs import Pairs
from factdpo.models.base import Base
from factdpo.models.soundness import NATS, in_float32
from factdpo.training.batched.packing import pack
from factdpo.training.batched.peft_answers import (
    CHOSEN,
    RANK,
    REJECTED,
    Asked,
    Grads,
    Unfit,
    asked_of_peft,
    by_layer,
    check_saved,
    grads_of,
    layer_names,
    router_losses,
    understood,
)
from factdpo.training.batched.routing import LEFT_OUT, Router, auxiliary_losses, router_of, token_weights
from factdpo.training.batched.stacked_lora import Stack, stacked

GRADIENT = 1e-3  # difference of an adapter's gradient, relative to its norm; a leak of one token gives a hundredth
SMALL = 1e-4  # of the largest gradient: below it rounding is all there is
ROUTER_LOSS = 1e-4  # difference of a router's auxiliary loss, which is about the number of experts that a token gets


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
            with understood(f"{targets}: PEFT's adapters on them do not compute; name the layers"):
                asked, unlike = asked_of_peft(base, cfg, probes)
                check_saved(base, cfg)
        except (Unfit, ConfigError) as error:
            return Findings(no_engine=str(error))
        if unlike:
            return Findings(not_batched=unlike)
        try:
            with understood("its forward does not take several pairs in a row"):
                _compare(base, asked)
            if router := router_of(base):
                with understood(f"the auxiliary loss of its router cannot be computed; {LEFT_OUT}"):
                    _compare_router_loss(base, cfg, asked, router)
        except Unfit as error:
            return Findings(not_batched=str(error))
    return Findings()


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
        of_layers = by_layer(stack.layers, grads)
        if blind := [name for name, both in of_layers.items() if None in both]:
            raise Unfit(f"the adapted layer {blind[0]} has no part in the predictions")
        _compare_grads([of_run.grads for of_run in asked], of_layers, "")
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
    own, own_grads = router_losses(base, cfg, asked)
    with stacked(base, [of_run.adapter for of_run in asked], RANK) as stack:
        leaves, runs = _differentiable(stack), [(of_run.pairs, list(range(len(of_run.pairs)))) for of_run in asked]
        packed = pack(runs, rows_each=1, whole=True)
        weights = token_weights(packed, [(pairs, [rows], 2) for pairs, rows in runs]).to(base.device)
        answers = stack.answers(packed.to(base.device), with_routers=True)
        losses = auxiliary_losses(answers.router_logits, weights, router.top_k).squeeze(1)
        grads = grads_of(losses.sum(), leaves)
    _compare_logps(asked, answers.logps.detach().cpu(), [rows for _, rows in runs], "where whole pairs share a row")
    apart = max(abs(ours - theirs) for ours, theirs in zip(losses.tolist(), own, strict=True))
    if not apart <= ROUTER_LOSS:
        raise Unfit(f"where pairs share a row, its router's auxiliary loss is {apart:.2g} off")
    _compare_grads(own_grads, by_layer(stack.layers, grads), "of its router's loss ")


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
        raise Unfit(f"a forward calls {layer_names(other)} {times} times, and the shortcuts of a batch take one call")
    if blocked := [name for name, of_layer in calls.items() if of_layer != [True]]:
        raise Unfit(f"a forward computes {layer_names(blocked)} without gradient")


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
