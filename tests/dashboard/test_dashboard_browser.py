"""The dashboard in Chromium while runs go on. `pytest -m browser`, with playwright and a Chromium installed."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from filelock import FileLock

from factdpo.commands import dashboard
from factdpo.dashboard import server
from factdpo.store.run_lock import lock_file
from tests.helpers.stored import EVIL, TRACEBACK, finished, opened, planned, store

pytestmark = pytest.mark.browser
FOLDER = "sweeps/beta+x"  # a plus sign would be a space in an address


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A sweep whose names would be code: one run finished, one failed, two are being done, forty are to do."""
    home = tmp_path / "outputs" / FOLDER
    finished(home, "aaa", dpo_beta=0.1)
    (store(home, "bbb", state="FAILED", dpo_beta=0.5) / "run.log").write_text(TRACEBACK)
    for name in ("ccc", "ddd"):
        opened(home, name, 0.7, 0.6)
    planned(home, *(f"run-e{number:02}" for number in range(40)), question=f"Does {EVIL} help?")
    path = home / "sweep.json"
    path.write_text(path.read_text().replace("label of run-c", f"label {EVIL} of run-c"))
    with FileLock(lock_file(home / "run-ccc")), FileLock(lock_file(home / "run-ddd")):
        yield home


@pytest.fixture
def page(browser: Any, home: Path) -> Iterator[Any]:
    """The overview, opened; at the end no page may have complained, or asked anyone but the dashboard."""
    with dashboard.listen(None) as listening:
        serving = uvicorn.Server(uvicorn.Config(server.make_app(home.parents[1], []), log_config=None, lifespan="off"))
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        complaints: list[str] = []
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(address) else complaints.append(asked.url))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        yield page
        page.close()
        serving.should_exit = True
        thread.join()
    assert not [one for one in complaints if not one.startswith(("data:", "blob:"))]


def open_sweep(page: Any) -> None:
    page.get_by_role("link", name=FOLDER).click()
    page.locator("#table tbody tr").first.wait_for()


def make_steps(folder: Path, *losses: float) -> None:
    history = folder / "history.jsonl"
    made = len(history.read_text().splitlines())
    rows = [{"step": made + n, "loss": loss, "time_seconds": (made + n) / 2} for n, loss in enumerate(losses, start=1)]
    with history.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def row(page: Any, name: str) -> Any:
    return page.locator("#table tbody tr", has_text=name)


