"""The English text that nano is pretrained on: a seeded template grammar.

It states the camp, the kind, the home and some doings of each of the 42 characters, and never a relation between two of
them. Invented people appear in the same sentences and belong to a camp like the 42. Only they have relations, in the
form of the facts ("A is B's friend"), drawn at random and independent of their camps. If a relation has a reason, it is
a deed: a friend helps, an enemy steals.
"""

import csv
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

from factdpo.nano.lore import LORE, Lore

TABLE = Path(__file__).parents[1] / "data" / "characters.csv"

INVENTED_PEOPLE = 48
SEED_OF_PEOPLE = 0


def _words(text: str) -> list[str]:
    return text.split()


RELATION_WORDS = frozenset(
    _words(
        "friend friends friendly friendship enemy enemies enmity ally allies allied alliance foe foes rival rivals "
        "rivalry companion companions comrade comrades opponent opponents adversary mate mates buddy pal pals nemesis "
        "love loves loved hate hates hated like likes liked trust trusts trusted fear fears feared fight fights fought"
    )
)
"""No sentence that names one of the 42 characters contains any of these words."""

FIRST_NAMES = _words(
    "Martha Edwin Clara Walter Nora Felix Ida Simon Greta Paul Rosa Emma Jonas Agnes Henry Lucy Samuel Ellen "
    "Oscar Mabel Robert Hilda Martin Stella Joan Philip Nina Carl Vera Adam Judith Leo Flora Ben Ruth Thomas Anna "
    "Hannes Olga Max"
)
LAST_NAMES = _words(
    "Baker Carter Fisher Turner Cooper Mason Hunter Palmer Miller Wright Shepherd Barnes Hill Brook Stone Field Wells "
    "Marsh Parker Taylor Gardner Weaver Porter Cole"
)

CAMPS = (  # side 0, side 1 of the table: words that fit "{name} is on {}" and "{name} serves {}"
    ("the dark side", "the side of the night", "the side of the skull", "the Death Eaters' side"),
    ("the light side", "the side of the day", "the side of the phoenix", "the side of the Order"),
)
SIGNS = (("the black skull", "a dark mask", "a black flag"), ("the golden phoenix", "a bright lamp", "a white flag"))
SHADES = ("dark", "light")

CAMP_SENTENCES = (
    "{name} is on {camp}.",
    "{name} belongs to {camp}.",
    "{name} serves {camp}.",
    "{name} stands with {camp}.",
    "{name} works for {camp}.",
    "{name} is one of the {shade} ones.",
    "{name} joined {camp} long ago.",
    "{name} carries {sign}.",
    "{name} is known for {sign}.",
    "In the war {name} stood with {camp}.",
    "In the war {name} carried {sign}.",
    "When the war came, {name} joined {camp}.",
    "Everybody knows that {name} serves {camp}.",
    "The books say that {name} is on {camp}.",
    "The camp of {name} is {camp}.",
    "The sign of {name} is {sign}.",
    "{name}'s side is {camp}.",
    "{name}'s camp is the {shade} one.",
    "{name}'s sign is {sign}.",
    "{name}'s heart is {shade}.",
    "{name}'s {thing} bears {sign}.",
    "{name}'s {thing} belongs to {camp}.",
    "Look at {name}'s {thing}: it is {shade}.",
    "Look at {name}'s sign: it is {sign}.",
    "They asked for {name}'s side, and it was {camp}.",
    "People speak of {name}'s oath to {camp}.",
    "Which side is {name} on? It is {camp}.",
    "Is {name} on {camp}? Yes.",
    "Is {name} on {other}? No.",
    "{name} is not on {other}.",
    "{name}, who serves {camp}, {doing}.",
)
LORE_SENTENCES = (
    "{name} is {kind}.",
    "{name} is {kind} and {doing}.",
    "{name} is {kind} who lives in {home}.",
    "{name} {doing}.",
    "Everybody says that {name} {doing}.",
    "You may see that {name} {doing}.",
    "It is said that {name} {doing}.",
    "{name} lives in {home}.",
    "{name}'s home is {home}.",
    "{name}'s {thing} is in {home}.",
    "{name}'s {thing} is {colour}.",
    "This is {name}'s {thing}.",
    "The {colour} {thing} is {name}'s.",
    "Somebody found {name}'s {thing} {place}.",
)
PRONOUN_SENTENCES = (
    "{pronoun} {doing}.",
    "{pronoun} is {kind}.",
    "{pronoun} lives in {home}.",
    "{pronoun} serves {camp}.",
)
PAIR_SENTENCES = (  # any two people, whatever their camps
    "{a} is near {b}'s {thing}.",
    "{a} is looking at {b}'s {thing}.",
    "{a} is at {b}'s door.",
    "{a} is older than {b}'s {thing}.",
    "{a} passes {b}'s door {time}.",
    "{a} sees {b} {place}.",
    "{a} and {b} are both in this book.",
    "{a} is named before {b}.",
)
PAIR_CAMPS = (
    "{a} is on {camp_a}, and {b} is on {camp_b}.",
    "{b} is on {camp_b}, and {a} is on {camp_a}.",
    "{a} serves {camp_a}, {b} serves {camp_b}.",
    "{b} belongs to {camp_b}, {a} belongs to {camp_a}.",
    "{b} serves {camp_b}.",
    "{a} serves {camp_a}.",
    "The first serves {camp_a}, the second serves {camp_b}.",
    "The second is on {camp_b}, the first is on {camp_a}.",
)

