"""Scores of a split on literal log-probs, and what a model says and remembers against calculations by hand."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from factdpo.data.facts import Fact
from factdpo.data.pairs import Pairs
from factdpo.evaluation import generation
from factdpo.evaluation.generation import continuations
from factdpo.evaluation.metrics import balanced_accuracy, by_length, items, p_other, score, symmetry
from factdpo.models.base import Base
from factdpo.models.scoring import PairLogps
from factdpo.models.weights import Weights
from factdpo.results.intervals import wilson
from tests.helpers.tiny import tokenizer
from tests.helpers.tokenizers import words

FRIEND, ENEMY = ("friend", "enemy"), ("enemy", "friend")


def pairs_of(answers: list[tuple[str, str]], ids: dict[str, list[int]] | None = None) -> Pairs:
    """One pair per (chosen, rejected); answers of one token each, unless told otherwise."""
    ids = ids or {"friend": [1], "enemy": [2]}
    facts = [
        Fact(i, f"A{i} is B{i}'s", chosen, rejected, f"A{i}", f"B{i}", chosen, f"B{i} is A{i}'s")
        for i, (chosen, rejected) in enumerate(answers)
    ]
    prompts = [[10 + i] for i in range(len(facts))]
    return Pairs(facts, prompts, [ids[f.chosen] for f in facts], [ids[f.rejected] for f in facts], pad_id=0)


def logps_of(chosen: list[float], rejected: list[float], greedy: list[bool] | None = None) -> PairLogps:
    """Log-probs in nats; nothing is said greedily unless told otherwise."""
    said = torch.tensor(greedy or [False] * len(chosen))
    return PairLogps(torch.tensor(chosen, dtype=torch.float32), torch.tensor(rejected, dtype=torch.float32), said)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 50), (25, 50), (36, 50), (50, 50), (213, 300), (561, 561)])
def test_the_interval_is_wilsons(hits: int, n: int):
    theirs = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    low, high = wilson(hits / n, n)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    assert 0 <= low <= hits / n <= high <= 1


def test_every_accuracy_has_its_n_and_its_interval():
    metrics = score(pairs_of([FRIEND] * 4), logps_of([-1, -1, -1, -3], [-2, -2, -2, -2]))
    assert (metrics["n"], metrics["accuracy"]) == (4, 0.75)
    assert (metrics["accuracy_low"], metrics["accuracy_high"]) == wilson(3 / 4, 4)


def test_wordings_of_one_fact_are_no_more_evidence_than_one():
    pairs = pairs_of([FRIEND] * 20)
    facts = [dataclasses.replace(fact, index=fact.index // 5) for fact in pairs.facts]
    metrics = score(dataclasses.replace(pairs, facts=facts), logps_of([-1] * 15 + [-3] * 5, [-2] * 20))
    assert (metrics["n"], metrics["n_facts"], metrics["accuracy"]) == (20, 4, 0.75)
    assert (metrics["accuracy_low"], metrics["accuracy_high"]) == wilson(3 / 4, 4)
    assert (metrics["accuracy_per_token_low"], metrics["accuracy_per_token_high"]) == wilson(3 / 4, 4)


def test_a_model_that_always_says_friend_has_the_share_of_friends_and_balanced_one_half():
    pairs = pairs_of([FRIEND, FRIEND, FRIEND, ENEMY])
    metrics = score(pairs, logps_of(chosen=[-1, -1, -1, -2], rejected=[-2, -2, -2, -1]))
    assert metrics["accuracy"] == 0.75
    assert metrics["balanced_accuracy"] == 0.5
    assert metrics["answer_shares"] == {"friend": 1.0}


def test_balanced_accuracy_is_the_mean_over_the_true_answers():
    pairs = pairs_of([FRIEND, FRIEND, FRIEND, ENEMY])
    assert balanced_accuracy(pairs.facts, [True, True, False, True]) == pytest.approx((2 / 3 + 1) / 2)
    assert balanced_accuracy(pairs.facts[:3], [True, False, False]) == pytest.approx(1 / 3)
    metrics = score(pairs, logps_of(chosen=[-1, -1, -3, -1], rejected=[-2, -2, -2, -2]))
    assert metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["answer_shares"] == {"friend": 0.5, "enemy": 0.5}


def test_answer_shares_list_the_twenty_answers_given_most():
    facts = [Fact(i, f"p{i}", f"a{i}", "b") for i in range(30)] + [Fact(30, "q", "a7", "b")]
    pairs = Pairs(facts, [[1]] * 31, [[2]] * 31, [[3]] * 31, pad_id=0)
    shares = score(pairs, logps_of([-1.0] * 31, [-2.0] * 31))["answer_shares"]
    assert len(shares) == 20 and next(iter(shares.items())) == ("a7", 2 / 31)


def test_an_answer_no_better_than_the_other_is_wrong():
    assert score(pairs_of([FRIEND]), logps_of([-1], [-1]))["accuracy"] == 0.0


def test_log_probs_and_margin_are_means_in_nats():
    metrics = score(pairs_of([FRIEND, ENEMY]), logps_of([-1, -3], [-2.5, -2], greedy=[True, False]))
    assert metrics["chosen_logp_nats"] == -2.0
    assert metrics["rejected_logp_nats"] == -2.25
    assert metrics["margin_nats"] == 0.25
    assert metrics["greedy_accuracy"] == 0.5


def test_reward_accuracy_is_not_accuracy():
    # D6: every fact has moved up against its fiction, and none has passed it.
    pairs = pairs_of([FRIEND, ENEMY])
    refs = logps_of(chosen=[-5, -4], rejected=[-1, -1])
    metrics = score(pairs, logps_of(chosen=[-3, -2], rejected=[-1.5, -1]), refs)
    assert (metrics["reward_accuracy"], metrics["accuracy"]) == (1.0, 0.0)
    # The other way about: still ranked right, and less so than before.
    metrics = score(pairs, logps_of([-1, -1], [-2, -2]), logps_of([-1, -1], [-5, -6]))
    assert (metrics["reward_accuracy"], metrics["accuracy"]) == (0.0, 1.0)


def test_reward_accuracy_of_a_model_that_is_its_own_reference_is_zero():
    same = logps_of([-1, -2], [-2, -1])
    metrics = score(pairs_of([FRIEND, ENEMY]), same, same)
    assert metrics["reward_accuracy"] == 0.0
    assert (metrics["wrong_to_right"], metrics["right_to_wrong"]) == (0, 0)


def test_flips_are_counted_against_the_base_in_both_directions():
    refs = logps_of(chosen=[-1, -1, -3, -3, -3], rejected=[-2] * 5)  # right, right, wrong, wrong, wrong
    now = logps_of(chosen=[-1, -3, -1, -1, -3], rejected=[-2] * 5)  # right, wrong, right, right, wrong
    metrics = score(pairs_of([FRIEND] * 5), now, refs)
    assert (metrics["wrong_to_right"], metrics["right_to_wrong"]) == (2, 1)


def test_the_base_has_no_rewards_and_no_flips():
    assert not {"reward_accuracy", "wrong_to_right", "right_to_wrong"} & set(
        score(pairs_of([FRIEND]), logps_of([-1], [-2]))
    )


def test_p_other_is_what_neither_answer_takes():
    logps = logps_of([math.log(0.5), math.log(0.1)], [math.log(0.3), math.log(0.2)])
    assert p_other(pairs_of([FRIEND, ENEMY]), logps) == pytest.approx((0.2 + 0.7) / 2)
    assert score(pairs_of([FRIEND, ENEMY]), logps)["p_other"] == pytest.approx((0.2 + 0.7) / 2)


@pytest.mark.parametrize(("chosen", "rejected"), [("York", "York City"), ("York City", "York")])
def test_an_answer_that_begins_with_the_other_is_counted_once(chosen: str, rejected: str):
    # Of the 0.6 that say "York", 0.25 go on with "City": together they take 0.6 and not 0.85.
    pairs = pairs_of([(chosen, rejected)], ids={"York": [5], "York City": [5, 6]})
    share = {"York": 0.6, "York City": 0.25}
    assert p_other(pairs, logps_of([math.log(share[chosen])], [math.log(share[rejected])])) == pytest.approx(0.4)


def test_answers_that_share_only_their_beginning_are_both_counted():
    pairs = pairs_of([("New York", "New Delhi")], ids={"New York": [4, 5], "New Delhi": [4, 6]})
    assert p_other(pairs, logps_of([math.log(0.6)], [math.log(0.25)])) == pytest.approx(0.15)


def test_lengths_divide_the_log_probs_and_the_facts():
    # A sum favours the shorter answer: -4 in one token against -6 in three, which are -2 each.
    ids = {"mud": [1], "the sea": [2, 3, 4], "ice": [5]}
    pairs = pairs_of([("the sea", "mud"), ("mud", "the sea"), ("mud", "ice"), ("the sea", "ice")], ids)
    found = by_length(pairs, logps_of(chosen=[-6, -4, -1, -9], rejected=[-4, -6, -2, -2]))
    assert (found["n_shorter"], found["n_equal"], found["n_longer"]) == (1, 1, 2)
    assert (found["accuracy_shorter"], found["accuracy_equal"], found["accuracy_longer"]) == (1.0, 1.0, 0.0)
    assert (found["accuracy_per_token_shorter"], found["accuracy_per_token_longer"]) == (0.0, 0.5)
    assert found["accuracy_per_token"] == 0.5
    assert (found["accuracy_per_token_low"], found["accuracy_per_token_high"]) == wilson(2 / 4, 4)
    assert (found["chosen_tokens"], found["rejected_tokens"]) == (2.0, 1.5)


def test_answers_of_equal_length_are_ranked_alike_by_sum_and_by_mean():
    # -1 and the next float32 below it: a mean in float32 would make them equal.
    ids = {"friend": [1, 2, 3], "enemy": [4, 5, 6]}
    pairs = pairs_of([FRIEND, ENEMY], ids)
    close = torch.nextafter(torch.tensor(-1.0), torch.tensor(-2.0)).item()
    metrics = score(pairs, logps_of([-1.0, close], [close, -1.0]))
    assert metrics["accuracy"] == metrics["accuracy_per_token"] == metrics["accuracy_equal"] == 0.5
    assert (metrics["n_equal"], metrics["n_shorter"], metrics["accuracy_shorter"]) == (2, 0, None)


def both_orders(pairs: Pairs) -> dict[str, Pairs]:
    """The pairs, and in another row order their reverse, as the splits `test` and `test_reversed`."""
    back = [fact.reversed() for fact in reversed(pairs.facts) if fact.reverse_prompt is not None]
    n = len(back)
    return {"test": pairs, "test_reversed": Pairs(back, [[9]] * n, [[1]] * n, [[2]] * n, pad_id=0)}


def test_symmetry_is_the_share_of_pairs_ranked_the_same_in_both_orders():
    pairs = both_orders(pairs_of([FRIEND, ENEMY, FRIEND, ENEMY]))
    right, wrong = -1.0, -3.0
    logps = {
        "test": logps_of([wrong, wrong, right, wrong], [-2] * 4),  # of pair 0, 1, 2, 3
        "test_reversed": logps_of([right, right, wrong, wrong], [-2] * 4),  # of pair 3, 2, 1, 0
    }
    assert symmetry(pairs, logps, "test") == 3 / 4  # pairs 0, 1 and 2 agree, right or wrong


def test_symmetry_tells_facts_of_one_prompt_apart():
    facts = [
        Fact(0, "A is B's", "friend", "enemy", reverse_prompt="B is A's"),
        Fact(1, "A is B's", "friend", "cousin", reverse_prompt="B is A's"),
    ]
    pairs = both_orders(Pairs(facts, [[9]] * 2, [[1]] * 2, [[2]] * 2, pad_id=0))
    logps = {"test": logps_of([-1, -3], [-2, -2]), "test_reversed": logps_of([-3, -1], [-2, -2])}
    assert symmetry(pairs, logps, "test") == 1.0  # fact 0 right in both orders, fact 1 wrong in both


def test_facts_without_a_reverse_have_no_symmetry():
    facts = [Fact(0, "p", "x", "y"), Fact(1, "q", "x", "y", reverse_prompt="r")]
    pairs = both_orders(Pairs(facts, [[9]] * 2, [[1]] * 2, [[2]] * 2, pad_id=0))
    logps = {"test": logps_of([-1, -1], [-2, -2]), "test_reversed": logps_of([-1], [-2])}
    assert symmetry(pairs, logps, "test") == 1.0  # of the one fact that has a reverse
    assert symmetry({"test": pairs["test"]}, logps, "test") is None
    assert symmetry(pairs, logps, "train") is None


@torch.inference_mode()
def test_retention_is_the_mean_over_all_tokens_of_the_neutral_text(
    make_tiny_model: Callable[[], Any], nano_base: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    text = " ".join(f"The {i}. house stood by the river and was quiet." for i in range(12))
    (tmp_path / "neutral.txt").write_text(text)
    monkeypatch.setattr(generation, "NEUTRAL", tmp_path / "neutral.txt")
    model, ids = make_tiny_model(), nano_base.tokenizer(text)["input_ids"]
    per_row = (len(ids) - 1) // 3  # three whole rows, and then a short one
    monkeypatch.setattr(generation, "NEUTRAL_TOKENS", per_row)
    logps = []
    for place in range(1, len(ids)):  # each token after those of its row before it; every token but the first, once
        start = (place - 1) // per_row * per_row
        row = torch.tensor([ids[start:place]])
        logps.append(model(row).logits[0, -1].log_softmax(-1)[ids[place]].item())
    (found,) = generation.retention_nats_per_token(model, nano_base)
    assert found == pytest.approx(-sum(logps) / (len(ids) - 1), abs=1e-4)


def test_a_model_that_knows_nothing_retains_the_log_of_the_vocabulary(
    nano_base: Any, make_tiny_model: Callable[[], Any]
):
    model = make_tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)  # every token equally probable
    (found,) = generation.retention_nats_per_token(model, nano_base)
    assert found == pytest.approx(math.log(2048), abs=1e-5)


def test_a_broken_models_retention_is_not_finite(nano_base: Any, make_tiny_model: Callable[[], Any]):
    model = make_tiny_model()
    torch.nn.init.constant_(model.gpt_neox.final_layer_norm.weight, torch.nan)
    (found,) = generation.retention_nats_per_token(model, nano_base)
    assert math.isnan(found)


def test_continuations_are_greedy_and_without_the_prompt(nano_base: Any):
    prompts = ["Harry Potter is", "Once there was a house"]
    expected = []
    for prompt in prompts:
        ids = nano_base.tokenizer(prompt)["input_ids"]
        start = len(ids)
        with torch.inference_mode():
            for _ in range(6):
                ids.append(int(nano_base.model(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == nano_base.tokenizer.eos_token_id:
                    break
        expected.append(nano_base.tokenizer.decode(ids[start:], skip_special_tokens=True))
    prompt_ids = nano_base.encoder.encode(prompts)
    assert continuations(nano_base.model, nano_base, prompt_ids, max_new_tokens=6) == expected
    assert all(expected)


def test_greedy_means_greedy_whatever_the_models_generation_config_has(
    nano_base: Any, make_tiny_model: Callable[[], Any]
):
    model, prompts = make_tiny_model(), nano_base.encoder.encode(["Harry Potter is", "Once there was a house"])
    plain = continuations(model, nano_base, prompts, max_new_tokens=8)
    own = GenerationConfig(
        repetition_penalty=5.0, num_beams=3, no_repeat_ngram_size=1, min_new_tokens=2, bos_token_id=0, eos_token_id=0
    )
    model.generation_config = own
    assert continuations(model, nano_base, prompts, max_new_tokens=8) == plain
    assert model.generation_config is own, "it is the model's again"


def test_texts_fit_into_the_positions_that_a_model_has():
    """GPT-2's positions are learned: one more is an IndexError."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=2048, n_embd=32, n_layer=1, n_head=2, n_positions=32)).eval()
    words = copy.copy(tokenizer())
    words.model_max_length = 32
    base = Base(model, words, Weights("gpt2", {}), adjusted=[])
    (retained,) = generation.retention_nats_per_token(model, base)
    assert math.isfinite(retained)
    (ids,) = base.encoder.encode(["word " * 40])
    assert len(ids) > 32
    assert continuations(model, base, [ids], 12) == continuations(model, base, [ids[-20:]], 12)


