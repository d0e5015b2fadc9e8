"""What is suspicious in a run's numbers, in sentences."""

from typing import Any

from factdpo.data.pairs import Pairs
from factdpo.results.intervals import wilson
from factdpo.store.result import ACCURACY_GAP, AS_TRAINED

Scores = dict[str, Any]  # of a split, as metrics.score makes them


def warnings(trained: dict[str, Scores], pairs: dict[str, Pairs]) -> list[str]:
    """What is suspicious in the scores of a trained model, by split (D1, D6, D8), each as a sentence."""
    return [*_boundary(pairs), *_two_accuracies(trained), *_length_tells(trained), *_length_decides(trained)]


def _boundary(pairs: dict[str, Pairs]) -> list[str]:
    """The answers were trained without their space (D1)."""
    if AS_TRAINED not in pairs:
        return []
    trained, read = pairs[AS_TRAINED].prompt_ids, pairs["train"].prompt_ids
    merged = sum(a != b for a, b in zip(trained, read, strict=True))
    more = f"; in {merged} of {len(trained)} pairs the prompt's last token merged with them" if merged else ""
    return [f"data.boundary=none: the answers were trained without the space that the evaluation reads{more}"]


def _two_accuracies(trained: dict[str, Scores]) -> list[str]:
    """Reward accuracy and accuracy on the training pairs differ by more than ACCURACY_GAP (D6)."""
    if "reward_accuracy" not in trained.get("train", {}):  # of an evaluation: other facts, or no base beside it
        return []
    reward = trained.get(AS_TRAINED, trained["train"])["reward_accuracy"]
    accuracy = trained["train"]["accuracy"]
    if reward - accuracy > ACCURACY_GAP:
        return [
            f"reward accuracy on the training pairs is {reward:.2f}, accuracy on train (summed) only {accuracy:.2f}: "
            "what was trained moved the right way, and the model still does not rank the facts above the fictions"
        ]
    if accuracy - reward > ACCURACY_GAP:
        return [
            f"reward accuracy on the training pairs is only {reward:.2f}, accuracy on train (summed) {accuracy:.2f}: "
            "the base ranked them so before, and training moved many of them the wrong way"
        ]
    return []


def _length_tells(trained: dict[str, Scores]) -> list[str]:
    """The true answer is the shorter, or the longer, too often (D8).

    That is where "the shorter answer" and "the longer answer" score further apart than ACCURACY_GAP on the facts whose
    answers differ in length, and 1/2 lies outside the first's 95 % Wilson interval.
    """
    told = []
    for split, scores in trained.items():
        shorter, longer = scores["n_shorter"], scores["n_longer"]
        if abs(shorter - longer) > ACCURACY_GAP * (shorter + longer) and not _covers(shorter, shorter + longer, 0.5):
            word = "fewer" if shorter > longer else "more"
            told.append(f"{word} tokens in {max(shorter, longer)} of {shorter + longer} facts of {split}")
    if not told:
        return []
    return [
        f"where the two answers differ in length, the true one has {', '.join(told)}: length alone tells them apart; "
        "balance the lengths"
    ]


def _length_decides(trained: dict[str, Scores]) -> list[str]:
    """The accuracy of facts whose true answer is the shorter is another than that of the others (D8).

    That is where the two differ by more than ACCURACY_GAP and their 95 % Wilson intervals do not overlap.
    """
    told = []
    for metric, words in (("accuracy", "accuracy"), ("accuracy_per_token", "accuracy per token")):
        for split, scores in trained.items():
            if _part(scores, metric):
                shorter, longer = scores[f"{metric}_shorter"], scores[f"{metric}_longer"]
                told.append(f"{words} on {split} is {shorter:.2f} and {longer:.2f}")
    if not told:
        return []
    return [
        "length decides what is ranked right: where the true answer has fewer tokens than the false one, and where it "
        f"has more, {', '.join(told)}"
    ]


def _part(scores: Scores, metric: str) -> bool:
    shares = [(scores[f"{metric}_{name}"], scores[f"n_{name}"]) for name in ("shorter", "longer")]
    if not all(n for _, n in shares):
        return False
    intervals = sorted(wilson(share, n) for share, n in shares)
    return abs(shares[0][0] - shares[1][0]) > ACCURACY_GAP and intervals[0][1] < intervals[1][0]


def _covers(hits: int, n: int, share: float) -> bool:
    low, high = wilson(hits / n, n)
    return low <= share <= high
