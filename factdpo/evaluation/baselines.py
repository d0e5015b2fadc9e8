"""Accuracies of shallow baselines, and of the logical closure of the training facts, on each split (D2)."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np

from factdpo.data.facts import Fact

Rule = Callable[[Fact], dict[str, float]]  # answer -> score; of chosen and rejected, the higher is predicted

MAX_ANSWERS = 20  # with more distinct answers, no additive rule is fitted


def baselines(train: list[Fact], splits: dict[str, list[Fact]]) -> dict[str, dict[str, float | None]]:
    """The accuracy of each rule, fitted on the training facts, on each split. A tie counts one half.

    majority: the answer that is true more often; first_name, second_name: the same, given that name; additive: a weight
    per first name plus a weight per second name (logistic regression), without interaction; implied: the logical
    closure, that is what 2-colouring the graph of training facts proves, with the majority elsewhere. None where facts
    have no subject and object (name rules) or a relation that says nothing about camps (implied).
    """
    counts = Counter(fact.chosen for fact in train)
    named = all(fact.subject and fact.object for split in splits.values() for fact in split)
    rules: dict[str, Rule | None] = {
        "majority": lambda fact: dict(counts),
        "first_name": _by_name(train, counts, lambda fact: fact.subject) if named else None,
        "second_name": _by_name(train, counts, lambda fact: fact.object) if named else None,
        "additive": _additive(train) if named and 2 <= len(counts) <= MAX_ANSWERS else None,
        "implied": _implied(train, counts) if named else None,
    }
    return {
        name: {rule_name: _accuracy(rule, facts) if rule else None for rule_name, rule in rules.items()}
        for name, facts in splits.items()
    }


def _accuracy(rule: Rule, facts: list[Fact]) -> float:
    points = 0.0
    for fact in facts:
        scores = rule(fact)
        chosen, rejected = scores.get(fact.chosen, -math.inf), scores.get(fact.rejected, -math.inf)
        points += 0.5 if chosen == rejected else float(chosen > rejected)
    return points / len(facts)


def _by_name(train: list[Fact], overall: Counter[str], name: Callable[[Fact], str | None]) -> Rule:
    """The most frequent answer for a name; the overall share breaks ties, and decides for unknown names."""
    counts: dict[str | None, Counter[str]] = defaultdict(Counter)
    for fact in train:
        counts[name(fact)][fact.chosen] += 1
    total = overall.total() + 1

    def rule(fact: Fact) -> dict[str, float]:
        own = counts.get(name(fact), Counter())
        return {answer: own[answer] + overall[answer] / total for answer in overall}

    return rule


def _additive(train: list[Fact], ridge: float = 0.01) -> Rule:
    """Multinomial logistic regression on first name and second name, no interaction, small ridge."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    answers = sorted({fact.chosen for fact in train})
    first = {name: i for i, name in enumerate(sorted({str(fact.subject) for fact in train}))}
    second = {name: i for i, name in enumerate(sorted({str(fact.object) for fact in train}))}
    a = np.array([first[str(fact.subject)] for fact in train])
    b = np.array([second[str(fact.object)] for fact in train])
    y = np.array([answers.index(fact.chosen) for fact in train])
    shapes = (1 + len(first) + len(second), len(answers))
    rows = np.arange(len(train))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(shapes)
        logp = log_softmax(w[0] + w[1 + a] + w[1 + len(first) + b], axis=1)
        residual = np.exp(logp)
        residual[rows, y] -= 1
        gradient = ridge * w
        gradient[0] += residual.sum(0)
        np.add.at(gradient, 1 + a, residual)
        np.add.at(gradient, 1 + len(first) + b, residual)
        return -logp[rows, y].sum() + ridge / 2 * (w**2).sum(), gradient.ravel()

    weights = minimize(loss, np.zeros(shapes).ravel(), jac=True, method="L-BFGS-B").x.reshape(shapes)

    def rule(fact: Fact) -> dict[str, float]:
        score = weights[0].copy()
        if (i := first.get(str(fact.subject))) is not None:
            score += weights[1 + i]
        if (i := second.get(str(fact.object))) is not None:
            score += weights[1 + len(first) + i]
        return dict(zip(answers, score.tolist(), strict=True))

    return rule


def _implied(train: list[Fact], counts: Counter[str]) -> Rule | None:
    """The logical closure, by union-find with parity: friends share a colour, enemies do not, within a component."""
    answers = {fact.same_side: fact.chosen for fact in train}
    if None in answers or len(answers) != 2:
        return None
    parent: dict[str, tuple[str, int]] = {}  # name -> (a name nearer the root, 0 same colour | 1 other colour)

    def root(name: str) -> tuple[str, int]:
        above, parity = parent.setdefault(name, (name, 0))
        if above == name:
            return name, 0
        top, further = root(above)
        parent[name] = (top, parity ^ further)
        return parent[name]

    for fact in train:
        (a, parity_a), (b, parity_b) = root(str(fact.subject)), root(str(fact.object))
        if a != b:
            parent[a] = (b, parity_a ^ parity_b ^ (not fact.same_side))

    def rule(fact: Fact) -> dict[str, float]:
        (a, parity_a), (b, parity_b) = root(str(fact.subject)), root(str(fact.object))
        if a != b:
            return {answer: float(count) for answer, count in counts.items()}
        return {answers[parity_a == parity_b]: 1.0}

    return rule
