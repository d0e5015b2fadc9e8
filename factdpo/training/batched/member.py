"""A member of a cohort while it trains: its position in the data, the sums of its next history row, and its outcome."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor

from factdpo.config.schema import Config, MethodName
from factdpo.data.pairs import Pairs, join
from factdpo.models.logps import Diverged
from factdpo.store.history import Row
from factdpo.training import sanity_checks
from factdpo.training.batched.adapter import Adapter
from factdpo.training.batched.routing import Router
from factdpo.training.batched.stacked_lora import Stack
from factdpo.training.engine import Member, Trained
from factdpo.training.sanity_checks import SanityCheckError
from factdpo.training.schedule import (
    epochs_done,
    learning_rate,
    micro_batches,
    planned_steps,
    retained_rows,
    steps_per_epoch,
)  # fmt: skip
from factdpo.training.selection import Selection

# Metrics of a step, in this order: TRL's names, each a mean over the micro-batch's pairs or tokens, and its aux_loss.
METRICS: tuple[str, ...] = (
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy", "retain_nats_per_token", "aux_loss",
)  # fmt: skip
PREFERENCES = tuple(name for name in METRICS if name.startswith("rewards/") or name.endswith("/rejected"))
COUNTERS = ("tokens", "sums", "loss", "steps", "batches")  # fields of a MemberState that a checkpoint holds


def logged_metrics(cfg: Config, router: Router | None) -> list[str]:
    """Those of METRICS that a row of this run's history has."""
    left_out = PREFERENCES if cfg.method.name is MethodName.sft else ()
    if cfg.dpo.retain_weight == 0:
        left_out = *left_out, "retain_nats_per_token"
    if router is None:
        left_out = *left_out, "aux_loss"
    return [name for name in METRICS if name not in left_out]


def packed_pairs(cfg: Config, pairs: Pairs, retained: Pairs | None) -> Pairs:
    """What the steps of a run pack: its pairs, for SFT without the false answers, and then the retained rows."""
    if cfg.method.name is MethodName.sft:  # an answer's last token is not packed, so this one takes no room
        pairs = replace(pairs, rejected_ids=[chosen[:1] for chosen in pairs.chosen_ids])
    return join([pairs, retained]) if retained else pairs


