"""A cohort: R runs that train together, step by step, until each has ended.

objective.py and optimizer.py compute the numbers of a step on the device, from what inputs.py prepares. Here they are
fetched and logged, members are scored, and those that ended leave.
"""

import time
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from factdpo.config.schema import Keep, MethodName
from factdpo.data.pairs import Pairs, join
from factdpo.models.logps import Diverged
from factdpo.models.scoring import PairLogps, check_finite
from factdpo.training import adapters, sanity_checks
from factdpo.training.batched.adapter import Adapter
from factdpo.training.batched.capacity import tokens_to_score
from factdpo.training.batched.checkpoints import Checkpoint
from factdpo.training.batched.cuda_graphs import StepGraphs
from factdpo.training.batched.inputs import MicroBatches, StepInputs, step_inputs
from factdpo.training.batched.member import MemberState, Row
from factdpo.training.batched.objective import Objective
from factdpo.training.batched.optimizer import StackedAdamW
from factdpo.training.batched.routing import auxiliary_losses, mean_over_batches
from factdpo.training.batched.stacked_lora import Stack
from factdpo.training.engine import Member, Trained
from factdpo.training.sanity_checks import SanityCheckError

FETCH_STEPS = 25  # after so many steps at the latest metrics are fetched, and runs that diverged leave
FETCH_SECONDS = 1.0  # after so long at the latest rows are logged, for whoever watches


class _PendingStep(NamedTuple):
    """A step whose metrics are still on the device."""

    step: int
    values: Float[Tensor, "metrics R"]  # METRICS, the loss, the gradient norm, whether the weights changed
    batches: list[int]  # micro-batches of each run
    tokens: list[int]  # of each run, as TRL counts


