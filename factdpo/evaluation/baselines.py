"""Accuracies of shallow baselines, and of the logical closure of the training facts, on each split (D2, D3, D8)."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from factdpo.data.facts import Fact, normalised
from factdpo.data.pairs import Pairs
from factdpo.evaluation.closure import Closure, closure
from factdpo.evaluation.metrics import tokens

Rule = Callable[[Fact, str], float]  # score of an answer; of chosen and rejected, the higher is predicted

MAX_ANSWERS = 20  # with more distinct true answers in training, they are no closed set
# Of the logistic regressions, so that 100,000 facts take seconds: a few hundred facts need neither.
MAX_FITTED = 5_000  # training facts that they are fitted on, the first: a random sample
MAX_ITERATIONS = 200


class Baselines(NamedTuple):
    """Per split: the accuracy of each rule, and on how many of its facts the rules about names and logic decide."""

    accuracies: dict[str, dict[str, float | None]]
    coverage: dict[str, dict[str, int | str | None]]


def baselines(train: list[Fact], pairs: dict[str, Pairs], sides: int | None = None) -> Baselines:
    """Each rule, fitted on the training facts, on each split; a tie counts one half. docs/glossary.md has the rules.

    `sides` is how many the names are on, where the data knows it: what logic implies depends on it.
    Those that look at names are fitted on facts that name both (`named`) and tie on the others; they are None where
    there are no such facts in training or in the split. majority, additive and bag_of_names are None where answers are
    no closed set, implied where the training facts tell no sides; of rules that are fitted none is there without any.
    """
    counts = Counter(fact.chosen for fact in train)
    is_small = len(counts) <= MAX_ANSWERS and 2 * len(counts) <= len(train)  # else it is a table to look facts up
    closed = bool(train) and is_small
    logic = closure(train, sides) if train else None
    rules = {
        "majority": _counted(counts) if closed else None,
        "answer_counts": _answer_counts(train) if train else None,
        "implied": _implied(logic, _counted(counts)) if logic else None,
    }
    name_rules = _name_rules([fact for fact in train if named(fact)], counts, closed)
    found = Baselines({}, {})
    for split, of_split in pairs.items():
        facts = of_split.facts
        covered = [named(fact) for fact in facts]
        found.accuracies[split] = {
            "chance": 0.5,
            "shorter": _shorter(of_split),
            **{name: _accuracy(rule, facts, [True] * len(facts)) for name, rule in rules.items()},
            **{name: _accuracy(rule, facts, covered) for name, rule in name_rules.items()},
        }
        found.coverage[split] = {"named": sum(covered), "implied": _decided(logic, facts)}
    if "train" in found.coverage:
        found.coverage["train"] |= {
            "contradictions": logic.contradictions if logic else None,
            "sides": _sides_in_words(logic) if logic else None,
        }
    return found


def named(fact: Fact) -> bool:
    """Whether both names stand in the prompt as whole words and neither is an answer, case and spaces apart."""
    if not fact.subject or not fact.object:
        return False
    names = {_plain(fact.subject), _plain(fact.object)}
    prompt = _plain(fact.prompt)
    return names.isdisjoint((_plain(fact.chosen), _plain(fact.rejected))) and all(_has(prompt, n) for n in names)


_plain = lru_cache(maxsize=100_000)(normalised)  # names recur


def _has(text: str, name: str) -> bool:
    """Whether the name stands in the text as whole words; scripts without case (Chinese, Thai) need no spaces."""
    start = text.find(name)
    while start >= 0:
        end = start + len(name)
        if not (_joined(text[start - 1 : start] + name[0]) or _joined(name[-1] + text[end : end + 1])):
            return True
        start = text.find(name, start + 1)
    return False


def _joined(letters: str) -> bool:
    """Whether these are two letters or digits of one word."""
    return len(letters) == 2 and all(letter != letter.upper() or letter.isdigit() for letter in letters)


def _accuracy(rule: Rule | None, facts: list[Fact], covered: list[bool]) -> float | None:
    """Of the rule on all facts, with a tie on those that it does not cover; None without a rule or a covered fact."""
    if rule is None or not any(covered):
        return None
    points = 0.0
    for fact, covers in zip(facts, covered, strict=True):
        chosen, rejected = (rule(fact, fact.chosen), rule(fact, fact.rejected)) if covers else (0.0, 0.0)
        points += 0.5 if chosen == rejected else float(chosen > rejected)
    return points / len(facts)


def _shorter(pairs: Pairs) -> float:
    """The accuracy of the answer with fewer tokens."""
    chosen, rejected = tokens(pairs).T
    return float(((chosen < rejected) + 0.5 * (chosen == rejected)).mean())


def _counted(counts: Counter[str]) -> Rule:
    """The answer that is true more often; one that never was is never predicted."""
    return lambda fact, answer: float(counts.get(answer, -math.inf))


def _answer_counts(train: list[Fact]) -> Rule:
    """The answer that was chosen more often than rejected, whatever was asked."""
    counts = Counter(fact.chosen for fact in train)
    counts.subtract(Counter(fact.rejected for fact in train))
    return lambda fact, answer: float(counts[answer])


def _name_rules(train: list[Fact], counts: Counter[str], closed: bool) -> dict[str, Rule | None]:
    """The rules that look at names, fitted on facts that are `named`; None where they cannot be fitted."""
    fitted = train[:MAX_FITTED] if closed and len(counts) > 1 else []
    return {
        "first_name": _by_name(train, counts, lambda fact: fact.subject) if train else None,
        "second_name": _by_name(train, counts, lambda fact: fact.object) if train else None,
        "additive": _logistic(fitted, lambda fact: ((1, fact.subject), (2, fact.object))) if fitted else None,
        "bag_of_names": _logistic(fitted, lambda fact: (fact.subject, fact.object)) if fitted else None,
    }


def _by_name(train: list[Fact], overall: Counter[str], name: Callable[[Fact], str | None]) -> Rule:
    """The most frequent answer for a name; the overall share breaks ties, and decides for unknown names."""
    counts: dict[str | None, Counter[str]] = defaultdict(Counter)
    for fact in train:
        counts[name(fact)][fact.chosen] += 1
    total, unknown = overall.total() + 1, Counter[str]()

    def rule(fact: Fact, answer: str) -> float:
        return counts.get(name(fact), unknown)[answer] + overall[answer] / total if answer in overall else -math.inf

    return rule


def _logistic(train: list[Fact], weighted: Callable[[Fact], tuple[Hashable, ...]], ridge: float = 0.01) -> Rule:
    """Multinomial logistic regression: a constant and the weights of what is `weighted`, each per answer."""
    from scipy.optimize import minimize
    from scipy.sparse import csr_array
    from scipy.special import log_softmax

    answers = {answer: number for number, answer in enumerate(sorted({fact.chosen for fact in train}))}
    columns = {what: i for i, what in enumerate(sorted({what for fact in train for what in weighted(fact)}), start=1)}  # type: ignore[type-var]
    y = np.array([answers[fact.chosen] for fact in train])
    rows = np.arange(len(train))
    places = np.array([[columns[what] for what in weighted(fact)] for fact in train])
    shape = (1 + len(columns), len(answers))
    x = csr_array(
        (np.ones(places.size), places.ravel(), np.arange(0, places.size + 1, places.shape[1])), (len(train), shape[0])
    )
    transposed = x.T.tocsr()

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(shape)
        logp = log_softmax(w[0] + x @ w, axis=1)
        residual = np.exp(logp)
        residual[rows, y] -= 1
        gradient = ridge * w + transposed @ residual
        gradient[0] += residual.sum(0)
        return -logp[rows, y].sum() + ridge / 2 * (w**2).sum(), gradient.ravel()

    start, options = np.zeros(shape).ravel(), {"maxiter": MAX_ITERATIONS}
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x.reshape(shape).tolist()

    def rule(fact: Fact, answer: str) -> float:
        if answer not in answers:
            return -math.inf
        number = answers[answer]
        return weights[0][number] + sum(weights[columns[what]][number] for what in weighted(fact) if what in columns)

    return rule


def _implied(logic: Closure, elsewhere: Rule) -> Rule:
    """What logic says of the two names; the other rule where it says nothing."""

    def rule(fact: Fact, answer: str) -> float:
        side = logic.same_side(fact)
        if side is None or fact.same_side is None:
            return elsewhere(fact, answer)
        return float((answer == fact.chosen) == (side == fact.same_side))

    return rule


def _sides_in_words(logic: Closure) -> str:
    if logic.known:
        return f"{logic.sides}, as the data has them"
    if logic.colour:
        return "assuming two sides"
    return "more than two" if logic.sides is None else f"assuming {logic.sides} sides, as the training facts show"


def _decided(logic: Closure | None, facts: list[Fact]) -> int | None:
    """The number of facts that logic decides."""
    return (
        None
        if logic is None
        else sum(fact.same_side is not None and logic.same_side(fact) is not None for fact in facts)
    )
