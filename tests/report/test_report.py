import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from factdpo.commands import report
from factdpo.config.schema import ConfigError
from factdpo.report import beliefs, contents, page
from factdpo.report.beliefs import Beliefs
from factdpo.report.contents import Contents, gather
from factdpo.report.difference import difference
from factdpo.report.settings import Setting, axes
from factdpo.results import curves
from factdpo.store.result import write_result
from tests.helpers.stored import EVIL, answers, leave, store


def sweep_of(home: Path, **accuracies: list[float]) -> Path:
    """A run per number: b5=[0.2, 0.4] are two seeds of dpo.beta=0.5 and their accuracies on held-out facts."""
    for name, values in accuracies.items():
        for seed, value in enumerate(values):
            leave(store(home, f"{name}s{seed}", accuracy=2 * value, dpo_beta=int(name[1:]) / 10, seed=seed))
    return home


def said(folder: Path) -> Contents:
    return gather(folder, [])


def rendered(folder: Path) -> str:
    """The page without plotly.js."""
    html = page.render(said(folder))
    return re.sub(r"(</script>\n)<script>.*?</script>", r"\1", html, count=1, flags=re.DOTALL)


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


# ----------------------------------------------------------------------------------------------------------- the answer


def test_the_best_setting_is_named_with_how_much_better_it_is_and_how_sure_that_is(tmp_path: Path):
    found = said(sweep_of(tmp_path, b1=[0.25, 0.30], b5=[0.45, 0.50])).answer
    # of the difference: t(0.975, 2) 0.0354 = 0.152 over seeds, and 0.058 over facts: together 0.163
    assert found.sentence == (
        "dpo.beta=0.5 does best on held-out facts: 0.47 [0.21, 0.75], that is +0.20 [+0.04, +0.36] over dpo.beta=0.1, "
        "the other setting (0.28 [0.08, 0.62])."
    )
    assert found.more[-1:] == [
        "On the same facts as dpo.beta=0.5 the base model ranks 0.25 right and the best shallow baseline (chance) 0.50."
    ]
    assert found.best and found.best.values == {"dpo.beta": 0.5}


def test_what_may_be_chance_is_called_so_and_nothing_is_called_the_best(tmp_path: Path):
    found = said(sweep_of(tmp_path, b1=[0.2, 0.4], b5=[0.3, 0.5])).answer
    assert found.sentence.startswith("No difference larger than chance between 2 settings on held-out facts: from 0.30")
    assert found.best is None


def test_the_best_of_many_is_held_to_tukeys_interval(tmp_path: Path):
    found = said(sweep_of(tmp_path, b1=[0.1, 0.2], b3=[0.3, 0.4], b5=[0.35, 0.45])).answer
    # q(0.95; 3, 3) = 5.910 (tables of the studentised range) times sqrt(0.005 / 2): 0.296
    assert "+0.25 [-0.05, +0.55]" in found.sentence and found.best is None
    found = said(sweep_of(tmp_path / "clear", b1=[0.1, 0.11], b3=[0.3, 0.31], b5=[0.301, 0.311])).answer
    assert found.more[0] == "Not told apart from the best: dpo.beta=0.3."


def test_the_default_is_compared_with_the_best(tmp_path: Path):
    found = said(sweep_of(tmp_path, b1=[0.10, 0.11], b2=[0.30, 0.31], b5=[0.40, 0.41])).answer
    assert found.more[0].startswith("The default, dpo.beta=0.2, reaches 0.30 [0.24, 0.38]: the best is +0.10 [+0.03, ")


def with_scores(folder: Path, **scores: Any) -> Path:
    """Adds to the record of a run: test_reversed=0.5 is its accuracy on that split, retention=3.0 nats per token."""
    result = json.loads((folder / "result.json").read_text())
    if (nats := scores.pop("retention", None)) is not None:
        result["across"]["trained"]["retention_nats_per_token"] = nats
    for split, accuracy in scores.items():
        result["trained"][split] = {"n": 561, "accuracy": accuracy}
    write_result(folder, result)
    return folder


