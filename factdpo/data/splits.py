"""Draws the facts to train on, to decide by and to hold out, and the order of their names."""

import itertools
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from factdpo.config.schema import ConfigError, Orientation, SplitConfig
from factdpo.data.facts import Fact, cut, normalised

Splits = dict[str, list[Fact]]
Groups = list[list[Fact]]

RESERVED = ("train_as_trained", "fixed")  # names that results and generations give to something else
TRAIN = 300  # facts to train on, unless split.train or the data says otherwise
TEST = 10_000  # facts held out at most, unless split.test says otherwise
OF_EACH_SPLIT = ("paraphrase", "reverse_question")  # kinds of probes that are scored apart for every split


class Drawn(NamedTuple):
    """The splits, less those that would be empty, and sentences on what else was to be said of the draw."""

    splits: Splits
    notes: list[str]


def make_splits(facts: list[Fact], cfg: SplitConfig) -> Drawn:
    """train, validation, test; each with `_reversed` and the facts' probes, where they have them; or the data's own.

    The draw is by group of facts about the same thing, so that none is trained on in one wording and tested in another
    (D5). Which facts are drawn depends on the seed alone, not on the orientation. With orientation=both, train holds
    both orders of each drawn fact, and train_reversed is the same set.
    Raises ConfigError if the data has too few facts for the config.
    """
    if not facts:
        raise ConfigError(
            "data: every row was left out (data.bad_rows, data.too_long); correct some, or raise the limit"
        )
    own = any(fact.split for fact in facts)
    drawn, notes = _own(facts, cfg) if own else _draw(facts, cfg)
    if cfg.orientation is Orientation.random:
        coin = random.Random(f"orientation {cfg.seed}")
        flipped = {fact.index for fact in facts if coin.random() < 0.5 and fact.reverse_prompt is not None}
        drawn = {name: [f.reversed() if f.index in flipped else f for f in split] for name, split in drawn.items()}
    if cfg.orientation is Orientation.both:
        missing = [fact for fact in drawn["train"] if fact.reverse_prompt is None]
        if missing:
            raise ConfigError(f"split.orientation=both: {missing[0].where} has no reverse_prompt; use random")
        drawn["train"] = [oriented for fact in drawn["train"] for oriented in (fact, fact.reversed())]
    splits = _with_probes(drawn, ["train"], drawn["train"], notes)
    check_disjoint(splits, by_key=not own)
    return Drawn({name: split for name, split in splits.items() if split}, notes)


def splits_to_score(facts: list[Fact], trained: list[Fact]) -> Drawn:
    """All facts, to be scored and not trained on; each split with `_reversed` and the facts' probes of every kind.

    A fact is in the split that the data names; else in `train` if it is about one of the facts that the model was
    trained on (`trained`), and in `test` if not, so that none that was trained on counts as held out (D5). Where the
    data names splits, what is trained on of them is said in a sentence.
    """
    if not facts:
        raise ConfigError(
            "data: every row was left out (data.bad_rows, data.too_long); correct some, or raise the limit"
        )
    known = _told(trained)
    drawn: Splits = {"train": [], "test": []}
    for fact in facts:
        seen = "train" if {("key", fact.key), *fact.prompts} & known else "test"
        drawn.setdefault(fact.split or seen, []).append(fact)
    notes = list(_overlaps(drawn, known)) if any(fact.split for fact in facts) else []
    splits = _with_probes(drawn, list(drawn), trained, notes)
    return Drawn({name: split for name, split in splits.items() if split}, notes)


def _with_probes(drawn: Splits, sources: list[str], trained: list[Fact], notes: list[str]) -> Splits:
    """The drawn splits with `_reversed` and their facts' probes, those of every kind for the splits `sources`."""
    splits: Splits = {}
    for name, split in drawn.items():
        splits[name] = split
        turned = [fact.reversed() for fact in split if fact.reverse_prompt is not None]
        if turned and f"{name}_reversed" not in drawn:
            splits[f"{name}_reversed"] = turned
    for name, split in _probes(drawn, sources):
        if name == "locality":
            split, changed = _untouched(split, trained)
            notes += changed
        if name in splits:
            raise ConfigError(f"split {name}: the data's own and the one of its probes have the same name; rename one")
        splits[name] = split
    return splits