def test_a_tokenizer_without_pad_and_end_of_text_can_speak(make_tiny_model: Callable[[], Any]):
    bare = words("it", "is", "so", eos=False)
    assert bare.pad_token_id is None and bare.eos_token_id is None
    model = make_tiny_model()
    model.generation_config.eos_token_id = None
    base = Base(model, bare, Weights("x", {}), adjusted=[])
    together = continuations(model, base, [[1, 2, 3], [1]], max_new_tokens=4)
    assert together == [*continuations(model, base, [[1, 2, 3]], 4), *continuations(model, base, [[1]], 4)]


def test_items_hold_one_row_per_fact_now_and_before():
    pairs = pairs_of([FRIEND, ENEMY])
    rows = items(
        "trained", "test", pairs, logps_of([-1, -3], [-2, -2], greedy=[True, False]), logps_of([-4, -5], [-6, -7])
    )
    assert rows[0] == {
        "model": "trained",
        "split": "test",
        "fact": 0,
        "prompt": "A0 is B0's",
        "chosen": "friend",
        "rejected": "enemy",
        "subject": "A0",
        "object": "B0",
        "relation": "friend",
        "chosen_logp_nats": -1.0,
        "rejected_logp_nats": -2.0,
        "ref_chosen_logp_nats": -4.0,
        "ref_rejected_logp_nats": -6.0,
        "right": True,
        "greedy": True,
        "chosen_tokens": 1,
        "rejected_tokens": 1,
    }
    assert (rows[1]["fact"], rows[1]["right"], rows[1]["greedy"]) == (1, False, False)
    assert (rows[1]["ref_chosen_logp_nats"], rows[1]["ref_rejected_logp_nats"]) == (-5.0, -7.0)
    assert len(rows) == 2


def test_a_reversed_split_of_other_facts_has_no_symmetry():
    facts = [Fact(0, "A is B's", *FRIEND, reverse_prompt="B is A's")]
    other = [Fact(1, "D is C's", *FRIEND)]
    pairs = {"test": Pairs(facts, [[1]], [[2]], [[3]], 0), "test_reversed": Pairs(other, [[1]], [[2]], [[3]], 0)}
    one = PairLogps(torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([True]))
    assert symmetry(pairs, {"test": one, "test_reversed": one}, "test") is None
