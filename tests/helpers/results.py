"""A result with made-up numbers and every group of keys that a run writes."""

from collections.abc import Iterator
from typing import Any

from factdpo.store.result import KEYS


def scores(n: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "n": n, "accuracy": accuracy, "accuracy_low": accuracy - 0.04, "accuracy_high": accuracy + 0.02,
        "balanced_accuracy": accuracy, "answer_shares": {"friend": 0.75, "Mr. Nobody": 0.25}, "chosen_logp_nats": -1.0,
        "rejected_logp_nats": -3.0, "margin_nats": 2.0, "p_other": 0.5, "greedy_accuracy": 0.25, **more,
    }  # fmt: skip


def result(**more: Any) -> dict[str, Any]:
    """Of a finished run; `more` replaces or adds keys."""
    flips = {"reward_accuracy": 1.0, "wrong_to_right": 130, "right_to_wrong": 4}
    return {
        "id": "3f2a9c1b7d20", "name": "nano b=0.2 r=32 s=0", "state": "FINISHED", "error": None,
        "started": "2025-01-01T00:00:00Z", "config": {"dpo": {"beta": 0.2, "loss": ["sigmoid"]}},
        "asked": {"model": {"sha256": "ab"}}, "versions": {"torch": "2"}, "hardware": {"device": "cpu"},
        "base": {"train": scores(300, 0.55), "test": scores(561, 0.51)},
        "trained": {"train": scores(300, 0.97, **flips), "test": scores(561, 0.42, **flips)},
        "baselines": {
            "train": {"majority": 0.51, "first_name": 0.61, "second_name": 0.6, "additive": 0.7, "implied": 1.0},
            "test": {"majority": 0.5, "first_name": None, "second_name": None, "additive": None, "implied": None},
        },
        "across": {
            "base": {"symmetry_train": 0.5, "symmetry_test": None, "retention_nats_per_token": 3.0},
            "trained": {"symmetry_train": 0.875, "symmetry_test": None, "retention_nats_per_token": 3.25},
        },
        "warnings": ["reward accuracy is 1.00, accuracy only 0.42"], "adjusted": [], "canaries": {"first_loss": 0.6931},
        "training": {"steps": 304, "trainable_parameters": 1000, "peak_gib": 0.5},
        "timing": {"reference_seconds": 1.0, "train_seconds": 9.0, "score_seconds": 1.0, "total_seconds": 12.0},
        "files": {"history.jsonl": "ab"}, **more,
    }  # fmt: skip


def undocumented(result: dict[str, Any]) -> list[str]:
    """Keys of a result, dotted, that KEYS does not explain."""
    patterns = [key.split(".") for key in KEYS]
    return [".".join(path) for path in _paths(result) if not any(_matches(path, pattern) for pattern in patterns)]


def _paths(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _paths(value, (*path, key))
    elif path:
        yield path


def _matches(path: tuple[str, ...], pattern: list[str]) -> bool:
    if pattern[-1] == "<rest>":
        return list(path[: len(pattern) - 1]) == pattern[:-1]
    return len(path) == len(pattern) and all(p.startswith("<") or p == k for k, p in zip(path, pattern, strict=True))
