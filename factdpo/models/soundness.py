"""Is a base one whose log-probs mean what they say? It is asked before anything trains, whatever the engine.

A causal model predicts a token from those before it, and an answer scores the same whichever rows are beside it. What
does not (an encoder that is not configured as a decoder, factors chosen by the longest row of a batch) has no log-prob
of an answer, and trains to weights that depend on the neighbours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, pairwise

import torch
from torch import nn

from factdpo.console import first_line
from factdpo.data.pairs import Pairs, join
from factdpo.data.tokens import common_prefix
from factdpo.models.base import Base
from factdpo.models.scoring import pair_logps

NATS = 1e-3  # between two computations of one log-prob in float32: rounding of models of any size, far below any fault
# What models raise that cannot compute what they are given: torch's words and Python's, not the user's.
CANNOT = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def extremes(splits: list[Pairs]) -> Pairs:
    """A few of these pairs, each once: the longest, the shortest, a middle one, and neighbours that begin alike."""
    pairs = join(splits)
    whole = [
        (len(prompt) + max(len(chosen), len(rejected)), len(chosen) + len(rejected))
        for prompt, chosen, rejected in zip(pairs.prompt_ids, pairs.chosen_ids, pairs.rejected_ids, strict=True)
    ]
    by_length = sorted(range(len(pairs)), key=lambda row: whole[row])
    by_answer = max(by_length, key=lambda row: whole[row][1])
    order = sorted(range(len(pairs)), key=lambda row: pairs.prompt_ids[row])  # as the stack scores them
    alike = [common_prefix(pairs.prompt_ids[a], pairs.prompt_ids[b]) for a, b in pairwise(order)]
    place = max(range(len(alike)), key=lambda i: alike[i], default=0)
    rows = [by_length[-1], by_length[0], by_length[len(pairs) // 2], by_answer, *order[place : place + 3]]
    return pairs.select(list(dict.fromkeys(rows)))


def why_unsound(base: Base, probes: Pairs, longest: int) -> str | None:
    """Why no engine can train this base on these pairs, as a sentence; None if nothing is wrong.

    `longest`: tokens of the longest row that it will be given.
    """
    with in_float32(base.model):
        return _too_long(base, longest) or _not_causal(base, probes) or _neighbours_matter(base, probes)


def _too_long(base: Base, longest: int) -> str | None:
    """Whether a row of so many tokens can be computed; models fail there in torch's words."""
    row = torch.ones(1, longest, dtype=torch.long, device=base.device)
    try:
        with torch.no_grad():
            base.model(input_ids=row, attention_mask=row, use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except CANNOT as error:
        return f"it cannot compute a row of {longest} tokens ({type(error).__name__}: {first_line(error)})"
    return None


def _not_causal(base: Base, probes: Pairs) -> str | None:
    """Whether the last token of the longest row changes what is predicted before it."""
    ids = max((p + c for p, c in zip(probes.prompt_ids, probes.chosen_ids, strict=True)), key=len)
    other = [*ids[:-1], next(i for i in ids[:-1] if i != ids[-1]) if len(set(ids)) > 1 else 1 - min(ids[-1], 1)]
    with torch.no_grad():
        before = [
            base.model(input_ids=torch.tensor([row], device=base.device), use_cache=False).logits[0, :-1]
            for row in (ids, other)
        ]
    apart = (before[0].float().log_softmax(-1) - before[1].float().log_softmax(-1)).abs().max().item()
    if apart <= NATS:
        return None
    return (
        f"it is not causal as it is configured: a token changes the predictions before it by up to {apart:.2g} nats; "
        "a decoder of this kind says is_decoder=true (or causal=true) in its config.json"
    )


def _neighbours_matter(base: Base, probes: Pairs) -> str | None:
    """Whether a pair scores otherwise beside others than alone."""
    together = pair_logps(base.model, probes, len(probes))
    alone = [pair_logps(base.model, probes.select([row]), 1) for row in range(len(probes))]
    sides = [
        getattr(together, side) - torch.cat([getattr(one, side) for one in alone]) for side in ("chosen", "rejected")
    ]
    apart = torch.stack(sides).abs().max().item()
    if apart <= NATS:
        return None
    return (
        f"an answer's log-prob depends on the rows beside it, by up to {apart:.2g} nats (a state that the whole batch "
        "shares, as factors chosen by its longest row); leave out the longest rows with data.max_length"
    )


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """The model's weights in float32 while the context lasts: rounding of bfloat16 would hide a fault."""
    tensors = [t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    own = [(t, t.data) for t in tensors if t.dtype in (torch.bfloat16, torch.float16)]
    for tensor, data in own:
        tensor.data = data.float()
    try:
        yield
    finally:
        for tensor, data in own:
            tensor.data = data
