"""The sanity checks of a training: what cannot be if all is well. A failed check ends the run.

Something is trainable; at the first step the policy is the reference (log-ratios 0, the loss at zero margin); the first
optimizer step with a rate above 0 changes the weights; every loss and gradient norm is finite.
"""

import math
from typing import TYPE_CHECKING, Any

import torch

from factdpo.config.schema import Config, Loss, MethodName, Quantization
from factdpo.models.logps import Diverged
from factdpo.store.history import Row
from factdpo.training import losses
from factdpo.training.schedule import micro_batches

if TYPE_CHECKING:
    from factdpo.training.engine import Member

# The policy's first loss against the loss at zero margin, and its first rewards against 0: float32 differs by rounding,
# half precision by rounding of log-probs around 10 nats, 2^-8 relative; a quantised base rounds by what is in a batch.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.02}


class SanityCheckError(RuntimeError):
    """Training did something that it cannot do if all is well; the message gives the expected and the actual value."""


def check_first_step(member: "Member", row: Row, router_loss: float = 0.0) -> dict[str, Any]:
    """Check that at step 1 the policy is the reference: log-ratios of 0, and the loss at zero margin.

    For SFT, that the loss is the reference's own. `router_loss` is what a mixture of experts adds to the loss, weighted
    (Switch, arXiv 2101.03961 eq. 4). `row` is the first of the history. Returns what was compared, for the record;
    raises SanityCheckError.
    """
    cfg = member.cfg
    rounded = cfg.dpo.bf16 or cfg.model.quantization is not Quantization.none
    tolerance = TOLERANCE["bfloat16" if rounded else cfg.model.dtype.name]
    if cfg.method.name is MethodName.sft:
        expected, nats = _cross_entropy_of_reference(member), {}
    else:
        expected = _loss_at_zero_margin(cfg)
        nats = {side: row[f"rewards/{side}"] / cfg.dpo.beta for side in ("chosen", "rejected")}
    problems = [f"{side} differs by {value:.3g} nats" for side, value in nats.items() if abs(value) > tolerance]
    compared: dict[str, Any] = {}
    if expected is not None:
        expected += router_loss + cfg.dpo.retain_weight * row.get("retain_nats_per_token", 0.0)
        compared |= {"first_loss": row["loss"], "expected_first_loss": expected}
        if abs(row["loss"] - expected) > tolerance * max(1.0, abs(expected), cfg.dpo.beta):  # which multiplies nats
            problems.append(f"the loss is {row['loss']:.6g} and not {expected:.6g}")
    if problems:
        raise SanityCheckError(
            f"before its first step the model should be its own reference, but {'; '.join(problems)} "
            f"(tolerance {tolerance})"
        )
    return compared | {"first_step_is_the_reference": True}


def check_finite(row: Row) -> None:
    """Raises Diverged if the loss or the gradient norm of a row of the history is not finite."""
    for key in ("loss", "grad_norm"):
        if not math.isfinite(row.get(key, 0.0)):
            raise Diverged(f"{key} is {row[key]} at step {row['step']}")


def check_changed(changed: bool, grad_norm: float) -> None:
    """Raises SanityCheckError if the first step with a rate above 0 changed no weight; `grad_norm` is what it had."""
    if not changed:
        raise SanityCheckError(
            f"an optimizer step with a learning rate above 0 changed no weight (its gradient's norm is {grad_norm:.3g})"
        )


def check_end(passed: dict[str, Any]) -> None:
    """Raises SanityCheckError if a training ended without the two checks that every training passes."""
    for check in ("first_step_is_the_reference", "weights_changed_at_step"):
        if check not in passed:
            raise SanityCheckError(f"training ended without {check}: no optimizer step had a learning rate above 0")


def _cross_entropy_of_reference(member: "Member") -> float:
    """Nats per true token of the first optimizer step's pairs."""
    batches = next(micro_batches(len(member.pairs), member.cfg.dpo))
    rows = [row for batch in batches for row in batch]
    return -member.refs.chosen[rows].sum().item() / sum(len(member.pairs.chosen_ids[row]) for row in rows)


def _loss_at_zero_margin(cfg: Config) -> float | None:
    """The loss of a policy that equals its reference (ln 2 for sigmoid); None where it depends on the batch."""
    c = cfg.dpo
    if c.wpo or Loss.sft in c.loss:
        return None
    smooth = c.label_smoothing
    fixed = {  # losses that no formula of losses.py gives
        Loss.bco_pair: 2 * math.log(2),
        Loss.aot: math.log(2),
        Loss.aot_unpaired: math.log(2),
        Loss.sigmoid_norm: math.log(2),
        Loss.discopop: 0.5 * math.log(2) + 0.5,
        Loss.exo_pair: -math.log(2) - 0.5 * math.log(smooth * (1 - smooth)) if smooth else math.nan,
    }
    zero, one = torch.zeros(1), torch.ones(1, dtype=torch.long)

    def at_zero(loss: Loss) -> float:
        if loss in fixed:
            return fixed[loss]
        return losses.dpo_loss(loss.name, zero, zero, zero, zero, one, one, c.beta, smooth).item()

    return sum(
        weight * at_zero(loss) for loss, weight in zip(c.loss, c.loss_weights or [1.0] * len(c.loss), strict=True)
    )
