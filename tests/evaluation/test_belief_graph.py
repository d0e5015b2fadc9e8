import csv
import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import factdpo
from factdpo.evaluation.belief_graph import write_graphs
from factdpo.evaluation.graph_layout import COLOURS, MOST_NAMES, OTHER

ORANGE, BLUE = ((0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2))  # the first two of COLOURS: enemy, friend


def row(subject, object, chosen="friend", rejected="enemy", right=True, model="base", split="train", prompt=None):
    return {
        "model": model, "split": split, "fact": 0, "prompt": prompt or f"{subject} is {object}'s",
        "chosen": f" {chosen}", "rejected": f" {rejected}", "subject": subject, "object": object, "relation": None,
        "chosen_logp_nats": -0.25, "rejected_logp_nats": -1.5, "right": right, "greedy": right,
    }  # fmt: skip


def data_of(page: Path) -> dict:
    """The data that graph.html draws."""
    found = re.search(r"^const D = (.*);$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return json.loads(found[1])


def panels(path: Path) -> list[np.ndarray]:
    """The left and the right half of a picture, without the legend below them; [height, width, RGB]."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return np.split(pixels[: len(pixels) * 9 // 10], 2, axis=1)


def share_of(colour: tuple[int, int, int], pixels: np.ndarray) -> float:
    """Share of the pixels near a colour."""
    return float((abs(pixels - colour) < 40).all(axis=2).mean())


def test_a_default_run_draws_the_truth_each_split_and_a_page(tmp_path):
    with (Path(factdpo.__file__).parent / "data" / "characters.csv").open() as file:
        sides = {r["name"]: int(r["side"]) for r in csv.DictReader(file)}
    items = [
        row(a, b, *(("friend", "enemy") if sides[a] == sides[b] else ("enemy", "friend")), right, model, split)
        for i, (a, b) in enumerate(combinations(sides, 2))
        for model, right in (("base", sides[a] == sides[b]), ("trained", i % 50 > 0))  # the base says friend to all
        for split in (("train", "train_reversed") if i % 3 == 0 else ("test", "test_reversed"))
    ]
    written = write_graphs(items, sides, tmp_path / "figures")
    assert [path.name for path in written] == [
        "truth.png", "graph_train.png", "graph_train_reversed.png", "graph_test.png", "graph_test_reversed.png",
        "graph.html",
    ]  # fmt: skip
    base, trained = panels(tmp_path / "figures" / "graph_test.png")
    assert share_of(BLUE, base) > 0.01 and share_of(ORANGE, base) == 0
    assert share_of(BLUE, trained) > 0 and share_of(ORANGE, trained) > 0
    page = tmp_path / "figures" / "graph.html"
    assert page.stat().st_size < 1_000_000  # it is in the folder of every run that draws
    data = data_of(page)
    assert len(data["truth"]) == 861 and len(data["views"]["test"]["trained"]) == 574
    assert sum(not edge[3] for edge in data["views"]["test"]["base"]) == sum(
        not i["right"] for i in items if (i["split"], i["model"]) == ("test", "base")
    )


def test_the_first_camp_stands_on_the_left_in_alphabetical_order_from_the_top(tmp_path):
    sides = {"d": 1, "c": 1, "b": 0, "a": 0}
    page = write_graphs([row("a", "b"), row("c", "d"), row("a", "c", "enemy", "friend")], sides, tmp_path)[-1]
    data = data_of(page)
    angle = dict(zip(data["names"], data["angle"], strict=True))
    degrees = {name: round(a * 57.29578) % 360 for name, a in angle.items()}
    assert 90 < degrees["a"] < 180 < degrees["b"] < 270 < degrees["d"] < 360 and 0 < degrees["c"] < 90


def test_the_belief_of_a_wrong_fact_is_the_false_answer(tmp_path):
    page = write_graphs([row("a", "b", right=False), row("a", "c")], None, tmp_path)[-1]
    data = data_of(page)
    colour = dict(zip(data["answers"], data["colours"], strict=True))
    assert colour == {"enemy": COLOURS[0], "friend": COLOURS[1]}
    beliefs = {
        (data["names"][i], data["names"][j]): (data["answers"][b], right)
        for i, j, b, right, _ in data["views"]["train"]["base"]
    }
    assert beliefs == {("a", "b"): ("enemy", 0), ("a", "c"): ("friend", 1)}
    assert {data["answers"][edge[2]] for edge in data["truth"]} == {"friend"}


def test_without_two_names_there_is_no_graph(tmp_path):
    assert write_graphs([row(None, None), row("a", None)], None, tmp_path / "figures") == []
    assert write_graphs([], None, tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_many_names_are_cut_to_the_most_connected_and_the_page_says_so(tmp_path):
    items = [row("hub", f"n{i}") for i in range(150)] + [row("n0", "n149")]
    data = data_of(write_graphs(items, None, tmp_path)[-1])
    assert len(data["names"]) == MOST_NAMES and {"hub", "n0", "n149"} <= set(data["names"])
    assert data["note"] == "120 of 151 names drawn, the most connected"
    assert len(data["views"]["train"]["base"]) == MOST_NAMES


def test_many_answers_get_seven_colours_and_grey_for_the_rest(tmp_path):
    items = [row("a", f"n{i}", f"answer {i % 12}", "none of them") for i in range(40)]
    data = data_of(write_graphs(items, None, tmp_path)[-1])
    assert len(data["answers"]) == 12 and set(data["colours"]) == {*COLOURS, OTHER}
    assert data["colours"].count(OTHER) == 5


def test_a_split_without_a_drawn_name_is_drawn_empty(tmp_path):
    items = [row("hub", f"n{i:03}") for i in range(150)] + [row("x", "y", split="test")]
    page = write_graphs(items, None, tmp_path)[-1]
    assert data_of(page)["views"]["test"]["base"] == [] and (tmp_path / "graph_test.png").exists()


def test_the_same_beliefs_are_the_same_picture_and_others_are_not(tmp_path):
    items = [row("a", "b"), row("b", "c", "enemy", "friend"), row("a", "c", "enemy", "friend", right=False)]
    surer = [item | {"chosen_logp_nats": -0.1} for item in items]
    other = [item | {"right": True} for item in items]
    first, same, changed, camps = (
        [path.read_bytes() for path in write_graphs(rows, sides, tmp_path / name)]
        for name, rows, sides in [
            ("first", items, None), ("same", surer, None), ("changed", other, None), ("camps", items, {"a": 0, "b": 1})
        ]
    )  # fmt: skip
    truth, train, page = range(3)
    assert first[truth] == same[truth] and first[train] == same[train] and first[page] != same[page]
    assert first[truth] == changed[truth] and first[train] != changed[train]
    assert first[truth] != camps[truth] and first[train] != camps[train]


def test_each_panel_has_its_own_colours(tmp_path):
    items = [row(a, b, model="trained") for a, b in combinations("abcdef", 2)]
    items += [item | {"model": "base", "right": False} for item in items]
    write_graphs(items, None, tmp_path)
    base, trained = panels(tmp_path / "graph_train.png")
    assert share_of(ORANGE, base) > 0 and share_of(BLUE, base) == 0
    assert share_of(BLUE, trained) > 0 and share_of(ORANGE, trained) == 0


def test_the_legend_is_never_cut_off(tmp_path):
    long = [row("a", f"n{i}", f"{i} " + "long " * 5, "none of them") for i in range(12)]
    write_graphs(long, None, tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "truth.png").convert("L"))
    assert pixels[:, [0, -1]].min() > 250 and pixels.shape[1] > 1500


HOSTILE = "<script>alert(1)</script>"


def test_names_and_prompts_are_text(tmp_path):
    items = [row(HOSTILE, "a $b$ & c_{", prompt="</script><b>bold"), row("日本 \\frac", HOSTILE, right=False)]
    items += [row("two\nlines", HOSTILE, "$\\frac$", "_x", split="test")]
    page = write_graphs(items, None, tmp_path)[-1]
    text = page.read_text(encoding="utf-8")
    assert HOSTILE not in text and "<b>bold" not in text
    data = data_of(page)  # the page makes text nodes of it
    assert HOSTILE in data["names"]
    assert data["views"]["train"]["base"][0][4].startswith("</script><b>bold …\nfriend (true): -0.25 nats\n")


@pytest.mark.browser
def test_the_page_draws_in_a_browser_without_a_network(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "no Chromium: install one (apt-get install chromium) or leave the browser tests out"
    page = write_graphs([row(HOSTILE, "b", right=False), row("b", "c")], {"b": 0, "c": 1}, tmp_path)[-1]
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    command = [browser, *flags, "--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert 'class="graph"' in dom and dom.count("<path") == 4 and "1 of 2 wrong" in dom  # two edges, two in the legend
    assert "friend (1)" in dom and "enemy, wrong (1)" in dom  # the legend
    drawn = dom[dom.index('id="graph"') :]
    assert ">&lt;script&gt;alert(1)&lt;/script&gt;<" in drawn[: drawn.index("<script>")]
