"""A run of a batch: what it learns from, what is told of it while it trains, and what ends it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig

from factdpo.store.history import Row
from factdpo.training import sanity_checks as canaries
from factdpo.training.engine import Member, Trained
from factdpo.training.schedule import epochs_done, learning_rate

# Per-pair metrics of a step, in this order: TRL's names, each a mean over the micro-batch's pairs or tokens.
METRICS = (
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy",
)  # fmt: skip
KEPT = ("tokens", "sums", "loss", "steps", "batches", "canaries")  # of a Run, in a checkpoint


@dataclass(eq=False)
class Run:
    """A member while it trains."""

    member: Member
    config: LoraConfig
    parameters: int
    total: int  # optimizer steps
    order: Iterator[list[list[int]]]
    dropout: torch.Generator | None
    epoch_steps: int
    tokens: int = 0  # seen so far, padding apart, as TRL counts
    sums: list[float] = field(default_factory=lambda: [0.0] * len(METRICS))  # since the last row, over micro-batches
    loss: float = 0.0  # since the last row, over steps
    steps: int = 0  # since the last row
    batches: int = 0  # micro-batches since the last row
    canaries: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    ending: Trained | Exception | None = None

    def scored_at(self, step: int) -> bool:
        every = self.member.cfg.eval.every
        if every == "epoch":
            return step % self.epoch_steps == 0 or step == self.total
        return every != "never" and step % int(every) == 0

    def row(self, step: int, norm: float, seconds: float) -> list[Row]:
        """The row of the history that is due at this step, if one is; `norm` is the gradient's in this step."""
        cfg = self.member.cfg
        if not (step == 1 or step % cfg.track.log_every == 0 or step == self.total):
            return []
        row: Row = {"step": step, "loss": self.loss / self.steps, "grad_norm": norm}
        row["learning_rate"] = learning_rate(step - 1, self.total, cfg.dpo)
        row |= {name: total / self.batches for name, total in zip(METRICS, self.sums, strict=True)}
        row |= {"num_tokens": float(self.tokens), "epoch": self.epochs(step), "time_seconds": seconds}
        self.sums, self.loss, self.steps, self.batches = [0.0] * len(METRICS), 0.0, 0, 0
        return [row]

    def epochs(self, step: int) -> float:
        """Passes over its pairs after so many steps."""
        return epochs_done(step, len(self.member.pairs), self.member.cfg.dpo)

    def check(self, step: int, changed: bool, row: list[Row]) -> None:
        """The canaries; raises what ends the run."""
        rate = learning_rate(step - 1, self.total, self.member.cfg.dpo)
        if rate > 0 and "weights_changed_at_step" not in self.canaries:
            if not changed:
                raise canaries.SanityCheckError(canaries.NOTHING_CHANGED)
            self.canaries["weights_changed_at_step"] = step
        for logged in row:
            canaries.check_finite(logged)
            if step == 1:
                self.canaries |= canaries.check_first_step(self.member.cfg, logged)

    def tell(self, rows: list[Row]) -> None:
        """Hand on those rows that the member has not got yet; if it cannot take them, the run ends, and no other."""
        new = rows[max(0, self.member.recorded - len(self.rows)) :]
        self.rows += rows
        if not new:
            return
        try:
            self.member.record(*new)
        except Exception as error:
            self.ending = self.ending or error
        self.member.recorded += len(new)

    def state(self) -> dict[str, Any]:
        """What of it a checkpoint keeps, as JSON's types."""
        return {name: getattr(self, name) for name in KEPT} | {"rows": self.rows}

    def restore(self, state: dict[str, Any]) -> None:
        for name in KEPT:
            setattr(self, name, state[name])
        self.tell(state["rows"])
