"""The losses: identities, and TRL's own numbers from TRL's own trainer."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from factdpo.config.schema import BATCHED_LOSSES, Loss
from factdpo.data.facts import Fact
from factdpo.data.pairs import Pairs
from factdpo.models.scoring import PairLogps, pair_logps
from factdpo.training.losses import dpo_loss

CHOSEN, REJECTED = torch.tensor([-2.0, -5.0, -1.0]), torch.tensor([-3.0, -4.0, -9.0])
REF_CHOSEN, REF_REJECTED = torch.tensor([-2.5, -4.0, -1.0]), torch.tensor([-2.0, -4.5, -8.0])
ONES = torch.ones(3, dtype=torch.long)


def loss_of(loss: str, margin: list[float], beta: float, label_smoothing: float = 0.0) -> list[float]:
    """Losses at given margins (nats against the reference), one half on the chosen and one on the rejected side."""
    half, zero = torch.tensor(margin) / 2, torch.zeros(len(margin))
    lengths = torch.ones(len(margin), dtype=torch.long)
    return dpo_loss(loss, half, -half, zero, zero, lengths, lengths, beta, label_smoothing).tolist()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("sigmoid", math.log(2)),
        ("hinge", 1.0),
        ("ipo", 6.25),  # (1 / (2 * 0.2))^2
        ("robust", math.log(2)),
        ("apo_zero", 1.0),
        ("apo_down", 1.0),
        ("nca_pair", 2 * math.log(2)),
        ("sppo_hard", 12.5),  # 2 * (0.5 / 0.2)^2
    ],
)
def test_at_zero_margin_the_loss_is_known(loss: str, expected: float):
    assert loss_of(loss, [0.0], beta=0.2, label_smoothing=0.1) == pytest.approx([expected])


def test_the_sigmoid_loss_is_minus_log_sigmoid_of_the_reward_margin():
    found = dpo_loss("sigmoid", CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, ONES, ONES, beta=0.5)
    margins = [0.5 * ((-2 + 2.5) - (-3 + 2)), 0.5 * ((-5 + 4) - (-4 + 4.5)), 0.5 * (0 - (-9 + 8))]  # 0.75, -0.75, 0.5
    assert found.tolist() == pytest.approx([math.log1p(math.exp(-margin)) for margin in margins])


def test_a_policy_that_equals_its_reference_has_zero_margin_whatever_its_numbers():
    found = dpo_loss("sigmoid", CHOSEN, REJECTED, CHOSEN, REJECTED, ONES, ONES, beta=0.7)
    assert found.tolist() == pytest.approx([math.log(2)] * 3)


def test_every_preference_loss_falls_where_the_margin_rises_from_zero():
    for loss in ("sigmoid", "hinge", "ipo", "robust", "apo_zero", "sppo_hard"):
        at_zero, above = loss_of(loss, [0.0, 1.0], beta=0.2, label_smoothing=0.1)
        assert above < at_zero, loss


def test_the_hinge_is_zero_beyond_its_margin():
    assert loss_of("hinge", [4.0, 5.0, 6.0], beta=0.2) == pytest.approx([0.2, 0.0, 0.0], abs=1e-6)


def test_robust_without_smoothing_is_sigmoid():
    margins = [-3.0, 0.0, 2.0]
    assert loss_of("robust", margins, beta=0.3) == pytest.approx(loss_of("sigmoid", margins, beta=0.3))


def test_exactly_the_batched_losses_are_computed_and_any_other_is_refused_by_name():
    for loss in ["sigmod", *(loss.name for loss in Loss if loss not in BATCHED_LOSSES)]:
        with pytest.raises(ValueError, match=f"loss={loss}: not computed here.*BATCHED_LOSSES"):
            dpo_loss(loss, CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, ONES, ONES, beta=0.1)
    for loss in BATCHED_LOSSES:
        each = dpo_loss(loss.name, CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, ONES, ONES, beta=0.1)
        assert each.shape == (3,) and each.isfinite().all(), loss


def test_sft_is_nats_per_chosen_token_of_each_micro_batch():
    logps, lengths = torch.tensor([[-2.0, -6.0], [-3.0, -5.0]]), torch.tensor([[1, 3], [4, 4]])
    means = torch.tensor([[2.0, 2.0], [4.0, 4.0]])  # of two micro-batches of two pairs
    each = dpo_loss("sft", logps, logps, logps, logps, lengths, lengths, 0.1, mean_chosen_length=means)
    assert each.tolist() == [[1.0, 3.0], [0.75, 1.25]]
    alone = dpo_loss("sft", logps[0], logps[0], logps[0], logps[0], lengths[0], lengths[0], 0.1)
    assert alone.tolist() == [1.0, 3.0] and alone.mean() == 8 / 4  # 8 nats, 4 tokens


def test_every_loss_and_reward_metric_is_trls(make_tiny_model: Callable[[], Any], trl_trainer: Callable[..., Any]):
    facts = [Fact(i, f"prompt {i}", "yes", "no") for i in range(4)]
    pairs = Pairs(
        facts,
        prompt_ids=[[5, 6, 7], [8, 9], [10, 11, 12, 13], [14, 15]],
        chosen_ids=[[20], [21, 22, 23], [24, 25], [26]],
        rejected_ids=[[30, 31], [32], [33, 34, 35, 36], [37]],
        pad_id=0,
    )
    ours = pair_logps(make_tiny_model(), pairs, batch_size=4)
    # A made-up reference: margins against it of 2.5, -2, 7 and -0.25 nats, on both sides of the hinge.
    refs = PairLogps(
        ours.chosen - torch.tensor([1.5, -1.0, 3.0, 0.5]),
        ours.rejected - torch.tensor([-1.0, 1.0, -4.0, 0.75]),
        ours.greedy,
    )
    trainer = trl_trainer(pairs, refs)
    trainer.model.eval()
    inputs = trainer.data_collator(list(trainer.train_dataset))
    logps = (ours.chosen, ours.rejected, refs.chosen, refs.rejected)
    lengths = (torch.tensor([1, 3, 2, 1]), torch.tensor([2, 1, 4, 1]))
    for beta, label_smoothing in ((0.2, 0.1), (0.7, 0.3)):
        trainer.beta, trainer.label_smoothing = beta, label_smoothing
        for loss in [loss.name for loss in BATCHED_LOSSES]:
            trainer.loss_types, trainer.loss_weights = [loss], [1.0]
            trainer._metrics["eval"].clear()
            theirs = trainer._compute_loss(trainer.model, inputs, return_outputs=False).item()
            mine = dpo_loss(loss, *logps, *lengths, beta, label_smoothing).mean().item()
            assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5), (loss, beta)