def check_disjoint(splits: Splits, by_key: bool = True) -> None:
    """Raises ConfigError if a prompt, in either order, is both trained on and held out (D5); by key, or a fact."""

    def tokens(fact: Fact) -> list[object]:
        return [*fact.prompts, *([("key", fact.key)] if by_key else [])]

    trained = {token: f for name in ("train", "train_reversed") for f in splits.get(name, []) for token in tokens(f)}
    for name in ("validation", "validation_reversed", "test", "test_reversed"):
        for fact in splits.get(name, []):
            other = next((trained[token] for token in tokens(fact) if token in trained), None)
            if other is not None:
                raise ConfigError(
                    f"split: '{cut(fact.prompt)}' ({fact.where}) is held out, but '{cut(other.prompt)}' "
                    f"({other.where}), the same fact, is trained on; give both rows the same group, or remove one"
                )


def _probes(drawn: Splits, sources: list[str]) -> Iterator[tuple[str, list[Fact]]]:
    """The prompts about a split's facts: some kinds of each split, and the others of the splits `sources` together.

    What several facts ask alike (CounterFact's share their neighbours) is there once, as the first one's: counted
    twice, it would be taken for evidence twice.
    """
    by_split: dict[str, dict[tuple[str, str, str], Fact]] = {}
    for name, split in drawn.items():
        for kind, probe in itertools.chain.from_iterable(fact.probes for fact in split):
            if kind not in OF_EACH_SPLIT and name not in sources:
                continue
            of_kind = by_split.setdefault(f"{name}_{kind}" if kind in OF_EACH_SPLIT else kind, {})
            of_kind.setdefault((probe.prompt, probe.chosen, probe.rejected), probe)
    for name, probes in by_split.items():
        yield name, list(probes.values())


def _untouched(probes: list[Fact], trained: list[Fact]) -> tuple[list[Fact], list[str]]:
    """The locality prompts less those that training itself changes: another fact's prompt, or its subject's relation.

    What is left out is said in a sentence.
    """
    prompts = {prompt for fact in trained for prompt in fact.prompts}
    subjects: dict[str, set[str | None]] = {}  # normalised subject -> the relations of it that are trained on
    for fact in trained:
        if fact.subject is not None and fact.relation is not None:
            subjects.setdefault(normalised(fact.subject), set()).add(fact.relation)
    longest = max((subject.count(" ") + 1 for subject in subjects), default=0)

    def is_touched(probe: Fact) -> bool:
        words = normalised(re.sub(r"'s\b|[^\w\s]", " ", probe.prompt)).split()
        spans = (" ".join(words[i : i + n]) for i in range(len(words)) for n in range(1, longest + 1))
        named = any(probe.relation in subjects.get(span, ()) for span in spans)
        return named or normalised(probe.prompt) in prompts

    kept = [probe for probe in probes if not is_touched(probe)]
    left_out = len(probes) - len(kept)
    said = f"{left_out} of {len(probes)} locality prompts are left out: their answer is itself trained on"
    return kept, [said] if left_out else []


# ------------------------------------------------------------------------------------------------------------- drawing


def _draw(facts: list[Fact], cfg: SplitConfig) -> tuple[Splits, list[str]]:
    """Facts of one group stay together, and a split takes whole groups up to its size, in random order."""
    order = groups(facts)
    random.Random(f"facts {cfg.seed}").shuffle(order)
    notes: list[str] = []
    wanted = TRAIN if cfg.train is None else cfg.train
    train, rest = _take(order, _count("train", wanted, len(facts)), f"split.train={wanted}", notes)
    count = _count("validation", cfg.validation, len(facts))
    validation, rest = _take(rest, count, f"split.validation={cfg.validation}", notes)
    left = sum(map(len, rest))
    if cfg.test is None and left > TEST:
        notes.append(f"held out are {TEST} of {left} facts; split.test=1.0 takes all")
    held_out = min(left, TEST) if cfg.test is None else _count("test", cfg.test, left)
    if cfg.test is None and cfg.validation and not held_out:
        notes.append("no fact is left to hold out as test: split.train and split.validation take all of them")
    test, _ = _take(rest, held_out, f"split.test={cfg.test}", notes)
    return {"train": train, "validation": validation, "test": test}, notes


