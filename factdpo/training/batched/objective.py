"""The losses and metrics of the runs of a cohort, pair by pair, each run under its own dpo config."""

import torch
from jaxtyping import Float
from torch import Tensor

from factdpo.config.schema import Config, MethodName
from factdpo.training.batched.inputs import PairTables
from factdpo.training.batched.optimizer import column
from factdpo.training.batched.stacked_lora import Answers
from factdpo.training.losses import dpo_loss


class Objective:
    def __init__(self, cfgs: list[Config], device: torch.device):
        self._beta = column([c.dpo.beta for c in cfgs], device)
        self._smoothing = column([c.dpo.label_smoothing for c in cfgs], device)
        self._both = column([float(c.method.name is not MethodName.sft) for c in cfgs], device)
        retain = [c.dpo.retain_weight for c in cfgs]
        self._retain = column(retain, device) if any(retain) else None
        self._losses = sorted({loss for c in cfgs for loss in c.losses}, key=lambda loss: loss.name)
        weights = [dict(zip(c.losses, c.dpo.loss_weights or [1.0] * len(c.losses), strict=True)) for c in cfgs]
        self._weights = [column([of_run.get(loss, 0.0) for of_run in weights], device) for loss in self._losses]

    def losses(self, logps: Float[Tensor, "2 R B"], pairs: PairTables) -> Float[Tensor, " R"]:
        """Each run's loss of a step, but for its routers'; every loss that any run has is computed for all."""
        (chosen, rejected), (ref_chosen, ref_rejected), (n, m) = logps, pairs.refs, pairs.lengths
        total = torch.zeros_like(chosen)
        for loss, weight in zip(self._losses, self._weights, strict=True):
            of_pair = dpo_loss(
                loss.name, chosen, rejected, ref_chosen, ref_rejected, n, m, self._beta, self._smoothing,
                pairs.mean_chosen_length,
            )  # fmt: skip
            total = total + torch.where(weight != 0, weight * of_pair, 0.0)
        losses = (total * pairs.loss_weights).sum(1)
        if self._retain is not None:  # nats per token of the neutral text
            losses = losses - (self._retain * pairs.retain_weights * chosen).sum(1)
        return losses

    @torch.no_grad()
    def metrics(self, answers: Answers, pairs: PairTables) -> Float[Tensor, "metrics R"]:
        """Each run's METRICS but for aux_loss, summed over its micro-batches.

        Rewards are beta * log(pi / pi_ref), DPO eq. 5.
        """
        rewards = self._beta * (answers.logps - pairs.refs)
        of_pairs = torch.stack(
            [
                *rewards, (rewards[0] > rewards[1]).float(), rewards[0] - rewards[1], *answers.logps,
                *answers.mean_logit, answers.entropy[0] + self._both * answers.entropy[1], answers.greedy[0],
                -answers.logps[0],
            ]
        )  # fmt: skip
        return (of_pairs * pairs.metric_weights).sum(-1)
