"""What facts about sides imply: small cases by hand, three sides, and facts that contradict each other."""

import itertools
import random

import pytest

from factdpo.data.facts import Fact
from factdpo.evaluation.closure import Closure, closure


def fact(a: str, b: str, same: bool | None) -> Fact:
    words = ("friend", "enemy") if same else ("enemy", "friend")
    return Fact(0, f"{a} is {b}'s", *words, a, b, same_side=same)


def facts_of(told: str) -> list[Fact]:
    """`A=B C!D`: A and B are on the same side, C and D are not."""
    return [fact(told[0], told[2], told[1] == "=") for told in told.split()]


def side(made: Closure | None, a: str, b: str) -> bool | None:
    assert made is not None
    return made.same_side(fact(a, b, None))


def test_with_two_sides_an_enemy_of_an_enemy_is_a_friend():
    made = closure(facts_of("A=B B!C C!D X=Y"))
    assert made is not None and made.sides == 2 and made.contradictions == 0
    assert (side(made, "A", "C"), side(made, "A", "D"), side(made, "D", "B")) == (False, True, True)
    assert side(made, "A", "X") is side(made, "A", "Z") is None, "not connected, never seen"


def test_three_that_are_each_others_enemies_are_on_three_sides():
    made = closure(facts_of("A!B B!C A!C A=D B=E C!F"))
    assert made is not None and made.sides == 3 and made.contradictions == 0
    assert (side(made, "D", "E"), side(made, "D", "C"), side(made, "A", "D")) == (False, False, True)
    assert side(made, "A", "F") is None, "an enemy of an enemy may be on either side"


def test_whoever_is_an_enemy_of_two_of_three_sides_is_on_the_third():
    made = closure(facts_of("A!B B!C A!C D!A D!B E!D E!A"))
    assert side(made, "C", "D") is True and side(made, "B", "E") is True
    four = closure(facts_of("A!B B!C A!C D!A D!B D!C E!A E!B"))  # D shows a fourth side, so E may be on C's or on D's
    assert side(four, "C", "E") is side(four, "D", "E") is None


def test_three_houses_are_implied_whole_in_any_order_of_rows():
    house = {name: number % 3 for number, name in enumerate("ABCDEFGHIJKLMNOPQRST")}
    facts = [fact(a, b, house[a] == house[b]) for a, b in itertools.combinations(house, 2)]
    for seed in range(5):
        random.Random(seed).shuffle(facts)
        made = closure(facts[:100])
        assert made is not None and made.contradictions == 0
        assert all(made.same_side(held_out) == held_out.same_side for held_out in facts[100:])


@pytest.mark.parametrize("noise", [1, 6])
def test_facts_that_contradict_the_others_are_counted_and_outvoted(noise: int):
    """Two camps of six, all pairs told, and some told wrong; the count does not depend on the order of rows."""
    names = "ABCDEFGHIJKL"
    facts = [fact(a, b, (a < "G") == (b < "G")) for a, b in itertools.combinations(names, 2)]
    wrong = random.Random(noise).sample(range(len(facts)), noise)
    told = [fact(str(f.subject), str(f.object), f.same_side ^ (i in wrong)) for i, f in enumerate(facts)]
    for seed in range(5):
        random.Random(seed).shuffle(told)
        made = closure(told)
        assert made is not None and made.sides == 2 and made.contradictions == noise
        assert all(made.same_side(true) == true.same_side for true in facts)


def test_how_many_sides_there_are_is_taken_from_the_data_where_it_knows():
    """Enemies of enemies may be enemies among 20 sides; three mutual enemies of four sides show no fourth."""
    told = facts_of("A!B B!C D=E E!F")
    assert side(closure(told), "A", "C") is True, "two sides are assumed"
    assert side(closure(told, 20), "A", "C") is None and side(closure(told, 20), "D", "F") is False
    three = facts_of("A!B B!C A!C D!A D!B")
    assert side(closure(three, 3), "C", "D") is True and side(closure(three, 4), "C", "D") is None
    made = closure(facts_of("A!B B!C A!C"), 2)
    assert made is not None and made.contradictions == 1, "of three enemies on two sides, two are none"


def test_facts_that_contradict_others_on_three_known_sides_are_outvoted():
    side_of = {name: number % 3 for number, name in enumerate("ABCDEFGHIJKL")}
    facts = [fact(a, b, side_of[a] == side_of[b]) for a, b in itertools.combinations(side_of, 2)]
    told = [fact(str(f.subject), str(f.object), f.same_side ^ (i in (3, 17))) for i, f in enumerate(facts)]
    made = closure(told, 3)
    assert made is not None and made.contradictions == 2
    assert all(made.same_side(true) == true.same_side for true in facts)


def test_of_a_pair_told_both_ways_one_is_a_contradiction():
    made = closure(facts_of("A=B A!B C=D"))
    assert made is not None and made.contradictions == 1 and side(made, "A", "B") is None


def test_without_names_or_sides_there_is_no_closure():
    assert closure([fact("A", "B", True), fact("C", "D", None)]) is None
    assert closure([Fact(0, "p", "x", "y", same_side=True)]) is None