def disagreeing(home: Path) -> Path:
    """Two betas that are equal on held-out facts, far apart on them reversed, and in what they forget."""
    for id, beta, seed, reversed_, nats in [
        ("a", 0.1, 0, 0.5, 1.5),
        ("b", 0.1, 1, 0.5, 1.6),
        ("c", 0.5, 0, 0.99, 3.0),
        ("d", 0.5, 1, 0.99, 3.1),
    ]:
        with_scores(store(home, id, 0.9, dpo_beta=beta, seed=seed), test_reversed=reversed_, retention=nats)
    return home


def test_without_a_question_all_three_numbers_are_in_the_headline_where_they_disagree(tmp_path: Path):
    sentence = said(disagreeing(tmp_path)).answer.sentence
    first, second, third = re.split(r"(?<=[)\]])\. ", sentence.replace("+0.00 [", "+0.00 ["))
    assert first.startswith("No difference larger than chance between 2 settings on held-out facts: from 0.45")
    assert second.startswith("dpo.beta=0.5 does best on held-out facts, names swapped: 0.99")
    assert third.startswith("dpo.beta=0.1 does best on retention, nats per token of neutral text: 1.55")


def test_where_they_agree_held_out_facts_are_the_headline(tmp_path: Path):
    for id, beta, seed, accuracy in [("a", 0.1, 0, 0.2), ("b", 0.1, 1, 0.2), ("c", 0.5, 0, 0.8), ("d", 0.5, 1, 0.8)]:
        with_scores(store(tmp_path, id, accuracy, dpo_beta=beta, seed=seed), test_reversed=accuracy, retention=2.0)
    sentence = said(tmp_path).answer.sentence
    assert sentence.startswith("dpo.beta=0.5 does best on held-out facts: 0.40") and sentence.count("settings") == 0
    assert "swapped" not in sentence and "retention" not in sentence


def test_the_headline_follows_what_the_sweep_asks(tmp_path: Path):
    disagreeing(tmp_path)
    metrics = [{"name": "across/retention_nats_per_token", "lower_is_better": True}]
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "s", "question": "?", "runs": {}, "metrics": metrics}))
    found = said(tmp_path)
    assert (
        found.answer.sentence.startswith("dpo.beta=0.1 does best on retention")
        and "swapped" not in found.answer.sentence
    )
    assert found.answer.best and found.answer.best.values == {"dpo.beta": 0.1}
    assert [setting.values["dpo.beta"] for setting in page._ranked(found)] == [0.1, 0.5]


def test_the_validation_facts_choose_and_test_is_told_of_what_they_chose(tmp_path: Path):
    for id, beta, validation, test in [("a", 0.1, 0.9, 0.25), ("b", 0.5, 0.5, 0.35)]:
        with_scores(store(tmp_path, id, 2 * test, dpo_beta=beta), validation=validation)
    found = said(tmp_path)
    assert found.answer.sentence.startswith("dpo.beta=0.1 does best on validation facts: 0.90 [0.87, 0.92]")
    assert (
        "dpo.beta=0.1, chosen on the validation facts, ranks 0.25 [0.22, 0.29] of the held-out facts right."
        in found.answer.more
    )
    assert data_of(rendered(tmp_path))["asked"] == "accuracy/validation"


def test_a_lead_on_the_test_facts_that_chose_it_is_called_flattering(tmp_path: Path):
    found = said(sweep_of(tmp_path, b1=[0.25, 0.30], b5=[0.45, 0.50])).answer
    assert any(line.startswith("The best was chosen on the test facts, so it flatters itself") for line in found.more)


def test_settings_that_give_the_same_answers_are_not_certain_to_be_equal(tmp_path: Path):
    found = said(sweep_of(tmp_path, b1=[0.25, 0.25], b5=[0.25, 0.25])).answer
    assert found.sentence.startswith("No difference larger than chance") and "+0.00 [-0.0" in found.sentence
    assert found.sentence.count("[0.22, 0.29]") == 2  # of one run's 561 facts


def test_answers_are_paired_fact_by_fact_and_only_within_the_same_data(tmp_path: Path):
    widths = []
    for home, other in ((tmp_path / "same", "x"), (tmp_path / "other", "y")):
        for folder, data in zip(sorted(sweep_of(home, b1=[0.5], b5=[0.5]).glob("run-*")), ("x", other), strict=True):
            answers(folder, "++--", split="test")
            result = json.loads((folder / "result.json").read_text())
            write_result(folder, result | {"asked": {"data_sha256": data}})
        found = gather(home, [])
        a, b = found.settings
        gap = difference(found.results, [a, b], a, b, "accuracy/test")
        widths.append(gap.high - gap.low)
    assert widths[0] < 0.05 and widths[1] > 0.5  # the same answers, to the same facts and to others