@pytest.mark.parametrize("width", [390, 820, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_reaches_beyond_the_window(page: Any, width: int, scheme: str):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.get_by_role("link", name=FOLDER).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    open_sweep(page)
    page.locator("#frames iframe:not(.coming)").wait_for(timeout=20000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_sweep_is_followed_without_taking_anything_from_under_the_reader(page: Any, home: Path):
    open_sweep(page)
    page.locator("#table th button", has_text="step").click()
    page.locator("#table th button", has_text="step").click()
    page.locator("#filter").fill("run-")
    page.locator("#table").evaluate("table => { table.closest('.scroll').scrollTop = 200; scrollTo(0, 300); }")
    first = page.locator("#table tbody tr").first
    first.evaluate("row => { row.kept = true; }")
    assert "2/20" in row(page, "of run-ddd").inner_text()
    make_steps(home / "run-ddd", 0.5, 0.4, 0.3)
    row(page, "of run-ddd").get_by_text("5/20").wait_for()
    assert "0.300" in row(page, "of run-ddd").inner_text()
    order = page.locator("#table tbody tr th").all_inner_texts()
    assert order.index("label of run-ddd") < order.index(f"label {EVIL} of run-ccc")
    assert page.evaluate("document.activeElement.id") == "filter"
    assert page.locator("#filter").input_value() == "run-"
    assert page.evaluate("[document.querySelector('.tall').scrollTop, scrollY]") == [200, 300]
    assert page.locator("#table tbody tr").evaluate_all("rows => rows.some(row => row.kept)")


def test_a_run_that_dies_and_one_that_ends_are_seen(page: Any, home: Path):
    open_sweep(page)
    assert "1 of 44" in page.locator("#figures").inner_text()
    shutil.rmtree(home / "run-ddd")
    finished(home, "ddd", dpo_beta=0.1, seed=1)
    row(page, "of run-ddd").get_by_text("finished").wait_for()
    assert "2 of 44" in page.locator("#figures").inner_text()
    lock_file(home / "run-ccc").unlink()  # its holder is gone
    row(page, "of run-ccc").get_by_text("killed").wait_for()
    page.get_by_role("heading", name="killed: 1 run").wait_for()


def test_a_failure_unfolds_to_its_traceback_as_text(page: Any):
    open_sweep(page)
    page.locator("#reasons summary", has_text="run-bbb").click()
    page.get_by_text("RuntimeError: <b>no</b> memory").first.wait_for()
    assert page.locator("#reasons pre").first.inner_text().count("RuntimeError") == 2


def test_states_narrow_the_table_and_the_keyboard_is_enough(page: Any):
    open_sweep(page)
    button = page.get_by_role("button", name="2 running")
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator("#table tbody tr").count() == 2
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator("#count").inner_text() == "2 of 44 shown"
    page.keyboard.press("Enter")
    assert page.locator("#table tbody tr").count() == 44


def test_the_reports_views_stand_below_and_are_replaced_only_under_who_does_not_use_them(page: Any, home: Path):
    open_sweep(page)
    page.locator("#frames iframe:not(.coming)").wait_for(timeout=20000)
    report = page.frame_locator("#frames iframe")
    assert report.locator("h1").is_hidden()
    assert report.locator("#runs tbody tr").count() == 4
    assert page.locator("#frames iframe").evaluate(
        "frame => frame.offsetHeight >= frame.contentDocument.body.offsetHeight"
    )
    report.locator("#filter").fill("FAILED")
    shutil.rmtree(home / "run-ddd")
    finished(home, "ddd", dpo_beta=0.1, seed=1)
    page.get_by_role("button", name="Show them").wait_for()
    assert report.locator("#filter").input_value() == "FAILED"
    page.get_by_role("button", name="Show them").click()
    page.locator("#frames iframe.coming").wait_for(state="detached", timeout=20000)
    assert page.locator("#frames iframe").count() == 1
    assert "2 of 44" in report.locator(".figures").inner_text()


def test_the_theme_is_that_of_the_report_too_and_is_kept(page: Any):
    open_sweep(page)
    page.locator("#frames iframe:not(.coming)").wait_for(timeout=20000)
    page.get_by_role("button", name="Switch between light and dark").first.click()
    inside = page.frame_locator("#frames iframe").locator("html")
    assert [page.locator("html").first.get_attribute("data-theme"), inside.get_attribute("data-theme")] == ["dark"] * 2
    page.get_by_role("link", name="All runs").click()
    page.get_by_role("link", name=FOLDER).wait_for()
    assert page.locator("html").get_attribute("data-theme") == "dark"


def test_a_sweep_that_is_over_begins_with_its_results_and_is_not_so_far(page: Any, home: Path):
    open_sweep(page)
    assert page.locator("#answer").inner_text().startswith("Best so far on held-out facts: label of run-aaa, 0.25")
    assert page.locator("#results-h").inner_text() == "Results so far"
    for folder in (home / "run-ccc", home / "run-ddd"):
        shutil.rmtree(folder)
    (home / "sweep.json").unlink()
    planned(home)
    page.get_by_role("heading", name="Results", exact=True).wait_for()
    assert page.locator("#answer").inner_text().startswith("Best on held-out facts")
    tops = page.evaluate("['results', 'runs'].map(id => document.getElementById(id).getBoundingClientRect().top)")
    assert tops[0] < tops[1] and page.locator("#curves").is_hidden()
