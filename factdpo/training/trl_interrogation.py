"""Is a base one that TRL computes as it is? It is asked before anything trains, where TRL is to train it.

TRL takes log-probs from the base's hidden states by the head's last matrix alone, and the auxiliary loss of a mixture
of experts by the names that Mixtral has: some models have more in their heads, or other names.
"""

from types import MethodType
from typing import Any

import torch
from trl.trainer.utils import add_fused_lm_head

from factdpo.console import first_line
from factdpo.data.pairs import Pairs, collate
from factdpo.models.base import Base
from factdpo.models.scoring import pair_logps
from factdpo.models.soundness import CANNOT, NATS, in_float32
from factdpo.training.batched.routing import LEFT_OUT, router_of


def why_not_by_trl(base: Base, probes: Pairs) -> str | None:
    """Why TRL would compute something else on these pairs than the base, as a sentence; None if it would not."""
    batch = collate(probes, list(range(len(probes))))
    ids, attention = batch.ids.to(base.device), batch.attention.to(base.device)
    labels = ids.masked_fill(~batch.completion.to(base.device), -100)
    routed = router_of(base) is not None
    more = {"output_router_logits": True} if routed else {}
    with in_float32(base.model), torch.no_grad():
        own = pair_logps(base.model, probes, len(probes))
        try:
            by_trl = _fused(base.model, ids, attention, labels, more)
        except torch.OutOfMemoryError:
            raise
        except CANNOT as error:
            remedy = f"; if it is the router's loss, {LEFT_OUT}" if routed else ""
            return f"TRL cannot compute it ({type(error).__name__}: {first_line(error)}){remedy}"
    apart = (by_trl.cpu() - torch.cat([own.chosen, own.rejected])).abs().max().item()
    if apart <= NATS:
        return None
    return (
        f"by TRL an answer's log-prob is up to {apart:.2g} nats from the model's own, since TRL applies the last "
        "matrix of its head alone"
    )


def _fused(
    model: Any, ids: torch.Tensor, attention: torch.Tensor, labels: torch.Tensor, more: dict[str, bool]
) -> torch.Tensor:
    """The log-prob of each row's answer, nats [2B], as TRL's trainers take it; the model is left as it was."""
    own = model.__dict__.get("forward")
    add_fused_lm_head(model)
    try:
        found = model(
            input_ids=ids, attention_mask=attention, labels=labels, use_cache=False, fused_lm_head=True, **more
        )
    finally:
        if isinstance(own, MethodType):
            model.forward = own
        else:
            del model.forward
    return found.log_probs.sum(1)