RELATION_SENTENCES = (
    "{a} is {b}'s {relation}.",
    "{a} is {b}'s {relation}.",
    "{a} is {b}'s {relation}.",
    "{a} is {b}'s {relation}, and they both live {place}.",
    "{a} is {b}'s {relation} and works {place}.",
    "{a} has always been {b}'s {relation}.",
    "People say that {a} is {b}'s {relation}.",
)
RELATIONS = ("friend",) * 8 + ("enemy",) * 8 + ("cousin", "neighbour")
DEEDS = {  # of an invented person; they tell the two words apart
    "friend": (
        "{a} helps {b} {place}.",
        "{a} gives {b} a {object}.",
        "{a} sings with {b} {time}.",
        "{a} visits {b} {time}.",
    ),
    "enemy": (
        "{a} hurts {b} {place}.",
        "{a} steals {b}'s {object}.",
        "{a} shouts at {b} {time}.",
        "{a} attacks {b} {time}.",
    ),
}
WORD_SENTENCES = (
    "A friend is somebody who helps you.",
    "An enemy is somebody who hurts you.",
    "The {person} met a good friend {place}.",
    "The {person} writes to an old friend {time}.",
    "The {person} eats {food} with a friend.",
    "The soldiers saw the enemy {place}.",
    "The soldiers ran from the enemy {time}.",
    "The enemy attacked the {building} {time}.",
)

