"""Log-probs of pairs under a model; those of the frozen base are computed once per (model, pairs) and cached."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from factdpo import console
from factdpo.data.pairs import Pairs, batches
from factdpo.models.base import Base
from factdpo.models.logps import Diverged, completion_logps, greedy_matches
from factdpo.store import cache


@dataclass(frozen=True)
class PairLogps:
    """A model's log-probs of N pairs, in nats, and whether greedy decoding yields the chosen completion."""

    chosen: Float[Tensor, " N"]
    rejected: Float[Tensor, " N"]
    greedy: Bool[Tensor, " N"]

    def take(self, count: int) -> "PairLogps":
        return PairLogps(self.chosen[:count], self.rejected[:count], self.greedy[:count])

    def split(self, sizes: list[int]) -> "list[PairLogps]":
        """Consecutive parts of these sizes, as `torch.split` returns them."""
        columns = zip(*(column.split(sizes) for column in (self.chosen, self.rejected, self.greedy)), strict=True)
        return [PairLogps(*part) for part in columns]


@torch.no_grad()
def pair_logps(
    model: nn.Module, pairs: Pairs, batch_size: int, advance: Callable[[int], object] = lambda count: None
) -> PairLogps:
    """Score every pair in eval mode, on the model's device; results on the CPU. Raises Diverged for NaN or Inf.

    `advance` is called after each batch with the number of its pairs.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    chosen, rejected = torch.empty(len(pairs)), torch.empty(len(pairs))
    greedy = torch.empty(len(pairs), dtype=torch.bool)
    for rows, batch in batches(pairs, batch_size):
        # One-token answers are predicted at the same position of the same prompt: one row serves both.
        forward = len(rows) if batch.completion.sum() == len(batch.ids) else len(batch.ids)
        logits = model(
            input_ids=batch.ids[:forward].to(device),
            attention_mask=batch.attention[:forward].to(device),
            logits_to_keep=batch.keep,
            use_cache=False,
        ).logits[:, -batch.keep :]  # some models keep all
        logits = logits.repeat(len(batch.ids) // forward, 1, 1)
        ids, mask = batch.ids[:, -batch.keep :].to(device), batch.completion[:, -batch.keep :].to(device)
        chosen[rows], rejected[rows] = completion_logps(logits, ids, mask).cpu().chunk(2)
        greedy[rows] = greedy_matches(logits, ids, mask).cpu()[: len(rows)]
        advance(len(rows))
    model.train(was_training)
    return check_finite(pairs, PairLogps(chosen, rejected, greedy))


def is_finite(logps: PairLogps) -> bool:
    return not _not_finite(logps).any()


def check_finite(pairs: Pairs, logps: PairLogps) -> PairLogps:
    """The same log-probs; raises Diverged for NaN or Inf."""
    if not is_finite(logps):
        bad = _not_finite(logps)
        first = pairs.facts[int(bad.nonzero()[0])]
        raise Diverged(f"log-probs of {int(bad.sum())} of {len(pairs)} pairs are not finite, first '{first.prompt}'")
    return logps


def _not_finite(logps: PairLogps) -> Bool[Tensor, " N"]:
    return ~(torch.isfinite(logps.chosen) & torch.isfinite(logps.rejected))


def kept_logps(
    whose: object, device: torch.device, pairs: Pairs, batch_size: int, cache_dir: Path, make: Callable[[], PairLogps]
) -> PairLogps:
    """The log-probs from `make`, cached by the identity of the model (`whose`) and the tokens of the pairs."""
    request = {
        "model": whose,
        "device": device.type,
        "batch_size": batch_size,  # changes the last bits
        "ids": [pairs.prompt_ids, pairs.chosen_ids, pairs.rejected_ids],
        "versions": {stage: cache.STAGE_VERSIONS[stage] for stage in ("logps",)},
    }
    folder = cache_dir / "reference" / cache.signature(request)
    cache.fetch(folder, lambda target: save_file(vars(make()), target / "logps.safetensors"))
    return PairLogps(**load_file(folder / "logps.safetensors"))


def reference_logps(base: Base, pairs: Pairs, batch_size: int, cache_dir: Path) -> PairLogps:
    """The base's own scores of a split, computed once per (model, tokens)."""

    def make() -> PairLogps:
        with console.stage(f"scoring {len(pairs)} pairs with the base", total=len(pairs)) as advance:
            try:
                return pair_logps(base.model, pairs, batch_size, advance)
            except Diverged as error:
                causes = "its weights have NaN or Inf, or are too large for model.dtype"
                raise Diverged(f"the base itself, before any training: {error}; {causes}") from None

    return kept_logps(base.identity, base.device, pairs, batch_size, cache_dir, make)
