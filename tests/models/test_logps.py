"""THE number: literal logits against a calculation by hand, and parity with the number that TRL trains on."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from factdpo.data.facts import Fact
from factdpo.data.pairs import Pairs, collate
from factdpo.models.logps import completion_logps, greedy_matches
from factdpo.models.scoring import PairLogps, pair_logps

# Probabilities of 3 tokens after each of 4 positions; their logs are logits that log_softmax leaves alone.
PROBABILITIES = [
    [[0.50, 0.25, 0.25], [0.10, 0.20, 0.70], [0.20, 0.20, 0.60], [0.30, 0.30, 0.40]],
    [[0.80, 0.10, 0.10], [0.25, 0.50, 0.25], [0.10, 0.80, 0.10], [0.30, 0.30, 0.40]],
]
IDS = torch.tensor([[0, 1, 2, 0], [0, 0, 1, 1]])
MASK = torch.tensor(
    [
        [False, False, True, True],  # token 2 after position 1: 0.7; token 0 after position 2: 0.2
        [False, False, True, False],  # token 1 after position 1: 0.5; the last token is padding
    ]
)
BY_HAND = [math.log(0.7 * 0.2), math.log(0.5)]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.tensor(PROBABILITIES).log()


@pytest.fixture
def pairs() -> Pairs:
    """Answers of one to four tokens, chosen and rejected of different lengths, prompts of different lengths."""
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14, 15]]
    chosen = [[20], [21, 22, 23], [24, 25], [26]]
    rejected = [[30, 31], [32], [33, 34, 35, 36], [37]]
    facts = [Fact(i, f"prompt {i}", "yes", "no") for i in range(4)]
    return Pairs(facts, prompts, chosen, rejected, pad_id=0)


def test_a_completion_has_the_log_probability_calculated_by_hand(logits: torch.Tensor):
    assert completion_logps(logits, IDS, MASK).tolist() == pytest.approx(BY_HAND)


def test_a_constant_added_to_the_logits_changes_nothing(logits: torch.Tensor):
    assert completion_logps(logits + 7, IDS, MASK).tolist() == pytest.approx(BY_HAND)


def test_what_stands_at_masked_positions_changes_nothing(logits: torch.Tensor):
    ids = IDS.clone()
    ids[1, 3] = 2
    logits[1, 2:] = torch.nan
    assert completion_logps(logits, ids, MASK).tolist() == pytest.approx(BY_HAND)


def test_the_log_probabilities_of_all_completions_add_up_to_one(logits: torch.Tensor):
    every = torch.tensor([[0, 1, i, j] for i in range(3) for j in range(3)])
    total = completion_logps(logits[:1].expand(9, 4, 3), every, MASK[:1].expand(9, 4)).exp().sum()
    assert total.item() == pytest.approx(1)


def test_half_precision_logits_are_summed_in_float32(logits: torch.Tensor):
    half = logits.bfloat16()
    logps = completion_logps(half, IDS, MASK)
    assert logps.dtype is torch.float32
    assert torch.equal(logps, completion_logps(half.float(), IDS, MASK))


def test_the_first_token_has_no_prediction_and_is_refused(logits: torch.Tensor):
    mask = MASK.clone()
    mask[1, 0] = True
    with pytest.raises(AssertionError, match="first token"):
        completion_logps(logits, IDS, mask)


def test_greedy_says_the_completion_only_if_each_of_its_tokens_is_the_most_probable(logits: torch.Tensor):
    # Row 0: token 2 (0.7) is, token 0 (0.2) is not. Row 1: token 1 (0.5) is; its padding does not count.
    assert greedy_matches(logits, IDS, MASK).tolist() == [False, True]


def test_padding_does_not_change_logps(make_tiny_model: Callable[[], Any], pairs: Pairs):
    model = make_tiny_model()
    alone, padded = pair_logps(model, pairs, batch_size=1), pair_logps(model, pairs, batch_size=4)
    torch.testing.assert_close(alone.chosen, padded.chosen, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone.rejected, padded.rejected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_the_pad_token_is_of_no_matter(make_tiny_model: Callable[[], Any], pairs: Pairs):
    other = Pairs(pairs.facts, pairs.prompt_ids, pairs.chosen_ids, pairs.rejected_ids, pad_id=99)
    model = make_tiny_model()
    one, two = pair_logps(model, pairs, 4), pair_logps(model, other, 4)
    assert torch.equal(one.chosen, two.chosen) and torch.equal(one.rejected, two.rejected)


@torch.inference_mode()
def test_logps_are_those_of_reading_one_token_after_the_other(make_tiny_model: Callable[[], Any], pairs: Pairs):
    model = make_tiny_model()
    found = pair_logps(model, pairs, batch_size=4)
    for i in range(len(pairs)):
        for completion, logp in ((pairs.chosen_ids[i], found.chosen[i]), (pairs.rejected_ids[i], found.rejected[i])):
            read, total = list(pairs.prompt_ids[i]), 0.0
            for token in completion:
                total += model(torch.tensor([read])).logits[0, -1].log_softmax(-1)[token].item()
                read.append(token)
            assert logp.item() == pytest.approx(total, abs=1e-4)


def test_each_row_is_the_number_that_trl_trains_on(
    make_tiny_model: Callable[[], Any], trl_trainer: Callable[..., Any], pairs: Pairs
):
    zero = torch.zeros(len(pairs))
    trainer = trl_trainer(pairs, PairLogps(zero, zero, zero.bool()))
    ours = pair_logps(make_tiny_model(), pairs, batch_size=2)
    for i, row in enumerate(trainer.train_dataset):
        inputs = trainer.data_collator([row])
        batch = collate(pairs, [i])  # and the same tokens, in the same rows
        assert inputs["input_ids"].tolist() == batch.ids.tolist()
        assert inputs["completion_mask"].bool().tolist() == batch.completion.tolist()
        trainer._metrics["eval"].clear()
        trainer.model.eval()
        trainer._compute_loss(trainer.model, inputs, return_outputs=False)
        assert trainer._metrics["eval"]["logps/chosen"] == pytest.approx([ours.chosen[i].item()], abs=1e-5)
        assert trainer._metrics["eval"]["logps/rejected"] == pytest.approx([ours.rejected[i].item()], abs=1e-5)