def test_splits_of_any_name_and_accuracies_per_token_are_shown(tmp_path: Path):
    folder = with_scores(store(tmp_path, "a"), **{"my own": 0.5})
    result = json.loads((folder / "result.json").read_text())
    for model in ("base", "trained"):
        result[model]["test"]["accuracy_per_token"] = 0.125
        result[model]["train"]["accuracy_per_token"] = result[model]["train"]["accuracy"]
    write_result(folder, result)
    found = said(tmp_path)
    assert found.accuracies == ["accuracy/train", "accuracy/test", "accuracy_per_token/test", "accuracy/my own"]
    html = rendered(tmp_path)
    assert '<th scope="col">held-out facts, per token</th>' in html and '<th scope="col">my own</th>' in html


def test_one_run_and_seeds_alone_have_an_answer(tmp_path: Path):
    one = store(tmp_path / "one", "a", accuracy=0.5)
    assert said(one).answer.sentence == "The trained model ranks 0.25 [0.22, 0.29] of the held-out facts right."
    sentence = said(sweep_of(tmp_path / "seeds", b1=[0.25, 0.30])).answer.sentence
    assert sentence == "Over 2 runs the trained model ranks 0.28 [0.08, 0.62] of the held-out facts right."


def test_reward_accuracy_that_says_what_accuracy_does_not_is_counted(tmp_path: Path):
    for id, reward in (("a", 0.9), ("b", 0.6)):
        folder = store(tmp_path, id, accuracy=0.5, seed=int(id, 16))
        result = json.loads((folder / "result.json").read_text())
        result["trained"]["train"]["reward_accuracy"] = reward
        write_result(folder, result)
    assert said(tmp_path).answer.more[-1].startswith("In 1 of 2 runs reward accuracy on the training facts")


def test_runs_that_did_not_finish_are_told_with_the_first_line_of_their_error(tmp_path: Path):
    store(tmp_path, "a", state="FAILED")
    store(tmp_path, "b", state="killed", seed=1)
    found = said(tmp_path)
    assert found.answer.sentence == "No run has finished, so there is nothing to say yet."
    assert found.states == {"FAILED": 1, "killed": 1}
    assert found.runs[0].error == "loss is nan at step 3"
    assert "loss is nan at step 3" in rendered(tmp_path)


def test_runs_that_were_never_begun_are_missed(tmp_path: Path):
    store(tmp_path, "a")
    known = {"name": "two", "question": "Why?", "runs": {}}
    known["runs"] = {id: {"folder": f"run-{id}", "label": label} for id, label in (("a", "first"), ("f", "second"))}
    (tmp_path / "sweep.json").write_text(json.dumps(known))
    found = said(tmp_path)
    assert (found.title, found.question, found.never_begun) == ("two", "Why?", ["second"])


# ------------------------------------------------------------------------------------------------- settings and axes


@pytest.mark.parametrize(
    ("values", "numeric", "log"),
    [
        ([1, 4, 16, 64], True, True),
        ([100, 200, 300], True, False),
        ([0.1, 0.2], True, False),
        ([0, 1, 10], True, False),
        (["random", "canonical"], False, False),
        ([True, False], False, False),
        ([None, 512], False, False),
    ],
)
def test_an_axis_is_what_its_values_are(values: list[Any], numeric: bool, log: bool):
    found = axes([Setting({"key": value}, "", [], {}) for value in values])
    assert [(axis.numeric, axis.log) for axis in found] == [(numeric, log)]


def test_runs_stand_in_the_order_of_what_was_swept(tmp_path: Path):
    for id, (rank, seed) in {"a": (16, 1), "b": (4, 0), "c": (16, 0), "d": (100, 0)}.items():
        store(tmp_path, id, lora_rank=rank, seed=seed)
    assert [run.id for run in said(tmp_path).runs] == ["b", "c", "a", "d"]