def groups(facts: list[Fact]) -> Groups:
    """The facts that must be on one side of a split: those with the same key, and those that share a prompt."""
    parent: dict[int, int] = {}  # by the hashes of keys and prompts, which are shorter than these

    def root(token: int) -> int:
        while (above := parent.setdefault(token, token)) != token:
            parent[token] = parent[above]
            token = above
        return token

    first = []
    for fact in facts:
        key, *prompts = (hash(token) for token in (("key", fact.key), *fact.prompts))
        for prompt in prompts:
            parent[root(prompt)] = root(key)
        first.append(key)
    found: dict[int, list[Fact]] = {}
    for fact, key in zip(facts, first, strict=True):
        found.setdefault(root(key), []).append(fact)
    return list(found.values())


def _take(order: Groups, count: int, asked: str, notes: list[str]) -> tuple[list[Fact], Groups]:
    """The first groups with at most `count` facts in all, or the smallest one if all are larger; and the others."""
    available = sum(map(len, order))
    if count > available:
        raise ConfigError(
            f"{asked}: the data has only {available} facts for it; give fewer, or a share of them, as in "
            f"{asked.partition('=')[0]}=0.5 (the rest is held out)"
        )
    taken: list[Fact] = []
    rest: Groups = []
    for group in order:
        if len(taken) + len(group) <= count:
            taken += group
        else:
            rest.append(group)
    if count and not taken:
        taken = min(rest, key=len)
        rest = [group for group in rest if group is not taken]
    if len(taken) != count:
        notes.append(f"{asked}: {len(taken)} facts were taken, since facts about the same thing stay together")
    return taken, rest


def _count(name: str, wanted: int | float, available: int) -> int:
    """A number of facts, or a share of them; raises ConfigError for a share of less than half a fact."""
    if not isinstance(wanted, float):
        return wanted
    count = round(wanted * available)
    if wanted and available and not count:
        raise ConfigError(f"split.{name}={wanted}: of {available} facts that is none; give a larger share, or a number")
    return count


# ------------------------------------------------------------------------------------------- splits of the data's own


def _own(facts: list[Fact], cfg: SplitConfig) -> tuple[Splits, list[str]]:
    """The splits that the data names; of train, split.train facts where that is given."""
    splits: Splits = {"train": []}
    for fact in facts:
        if fact.split is None:
            raise ConfigError(f"{fact.where}: belongs to no split, and other rows do; name one in each row")
        splits.setdefault(fact.split, []).append(fact)
    for name in splits:
        if name in RESERVED or not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(
                f"data: a split is named '{cut(name)}'; names have letters, digits and . _ - only, and "
                f"{' and '.join(RESERVED)} are taken"
            )
    if not splits["train"]:
        raise ConfigError(f"data: its splits are {', '.join(splits)}, and none is named train; name one so")
    given = {"validation": cfg.validation, "test": cfg.test}
    for name, value in given.items():
        if value:
            names = ", ".join(splits)
            raise ConfigError(f"split.{name}={value}: the data names its own splits ({names}); leave it out")
    notes: list[str] = []
    order = groups(splits["train"])
    random.Random(f"facts {cfg.seed}").shuffle(order)
    size = len(splits["train"])
    wanted = size if cfg.train is None else _count("train", cfg.train, size)
    splits["train"], _ = _take(order, wanted, f"split.train={cfg.train}", notes)
    return splits, notes + list(_overlaps(splits, _told(splits["train"])))


def _told(facts: list[Fact]) -> set[object]:
    """What tells whether a row is about one of these facts: its key, and its prompts."""
    return {*(("key", fact.key) for fact in facts), *(prompt for fact in facts for prompt in fact.prompts)}


def _overlaps(splits: Splits, trained: set[object]) -> Iterator[str]:
    """For each split but train: how many of its rows are about facts that are trained on, as `_told` has them."""
    for name, split in splits.items():
        shared = [fact for fact in split if {("key", fact.key), *fact.prompts} & trained] if name != "train" else []
        if shared:
            yield (
                f"{len(shared)} of {len(split)} rows of {name} are about facts that are trained on, first "
                f"{shared[0].where}: right for paraphrases, a leak where it is meant to be held out"
            )
