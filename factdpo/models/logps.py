"""THE number: the log-probability of a completion, used by reference, loss check and evaluation alike."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Diverged(ArithmeticError):
    """A loss, gradient or log-probability is not finite: the run is over, its state is DIVERGED."""


def completion_logps(
    logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Log-probability of each completion, in nats: sum over t of mask[t] * log p(ids[t] | ids[<t]).

    This is log pi(y|x) of DPO eq. 7 (Rafailov et al. 2023). `mask` marks the completion's tokens; position 0 has no
    prediction and must not be one of them. Computed in float32 whatever the dtype of the logits.
    """
    assert not mask[:, 0].any(), "the first token has no prediction"
    predicting = logits[:, :-1]
    at = torch.arange(predicting[..., 0].numel(), device=logits.device).view(predicting.shape[:2])
    return answer_logps(predicting.float().log_softmax(-1).flatten(0, 1), at, ids[:, 1:], mask[:, 1:])


def answer_logps(
    logps: Float[Tensor, "M V"], at: Int[Tensor, "*B A"], token: Int[Tensor, "*B A"], there: Bool[Tensor, "*B A"]
) -> Float[Tensor, "*B"]:
    """Log-probability of each answer, in nats: sum over its A tokens of logps[at, token], where they are there.

    `logps` are of every token of the vocabulary at M positions, float32; `at` is the position that predicts a token.
    """
    picked = logps.flatten().gather(0, (at * logps.shape[-1] + token).flatten()).view(token.shape)
    return torch.where(there, picked, 0.0).sum(-1)


def greedy_matches(
    logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Bool[Tensor, " B"]:
    """Whether greedy decoding of the prompt says exactly the completion: each of its tokens is the most probable."""
    return ((logits[:, :-1].argmax(-1) == ids[:, 1:]) | ~mask[:, 1:]).all(-1)
