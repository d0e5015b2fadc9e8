"""The auxiliary loss of a mixture of experts' routers, which TRL adds to a run's own, in a packed forward.

It is a number of a whole micro-batch in TRL's layout: every answer in a row of its own, with its prompt and its last
token. So a step packs answers whole, and a prompt's tokens, which are there once, count for each answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from factdpo.data.pairs import Pairs
from factdpo.models.base import Base
from factdpo.training.batched.packing import Packed

LEFT_OUT = "router_aux_loss_coef=0 in the model's config.json leaves it out"
Logits = Float[Tensor, "all_tokens experts"]  # of one router; the tokens of all runs


class Router(NamedTuple):
    """What a base's config says of its routers."""

    coefficient: float  # of the auxiliary loss
    top_k: int  # experts that a token is sent to


def router_of(base: Base) -> Router | None:
    """The routers whose auxiliary loss TRL adds; None where it adds none."""
    text = base.model.config.get_text_config()
    coefficient = getattr(text, "router_aux_loss_coef", 0.0)
    if not (hasattr(text, "output_router_logits") and coefficient):
        return None
    return Router(coefficient, getattr(text, "num_experts_per_tok", 0))


@contextmanager
def router_logits(model: Any) -> Iterator[list[Logits]]:
    """A list that the model's next forward fills, with every router's logits.

    The inner model is asked for them. The outer one would compute the loss by itself, and take the mask of a packed
    forward for one of whole rows.
    """
    found: list[Logits] = []

    def ask(_inner: nn.Module, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return given, named | {"output_router_logits": True}

    def keep(_inner: nn.Module, _given: Any, _named: Any, output: Any) -> None:
        found.extend(output.router_logits)

    inner = model.base_model
    hooks = [
        inner.register_forward_pre_hook(ask, with_kwargs=True),
        inner.register_forward_hook(keep, with_kwargs=True),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def token_weights(
    packed: Packed, runs: list[tuple[Pairs, list[list[int]], int]]
) -> Float[Tensor, "R micro_batches tokens"]:
    """How often TRL has each token of these runs, packed whole, in each micro-batch; on the CPU.

    `runs`: a run's pairs, the rows of each micro-batch in the order in which they are packed, and the answers of a pair
    that TRL takes: 2, or 1 for SFT. What is packed after them, as a retained text, counts for nothing.
    """
    numbers = packed.token_number.view(len(runs), -1)
    weights = torch.zeros(len(runs), max(len(batches) for _, batches, _ in runs), numbers.shape[1])
    for r, (pairs, batches, answers) in enumerate(runs):
        of_number = torch.zeros(weights.shape[1], int(numbers[r].max()) + 1)
        start = 0
        for b, batch in enumerate(batches):
            for row in batch:
                parts = pairs.prompt_ids[row], pairs.chosen_ids[row], pairs.rejected_ids[row]
                for ids, weight in zip(parts, (answers, 1, answers - 1), strict=True):
                    of_number[b, start : start + len(ids)] = weight
                    start += len(ids)
        weights[r] = of_number[:, numbers[r]]
    return weights


def auxiliary_losses(
    logits: list[Logits], weights: Float[Tensor, "R micro_batches tokens"], top_k: int
) -> Float[Tensor, "R micro_batches"]:
    """Each run's auxiliary loss in each of its micro-batches; 0 in those that it does not have.

    Switch Transformer, 2101.03961 eq. 4 to 6, for `top_k` experts and over all layers at once, as transformers'
    `load_balancing_loss_func`: the number of experts times the sum, over them, of the share of tokens that an expert
    gets and the mean probability that it is given.
    """
    shares, means = [], []  # of each layer [R, micro_batches, experts]
    for of_layer in logits:
        probabilities = of_layer.softmax(-1).view(weights.shape[0], -1, of_layer.shape[-1])
        taken = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(top_k).indices, 1.0)
        shares.append(weights @ taken.float())
        means.append(weights @ probabilities.float())
    total = (len(logits) * weights.sum(-1, keepdim=True)).clamp(min=1.0)
    return logits[0].shape[-1] * (sum(shares) / total * (sum(means) / total)).sum(-1)


def mean_over_batches(
    losses: Float[Tensor, "R micro_batches"], weights: Float[Tensor, "R micro_batches tokens"]
) -> Float[Tensor, " R"]:
    """Each run's mean over the micro-batches that it has."""
    return losses.sum(-1) / weights.any(-1).sum(-1)