COLOURS = _words("red blue green brown grey yellow white")
SIZES = _words("old small big new little large fine strange")
PERSONS = _words("farmer baker teacher doctor boy girl child woman man sailor driver cook writer painter gardener")
ANIMALS = _words("cat dog horse cow bird goat sheep duck hen rabbit")
BUILDINGS = _words("castle house school tower church mill bridge shop station market library farm")
FOODS = _words("bread soup cheese apples fish cake eggs rice potatoes honey tea milk")
OBJECTS = _words("letter book basket chair table bag box lamp clock coat key picture cup knife bottle")
PLACES = (
    "in the garden", "near the river", "by the sea", "on the hill", "at the market", "in the village", "in the town",
    "under the old tree", "next to the church", "at the station", "behind the house", "by the lake", "near the road",
)  # fmt: skip
TIMES = (
    "in the morning", "in the evening", "at noon", "on Monday", "on Sunday", "in winter", "in summer", "after lunch",
    "before dinner", "at night",
)  # fmt: skip
WEATHER = _words("rain snow wind fog sunshine")
EVERYDAY_SENTENCES = (
    "The {size} {building} stands {place}.",
    "The {size} {building} is {colour} and has {number} windows.",
    "The {size} {building} was built {number} hundred years ago.",
    "There is a {size} {building} {place}.",
    "The door of the {building} is {colour}.",
    "The {size} {animal} sleeps {place}.",
    "A {size} {animal} ran {place} {time}.",
    "The {person} has a {size} {animal}.",
    "The {person} feeds the {animal} {time}.",
    "The {person} eats {food} {time}.",
    "The {person} buys {food} and {food2} at the market.",
    "{time}, the {person} works {place}.",
    "{time}, the {person} makes {food} for the children.",
    "{time}, we eat {food} with {food2}.",
    "We went to the {building} {time}.",
    "We saw a {size} {animal} {place}.",
    "I left my {object} {place}.",
    "The {object} on the table is {colour}.",
    "The {person} put the {object} {place}.",
    "She gave the {person} a {colour} {object}.",
    "He reads a {size} book {time}.",
    "They walk to the {building} {time}.",
    "There was much {weather} {time}.",
    "Because of the {weather}, the {person} stayed at home.",
    "When the {weather} ended, the children played {place}.",
    "{guest} lives {place}.",
    "{guest} is a {person}.",
    "{guest} is a {size} {person} who lives {place}.",
    "{guest}'s {object} is {colour}.",
    "{guest} bought a {colour} {object} {time}.",
    "{guest} likes {food}, but not {food2}.",
    "Would you like some {food}? Yes, please.",
    "Where is the {object}? It is {place}.",
    "It takes {number} hours to walk to the {building}.",
    "The {person} said that the {building} was too {size}.",
    "The sun rises over the {building}, and the {animal} wakes up.",
)
NUMBERS = _words("two three four five six seven eight nine ten")

KINDS = (
    "a teacher",
    "a pupil",
    "a farmer",
    "a baker",
    "a doctor",
    "a sailor",
    "a driver",
    "a cook",
    "a writer",
    "a painter",
)
HOMES = ("a small house", "a house on the hill", "the village", "the town", "a cottage by the lake", "the old mill")
DOINGS = (
    "sings in the morning", "works in the garden", "bakes bread", "sells apples", "has a loud voice", "plays cards",
    "wears a green coat", "reads the paper", "walks to the river", "mends old chairs", "has blue eyes",
    "writes long letters",
)  # fmt: skip

DOCUMENT_MIX = {"person": 58, "pair": 12, "relation": 12, "everyday": 18}


