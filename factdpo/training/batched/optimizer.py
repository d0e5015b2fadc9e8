"""The optimizer of a cohort: one AdamW over the weights of all runs, with each run's own rate, clipping and decay."""

from collections.abc import Iterator
from itertools import cycle

import torch
from jaxtyping import Float
from torch import Tensor

from factdpo.config.schema import DpoConfig
from factdpo.training.batched.stacked_lora import Stack


def column(values: list[float], device: torch.device) -> Float[Tensor, "R 1"]:
    """One value per run, to broadcast over a run's weights or pairs."""
    return torch.tensor(values, device=device).view(-1, 1)


class StackedAdamW:
    """AdamW for the masters [R, P] of a stack; beta1, beta2 and epsilon are the same for all runs of a cohort.

    AdamW writes its step at rate 1 into `update`, which each run then adds at its own rate.
    """

    def __init__(self, stack: Stack, dpo: list[DpoConfig], moments: Float[Tensor, "2 R P"], steps: int):
        """`moments` are AdamW's first and second after `steps` steps. The stack computes with `weights` from now on."""
        device = stack.base.device
        self._stack = stack
        self.weights = {
            name: (a.detach().requires_grad_(), b.detach().requires_grad_())
            for name, (a, b) in stack.views(stack.masters).items()
        }
        stack.use(self.weights, stack.scales)
        self._leaves = [weight for both in self.weights.values() for weight in both]
        self._grads, self._update = torch.zeros_like(stack.masters), torch.zeros_like(stack.masters)
        self._grad_views = [view for both in stack.views(self._grads).values() for view in both]
        self._update.grad = self._grads
        # lr = weight_decay = 1 makes AdamW zero the parameter before each step, so `update` holds exactly this step's
        # delta. The runs' own decay is applied to the masters.
        self._adamw = torch.optim.AdamW(
            [self._update], lr=1.0, betas=(dpo[0].adam_beta1, dpo[0].adam_beta2), eps=dpo[0].adam_epsilon,
            weight_decay=1.0, fused=True,
        )  # fmt: skip
        self._adamw.state[self._update] = {
            "step": torch.tensor(float(steps), device=device), "exp_avg": moments[0], "exp_avg_sq": moments[1],
        }  # fmt: skip
        self._clip = column([c.max_grad_norm or torch.inf for c in dpo], device)
        self._decay = column([c.weight_decay for c in dpo], device) if any(c.weight_decay for c in dpo) else None

    def step(self, losses: Float[Tensor, " R"], rates: Float[Tensor, "R 1"]) -> Float[Tensor, "R 1"]:
        """Update the masters; returns each run's gradient norm before clipping. Nothing in it waits for the device."""
        grads = torch.autograd.grad(losses.sum(), self._leaves)
        masters = self._stack.masters
        with torch.no_grad():
            for view, grad in zip(self._grad_views, grads, strict=True):
                view.copy_(grad)
            for view, trained in self._masked(self._grad_views):
                view.mul_(trained)
            norms = torch.linalg.vector_norm(self._grads, dim=1, keepdim=True)
            self._grads.mul_((self._clip / (norms + 1e-6)).clamp(max=1.0))  # as torch.nn.utils.clip_grad_norm_
            if masters.is_cuda:  # AdamW refuses to be captured without it, and warns of it elsewhere
                self._adamw.param_groups[0]["capturable"] = torch.cuda.is_current_stream_capturing()
            self._adamw.step()
            if self._decay is not None and not self._stack.frozen:
                masters.mul_(1 - rates * self._decay)
            elif self._decay is not None:
                for view, trained in self._masked(self._leaves):
                    view.mul_(1 - (rates * self._decay)[:, :, None] * trained)
            masters.addcmul_(self._update, rates)
        return norms

    def _masked(self, views: list[Tensor]) -> Iterator[tuple[Tensor, Float[Tensor, "R _ _"]]]:
        """These views, as `_leaves` has them, each with 0 for the inner rows that stay; none where all are trained."""
        if self._stack.frozen:
            rows = self._stack.trained
            yield from zip(views, cycle([rows[:, :, None], rows[:, None, :]]), strict=False)  # of A, and of B

    def moments(self) -> Float[Tensor, "2 R P"]:
        """AdamW's first and second moment of every weight."""
        state = self._adamw.state[self._update]
        return torch.stack([state["exp_avg"], state["exp_avg_sq"]])
