"""Metrics of one split under one model, and of a split and its reverse together."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from factdpo.data.facts import Fact
from factdpo.data.pairs import Pairs
from factdpo.models.scoring import PairLogps
from factdpo.results.intervals import wilson

MOST_ANSWERS = 20  # the most answers that answer_shares lists


def score(
    pairs: Pairs, logps: PairLogps, refs: PairLogps | None = None, start: PairLogps | None = None
) -> dict[str, Any]:
    """The metrics of one split under one model; pass `refs`, the base's log-probs, for a trained model.

    `accuracy`: share of facts that the model ranks above their fiction. `reward_accuracy`: share of facts whose margin
    over the fiction grew against the reference, which is what TRL logs and not the same (D6): the base, or `start`,
    what the model of method=sft_dpo began with. Both by summed log-probs; `by_length` adds the accuracy by their mean
    per token (D8).
    """
    n = len(pairs)
    right = logps.chosen > logps.rejected
    hits = int(right.sum())
    low, high = wilson(hits / n, n_facts(pairs))
    preferred = Counter(f.chosen if ok else f.rejected for f, ok in zip(pairs.facts, right.tolist(), strict=True))
    metrics: dict[str, Any] = {
        "n": n,
        "n_facts": n_facts(pairs),
        "accuracy": hits / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": balanced_accuracy(pairs.facts, right.tolist()),
        "answer_shares": {answer: count / n for answer, count in preferred.most_common(MOST_ANSWERS)},
        "chosen_logp_nats": logps.chosen.mean().item(),
        "rejected_logp_nats": logps.rejected.mean().item(),
        "margin_nats": (logps.chosen - logps.rejected).mean().item(),
        "p_other": p_other(pairs, logps),
        "greedy_accuracy": logps.greedy.float().mean().item(),
        **by_length(pairs, logps),
    }
    if refs is not None:
        right_before = refs.chosen > refs.rejected
        reference = start or refs
        gains = (logps.chosen - reference.chosen) - (logps.rejected - reference.rejected)
        metrics["reward_accuracy"] = (gains > 0).float().mean().item()
        metrics["wrong_to_right"] = int((right & ~right_before).sum())
        metrics["right_to_wrong"] = int((~right & right_before).sum())
    return metrics


def by_length(pairs: Pairs, logps: PairLogps) -> dict[str, Any]:
    """The accuracy by mean log-prob per token, and both accuracies where the true answer is the shorter or longer (D8).

    A class without facts has an accuracy of None. With answers of equal length the two accuracies are the same number.
    """
    chosen, rejected = tokens(pairs).T
    right = (logps.chosen > logps.rejected).numpy()
    # Means are compared without dividing, in float64: exact, so that equal lengths are ranked as by the sums.
    per_token = logps.chosen.double().numpy() * rejected > logps.rejected.double().numpy() * chosen
    low, high = wilson(float(per_token.mean()), n_facts(pairs))
    metrics: dict[str, Any] = {
        "accuracy_per_token": float(per_token.mean()),
        "accuracy_per_token_low": low,
        "accuracy_per_token_high": high,
        "chosen_tokens": float(chosen.mean()),
        "rejected_tokens": float(rejected.mean()),
    }
    classes = {"shorter": chosen < rejected, "equal": chosen == rejected, "longer": chosen > rejected}
    for name, facts in classes.items():
        metrics[f"n_{name}"] = n = int(facts.sum())
        metrics[f"accuracy_{name}"] = float(right[facts].mean()) if n else None
        metrics[f"accuracy_per_token_{name}"] = float(per_token[facts].mean()) if n else None
    return metrics


def n_facts(pairs: Pairs) -> int:
    """The number of facts that the pairs are about: several wordings of one are no more evidence than one."""
    return len({fact.index for fact in pairs.facts})


def tokens(pairs: Pairs) -> np.ndarray:
    """[N, 2] numbers of scored tokens: of the chosen and of the rejected answer."""
    return np.array([[len(ids) for ids in column] for column in (pairs.chosen_ids, pairs.rejected_ids)]).T


def balanced_accuracy(facts: list[Fact], right: list[bool]) -> float:
    """The accuracy on the facts with the same true answer, averaged over the answers (D3)."""
    by_answer: dict[str, list[bool]] = defaultdict(list)
    for fact, ok in zip(facts, right, strict=True):
        by_answer[fact.chosen].append(ok)
    return sum(sum(oks) / len(oks) for oks in by_answer.values()) / len(by_answer)


def p_other(pairs: Pairs, logps: PairLogps) -> float:
    """Mean probability of neither answer. Where one answer begins with the other's tokens, the shorter includes it."""
    shares = []
    for chosen_ids, rejected_ids, chosen, rejected in zip(
        pairs.chosen_ids, pairs.rejected_ids, logps.chosen.exp().tolist(), logps.rejected.exp().tolist(), strict=True
    ):
        shorter = min(len(chosen_ids), len(rejected_ids))
        nested = chosen_ids[:shorter] == rejected_ids[:shorter]
        shares.append(1 - (max(chosen, rejected) if nested else chosen + rejected))
    return sum(shares) / len(shares)


def symmetry(pairs: dict[str, Pairs], logps: dict[str, PairLogps], split: str) -> float | None:
    """Order consistency: share of pairs ranked the same with the names swapped; None without a reversed split."""
    if split not in pairs or f"{split}_reversed" not in pairs:
        return None
    forward, backward = (_right(pairs[name], logps[name]) for name in (split, f"{split}_reversed"))
    same = [
        forward[f.prompt, f.chosen, f.rejected] == backward[f.reverse_prompt, f.chosen, f.rejected]
        for f in pairs[split].facts
        if f.reverse_prompt is not None and (f.reverse_prompt, f.chosen, f.rejected) in backward
    ]
    return sum(same) / len(same) if same else None  # a reversed split of the data's own may hold other facts


def _right(pairs: Pairs, logps: PairLogps) -> dict[tuple[str, str, str], bool]:
    """(prompt, chosen, rejected) -> whether the model ranks the fact above the fiction."""
    right = (logps.chosen > logps.rejected).tolist()
    return {(f.prompt, f.chosen, f.rejected): ok for f, ok in zip(pairs.facts, right, strict=True)}


def items(model: str, split: str, pairs: Pairs, logps: PairLogps, refs: PairLogps) -> list[dict[str, Any]]:
    """One row per fact, for items.parquet: the fact, its log-probs under this model and the base, right or wrong."""
    return [
        {
            "model": model,
            "split": split,
            "fact": fact.index,
            "prompt": fact.prompt,
            "chosen": fact.chosen,
            "rejected": fact.rejected,
            "subject": fact.subject,
            "object": fact.object,
            "relation": fact.relation,
            "chosen_logp_nats": chosen,
            "rejected_logp_nats": rejected,
            "ref_chosen_logp_nats": ref_chosen,
            "ref_rejected_logp_nats": ref_rejected,
            "right": chosen > rejected,
            "greedy": greedy,
            "chosen_tokens": chosen_tokens,
            "rejected_tokens": rejected_tokens,
        }
        for fact, chosen, rejected, greedy, ref_chosen, ref_rejected, (chosen_tokens, rejected_tokens) in zip(
            pairs.facts,
            logps.chosen.tolist(),
            logps.rejected.tolist(),
            logps.greedy.tolist(),
            refs.chosen.tolist(),
            refs.rejected.tolist(),
            tokens(pairs).tolist(),
            strict=True,
        )
    ]