def test_of_many_settings_the_tables_keep_the_best_and_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page, "MOST_SETTINGS", 3)
    monkeypatch.setattr(page, "WORST", 1)
    for number in range(1, 7):
        store(tmp_path, f"{number}", accuracy=number / 10, dpo_beta=number / 10)
    html = rendered(tmp_path)
    assert data_of(html)["few"] == [5, 4, 0] and "3 settings between the best and the worst" in html


# --------------------------------------------------------------------------------------- facts, curves and what is kept


def test_a_margin_fits_a_byte_and_keeps_its_sign():
    margins = [0.0, 1e-6, -1e-6, 1.0, -20.0, 5_000.0]
    kept = [int.from_bytes([byte], signed=True) for byte in beliefs._bytes(pd.Series(margins).to_numpy())]
    assert kept == [0, 1, -1, 13, -57, 127]


def test_the_same_facts_are_stored_once_however_many_runs_have_them(tmp_path: Path):
    found = Beliefs()
    places = [
        found.add(f"run {n}", leave(store(tmp_path, f"{n}"), right), True) for n, right in enumerate(("+-", "++"))
    ]
    assert places == [{"plan": 0, "base": 1, "trained": 2}, {"plan": 0, "base": 1, "trained": 3}]
    assert found.page(None)["plans"] == [{"splits": (("test", 2),), "prompts": 0}]


def test_facts_that_few_runs_learn_are_named_with_the_runs_that_do(tmp_path: Path):
    found = Beliefs()
    for number, right in enumerate(["+--+", "+-++", "+-+-"]):
        found.add(f"run {number}", leave(store(tmp_path, f"{number}"), right), False)
    hard = found.hard("test")
    assert (hard.total, hard.never, hard.always, hard.bins) == (4, 1, 1, [1, 0, 0, 2, 1])
    assert [(tally.words[0], tally.right, tally.runs, tally.names) for tally in hard.least] == [
        ("Ben is Cy's", 0, 3, []),
        ("Cy is Di's", 2, 3, ["run 1", "run 2"]),
        ("Di is Ed's", 2, 3, ["run 0", "run 1"]),
    ]


def test_a_fact_is_one_fact_whichever_name_stands_first_in_it(tmp_path: Path):
    found = Beliefs()
    for number in range(2):
        folder = leave(store(tmp_path, f"{number}"), "+-")
        if number:  # as split.orientation=random turns some facts in another seed
            items = pd.read_parquet(folder / "items.parquet")
            items.assign(prompt="turned " + items["prompt"]).to_parquet(folder / "items.parquet")
        found.add(f"run {number}", folder, False, "data a")
    hard = found.hard("test")
    assert (hard.total, hard.always, hard.never) == (2, 1, 1)
    assert [(tally.words[:2], tally.runs) for tally in hard.least] == [(("Ben is Cy's", "friend"), 2)]
    found.add("run 2", leave(store(tmp_path, "2"), "+-"), False, "data b")
    assert found.hard("test").total == 4  # other data, other facts


def test_curves_are_thinned_by_means_and_keep_their_ends(tmp_path: Path):
    found = curves.read(leave(store(tmp_path, "a")))
    assert found["window"] == 3 and len(found["loss"][0]) == 100
    assert found["loss"][0][:2] == [3, 6] and found["loss"][1][0] == round((1 + 1 / 2 + 1 / 3) / 3, 4)
    assert found["splits"]["test"]["accuracy"] == [0.5] and found["splits"]["test"]["p_other"] == [None]
    assert curves.evenly(5, 3) == [0, 2, 4] and curves.evenly(2, 3) == [0, 1]


def test_of_too_many_runs_each_setting_has_some_in_detail_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(contents, "DETAILED", 2)
    found = said(sweep_of(tmp_path, b1=[0.1, 0.2], b5=[0.3, 0.4]))
    assert [bool(run.detail) for run in found.runs] == [True, False, True, False]
    assert found.left_out[0].startswith("Curves, graphs and generations are here for 2 of 4 finished runs")
    assert found.hard["test"].least[0].runs == 4  # of all runs


