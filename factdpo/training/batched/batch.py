"""The state of R runs that train together, and one step of them."""

import time
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from factdpo.config.schema import Loss
from factdpo.data.pairs import Pairs, join
from factdpo.models.logps import Diverged
from factdpo.models.scoring import PairLogps, check_finite
from factdpo.training import adapters, sanity_checks
from factdpo.training.batched import checkpoints
from factdpo.training.batched.capacity import tokens_at_once
from factdpo.training.batched.member import Row, Run
from factdpo.training.batched.packing import Packed, block_length, pack
from factdpo.training.batched.stacked_lora import Adapter, Stack
from factdpo.training.engine import Member, Trained
from factdpo.training.losses import dpo_loss
from factdpo.training.schedule import learning_rate, micro_batches, planned_steps, steps_per_epoch

FETCH_STEPS = 25  # at these steps at the latest the metrics are fetched and diverged runs leave
FETCH_SECONDS = 1.0  # and after so long rows are shown, for who watches


class _Done(NamedTuple):
    """One step whose metrics are still on the device."""

    step: int
    values: Float[Tensor, "metrics R"]  # METRICS, the loss, the gradient norm, whether the weights changed
    batches: list[int]
    tokens: list[int]


class _Inputs(NamedTuple):
    """What one step needs, on the device; B is the most pairs that a run has in it."""

    packed: Packed
    refs: Float[Tensor, "2 R B"]
    lengths: Int[Tensor, "2 R B"]  # tokens of each answer
    mean_length: Float[Tensor, "R B"]  # of the chosen answers of the pair's micro-batch
    weights: Float[Tensor, "metrics R B"]  # of each pair in METRICS, summed over micro-batches
    share: Float[Tensor, "R B"]  # of each pair in the loss
    rate: Float[Tensor, "R 1"]
    dropped: dict[str, Tensor]