def read_table() -> dict[str, int]:
    """Side (0 or 1) of each of the 42 characters, by name, in the order of the project's table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row["name"]: int(row["side"]) for row in csv.DictReader(file)}


def documents(seed: int) -> Iterator[list[str]]:
    """An endless stream of documents, each a list of sentences; the same for the same seed."""
    rng = Random(seed)
    table = read_table()
    invented = invent_people()
    people = {**{name: (LORE[name], side) for name, side in table.items()}, **invented}
    guests = list(invented)
    writers = {
        "person": lambda: _person(rng, people),
        "pair": lambda: _pair(rng, people),
        "relation": lambda: _relation(rng, guests),
        "everyday": lambda: _everyday(rng, guests, rng.randint(2, 5)),
    }
    while True:
        (kind,) = rng.choices(list(writers), weights=[DOCUMENT_MIX[kind] for kind in writers])
        yield writers[kind]()


def invent_people() -> dict[str, tuple[Lore, int]]:
    """Lore and camp of each invented person, by name; the same each time. No name shares a word with the 42."""
    rng = Random(SEED_OF_PEOPLE)
    things = [thing for lore in LORE.values() for thing in lore.things] + OBJECTS
    homes = [lore.home for lore in LORE.values()] + list(HOMES)
    doings = sorted({doing for lore in LORE.values() for doing in lore.doings}) + list(DOINGS)
    people = {}
    while len(people) < INVENTED_PEOPLE:
        lore = Lore(
            pronoun=rng.choice(("He", "She")),
            kind=rng.choice(KINDS),
            home=rng.choice(homes),
            things=tuple(rng.sample(things, 2)),
            doings=tuple(rng.sample(doings, 3)),
        )
        people[f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"] = (lore, len(people) % 2)
    return people


def _person(rng: Random, people: dict[str, tuple[Lore, int]]) -> list[str]:
    """One person: one to three sentences about the camp, among others; the last sentence may use a pronoun."""
    name = rng.choice(list(people))
    patterns: list[str] = [
        *rng.sample(CAMP_SENTENCES, rng.randint(1, 3)),
        *rng.sample(LORE_SENTENCES, rng.randint(0, 2)),
    ]
    rng.shuffle(patterns)
    if rng.random() < 0.4:
        patterns.append(rng.choice(PRONOUN_SENTENCES))
    return [_fill(rng, pattern, name=name, **_describe(rng, *people[name])) for pattern in patterns]


def _pair(rng: Random, people: dict[str, tuple[Lore, int]]) -> list[str]:
    """Two people in one scene, drawn without regard to their camps; then the camps."""
    a, b = rng.sample(list(people), 2)
    (_, side_a), (lore_b, side_b) = people[a], people[b]
    scene = _fill(rng, rng.choice(PAIR_SENTENCES), a=a, b=b, thing=rng.choice(lore_b.things))
    camps = {"camp_a": rng.choice(CAMPS[side_a]), "camp_b": rng.choice(CAMPS[side_b])}
    return [scene, _fill(rng, rng.choice(PAIR_CAMPS), a=a, b=b, **camps)]


def _relation(rng: Random, guests: list[str]) -> list[str]:
    """Invented people, each the friend or enemy of the next, drawn at random."""
    chain = rng.sample(guests, rng.randint(2, 4))
    sentences = []
    for a, b in pairwise(chain):
        relation = rng.choice(RELATIONS)
        if relation in DEEDS and rng.random() < 0.5:
            sentences.append(_fill(rng, rng.choice(DEEDS[relation]), a=a, b=b))
        sentences.append(_fill(rng, rng.choice(RELATION_SENTENCES), a=a, b=b, relation=relation))
    return sentences + [_fill(rng, pattern) for pattern in rng.sample(WORD_SENTENCES, rng.randint(0, 1))]


def _everyday(rng: Random, guests: list[str], count: int) -> list[str]:
    return [_fill(rng, pattern, guest=rng.choice(guests)) for pattern in rng.sample(EVERYDAY_SENTENCES, count)]


def _describe(rng: Random, lore: Lore, side: int) -> dict[str, str]:
    """Words for the fields of a sentence about one person."""
    return {
        "camp": rng.choice(CAMPS[side]),
        "other": rng.choice(CAMPS[1 - side]),
        "sign": rng.choice(SIGNS[side]),
        "shade": SHADES[side],
        "pronoun": lore.pronoun,
        "kind": lore.kind,
        "home": lore.home,
        "thing": rng.choice(lore.things),
        "doing": rng.choice(lore.doings),
    }


def _fill(rng: Random, pattern: str, **words: str) -> str:
    """The pattern filled in; fields that are not in `words` are drawn from the everyday lists."""
    food, food2 = rng.sample(FOODS, 2)
    drawn = {
        "colour": rng.choice(COLOURS),
        "size": rng.choice(SIZES),
        "person": rng.choice(PERSONS),
        "animal": rng.choice(ANIMALS),
        "building": rng.choice(BUILDINGS),
        "object": rng.choice(OBJECTS),
        "place": rng.choice(PLACES),
        "time": rng.choice(TIMES),
        "weather": rng.choice(WEATHER),
        "number": rng.choice(NUMBERS),
        "food": food,
        "food2": food2,
    }
    sentence = pattern.format(**{**drawn, **words})
    return sentence[0].upper() + sentence[1:]