@dataclass(eq=False)
class MemberState:
    member: Member
    pairs: Pairs  # of which a step packs some: the member's, then the rows that it retains
    refs: np.ndarray  # [2, n], float32: log-probs of the reference, in nats, of each pair that is trained on
    lengths: np.ndarray  # [2, n]: tokens of the answers in `pairs`; chosen, rejected
    lora_config: LoraConfig
    router: Router | None  # whose loss is added
    parameters: int
    total_steps: int
    steps_per_epoch: int
    micro_batches: Iterator[list[list[int]]]  # of its next steps
    retained_rows: Iterator[list[int]]  # of `pairs`, of its next steps; none where nothing is retained
    dropout_generator: torch.Generator | None
    tokens: int = 0  # seen so far, padding apart, as TRL counts
    sums: list[float] = field(default_factory=lambda: [0.0] * len(METRICS))  # since the last row, over micro-batches
    loss: float = 0.0  # since the last row, over steps
    steps: int = 0  # since the last row
    batches: int = 0  # micro-batches since the last row
    checks: dict[str, Any] = field(default_factory=dict)  # results of the sanity checks
    rows: list[Row] = field(default_factory=list)  # of its history
    selection: Selection = field(default_factory=Selection)
    best: Float[Tensor, " P"] | None = None  # the weights of selection.best_step, where these may be kept
    outcome: Trained | Exception | None = None  # None while it trains

    @classmethod
    def fresh(cls, member: Member, adapter: Adapter, stack: Stack) -> "MemberState":
        """A member before its first step."""
        cfg, pairs = member.cfg, len(member.pairs)
        packed = packed_pairs(cfg, member.pairs, member.retained)
        return cls(
            member,
            packed,
            torch.stack([member.refs.chosen, member.refs.rejected]).numpy(),
            np.array([[len(ids) for ids in answers] for answers in (packed.chosen_ids, packed.rejected_ids)]),
            adapter.config,
            stack.router,
            adapter.parameters,
            planned_steps(pairs, cfg.dpo),
            steps_per_epoch(pairs, cfg.dpo),
            micro_batches(pairs, cfg.dpo),
            retained_rows(pairs, len(member.retained or ()), cfg.dpo),
            torch.Generator(stack.base.device).manual_seed(cfg.dpo.seed) if cfg.lora.dropout > 0 else None,
        )

    def rate(self, step: int) -> float:
        """The learning rate of an optimizer step, counted from 1."""
        return learning_rate(step - 1, self.total_steps, self.member.cfg.dpo)

    def must_change(self, step: int) -> bool:
        """Whether this step must be checked for having changed a weight: none with a rate above 0 was before it."""
        return "weights_changed_at_step" not in self.checks and self.rate(step) > 0

    def is_scored_at(self, step: int) -> bool:
        """Whether eval.every asks for scores after this step."""
        every = self.member.cfg.eval.every
        if every == "epoch":
            return step % self.steps_per_epoch == 0 or step == self.total_steps
        return every != "never" and step % int(every) == 0

    def ends_at(self, step: int) -> bool:
        """Whether this step is its last, as planned or since it got no better."""
        return step == self.total_steps or self.selection.stops(self.member.cfg)

    def epochs(self, step: int) -> float:
        """Passes over its pairs after so many steps."""
        return epochs_done(step, len(self.member.pairs), self.member.cfg.dpo)

    def count_step(self, step: int, values: list[float], batches: int, tokens: int, seconds: float) -> list[Row]:
        """Add a step's metrics; returns the row of the history that is due, if any.

        `values` are METRICS, the loss, the gradient norm and whether weights changed. A failed check sets `outcome`.
        """
        *sums, loss, norm, changed = values
        self.tokens, self.batches, self.steps = self.tokens + tokens, self.batches + batches, self.steps + 1
        self.sums, self.loss = [a + b for a, b in zip(self.sums, sums, strict=True)], self.loss + loss
        row = self._due_row(step, norm, seconds)
        try:
            self._check(step, bool(changed), norm, row)
        except (Diverged, SanityCheckError) as error:
            self.outcome = error
        return row

    def _due_row(self, step: int, norm: float, seconds: float) -> list[Row]:
        if not (step == 1 or step % self.member.cfg.track.log_every == 0 or step == self.total_steps):
            return []
        row: Row = {"step": step, "loss": self.loss / self.steps, "grad_norm": norm, "learning_rate": self.rate(step)}
        means = dict(zip(METRICS, (total / self.batches for total in self.sums), strict=True))
        row |= {name: means[name] for name in logged_metrics(self.member.cfg, self.router)}
        row |= {"num_tokens": float(self.tokens), "epoch": self.epochs(step), "time_seconds": seconds}
        self.sums, self.loss, self.steps, self.batches = [0.0] * len(METRICS), 0.0, 0, 0
        return [row]

    def _check(self, step: int, changed: bool, norm: float, due: list[Row]) -> None:
        """Run the sanity checks of a step; raises Diverged or SanityCheckError."""
        for row in due:
            sanity_checks.check_finite(row)
        if self.must_change(step):
            sanity_checks.check_finite({"step": step, "grad_norm": norm})
            sanity_checks.check_changed(changed, norm)
            self.checks["weights_changed_at_step"] = step
        for row in due:
            if step == 1:
                router_loss = self.router.coefficient * row["aux_loss"] if self.router else 0.0
                self.checks |= sanity_checks.check_first_step(self.member, row, router_loss)

    def log(self, rows: list[Row]) -> None:
        """Hand the member its new rows, once each; if it cannot take them, its run ends, and no other."""
        new = rows[max(0, self.member.recorded - len(self.rows)) :]
        self.rows += rows
        if not new:
            return
        try:
            self.member.record(*new)
        except Exception as error:
            self.outcome = self.outcome or error
        self.member.recorded += len(new)

    def go_on(self) -> None:
        """Ask whether it goes on after its last row, its scores; if not, that is its outcome."""
        try:
            if self.outcome is None:
                self.member.go_on(self.rows[-1])
        except Exception as error:
            self.outcome = error

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it, as JSON's types."""
        counters = {name: getattr(self, name) for name in COUNTERS}
        return counters | {"canaries": self.checks, "selection": self.selection.state(), "rows": self.rows}

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Continue after `step` steps, as `state` describes; its rows are logged again."""
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.checks = state["canaries"]
        self.selection = Selection(**state.get("selection", {}))
        pairs, dpo = len(self.member.pairs), self.member.cfg.dpo
        self.micro_batches = micro_batches(pairs, dpo, step)
        self.retained_rows = retained_rows(pairs, len(self.member.retained or ()), dpo, step)
        self.log(state["rows"])
