"""The losses of direct preference optimisation and its reward metrics: pure functions of log-probs in nats.

Each loss equals TRL's of the same name (TRL 1.16), which the tests check number by number. B pairs in a batch; policy
and reference log-probs are sums over the completion's tokens. `BATCHED_LOSSES` in config/schema.py lists the
losses that are computed here: this module knows torch and nothing of the project, and the config must not import torch.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def dpo_loss(
    loss: str,
    policy_chosen_logps: Float[Tensor, "*B"],
    policy_rejected_logps: Float[Tensor, "*B"],
    ref_chosen_logps: Float[Tensor, "*B"],
    ref_rejected_logps: Float[Tensor, "*B"],
    chosen_lengths: Int[Tensor, "*B"],
    rejected_lengths: Int[Tensor, "*B"],
    beta: float | Tensor,
    label_smoothing: float | Tensor = 0.0,
    mean_chosen_length: Float[Tensor, "*B"] | None = None,
) -> Float[Tensor, "*B"]:
    """Loss of each pair; the batch's loss is the mean. Lengths in tokens; raises ValueError on another loss's name.

    `beta` and `label_smoothing` may be tensors that broadcast: one per run. `mean_chosen_length`, which only sft reads,
    is that of the pair's micro-batch; None: all pairs are one micro-batch.
    """
    chosen_ratios = policy_chosen_logps - ref_chosen_logps  # log pi(y_w|x) / pi_ref(y_w|x)
    rejected_ratios = policy_rejected_logps - ref_rejected_logps
    logits = chosen_ratios - rejected_ratios  # beta * logits is the reward margin h of DPO eq. 7
    if loss == "sigmoid":  # DPO, arXiv 2305.18290 eq. 7
        return -F.logsigmoid(beta * logits)
    if loss == "hinge":  # SLiC, arXiv 2305.10425 eq. 1, as RSO (2309.06657) applies it to ratios
        return torch.relu(1 - beta * logits)
    if loss == "ipo":  # IPO, arXiv 2310.12036 eq. 17, with per-token means as its authors confirmed to TRL
        return (chosen_ratios / chosen_lengths - rejected_ratios / rejected_lengths - 1 / (2 * beta)) ** 2
    if loss == "robust":  # rDPO, arXiv 2403.00409 eq. 12
        clean, flipped = -F.logsigmoid(beta * logits), -F.logsigmoid(-beta * logits)
        return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    if loss == "apo_zero":  # APO, arXiv 2408.06266 eq. 7
        return 1 - torch.sigmoid(beta * chosen_ratios) + torch.sigmoid(beta * rejected_ratios)
    if loss == "apo_down":  # APO, arXiv 2408.06266 eq. 8
        return torch.sigmoid(beta * chosen_ratios) + 1 - torch.sigmoid(beta * logits)
    if loss == "nca_pair":  # NCA, arXiv 2402.05369, for a pair
        chosen, rejected = beta * chosen_ratios, beta * rejected_ratios
        return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)
    if loss == "sppo_hard":  # SPPO, arXiv 2405.00675 eq. 4.7 with P = 1 for the winner and 0 for the loser
        return (chosen_ratios - 0.5 / beta) ** 2 + (rejected_ratios + 0.5 / beta) ** 2
    if loss == "sft":  # nats per chosen token of the micro-batch, spread so that the mean over pairs is that number
        mean = chosen_lengths.float().mean() if mean_chosen_length is None else mean_chosen_length
        return -policy_chosen_logps / mean
    raise ValueError(f"loss={loss}: not computed here; config/schema.py lists those that are in BATCHED_LOSSES")