def test_a_damaged_run_costs_what_is_damaged_and_is_told(tmp_path: Path):
    sweep_of(tmp_path, b1=[0.1, 0.2], b5=[0.3, 0.4])
    (tmp_path / "run-b1s0" / "items.parquet").write_text("no parquet")
    (tmp_path / "run-b1s1" / "history.jsonl").unlink()
    (tmp_path / "run-b5s0" / "generations.json").write_text('["no row"]')
    (tmp_path / "run-b5s1" / "result.json").write_text('{"torn')
    found = said(tmp_path)
    assert [line.split(" cannot be read")[0] for line in found.left_out] == [
        "items.parquet of 1 finished run", "history.jsonl of 1 finished run", "generations.json of 1 finished run",
    ]  # fmt: skip
    assert found.states == {"FINISHED": 3, "killed": 1}
    assert "with JSON" not in rendered(tmp_path)


# ------------------------------------------------------------------------------------------------------------- the page


def test_text_from_data_stays_text(tmp_path: Path):
    folder = store(tmp_path, "a", warnings=[f"warns {EVIL}"])
    result = json.loads((folder / "result.json").read_text())
    result["config"]["label"] = f"../../x {EVIL}"
    write_result(folder, result)
    leave(folder, "+", names=(EVIL, "</script><!--\u2028"))
    sweep = {"name": EVIL, "question": f"Is it {EVIL}?", "runs": {"f": {"label": EVIL}}, "commands": []}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    html = rendered(tmp_path)
    assert EVIL not in html and "<!--" not in html and "\u2028" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    found = data_of(html)
    assert found["runs"][0]["label"] == f"../../x {EVIL}"
    assert found["graph"]["names"] == ["</script><!--\u2028", EVIL]


def test_the_page_asks_no_network_for_anything(tmp_path: Path):
    html = rendered(sweep_of(tmp_path, b1=[0.1]))
    assert "default-src 'none'" in html
    assert not [url for url in re.findall(r"https?://\S+", html) if "www.w3.org/2000/svg" not in url]
    assert not re.search(r"<(link|img|iframe)|@import|url\(", html)


def test_every_run_has_the_command_that_asks_for_it(tmp_path: Path):
    html = rendered(sweep_of(tmp_path, b1=[0.1, 0.2]))
    assert 'data-copy="factdpo dpo.beta=0.1 seed=1' in html


def test_numbers_that_no_axis_has_do_not_break_the_page(tmp_path: Path):
    folder = leave(store(tmp_path, "a"))
    (folder / "history.jsonl").write_text('{"step": 1, "loss": "nan"}\n{"step": 2, "loss": "inf"}\n')
    assert data_of(rendered(tmp_path))["runs"][0]["curves"]["loss"] == [[1, 2], [None, None]]


def test_facts_without_names_have_no_graph_and_all_else(tmp_path: Path):
    folder = leave(store(tmp_path, "a"))
    items = pd.read_parquet(folder / "items.parquet").assign(subject=None, object=None)
    items.to_parquet(folder / "items.parquet")
    assert data_of(rendered(tmp_path))["graph"]["names"] == []


def test_the_command_writes_one_file_and_says_where_and_how_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sweep_of(tmp_path / "s", b1=[0.1])
    report.main([str(tmp_path / "s")])
    written = tmp_path / "s" / "report.html"
    assert f"{written}: {written.stat().st_size / 1e6:.1f} MB" in capsys.readouterr().out.replace("\n", "")
    assert "Plotly" in written.read_text()
    report.main([str(tmp_path / "s" / "run-b1s0"), "--out", str(tmp_path / "one.html")])
    assert (tmp_path / "one.html").exists()
    with pytest.raises(ConfigError, match="a folder; name a file in it"):
        report.main([str(tmp_path / "s"), "--out", str(tmp_path)])
    with pytest.raises(ConfigError, match="no such folder"):
        report.main([str(tmp_path / "none")])


def test_figures_are_drawn_on_demand_for_the_runs_that_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = sorted(path for path in sweep_of(tmp_path / "s", b1=[0.1, 0.2]).iterdir() if path.is_dir())
    for folder in folders:
        items = pd.read_parquet(folder / "items.parquet")
        items.assign(right=items["chosen_logp_nats"] > items["rejected_logp_nats"]).to_parquet(folder / "items.parquet")
    (folders[0] / "figures").mkdir()
    report.main([str(tmp_path / "s"), "--figures"])
    assert not list((folders[0] / "figures").iterdir())
    assert sorted(path.name for path in (folders[1] / "figures").iterdir()) == [
        "graph.html", "graph_test.png", "truth.png",
    ]  # fmt: skip
    assert "figures of 1 run drawn" in capsys.readouterr().out
    (folders[1] / "items.parquet").write_text("no table")
    (folders[1] / "figures" / "truth.png").unlink()
    report.main([str(tmp_path / "s"), "--figures"])  # it has some: they are not looked into
    assert "figures of 0 runs drawn" in capsys.readouterr().out