class _Batch:
    """The state of R runs that train together."""

    def __init__(self, stack: Stack, members: list[Member], fresh: list[Adapter], saved: checkpoints.Checkpoint | None):
        self.stack, self.together = stack, len(members)
        self.device = stack.base.device
        self.tokens_at_once = tokens_at_once(members[0].cfg, self.device)
        self.save_every = members[0].cfg.engine.save_every
        self.count = 0  # optimizer steps made
        self.started = time.monotonic()
        self.runs = [self._run(member, adapter) for member, adapter in zip(members, fresh, strict=True)]
        self.waiting: list[_Done] = []
        self.fetched = time.monotonic()
        moments = torch.zeros(2, *stack.masters.shape, device=self.device)
        if saved:
            moments = self._restore(saved)
        self._prepare(moments)

    def _run(self, member: Member, adapter: Adapter) -> Run:
        cfg, pairs = member.cfg, len(member.pairs)
        dropout = torch.Generator(self.device).manual_seed(cfg.dpo.seed) if cfg.lora.dropout > 0 else None
        return Run(
            member, adapter.config, adapter.parameters, planned_steps(pairs, cfg.dpo),
            micro_batches(pairs, cfg.dpo), dropout, steps_per_epoch(pairs, cfg.dpo),
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------------- weights

    def _prepare(self, moments: Float[Tensor, "2 R P"]) -> None:
        """The optimizer and the constants of the runs that are there.

        AdamW computes its step at rate 1 into `update`, which each run then adds at its own rate. A weight decay of 1
        takes the step before out of `update`; the runs' own decay is on the masters.
        """
        stack, device = self.stack, self.device
        self.grads, self.update = torch.zeros_like(stack.masters), torch.zeros_like(stack.masters)
        self.grad_views = [view for both in stack.views(self.grads).values() for view in both]
        self.weights = {
            name: (a.detach().requires_grad_(), b.detach().requires_grad_())
            for name, (a, b) in stack.views(stack.masters).items()
        }
        self.leaves = [weight for both in self.weights.values() for weight in both]
        stack.use(self.weights, stack.scales)
        dpo = [run.member.cfg.dpo for run in self.runs]
        self.update.grad = self.grads
        self.optimizer = torch.optim.AdamW(
            [self.update], lr=1.0, betas=(dpo[0].adam_beta1, dpo[0].adam_beta2), eps=dpo[0].adam_epsilon,
            weight_decay=1.0, fused=True,
        )  # fmt: skip
        self.optimizer.state[self.update] = {
            "step": torch.tensor(float(self.count), device=device), "exp_avg": moments[0], "exp_avg_sq": moments[1],
        }  # fmt: skip

        def column(values: list[float]) -> Float[Tensor, "R 1"]:
            return torch.tensor(values, device=device).view(-1, 1)

        self.beta = column([c.beta for c in dpo])
        self.smoothing = column([c.label_smoothing for c in dpo])
        self.clip = column([c.max_grad_norm or torch.inf for c in dpo])
        self.decay = column([c.weight_decay for c in dpo]) if any(c.weight_decay for c in dpo) else None
        self.losses = sorted({loss for c in dpo for loss in c.loss}, key=lambda loss: loss.name)
        factors = [dict(zip(c.loss, c.loss_weights or [1.0] * len(c.loss), strict=True)) for c in dpo]
        self.factors = [column([by_run.get(loss, 0.0) for by_run in factors]) for loss in self.losses]

    def _moments(self) -> Float[Tensor, "2 R P"]:
        state = self.optimizer.state[self.update]
        return torch.stack([state["exp_avg"], state["exp_avg_sq"]])

    # ------------------------------------------------------------------------------------------------------ a step

    def step(self) -> None:
        """One optimizer step of every run; nothing in it waits for the device."""
        rates = [learning_rate(self.count, run.total, run.member.cfg.dpo) for run in self.runs]
        taken = [next(run.order) for run in self.runs]
        inputs = self._inputs(taken, rates)
        changes = any(
            rate > 0 and "weights_changed_at_step" not in run.canaries
            for run, rate in zip(self.runs, rates, strict=True)
        )
        before = self.stack.masters.clone() if changes else None
        values = self._train(inputs)
        if before is not None:
            changed = (self.stack.masters != before).any(dim=1, keepdim=True).T.float()
        else:
            changed = torch.ones(1, len(self.runs), device=self.device)
        self.count += 1
        self.waiting.append(
            _Done(
                self.count,
                torch.cat([values, changed]),
                [len(batches) for batches in taken],
                [
                    sum(_tokens(run.member.pairs, row) for batch in batches for row in batch)
                    for run, batches in zip(self.runs, taken, strict=True)
                ],
            )
        )

    def _train(self, inputs: _Inputs) -> Float[Tensor, "metrics R"]:
        """Forward, backward and update, on the device alone; gives METRICS, then each run's loss and gradient norm."""
        stack = self.stack
        for name, layer in stack.layers.items():
            layer.dropout_mask = inputs.dropped.get(name)
        answers = stack.answers(inputs.packed)
        losses = (self._loss(answers.logps, inputs) * inputs.share).sum(1)
        grads = torch.autograd.grad(losses.sum(), self.leaves)
        with torch.no_grad():
            for view, grad in zip(self.grad_views, grads, strict=True):
                view.copy_(grad)
            norms = torch.linalg.vector_norm(self.grads, dim=1, keepdim=True)
            self.grads.mul_((self.clip / (norms + 1e-6)).clamp(max=1.0))  # as torch.nn.utils.clip_grad_norm_
            self.optimizer.step()
            if self.decay is not None:
                stack.masters.mul_(1 - inputs.rate * self.decay)
            stack.masters.addcmul_(self.update, inputs.rate)
            rewards = self.beta * (answers.logps - inputs.refs)
            values = torch.stack(
                [
                    *rewards, (rewards[0] > rewards[1]).float(), rewards[0] - rewards[1], *answers.logps,
                    *answers.mean_logit, answers.entropy.sum(0), answers.greedy[0],
                ]
            )  # fmt: skip
            return torch.cat([(values * inputs.weights).sum(-1), losses[None], norms.T])

    def _loss(self, logps: Float[Tensor, "2 R B"], inputs: _Inputs) -> Float[Tensor, "R B"]:
        """Each pair's loss under its own run's losses; every loss that any run has is computed for all."""
        total = torch.zeros_like(logps[0])
        for loss, factor in zip(self.losses, self.factors, strict=True):
            if loss is Loss.sft:  # nats per chosen token of the micro-batch, spread over its pairs
                each = -logps[0] / inputs.mean_length
            else:
                (chosen, rejected), (ref_chosen, ref_rejected), (n, m) = logps, inputs.refs, inputs.lengths
                each = dpo_loss(loss.name, chosen, rejected, ref_chosen, ref_rejected, n, m, self.beta, self.smoothing)
            total = total + torch.where(factor != 0, factor * each, 0.0)
        return total

    def _inputs(self, taken: list[list[list[int]]], rates: list[float]) -> _Inputs:
        """The pairs of a step: each run's micro-batches after one another, every pair with its share in the means."""
        rows = [[row for batch in batches for row in batch] for batches in taken]
        packed = pack([(run.member.pairs, of_run) for run, of_run in zip(self.runs, rows, strict=True)])
        most = max(map(len, rows))
        refs = torch.zeros(2, len(rows), most)
        lengths = torch.ones(2, len(rows), most, dtype=torch.long)
        mean_length = torch.ones(len(rows), most)
        share = torch.zeros(len(rows), most)
        weights = torch.zeros(4, len(rows), most)  # per pair, chosen token, rejected token, token
        for r, (run, batches) in enumerate(zip(self.runs, taken, strict=True)):
            pairs, n = run.member.pairs, len(rows[r])
            refs[0, r, :n], refs[1, r, :n] = run.member.refs.chosen[rows[r]], run.member.refs.rejected[rows[r]]
            start = 0
            for batch in batches:
                chosen = [len(pairs.chosen_ids[row]) for row in batch]
                rejected = [len(pairs.rejected_ids[row]) for row in batch]
                here = slice(start, start + len(batch))
                lengths[0, r, here], lengths[1, r, here] = torch.tensor(chosen), torch.tensor(rejected)
                mean_length[r, here] = sum(chosen) / len(batch)
                share[r, here] = 1 / (len(batch) * len(batches))
                means = [len(batch), sum(chosen), sum(rejected), sum(chosen) + sum(rejected)]
                weights[:, r, here] = 1 / torch.tensor(means)[:, None]
                start += len(batch)
        pair, chosen, rejected, token = weights
        of_metric = torch.stack([pair] * 6 + [chosen, rejected, token, chosen])

        def there(values: Tensor) -> Tensor:
            return values.to(self.device, non_blocking=True)

        return _Inputs(
            packed.to(self.device), there(refs), there(lengths), there(mean_length), there(of_metric), there(share),
            there(torch.tensor(rates).view(-1, 1)), self._dropped(packed, rows),
        )  # fmt: skip

    def _dropped(self, packed: Packed, rows: list[list[int]]) -> dict[str, Tensor]:
        """Per layer, what dropout multiplies each run's inputs by: drawn by the run's own generator, token by token."""
        if all(run.dropout is None for run in self.runs):
            return {}
        rank = packed.token_number.view(len(self.runs), -1).to(self.device)
        kept = {}
        for name, layer in self.stack.layers.items():
            inputs = layer.weight.shape[1]
            kept[name] = torch.ones(*rank.shape, inputs, device=self.device)
            for r, run in enumerate(self.runs):
                if run.dropout is not None:
                    p = run.member.cfg.lora.dropout
                    tokens = sum(block_length(run.member.pairs, row) for row in rows[r]) + 1  # padding has the last
                    drawn = torch.rand(tokens, inputs, generator=run.dropout, device=self.device) >= p
                    kept[name][r] = drawn[rank[r]] / (1 - p)
        return kept

    # ------------------------------------------------------------------------------------------------ what is told

    def leave(self, all_is_told: bool) -> list[Run]:
        """Tell what is known, score who is due, and take the runs that came to their end out of the batch.

        Not at every step, unless all is to be told.
        """
        due = [run for run in self.runs if run.scored_at(self.count)]
        last = [run for run in self.runs if run.total == self.count]
        regular = self.count % FETCH_STEPS == 0 or self.count % self.save_every == 0
        bound = due or last or self.count == 1 or regular or all_is_told
        if not bound and time.monotonic() - self.fetched < FETCH_SECONDS:
            return []
        self._fetch()
        if not bound:
            return []
        self._score([run for run in due if run.ending is None])
        self._finish([run for run in last if run.ending is None])
        gone = [run for run in self.runs if run.ending is not None]
        if gone and len(gone) < len(self.runs):
            stay = [r for r, run in enumerate(self.runs) if run.ending is None]
            moments = self._moments()[:, stay].contiguous()
            self.stack.keep(stay)
            self.runs = [self.runs[r] for r in stay]
            self._prepare(moments)
        elif gone:
            self.runs = []
        return gone

    def _fetch(self) -> None:
        """Metrics from the device: rows of the histories, and the checks that they allow."""
        self.fetched = time.monotonic()
        if not self.waiting:
            return
        columns = iter(torch.cat([done.values for done in self.waiting], dim=1).T.cpu().tolist())
        told: dict[str, list[Row]] = {run.member.key: [] for run in self.runs}
        for done in self.waiting:
            for run, batches, tokens in zip(self.runs, done.batches, done.tokens, strict=True):
                *sums, loss, norm, changed = next(columns)
                if run.ending is not None:
                    continue
                run.tokens, run.batches, run.steps = run.tokens + tokens, run.batches + batches, run.steps + 1
                run.sums, run.loss = [a + b for a, b in zip(run.sums, sums, strict=True)], run.loss + loss
                row = run.row(done.step, norm, time.monotonic() - self.started)
                told[run.member.key] += row
                try:
                    run.check(done.step, bool(changed), row)
                except (Diverged, sanity_checks.SanityCheckError) as error:
                    run.ending = error
        self.waiting = []
        for run in self.runs:
            run.tell(told[run.member.key])

    def _score(self, runs: list[Run]) -> None:
        """A point of the curves of these runs, all in shared forwards."""
        if not runs:
            return
        names = [list(run.member.curves) for run in runs]
        whole = [join([run.member.curves[name] for name in of_run]) for run, of_run in zip(runs, names, strict=True)]
        for run, of_run, pairs, logps in zip(runs, names, whole, self._logps(runs, whole), strict=True):
            try:
                check_finite(pairs, logps)
            except Diverged as error:
                run.ending = error
                continue
            sizes = [len(run.member.curves[name]) for name in of_run]
            row = {
                "step": self.count,
                "epoch": run.epochs(self.count),
                **run.member.describe(dict(zip(of_run, logps.split(sizes), strict=True))),
            }
            run.tell([row | {"time_seconds": time.monotonic() - self.started}])

    def _logps(self, runs: list[Run], pairs: list[Pairs]) -> list[PairLogps]:
        """Each run's scores of its own pairs, with dropout off."""
        stack, at = self.stack, [self.runs.index(run) for run in runs]
        for layer in stack.layers.values():
            layer.dropout_mask = None
        if len(at) < len(self.runs):
            stack.use(stack.views(stack.masters[at]), stack.scales[at])
        try:
            return stack.logps(pairs, self.tokens_at_once)
        finally:
            stack.use(self.weights, stack.scales)

    def _finish(self, runs: list[Run]) -> None:
        """What is left of these runs: their weights, how it went, and the scores that their reload must give."""
        if not runs:
            return
        seconds, peak = time.monotonic() - self.started, adapters.peak_gib(self.device)
        probes = [run.member.pairs.take(adapters.PROBE_PAIRS) for run in runs]
        for run, pairs, probe in zip(runs, probes, self._logps(runs, probes), strict=True):
            facts = {
                "steps": run.total,
                "trainable_parameters": run.parameters,
                "train_seconds": seconds,
                "peak_gib": peak,
                "trained_together": self.together,
                "canaries": run.canaries,
            }
            try:
                sanity_checks.check_end(run.canaries)
                adapter = self.stack.adapter(self.runs.index(run), run.config)
                run.ending = Trained(adapter, facts, check_finite(pairs, probe))
            except (Diverged, sanity_checks.SanityCheckError) as error:
                run.ending = error

    # --------------------------------------------------------------------------------------------------- checkpoint

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Everything that the next step depends on, and what the histories hold."""
        tensors = {"masters": self.stack.masters, "moments": self._moments()}
        tensors |= {f"dropout.{r}": run.dropout.get_state() for r, run in enumerate(self.runs) if run.dropout}
        state = {
            "keys": [run.member.key for run in self.runs],
            "step": self.count,
            "rank": self.stack.rank,
            "together": self.together,
            "seconds": time.monotonic() - self.started,
            "runs": [run.state() for run in self.runs],
        }
        return state, tensors

    def _restore(self, saved: checkpoints.Checkpoint) -> Float[Tensor, "2 R P"]:
        """The runs that are here as they are in a checkpoint, which may have others besides."""
        state, tensors = saved.state, saved.tensors()
        self.count, self.together = state["step"], state["together"]
        self.started -= state["seconds"]
        at = [state["keys"].index(run.member.key) for run in self.runs]
        self.stack.masters.copy_(tensors["masters"][at])
        for number, run in zip(at, self.runs, strict=True):
            run.order = micro_batches(len(run.member.pairs), run.member.cfg.dpo, self.count)
            if run.dropout is not None:
                run.dropout.set_state(tensors[f"dropout.{number}"])
            run.restore(state["runs"][number])
        return tensors["moments"][:, at].to(self.device)


def _tokens(pairs: Pairs, row: int) -> int:
    """As TRL counts them: two whole rows, the prompt in each."""
    return 2 * len(pairs.prompt_ids[row]) + len(pairs.chosen_ids[row]) + len(pairs.rejected_ids[row])
