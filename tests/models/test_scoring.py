"""Log-probs of pairs under a model: in batches, one row for two one-token answers, and the base's from the cache."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from factdpo.data.facts import Fact
from factdpo.data.pairs import Pairs
from factdpo.models.base import Base
from factdpo.models.logps import Diverged
from factdpo.models.scoring import PairLogps, pair_logps, reference_logps
from factdpo.models.weights import Weights

ONE_TOKEN = Pairs(
    facts=[Fact(i, f"prompt {i}", "yes", "no") for i in range(4)],
    prompt_ids=[[5, 6, 7], [8, 9], [10, 11, 12, 13], [14, 15]],
    chosen_ids=[[20], [21], [22], [23]],
    rejected_ids=[[30], [31], [32], [33]],
    pad_id=0,
)
RAGGED = dataclasses.replace(
    ONE_TOKEN,
    chosen_ids=[[20], [21, 40, 41], [22, 42], [23]],
    rejected_ids=[[30, 43], [31], [32], [33]],
)


@pytest.fixture
def base(make_tiny_model: Callable[[], Any], nano_base: Base) -> Base:
    weights = Weights("tiny", {"files": "of tiny", "dtype": "float32"})
    return Base(make_tiny_model(), nano_base.tokenizer, weights, adjusted=[])


def rows_forwarded(model: torch.nn.Module, pairs: Pairs) -> tuple[PairLogps, int]:
    """The log-probs, and how many rows the model has read for them."""
    rows: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    logps = pair_logps(model, pairs, batch_size=len(pairs))
    hook.remove()
    return logps, sum(rows)


def unusable(base: Base) -> Base:
    """The same base, as far as its identity goes, whose model cannot be called."""
    del base.model.gpt_neox.embed_in  # type: ignore[union-attr]
    return base


def same_bits(one: PairLogps, other: PairLogps) -> bool:
    both = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in both)


def test_one_row_serves_both_one_token_answers_with_the_numbers_of_two(base: Base):
    # One answer of two tokens in the batch, and every pair is read in two rows.
    forced = Pairs(
        [*ONE_TOKEN.facts, Fact(4, "prompt 4", "yes", "no")],
        [*ONE_TOKEN.prompt_ids, [16]],
        [*ONE_TOKEN.chosen_ids, [24, 44]],
        [*ONE_TOKEN.rejected_ids, [34]],
        pad_id=0,
    )
    fast, fast_rows = rows_forwarded(base.model, ONE_TOKEN)
    slow, slow_rows = rows_forwarded(base.model, forced)
    assert (fast_rows, slow_rows) == (4, 10)
    torch.testing.assert_close(fast.chosen, slow.chosen[:4], rtol=0, atol=1e-5)
    torch.testing.assert_close(fast.rejected, slow.rejected[:4], rtol=0, atol=1e-5)
    assert torch.equal(fast.greedy, slow.greedy[:4])


@torch.inference_mode()
def test_greedy_is_whether_the_most_probable_tokens_are_the_chosen_ones(base: Base):
    said = []
    for prompt in RAGGED.prompt_ids:
        ids = list(prompt)
        for _ in range(2):
            ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
        said.append(ids[len(prompt) :])
    wrong_first = [[(ids[0] + 1) % 2048, ids[1]] for ids in said]
    wrong_last = [[ids[0], (ids[1] + 1) % 2048] for ids in said]
    for completions, expected in ((said, True), (wrong_first, False), (wrong_last, False)):
        pairs = dataclasses.replace(RAGGED, chosen_ids=completions)
        assert pair_logps(base.model, pairs, batch_size=3).greedy.tolist() == [expected] * 4


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_batch_size_changes_nothing(base: Base, size: int):
    whole, parts = pair_logps(base.model, RAGGED, 64), pair_logps(base.model, RAGGED, size)
    torch.testing.assert_close(parts.chosen, whole.chosen, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.rejected, whole.rejected, rtol=0, atol=1e-5)


def test_swapping_chosen_and_rejected_swaps_the_numbers(base: Base):
    one = pair_logps(base.model, RAGGED, 4)
    swapped = dataclasses.replace(RAGGED, chosen_ids=RAGGED.rejected_ids, rejected_ids=RAGGED.chosen_ids)
    other = pair_logps(base.model, swapped, 4)
    torch.testing.assert_close(other.chosen, one.rejected, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.rejected, one.chosen, rtol=0, atol=1e-5)


def test_a_model_in_training_is_scored_without_dropout_and_goes_on_training(base: Base):
    before = pair_logps(base.model, RAGGED, 4)
    for module in base.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    base.model.train()
    assert same_bits(pair_logps(base.model, RAGGED, 4), before)
    assert base.model.training


def test_take_keeps_the_first_numbers(base: Base):
    whole = pair_logps(base.model, RAGGED, 4)
    two = whole.take(2)
    assert torch.equal(two.chosen, whole.chosen[:2]) and torch.equal(two.rejected, whole.rejected[:2])
    assert torch.equal(two.greedy, whole.greedy[:2])


def test_numbers_that_are_not_finite_end_the_run(base: Base, tmp_path: Path):
    torch.nn.init.constant_(base.model.gpt_neox.final_layer_norm.weight, torch.nan)  # type: ignore[union-attr]
    with pytest.raises(Diverged, match=r"^the base itself.*: log-probs of 4 of 4 pairs .*, first 'prompt 0'; its wei"):
        reference_logps(base, RAGGED, 4, tmp_path)
    assert list((tmp_path / "reference").glob("*/*")) == []  # and are not kept


def test_one_pair_that_is_not_finite_is_named(base: Base):
    with torch.no_grad():
        base.model.gpt_neox.embed_in.weight[11] = torch.inf  # type: ignore[union-attr]  # a token of prompt 2 only
    with pytest.raises(Diverged, match=r"1 of 4 pairs are not finite, first 'prompt 2'"):
        pair_logps(base.model, RAGGED, 4)


def test_a_second_question_is_answered_from_the_cache_bit_for_bit(base: Base, tmp_path: Path):
    first = reference_logps(base, RAGGED, 4, tmp_path)
    assert same_bits(first, pair_logps(base.model, RAGGED, 4))
    assert same_bits(reference_logps(unusable(base), RAGGED, 4, tmp_path), first)


@pytest.mark.parametrize("change", ["another dtype", "other prompts", "other answers", "answers swapped"])
def test_another_model_or_other_tokens_are_another_question(base: Base, tmp_path: Path, change: str):
    reference_logps(base, RAGGED, 4, tmp_path)
    pairs = RAGGED
    if change == "another dtype":
        identity = {**base.weights.identity, "dtype": "bfloat16"}
        base = dataclasses.replace(base, weights=dataclasses.replace(base.weights, identity=identity))
    elif change == "other prompts":
        pairs = dataclasses.replace(RAGGED, prompt_ids=[[99], *RAGGED.prompt_ids[1:]])
    elif change == "other answers":
        pairs = dataclasses.replace(RAGGED, rejected_ids=[[30, 0], *RAGGED.rejected_ids[1:]])
    else:
        pairs = dataclasses.replace(RAGGED, chosen_ids=RAGGED.rejected_ids, rejected_ids=RAGGED.chosen_ids)
    with pytest.raises(AttributeError, match="embed_in"):
        reference_logps(unusable(base), pairs, 4, tmp_path)


def test_the_same_tokens_of_other_facts_are_the_same_question(base: Base, tmp_path: Path):
    first = reference_logps(base, RAGGED, 4, tmp_path)
    renamed = dataclasses.replace(RAGGED, facts=[Fact(9, "other", "yes", "no")] * 4)
    assert same_bits(reference_logps(unusable(base), renamed, 4, tmp_path), first)


def test_a_damaged_file_is_made_again(base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first = reference_logps(base, RAGGED, 4, tmp_path)
    (file,) = tmp_path.glob("reference/*/logps.safetensors")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1  # one bit of one number
    file.unlink()  # a new file: the numbers in hand are read from the old one
    file.write_bytes(raw)
    with caplog.at_level(logging.WARNING, logger="factdpo"):
        again = reference_logps(base, RAGGED, 4, tmp_path)
    assert same_bits(again, first) and "made again" in caplog.text