# --------------------------------------------------------------------------------- what there is, and what there is not


def sections(html: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', html)


def test_what_the_data_does_not_have_has_no_section(tmp_path: Path):
    folder = leave(store(tmp_path, "a"))
    assert sections(rendered(tmp_path)) == [
        "axes",
        "accuracy",
        "runs",
        "curves",
        "facts",
        "graph",
        "generations",
        "again",
    ]
    items = pd.read_parquet(folder / "items.parquet").assign(subject=None, object=None)
    items.to_parquet(folder / "items.parquet")
    (folder / "generations.json").write_text("[]")
    (folder / "history.jsonl").write_text('{"step": 1, "loss": 0.5}\n')  # eval.every=never
    html = rendered(tmp_path)
    assert sections(html) == ["axes", "accuracy", "runs", "curves", "facts", "again"]
    assert not {'id="c-accuracy"', 'id="f-flips"', 'id="f-reward"'} & set(re.findall(r'id="[\w-]+"', html))
    assert re.findall(r'<th scope="col" class="number">(\w+)</th>', html)[-1] == "additive"  # no rule without a number
    (folder / "history.jsonl").unlink()
    assert "curves" not in sections(rendered(tmp_path))


def test_the_question_is_answered_before_all_else(tmp_path: Path):
    html = rendered(sweep_of(tmp_path, b1=[0.1, 0.2], b5=[0.3, 0.4]))
    assert html.index('id="answer"') < html.index('id="axes"') < html.index('id="accuracy"')


def test_curves_begin_at_the_base_model(tmp_path: Path):
    found = data_of(rendered(sweep_of(tmp_path, b1=[0.1])))
    assert found["metrics"]["base/accuracy/test"] == [0.25] and found["runs"][0]["curves"]["steps"] == [300]


def test_a_search_has_its_trials_in_their_order_what_mattered_and_the_scale_they_were_drawn_on(tmp_path: Path):
    sweep_of(tmp_path, b1=[0.1, 0.2], b7=[0.1], b5=[0.3], b6=[0.3])
    sweep = {
        "name": "s",
        "runs": {id: {"folder": f"run-{id}", "label": id} for id in ("b5s0", "b1s0", "b1s1", "never", "b7s0")},
        "commands": [],
    }
    sweep |= {"axes": {"dpo.beta": ["0.01 to 3, log"]}, "importance": {"dpo.beta": 0.75, "lora.rank": 0.25}}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    assert data_of(rendered(tmp_path))["trials"] == [] and not said(tmp_path).drawn  # a grid has no trials
    (tmp_path / "study.journal").touch()
    found = said(tmp_path)
    assert [found.settings[i].values["dpo.beta"] for i in found.drawn] == [0.5, 0.1, 0.7]
    assert found.axes[0].log and found.importance == {"dpo.beta": 0.75, "lora.rank": 0.25}
    assert 'id="a-importance"' in rendered(tmp_path)


def test_runs_that_are_called_alike_are_told_apart_by_what_differs(tmp_path: Path):
    for id, beta in (("a", 0.1), ("b", 0.5)):
        folder = store(tmp_path, id, dpo_beta=beta)
        result = json.loads((folder / "result.json").read_text()) | {"name": "nano"}
        write_result(folder, result)
    assert [run.label for run in said(tmp_path).runs] == ["nano beta=0.1", "nano beta=0.5"]


def test_the_small_scales_fit_what_they_show(tmp_path: Path):
    found = said(sweep_of(tmp_path, b1=[0.35]))
    assert page._span(found) == (0.2, 0.8)  # the base's 0.25 up to the interval of 0.7
    assert page._scale((0.5, 1.0), found.settings[0].scores["accuracy/train"])["mean"] == 3 + 0.4 * (page.TRACK - 6)
