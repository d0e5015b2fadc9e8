"""The report in Chromium: what a reader does with it. `pytest -m browser`, with playwright and a Chromium installed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from factdpo.commands.report import main
from factdpo.store.result import write_result
from tests.helpers.stored import EVIL, leave, store

pytestmark = pytest.mark.browser
WIDTHS = [390, 820, 1400]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two betas with two seeds each, a failed run, and names that would be code."""
    home = tmp_path_factory.mktemp("outputs") / "sweep"
    names = (EVIL, "Ben", "../../x", "Di", "Ed")
    for id, beta, seed, right in [
        ("a", 0.1, 0, "+---"),
        ("b", 0.1, 1, "++--"),
        ("c", 0.5, 0, "+++-"),
        ("d", 0.5, 1, "++++"),
    ]:
        folder = leave(store(home, id, accuracy=right.count("+") / 4, dpo_beta=beta, seed=seed), right, names)
        result = json.loads((folder / "result.json").read_text())
        result["config"]["label"] = f"beta={beta} seed={seed} {EVIL}" if id == "a" else f"beta={beta} seed={seed}"
        for model in ("base", "trained"):
            result["across"][model]["retention_nats_per_token"] = 1.0 + (seed if model == "trained" else 0)
        for scores in result["trained"].values():
            scores |= {"reward_accuracy": 1.0, "wrong_to_right": 9, "right_to_wrong": 1}
        write_result(folder, result)
    store(home, "e", state="FAILED", dpo_beta=0.5, seed=2)
    main([str(home)])
    return home / "report.html"


@contextmanager
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """The report, opened; at the end it must have complained of nothing and asked no network for anything."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    complaints: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.goto(report.as_uri())
    yield page
    page.close()
    assert not complaints


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    with opened(browser, report) as page:
        yield page


def shown(page: Any, column: int) -> list[str]:
    """The texts of a column of the table of runs, of the rows that are to be seen, less what a run died of."""
    found = page.locator(f"#table tbody tr:visible > :nth-child({column})").all_inner_texts()
    return [text.split("\n")[0] for text in found]


def becomes_true(page: Any, expression: str) -> None:
    """Playwright's own wait_for_function needs eval, which the page's content security policy forbids."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"after five seconds still not: {expression}")


def heading(page: Any, key: str) -> Any:
    return page.locator(f'#table th[data-key="{key}"] button')


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_reaches_beyond_the_window(page: Any, width: int, scheme: str):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    becomes_true(page, "document.documentElement.scrollWidth <= innerWidth")
    for chart in ("#c-loss", "#f-reward", "#a-0"):  # which follow the window a moment later
        becomes_true(page, f"document.querySelector('{chart} .main-svg').clientWidth <= innerWidth")


def test_rows_of_a_chart_are_told_apart_on_a_phone_too(page: Any):
    page.set_viewport_size({"width": 390, "height": 900})
    page.reload()
    labels = page.locator("#f-flips .ytick text").all_text_contents()
    assert len(labels) == 2 and len({*labels}) == 2 and not any("…" in label for label in labels)


def test_a_heading_sorts_both_ways_and_what_is_missing_stands_last(page: Any):
    button = heading(page, "accuracy/test")
    button.click()
    assert page.locator('#table th[data-key="accuracy/test"]').get_attribute("aria-sort") == "ascending"
    assert [text.split(" <")[0] for text in shown(page, 2)] == [
        "beta=0.1 seed=0", "beta=0.1 seed=1", "beta=0.5 seed=0", "beta=0.5 seed=1", "run e",
    ]  # fmt: skip
    button.focus()
    page.keyboard.press("Enter")
    assert shown(page, 2)[0] == "beta=0.5 seed=1" and shown(page, 2)[-1] == "run e"


def test_runs_are_filtered_by_text_and_by_numbers(page: Any):
    page.fill("#filter", "failed")
    assert shown(page, 2) == ["run e"]
    page.fill("#filter", "")
    box = page.get_by_label("Filter accuracy, held-out facts", exact=True)
    for wanted, left in {">0.3": 2, "<=0.25": 2, "0.2..0.4": 2, "0.5": 1, "": 5}.items():
        box.fill(wanted)
        assert len(shown(page, 2)) == left, wanted
    assert page.inner_text("#count").startswith("5 of 5 runs shown")


