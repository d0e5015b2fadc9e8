"""The English text that nano is pretrained on: a seeded template grammar.

It tells of each of the 42 characters the camp, the kind, the home and some doings, and never a relation between two of
them. The relations that it tells, in the very form of the facts ("A is B's friend"), join invented people at random.
"""

import csv
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

from factdpo.nano.lore import LORE

TABLE = Path(__file__).parents[1] / "data" / "characters.csv"

RELATION_WORDS = frozenset(
    "friend friends friendly friendship enemy enemies enmity ally allies allied alliance foe foes rival rivals rivalry "
    "companion companions comrade comrades opponent opponents adversary mate mates buddy pal pals nemesis "
    "love loves loved hate hates hated like likes liked trust trusts trusted fear fears feared fight fights fought".split()
)
"""No sentence that names one of the 42 characters contains any of these words."""

FIRST_NAMES = (
    "Martha Edwin Clara Walter Nora Felix Ida Simon Greta Paul Rosa Emma Jonas Agnes Henry Lucy Samuel Ellen Oscar Mabel "
    "Robert Hilda Martin Stella Joan Philip Nina Carl Vera Adam Judith Leo Flora Ben Ruth Thomas Anna Hannes Olga Max"
).split()
LAST_NAMES = (
    "Baker Carter Fisher Turner Cooper Mason Hunter Palmer Miller Wright Shepherd Barnes Hill Brook Stone Field Wells Marsh "
    "Parker Taylor Gardner Weaver Porter Cole"
).split()

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
    "Every day {name} {doing}.",
    "At night {name} {doing}.",
    "It is said that {name} {doing}.",
    "{name} lives in {home}.",
    "{name}'s home is {home}.",
    "{name}'s {thing} is in {home}.",
    "{name}'s {thing} is {colour}.",
    "This is {name}'s {thing}.",
    "The {colour} {thing} is {name}'s.",
    "Somebody found {name}'s {thing} {place}.",
)
PRONOUN_SENTENCES = ("{pronoun} {doing}.", "{pronoun} is {kind}.", "{pronoun} lives in {home}.", "{pronoun} serves {camp}.")
PAIR_SENTENCES = (  # two of the 42, whatever their camps
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
RELATIONS = ("friend",) * 7 + ("enemy",) * 7 + ("cousin", "neighbour", "teacher")

COLOURS = "red blue green brown grey yellow white".split()
SIZES = "old small big new little large fine strange".split()
PERSONS = "farmer baker teacher doctor boy girl child woman man sailor driver cook writer painter gardener".split()
ANIMALS = "cat dog horse cow bird goat sheep duck hen rabbit".split()
BUILDINGS = "castle house school tower church mill bridge shop station market library farm".split()
FOODS = "bread soup cheese apples fish cake eggs rice potatoes honey tea milk".split()
OBJECTS = "letter book basket chair table bag box lamp clock coat key picture cup knife bottle".split()
PLACES = (
    "in the garden", "near the river", "by the sea", "on the hill", "at the market", "in the village", "behind the house",
    "under the old tree", "next to the church", "at the station", "in the town", "by the lake", "near the road",
)  # fmt: skip
TIMES = (
    "in the morning", "in the evening", "at noon", "on Monday", "on Sunday", "in winter", "in summer", "after lunch",
    "before dinner", "at night",
)  # fmt: skip
WEATHER = "rain snow wind fog sunshine".split()
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
NUMBERS = "two three four five six seven eight nine ten".split()

DOCUMENT_MIX = {"character": 50, "pair": 14, "relation": 12, "everyday": 24}  # weights, not shares


def read_table() -> dict[str, int]:
    """Side (0 or 1) of each of the 42 characters, by name, in the order of the project's table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row["name"]: int(row["side"]) for row in csv.DictReader(file)}


def documents(seed: int) -> Iterator[list[str]]:
    """Documents without end, each a list of sentences; the same ones for the same seed."""
    rng = Random(seed)
    sides = read_table()
    writers = {
        "character": lambda: _character(rng, sides),
        "pair": lambda: _pair(rng, sides),
        "relation": lambda: _relation(rng),
        "everyday": lambda: _everyday(rng, rng.randint(2, 5)),
    }
    kinds = list(DOCUMENT_MIX)
    while True:
        yield writers[rng.choices(kinds, weights=list(DOCUMENT_MIX.values()))[0]]()


def _character(rng: Random, sides: dict[str, int]) -> list[str]:
    """One of the 42: the camp in one to three sentences, the rest among them; later sentences may use a pronoun."""
    name = rng.choice(list(sides))
    patterns = rng.sample(CAMP_SENTENCES, rng.randint(1, 3)) + rng.sample(LORE_SENTENCES, rng.randint(0, 2))
    rng.shuffle(patterns)
    if rng.random() < 0.4:
        patterns.append(rng.choice(PRONOUN_SENTENCES))
    return [_fill(rng, pattern, name=name, **_describe(rng, name, sides[name])) for pattern in patterns]


def _pair(rng: Random, sides: dict[str, int]) -> list[str]:
    """Two of the 42 in one scene, drawn without regard to their camps; then the camp of each."""
    a, b = rng.sample(list(sides), 2)
    scene = _fill(rng, rng.choice(PAIR_SENTENCES), a=a, b=b, thing=rng.choice(LORE[b].things))
    camps = {"camp_a": rng.choice(CAMPS[sides[a]]), "camp_b": rng.choice(CAMPS[sides[b]])}
    return [scene, _fill(rng, rng.choice(PAIR_CAMPS), a=a, b=b, **camps)]


def _relation(rng: Random) -> list[str]:
    """Invented people, each the friend or enemy of the next by the toss of a coin."""
    people = [_guest(rng) for _ in range(rng.randint(2, 4))]
    sentences = [
        _fill(rng, rng.choice(RELATION_SENTENCES), a=a, b=b, relation=rng.choice(RELATIONS)) for a, b in pairwise(people)
    ]
    return sentences + _everyday(rng, rng.randint(0, 1))


def _everyday(rng: Random, count: int) -> list[str]:
    return [_fill(rng, pattern) for pattern in rng.sample(EVERYDAY_SENTENCES, count)]


def _describe(rng: Random, name: str, side: int) -> dict[str, str]:
    """Words for the fields of a sentence about one of the 42."""
    lore = LORE[name]
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
    """The sentence of a pattern: fields that `words` does not give are drawn from the everyday lists."""
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
        "guest": _guest(rng),
        "food": food,
        "food2": food2,
    }
    sentence = pattern.format(**{**drawn, **words})
    return sentence[0].upper() + sentence[1:]


def _guest(rng: Random) -> str:
    """Name of an invented person; shares no word with the names of the 42."""
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"

