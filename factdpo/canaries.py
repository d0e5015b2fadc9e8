"""The canaries of a training: each of them ends the run; and the callback that runs them in the Hugging Face Trainer.

Something is trainable; at the first step the policy is the reference (log-ratios 0, the loss of no margin); the first
optimizer step with a rate above 0 changes the weights; every loss and gradient norm is finite.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from factdpo import dpo
from factdpo.config import Config, Loss
from factdpo.logps import Diverged

Row = dict[str, Any]

# The policy's first loss against the loss at zero margin, and its first rewards against 0: float32 differs by rounding,
# half precision by rounding of log-probs around 10 nats, 2^-8 relative.
CANARY_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.02}


NOTHING_CHANGED = "an optimizer step with a learning rate above 0 changed no weight"


class CanaryError(RuntimeError):
    """Training did something that it cannot do if all is well; the message says what was expected and found."""


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Score in the weights' own dtype: with bf16, accelerate has wrapped `forward` in autocast for the training."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped


class Watch(TrainerCallback):
    """Hands on every row of the history, runs the canary checks, and evaluates as eval.every says."""

    def __init__(
        self,
        cfg: Config,
        trainer: Trainer,
        record: Callable[[Row], None],
        evaluate: Callable[[nn.Module], Row],
        started: float,
    ):
        self.cfg, self.trainer, self.record, self.evaluate, self.started = cfg, trainer, record, evaluate, started
        self.canaries: dict[str, Any] = {}
        self.parameters = [p for p in trainer.model.parameters() if p.requires_grad]  # type: ignore[union-attr]
        self.trainable = sum(p.numel() for p in self.parameters)
        if self.trainable == 0:
            raise CanaryError(f"lora.target_modules={cfg.lora.target_modules}: nothing is trainable")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "weights_changed_at_step" not in self.canaries and kwargs["optimizer"].param_groups[0]["lr"] > 0:
            self.before = [p.detach().clone() for p in self.parameters]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (before := self.__dict__.pop("before", None)) is None:
            return
        if all(torch.equal(old, new) for old, new in zip(before, self.parameters, strict=True)):
            raise CanaryError(NOTHING_CHANGED)
        self.canaries["weights_changed_at_step"] = state.global_step + 1

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return  # the trainer's closing summary
        row = {"step": state.global_step, **logs, "time_seconds": time.monotonic() - self.started}
        self.record(row)
        check_finite(row)
        if state.global_step == 1:  # logged whatever log_every is
            self.canaries |= check_first_step(self.cfg, row)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_log = True  # the last steps, when log_every does not divide their number
        every = self.cfg.eval.every
        if every.isdigit() and state.global_step % int(every) == 0:
            self._evaluate(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.cfg.eval.every == "epoch":
            self._evaluate(state)

    def _evaluate(self, state: Any) -> None:
        model: Any = self.trainer.model
        with without_autocast(model):
            scores = self.evaluate(model)
        self.record(
            {"step": state.global_step, "epoch": state.epoch, **scores, "time_seconds": time.monotonic() - self.started}
        )


def check_first_step(cfg: Config, row: Row) -> dict[str, Any]:
    """At step 1 the policy is the reference: its log-ratios are 0 and the loss is that of no margin; what was found.

    `row` is the first of the history. Raises CanaryError.
    """
    tolerance = CANARY_TOLERANCE["bfloat16" if cfg.dpo.bf16 else cfg.model.dtype.name]
    expected = _loss_at_zero_margin(cfg)
    nats = {side: row[f"rewards/{side}"] / cfg.dpo.beta for side in ("chosen", "rejected")}
    wrong = [f"{side} differs by {value:.3g} nats" for side, value in nats.items() if abs(value) > tolerance]
    found: dict[str, Any] = {}
    if expected is not None:
        found |= {"first_loss": row["loss"], "expected_first_loss": expected}
        if abs(row["loss"] - expected) > tolerance * max(1.0, abs(expected)):
            wrong.append(f"the loss is {row['loss']:.6g} and not {expected:.6g}")
    if wrong:
        raise CanaryError(
            f"before its first step the model should be its own reference, but {'; '.join(wrong)} "
            f"(tolerance {tolerance})"
        )
    return found | {"first_step_is_the_reference": True}


def check_finite(row: Row) -> None:
    """Raises Diverged if the loss or the gradient norm of a row of the history is not finite."""
    for key in ("loss", "grad_norm"):
        if not math.isfinite(row.get(key, 0.0)):
            raise Diverged(f"{key} is {row[key]} at step {row['step']}")


def check_end(canaries: dict[str, Any]) -> None:
    """Raises CanaryError if a training ended without the two checks that every training passes."""
    for canary in ("first_step_is_the_reference", "weights_changed_at_step"):
        if canary not in canaries:
            raise CanaryError(f"training ended without {canary}: no optimizer step had a learning rate above 0")


def _loss_at_zero_margin(cfg: Config) -> float | None:
    """The loss of a policy that equals its reference (ln 2 for sigmoid); None where it depends on the batch."""
    c = cfg.dpo
    if c.wpo or Loss.sft in c.loss:
        return None
    smooth = c.label_smoothing
    known = {
        Loss.bco_pair: 2 * math.log(2),
        Loss.aot: math.log(2),
        Loss.aot_unpaired: math.log(2),
        Loss.sigmoid_norm: math.log(2),
        Loss.discopop: 0.5 * math.log(2) + 0.5,
        Loss.exo_pair: -math.log(2) - 0.5 * math.log(smooth * (1 - smooth)) if smooth else math.nan,
    }
    zero, one = torch.zeros(1), torch.ones(1, dtype=torch.long)

    def at_zero(loss: Loss) -> float:
        if loss in known:
            return known[loss]
        return dpo.dpo_loss(loss.name, zero, zero, zero, zero, one, one, c.beta, smooth).item()

    return sum(
        weight * at_zero(loss) for loss, weight in zip(c.loss, c.loss_weights or [1.0] * len(c.loss), strict=True)
    )
