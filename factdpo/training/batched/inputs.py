"""The inputs of one step of a cohort: every member's micro-batches, packed, and what losses and metrics need."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from factdpo.config.schema import MethodName
from factdpo.data.pairs import Pairs
from factdpo.training.batched.member import MemberState
from factdpo.training.batched.packing import Packed, block_length, moved, pack
from factdpo.training.batched.routing import token_weights
from factdpo.training.batched.stacked_lora import Stack

GRAPH_MULTIPLE = 8  # on a GPU shapes are rounded up to it, so that few CUDA graphs serve all steps
MicroBatches = list[list[int]]  # the row numbers of each micro-batch of a step


class PairTables(NamedTuple):
    """What losses and metrics need of each pair; B is the most pairs that a run has, and padding has weight 0."""

    refs: Float[Tensor, "2 R B"]  # log-probs of the reference, in nats: chosen, rejected
    lengths: Int[Tensor, "2 R B"]  # tokens of each answer
    mean_chosen_length: Float[Tensor, "R B"]  # in the pair's micro-batch
    loss_weights: Float[Tensor, "R B"]
    retain_weights: Float[Tensor, "R B"]  # of rows of neutral text, in the mean over their tokens
    metric_weights: Float[Tensor, "metrics R B"]  # in METRICS but for aux_loss, summed over micro-batches


class StepInputs(NamedTuple):
    """All that one step needs, on the device."""

    packed: Packed
    pairs: PairTables
    rates: Float[Tensor, "R 1"]
    router_weights: Float[Tensor, "R micro_batches tokens"] | None  # routing.token_weights, where a router has a loss
    dropout_masks: dict[str, Float[Tensor, "R tokens d_in"]]  # by layer; empty where no run has dropout

    def tensors(self) -> list[Tensor]:
        routers = [] if self.router_weights is None else [self.router_weights]
        return [*self.packed.tensors(), *self.pairs, self.rates, *routers, *self.dropout_masks.values()]

    def with_tensors(self, tensors: list[Tensor]) -> "StepInputs":
        """The same with these in place of `tensors`."""
        rest = iter(tensors)
        packed = self.packed.with_tensors([next(rest) for _ in self.packed.tensors()])
        pairs = PairTables(*(next(rest) for _ in self.pairs))
        rates, weights = next(rest), None if self.router_weights is None else next(rest)
        return StepInputs(packed, pairs, rates, weights, dict(zip(self.dropout_masks, rest, strict=True)))


def step_inputs(states: list[MemberState], taken: list[MicroBatches], rates: list[float], stack: Stack) -> StepInputs:
    """A step of these members with the micro-batches and the learning rate of each."""
    rows = [
        [row for batch in batches for row in batch] + next(state.retained_rows)
        for state, batches in zip(states, taken, strict=True)
    ]
    device = stack.base.device
    runs = [(state.pairs, of_run) for state, of_run in zip(states, rows, strict=True)]
    whole = stack.router is not None
    packed = pack(runs, multiple=GRAPH_MULTIPLE if device.type == "cuda" else 1, whole=whole)
    weights = token_weights(packed, _in_batches(states, taken)) if whole else None
    inputs = StepInputs(packed, _pair_tables(states, taken, rows), torch.tensor(rates).view(-1, 1), weights, {})
    inputs = inputs.with_tensors(moved(inputs.tensors(), device))
    return inputs._replace(dropout_masks=_dropout_masks(states, inputs.packed, rows, stack))


def _in_batches(states: list[MemberState], taken: list[MicroBatches]) -> list[tuple[Pairs, MicroBatches, int]]:
    """Each run's pairs, its micro-batches, and the answers of a pair that TRL would take."""
    return [
        (state.pairs, batches, 1 if state.member.cfg.method.name is MethodName.sft else 2)
        for state, batches in zip(states, taken, strict=True)
    ]


def _pair_tables(states: list[MemberState], taken: list[MicroBatches], rows: list[list[int]]) -> PairTables:
    size = len(rows), max(map(len, rows))
    refs, lengths = np.zeros((2, *size), np.float32), np.ones((2, *size), np.int64)
    mean_chosen_length, loss_weights, retain_weights = np.ones(size), np.zeros(size), np.zeros(size)
    weights = np.zeros((5, *size))  # of a pair in means over pairs, chosen, rejected, all and retained tokens
    for r, (state, batches) in enumerate(zip(states, taken, strict=True)):
        count = sum(map(len, batches))
        of_pairs, retained = rows[r][:count], rows[r][count:]
        refs[:, r, :count], lengths[:, r, :count] = state.refs[:, of_pairs], state.lengths[:, of_pairs]
        start, is_sft = 0, state.member.cfg.method.name is MethodName.sft
        for batch in batches:
            place = slice(start, start + len(batch))
            chosen, rejected = lengths[:, r, place].sum(1).tolist()
            mean_chosen_length[r, place] = chosen / len(batch)
            loss_weights[r, place] = 1 / (len(batch) * len(batches))
            weights[0, r, place], weights[1, r, place], weights[2, r, place] = 1 / len(batch), 1 / chosen, 1 / rejected
            weights[3, r, place] = 1 / (chosen + (0 if is_sft else rejected))
            start += len(batch)
        if is_sft:  # as SFTTrainer: a mean over the step's tokens, and not of its micro-batches' means
            mean_chosen_length[r, :count] = lengths[0, r, :count].sum() / count
            loss_weights[r, :count] = 1 / count
        if retained:
            tokens = len(retained) * len(state.pairs.chosen_ids[retained[0]])
            retain_weights[r, count : count + len(retained)] = 1 / tokens
            weights[4, r] = retain_weights[r] * len(batches)  # a metric is averaged over micro-batches
    pair, chosen, rejected, token, text = weights
    metric_weights = np.stack([pair] * 6 + [chosen, rejected, token, chosen, text])  # in the order of METRICS
    of_pairs = mean_chosen_length, loss_weights, retain_weights, metric_weights
    return PairTables(*map(torch.from_numpy, (refs, lengths, *(table.astype(np.float32) for table in of_pairs))))


def _dropout_masks(
    states: list[MemberState], packed: Packed, rows: list[list[int]], stack: Stack
) -> dict[str, Float[Tensor, "R tokens d_in"]]:
    """Per layer what dropout multiplies each run's inputs by: drawn by the run's own generator, token by token."""
    if all(state.dropout_generator is None for state in states):
        return {}
    device = stack.base.device
    numbers = packed.token_number.view(len(states), -1)
    masks = {}
    for name, layer in stack.layers.items():
        features = layer.weight.shape[1]
        masks[name] = torch.ones(*numbers.shape, features, device=device)
        for r, state in enumerate(states):
            if state.dropout_generator is not None:
                p = state.member.cfg.lora.dropout
                tokens = sum(block_length(state.pairs, row, stack.router is not None) for row in rows[r])
                tokens += 1  # padding has the last
                kept = torch.rand(tokens, features, generator=state.dropout_generator, device=device) >= p
                masks[name][r] = kept[numbers[r]] / (1 - p)
    return masks