class Cohort:
    """R runs that train together. `active` are those that still train, in the order of the stack."""

    def __init__(self, stack: Stack, members: list[Member], fresh: list[Adapter], checkpoint: Checkpoint | None):
        self.stack, self.device = stack, stack.base.device
        self.size = len(members)  # when it began
        self.save_every = members[0].cfg.engine.save_every
        self.steps = 0  # optimizer steps made
        self._tokens_to_score = tokens_to_score(members[0].cfg, stack.base)
        self._started = self._fetched = time.monotonic()
        self._pending: list[_PendingStep] = []
        self._graphs = StepGraphs(self.train_step, self.device) if self.device.type == "cuda" else None
        self.active = [
            MemberState.fresh(member, adapter, stack) for member, adapter in zip(members, fresh, strict=True)
        ]
        no_moments = torch.zeros(2, *stack.masters.shape, device=self.device)
        self._continue_with(self.active, self._restore(checkpoint) if checkpoint else no_moments)

    def _continue_with(self, active: list[MemberState], moments: Float[Tensor, "2 R P"]) -> None:
        self.active = active
        cfgs = [state.member.cfg for state in active]
        self._objective = Objective(cfgs, self.device)
        self._optimizer = StackedAdamW(self.stack, [cfg.dpo for cfg in cfgs], moments, self.steps)
        if self._graphs:
            self._graphs.forget()

    # ------------------------------------------------------------------------------------------------------ a step

    def step(self) -> None:
        """Make one optimizer step of every active run; nothing in it waits for the device, but to capture a graph."""
        step = self.steps + 1
        taken = [next(state.micro_batches) for state in self.active]
        inputs = step_inputs(self.active, taken, [state.rate(step) for state in self.active], self.stack)
        before = self.stack.masters.clone() if any(state.must_change(step) for state in self.active) else None
        values = self._graphs(inputs) if self._graphs else self.train_step(inputs)
        if before is None:
            changed = torch.ones(1, len(self.active), device=self.device)
        else:
            changed = (self.stack.masters != before).any(dim=1, keepdim=True).T.float()
        self.steps = step
        tokens = [_tokens(state.member, batches) for state, batches in zip(self.active, taken, strict=True)]
        self._pending.append(_PendingStep(step, torch.cat([values, changed]), [len(b) for b in taken], tokens))

    def train_step(self, inputs: StepInputs) -> Float[Tensor, "metrics R"]:
        """Forward, backward and update, on the device alone; returns METRICS, each run's loss and its gradient norm."""
        for name, layer in self.stack.layers.items():
            layer.dropout_mask = inputs.dropout_masks.get(name)
        router, weights = self.stack.router, inputs.router_weights
        answers = self.stack.answers(inputs.packed, with_routers=router is not None)
        losses = self._objective.losses(answers.logps, inputs.pairs)
        auxiliary = torch.zeros_like(losses)
        if router is not None and weights is not None:
            of_batches = auxiliary_losses(answers.router_logits, weights, router.top_k)
            losses = losses + router.coefficient * mean_over_batches(of_batches, weights)
            auxiliary = of_batches.detach().sum(1)
        norms = self._optimizer.step(losses, inputs.rates)
        metrics = self._objective.metrics(answers, inputs.pairs)
        return torch.cat([metrics, auxiliary[None], losses.detach()[None], norms.T])

    # -------------------------------------------------------------------------------------- what comes of the steps

    def collect(self, flush: bool) -> list[MemberState]:
        """Log rows, score the members that are due, and remove and return those that ended.

        Waiting for the device costs time, so after most steps nothing happens; with `flush`, all rows are logged.
        """
        due = [state for state in self.active if state.is_scored_at(self.steps)]
        regular = self.steps % FETCH_STEPS == 0 or self.steps % self.save_every == 0
        at_end = any(state.total_steps == self.steps for state in self.active)
        must_fetch = due or at_end or self.steps == 1 or regular or flush
        if must_fetch or time.monotonic() - self._fetched >= FETCH_SECONDS:
            self._fetch()
        if not must_fetch:
            return []
        self._score([state for state in due if state.outcome is None])
        for state in due:  # when all have their scores
            state.go_on()
        self._finish([state for state in self.active if state.outcome is None and state.ends_at(self.steps)])
        return self._remove_ended()

    def _fetch(self) -> None:
        """Fetch metrics from the device and log the rows that are due; a failed check ends its run."""
        self._fetched = time.monotonic()
        if not self._pending:
            return
        fetched = torch.stack([pending.values.T for pending in self._pending]).cpu().tolist()  # [steps, R, metrics]
        rows: list[list[Row]] = [[] for _ in self.active]
        for (step, _, batches, tokens), values in zip(self._pending, fetched, strict=True):
            for r, state in enumerate(self.active):
                if state.outcome is None:
                    rows[r] += state.count_step(step, values[r], batches[r], tokens[r], self._seconds())
        self._pending = []
        for state, of_member in zip(self.active, rows, strict=True):
            state.log(of_member)

    def _score(self, states: list[MemberState]) -> None:
        """Log a point of these members' curves, all scored in shared forwards."""
        if not states:
            return
        whole = [join(list(state.member.curves.values())) for state in states]
        for state, pairs, logps in zip(states, whole, self._logps(states, whole), strict=True):
            try:
                check_finite(pairs, logps)
            except Diverged as error:
                state.outcome = error
                continue
            curves = state.member.curves
            parts = logps.split([len(pairs) for pairs in curves.values()])
            row: Row = {"step": self.steps, "epoch": state.epochs(self.steps)}
            row |= state.member.describe(dict(zip(curves, parts, strict=True)))
            if state.selection.judge(state.member.cfg, row) and state.member.cfg.eval.keep is Keep.best:
                state.best = self.stack.masters[self.active.index(state)].clone().cpu()
            state.log([row | {"time_seconds": self._seconds()}])

    def _finish(self, states: list[MemberState]) -> None:
        """Set the outcome of members after their last step: weights, fit.json, and scores that a reload must repeat."""
        if not states:
            return
        for state in states:
            if state.best is not None:
                self.stack.masters[self.active.index(state)] = state.best.to(self.device)
        seconds, peak = self._seconds(), adapters.peak_gib(self.device)
        probes = [state.member.pairs.take(adapters.PROBE_PAIRS) for state in states]
        for state, pairs, probe in zip(states, probes, self._logps(states, probes), strict=True):
            fit = {
                **state.selection.facts(state.member.cfg, self.steps),
                "trainable_parameters": state.parameters,
                "train_seconds": seconds,
                "peak_gib": peak,
                "trained_together": self.size,
                "canaries": state.checks,
            }
            try:
                sanity_checks.check_end(state.checks)
                adapter = self.stack.adapter(self.active.index(state), state.lora_config)
                state.outcome = Trained(adapter, fit, check_finite(pairs, probe))
            except (Diverged, SanityCheckError) as error:
                state.outcome = error

    def _logps(self, states: list[MemberState], pairs: list[Pairs]) -> list[PairLogps]:
        """Each member's scores of its own pairs, without dropout."""
        stack, numbers = self.stack, [self.active.index(state) for state in states]
        for layer in stack.layers.values():
            layer.dropout_mask = None
        if len(numbers) < len(self.active):
            stack.use(stack.views(stack.masters[numbers]), stack.scales[numbers])
        try:
            return stack.logps(pairs, self._tokens_to_score)
        finally:
            stack.use(self._optimizer.weights, stack.scales)

    def _remove_ended(self) -> list[MemberState]:
        ended = [state for state in self.active if state.outcome is not None]
        remaining = [number for number, state in enumerate(self.active) if state.outcome is None]
        if not remaining:
            self.active = []
        elif ended:
            moments = self._optimizer.moments()[:, remaining].contiguous()
            self.stack.keep(remaining)
            self._continue_with([self.active[number] for number in remaining], moments)
        return ended

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    # --------------------------------------------------------------------------------------------------- checkpoint

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a checkpoint holds: everything that the next step depends on, and the histories."""
        tensors = {"masters": self.stack.masters, "moments": self._optimizer.moments()}
        generators = {f"dropout.{number}": state.dropout_generator for number, state in enumerate(self.active)}
        tensors |= {f"best.{number}": state.best for number, state in enumerate(self.active) if state.best is not None}
        tensors |= {name: generator.get_state() for name, generator in generators.items() if generator is not None}
        state = {
            "keys": [state.member.key for state in self.active],
            "step": self.steps,
            "rank": self.stack.rank,
            "together": self.size,
            "seconds": self._seconds(),
            "runs": [state.state() for state in self.active],
        }
        return state, tensors

    def _restore(self, checkpoint: Checkpoint) -> Float[Tensor, "2 R P"]:
        """Set masters and members as in a checkpoint, which may hold others besides; returns AdamW's moments."""
        saved, tensors = checkpoint.state, checkpoint.tensors()
        self.steps, self.size = saved["step"], saved["together"]
        self._started -= saved["seconds"]
        numbers = [saved["keys"].index(state.member.key) for state in self.active]
        self.stack.masters.copy_(tensors["masters"][numbers])
        for number, state in zip(numbers, self.active, strict=True):
            if state.dropout_generator is not None:
                state.dropout_generator.set_state(tensors[f"dropout.{number}"])
            state.best = tensors.get(f"best.{number}")
            state.restore(saved["runs"][number], self.steps)
        return tensors["moments"][:, numbers].to(self.device)


def _tokens(member: Member, batches: MicroBatches) -> int:
    """Tokens of a step as TRL counts them: two whole rows per pair, the prompt in each; for SFT the chosen one."""
    pairs, rows = member.pairs, [row for batch in batches for row in batch]
    answers = [pairs.chosen_ids] if member.cfg.method.name is MethodName.sft else [pairs.chosen_ids, pairs.rejected_ids]
    return sum(len(pairs.prompt_ids[row]) + len(ids[row]) for row in rows for ids in answers)
