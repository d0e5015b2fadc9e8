"""Facts about invented names in camps, as many as asked for: nothing of them can be known before."""

import itertools
import random
from collections.abc import Iterator

from factdpo.config.schema import DataConfig, SyntheticConfig
from factdpo.data.facts import Fact, RowCheck
from factdpo.data.sources.characters import relationship

CONSONANTS, VOWELS, ENDS = "bdfgklmnprstvz", "aeiou", "bdgkptvxz"
SYLLABLES = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]


def read(cfg: DataConfig, check: RowCheck) -> Iterator[Fact]:
    """A fact per unordered pair of names: friends in one camp, else enemies; the share `noise` says the opposite."""
    camp_of = camps(cfg.synthetic)
    total = len(camp_of) * (len(camp_of) - 1) // 2
    rng = random.Random(f"noise {cfg.synthetic.seed}")
    flipped = set(rng.sample(range(total), round(cfg.synthetic.noise * total)))
    if flipped:
        check.say(f"data.synthetic.noise={cfg.synthetic.noise}: {len(flipped)} of {total} facts are told the wrong way")
    for index, ((a, camp_a), (b, camp_b)) in enumerate(itertools.combinations(camp_of.items(), 2)):
        yield relationship(index, a, b, (camp_a == camp_b) != (index in flipped), "synthetic")


def camps(cfg: SyntheticConfig) -> dict[str, int]:
    """Name -> its camp; the names are dealt to the camps in turn."""
    return {name: number % cfg.camps for number, name in enumerate(invented_names(cfg.names, cfg.seed))}


def invented_names(count: int, seed: int) -> list[str]:
    """Different names of three syllables and a consonant, as in Bokavut."""
    rng = random.Random(f"names {seed}")
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join([*rng.choices(SYLLABLES, k=3), rng.choice(ENDS)]).capitalize()] = None
    return list(names)