def test_columns_can_be_hidden_and_brought_back(page: Any):
    assert not heading(page, "id").is_visible()
    page.click("summary:text('Columns')")
    page.get_by_label("id", exact=True).check()
    assert heading(page, "id").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#columns").is_visible()


def test_selected_runs_are_drawn_everywhere(page: Any):
    lines = "document.querySelectorAll('#c-loss .lines .js-line').length"
    page.select_option("#curves-of", "runs")
    page.click("#unpick")
    assert page.evaluate(lines) == 0 and "No run is selected" in page.inner_text("#curves-note")
    page.get_by_label("Select beta=0.5 seed=1", exact=True).check()
    assert page.evaluate(lines) == 1
    page.click("#pick")
    assert page.evaluate(lines) == 4
    assert len(page.locator("#curves-key > button").all()) == 4
    assert page.locator("#table tbody tr.failed input").is_disabled()


DRAWN = """id => document.getElementById(id).data.filter(trace => trace.meta)
    .map(trace => [trace.meta, trace.x, trace.y, trace.opacity])"""


def test_curves_are_means_over_seeds_from_the_base_on_and_one_setting_stands_out_at_a_click(page: Any):
    assert page.evaluate(DRAWN, "c-accuracy") == [["s0", [0, 300], [0.25, 0.5], 1], ["s1", [0, 300], [0.25, 0.5], 1]]
    assert page.locator("#curves-key > button").all_inner_texts() == ["beta=0.1 (2 runs)", "beta=0.5 (2 runs)"]
    page.locator("#curves-key > button").nth(1).click()
    for chart in ("c-accuracy", "c-loss"):
        assert [trace[3] < 1 for trace in page.evaluate(DRAWN, chart)] == [True, False]
    page.locator("#curves-key > button").nth(1).click()
    assert [trace[3] for trace in page.evaluate(DRAWN, "c-loss")] == [1, 1]


def click_on(page: Any, point: str) -> None:
    page.locator(point).scroll_into_view_if_needed()
    box = page.locator(point).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def test_a_click_on_a_point_leads_to_its_run(page: Any):
    page.click("#unpick")
    page.fill("#filter", "beta=0.1")
    click_on(page, "#f-reward .trace:first-child .point:last-child")
    becomes_true(page, "document.querySelectorAll('#table tr.followed').length === 1")
    (label,) = page.locator("#table tr.followed th").all_inner_texts()
    assert page.locator("#table tr.followed input").is_checked() and page.locator("#table tr.followed").is_visible()
    assert label in page.locator("#graph-run option").all_inner_texts()
    click_on(page, "#a-1 .trace:nth-child(3) .point:last-child")  # a setting: all its runs
    becomes_true(page, "document.querySelectorAll('#table tr.followed').length === 2")


def test_the_frontier_joins_what_no_other_setting_beats_in_both(page: Any):
    edge, _, settings, base = page.evaluate("document.getElementById('a-1').data.map(trace => [trace.x, trace.y])")
    assert settings == [[1.5, 1.5], [0.4375, 0.1875]] and base == [[1], [0.25]]
    assert edge == [[1.5], [0.4375]]


def test_the_graph_and_the_generations_are_those_of_the_run_that_is_chosen(page: Any):
    for label, wrong in {"beta=0.1 seed=1": 2, "beta=0.5 seed=0": 1, "beta=0.5 seed=1": 0}.items():
        page.select_option("#graph-run", label=label)
        assert f"{wrong} of 4 wrong" in page.inner_text("#graph-note")
        assert page.locator("#g-belief path[stroke-dasharray]").count() == wrong
        assert page.locator("#g-truth path").count() == 4
        assert page.locator("#generations-run").evaluate("select => select.selectedOptions[0].text") == label
    page.select_option("#graph-model", "base")
    assert "4 of 4 wrong" in page.inner_text("#graph-note")
    page.select_option("#graph-model", "trained")
    page.check("#graph-wrong")
    assert page.locator("#g-belief path").count() == 0


def test_a_name_in_the_graph_shows_its_own_facts_by_keyboard_too(page: Any):
    page.locator("#g-truth g[tabindex]").first.focus()
    assert page.locator("#g-truth g[tabindex]").first.get_attribute("aria-label") == "../../x: 2 facts"
    assert page.locator("#g-truth path.faded").count() == 2


def test_text_from_data_is_text_in_the_page_and_in_its_charts(page: Any):
    page.select_option("#curves-of", "runs")
    assert EVIL in page.inner_text("#table") and EVIL in page.inner_text("#curves-key")
    assert page.locator("#g-truth text").all_text_contents() == ["../../x", EVIL, "Ben", "Di", "Ed"]
    assert page.evaluate("document.querySelectorAll('main script').length") == 0


def test_two_configurations_are_compared(page: Any):
    page.select_option("#diff-a", label="beta=0.1 seed=1 (b)")
    page.select_option("#diff-b", label="beta=0.5 seed=1 (d)")
    assert page.locator("#diff tbody tr").all_inner_texts() == ["dpo.beta\t0.1\t0.5"]


def test_the_theme_can_be_switched_and_charts_follow(page: Any):
    ink = "getComputedStyle(document.querySelector('#c-loss .xtick text')).fill"
    before = page.evaluate(ink)
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(ink) != before


def test_a_command_is_copied(page: Any):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#table tbody .copy").first.click()
    assert page.evaluate("navigator.clipboard.readText()").startswith("factdpo dpo.beta=0.1")


def test_it_prints_with_every_split_and_no_controls(page: Any, tmp_path: Path):
    page.pdf(path=str(tmp_path / "report.pdf"))
    assert (tmp_path / "report.pdf").stat().st_size > 50_000
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator("#filter").is_visible()
    assert all(part.is_visible() for part in page.locator(".only").all())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 27 runs that the embedded model really made."""
    out = tmp_path_factory.mktemp("real")
    sweep = ["-m", "sweep=real", "dpo.beta=0.05,0.2,1", "dpo.learning_rate=3e-4,1e-3,3e-3", "seed=0,1,2"]
    small = ["split.train=40", "split.test=60", "dpo.epochs=2", "eval.generations=1", "track=none", f"out={out}"]
    for arguments in ([*sweep, *small], ["report", str(out / "sweeps" / "real")]):
        command = [sys.executable, "-m", "factdpo", *arguments]
        done = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
    return out / "sweeps" / "real" / "report.html"


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_real_sweep_of_27_runs_is_read_at_every_width(browser: Any, real: Path, width: int):
    results = [json.loads(path.read_text()) for path in real.parent.glob("*/result.json")]
    scores = {result["id"]: result["trained"]["test"]["accuracy"] for result in results}
    with opened(browser, real) as page:
        page.set_viewport_size({"width": width, "height": 900})
        becomes_true(page, "document.documentElement.scrollWidth <= innerWidth")
        assert len(scores) == 27 and "27 of 27" in page.inner_text(".figures")
        assert page.locator("#a-0 .heatmaplayer image").count() == 1  # two settings: a heat map, and lines with bands
        assert page.locator("#a-1 .scatterlayer .js-line").count() == 6
        for _ in range(2):
            heading(page, "accuracy/test").click()
        assert page.locator("#table tbody tr td:nth-child(9)").first.inner_text() == f"{max(scores.values()):.3f}"
        page.get_by_label("Filter beta", exact=True).fill("0.2")
        page.get_by_label("Filter learning_rate", exact=True).fill(">0.001")
        assert page.locator("#table tbody tr:visible").count() == 3
        page.click("#unpick")
        page.click("#pick")
        assert page.locator("#curves-key > button").count() == 1  # the setting of the selected runs
        page.select_option("#curves-of", "runs")
        for chart in ("#c-loss", "#c-accuracy", "#c-margin", "#c-other"):
            assert page.locator(f"{chart} .lines .js-line").count() == 3, chart
        assert page.locator("#c-logps .lines .js-line").count() == 6  # of the fact and of the fiction
        assert page.locator("#f-flips .bars .point").count() == 18
        for result in results[:2]:
            page.select_option("#graph-run", label=result["config"]["label"])
            right = round(result["trained"]["test"]["accuracy"] * 60)
            assert f"{60 - right} of 60 wrong" in page.inner_text("#graph-note")
            assert page.locator("#g-belief path[stroke-dasharray]").count() == 60 - right
            assert page.locator("#generations-table tbody tr").count() > 3
