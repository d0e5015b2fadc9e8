"""Trained weights scored on other facts: against the run's own record, against PEFT, and beside the trainings."""

import json
from pathlib import Path

import pandas as pd
import pytest

import factdpo
from factdpo.commands import eval as command
from factdpo.commands.results import main as print_results
from factdpo.config.schema import ConfigError
from factdpo.store.result import read_result
from factdpo.using.evaluate import Subject
from factdpo.using.finished import Finished, read_finished
from tests.helpers.results import undocumented


def items_of(run: Finished, split: str, model: str = "trained") -> pd.DataFrame:
    rows = pd.read_parquet(run.folder / "items.parquet")
    return rows.loc[(rows["split"] == split) & (rows["model"] == model)].reset_index(drop=True)


@pytest.fixture(scope="module")
def facts(adapter_run: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight facts that the run was trained on (four told in the other order), and six held-out ones."""
    rows = [*items_of(adapter_run, "train").iloc[:4].itertuples(), *items_of(adapter_run, "train_reversed").iloc[4:8]
            .itertuples(), *items_of(adapter_run, "test").iloc[:6].itertuples()]  # fmt: skip
    path = tmp_path_factory.mktemp("facts") / "other.jsonl"
    lines = [json.dumps({"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def evaluated(adapter_run: Finished, facts: Path) -> Path:
    return command.score(adapter_run.folder, ["data=pairs", f"data.path={facts}"]).folder


def test_a_run_on_other_facts_scores_them_as_its_own_record_did(adapter_run: Finished, facts: Path, evaluated: Path):
    result = read_result(evaluated).result
    assert result and (result["kind"], result["state"]) == ("eval", "FINISHED")
    assert result["scored"]["run"] == adapter_run.result["id"] and not undocumented(result)
    rows = pd.read_parquet(evaluated / "items.parquet")
    assert rows.groupby("split")["fact"].nunique().to_dict() == {"train": 8, "test": 6}  # none trained on is held out
    own = pd.read_parquet(adapter_run.folder / "items.parquet")
    both = rows.merge(own, on=["model", "prompt", "chosen"], suffixes=("", "_own"))
    assert len(both) == len(rows) == 28
    for column in ("chosen_logp_nats", "rejected_logp_nats", "ref_chosen_logp_nats"):
        assert both[column].to_numpy() == pytest.approx(both[f"{column}_own"].to_numpy(), abs=1e-4)
    assert result["trained"]["test"]["n"] == 6 and "reward_accuracy" in result["trained"]["test"]
    assert result["config"]["dpo"] == adapter_run.result["config"]["dpo"]  # how the weights came about
    assert result["config"]["data"]["path"] == str(facts)
    assert evaluated.parent == adapter_run.folder.parents[1] / "evals"


def test_the_same_question_has_the_stored_answer(adapter_run: Finished, facts: Path, evaluated: Path, capsys):
    before = (evaluated / "result.json").stat().st_mtime_ns
    again = command.score(adapter_run.folder, ["data=pairs", f"data.path={facts}"])
    assert again.folder == evaluated and (evaluated / "result.json").stat().st_mtime_ns == before
    assert "nothing was run now" in capsys.readouterr().out
    other = [spec.id for spec in (again,)] + [evaluated.name[-12:]]
    assert other[0] == other[1]


def test_an_adapter_of_other_origin_scores_as_the_run_does(
    adapter_run: Finished, facts: Path, evaluated: Path, tmp_path: Path
):
    adapter = adapter_run.folder / "adapter"
    words = ["model=nano", f"adapter={adapter}", "data=pairs", f"data.path={facts}", f"out={tmp_path}", "track=none"]
    spec = command.score(None, words)
    result, own = read_result(spec.folder).result, read_result(evaluated).result
    assert result and own and spec.id != own["id"]
    assert [*result["trained"]] == ["test"] and result["trained"]["test"]["n"] == 14  # nobody knows what it has seen
    assert not {"dpo", "lora", "method", "split"} & result["config"].keys()
    mean = sum(own["trained"][split]["chosen_logp_nats"] * own["trained"][split]["n"] for split in ("train", "test"))
    assert result["trained"]["test"]["chosen_logp_nats"] == pytest.approx(mean / 14, abs=1e-4)


def test_a_model_alone_has_no_base_beside_it(facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from factdpo import nano

    spec = command.score(
        None, [f"model={nano.WEIGHTS}", "data=pairs", f"data.path={facts}", f"out={tmp_path}", "track=none"]
    )
    result = read_result(spec.folder).result
    assert result and result["base"] == {} and "reward_accuracy" not in result["trained"]["test"]
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test "))
    assert row.split()[2] == row.split()[-1] == "-"


def test_an_adapter_that_does_not_fit_is_refused(adapter_run: Finished, tmp_path: Path, make_tiny_model, nano_base):
    from peft import LoraConfig, get_peft_model

    from factdpo.training.adapters import load_adapter

    other = get_peft_model(make_tiny_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["query_key_value"]))
    other.save_pretrained(tmp_path / "other")
    for folder in (tmp_path / "other", tmp_path / "none"):
        with pytest.raises(ConfigError, match=f"adapter={folder}"):
            load_adapter(nano_base, folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: adapter_config\.json is missing"):  # or it had the model's own id
        _ = Subject(adapter=tmp_path / "empty").files


def test_tables_tell_evaluations_from_trainings_and_praise_no_evaluation(
    adapter_run: Finished, evaluated: Path, capsys: pytest.CaptureFixture[str]
):
    out = str(adapter_run.folder.parents[1])
    results = factdpo.load(out)
    assert {"training", "eval"} == {*results.table["kind"]} and results.settings == ["kind"]
    print_results([out])
    said = capsys.readouterr().out
    assert "eval      1" in said and "training  1" in said and "kind=training" in said and "kind=eval" not in said
    print_results([str(evaluated.parent)])
    assert "best" not in (said := capsys.readouterr().out) and "to repeat" not in said
    with pytest.raises(ConfigError, match="an evaluation, which has no weights of its own"):
        read_finished(evaluated)


def test_the_report_has_evaluations_and_its_answer_is_of_the_training(adapter_run: Finished, evaluated: Path):
    from factdpo.report.contents import gather
    from factdpo.report.page import render

    contents = gather(adapter_run.folder.parents[1], [])
    assert {setting.values["kind"] for setting in contents.settings} == {"eval", "training"}
    accuracy = adapter_run.result["trained"]["test"]["accuracy"]
    assert f"{accuracy:.2f}" in contents.answer.sentence
    assert "on other" in render(contents)
    assert sorted(bool(run.command) for run in contents.runs) == [False, True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dpo.beta=1"], "dpo.beta=1: has no effect on weights that are trained"),
        (["model=nano"], "model=nano: has no effect on weights that are trained"),
        (["data.path"], "eval: data.path: write key=value"),
        (["data=pairs", "data.path=nowhere.csv"], "data.path=nowhere.csv: "),
    ],
)
def test_what_cannot_be_evaluated_is_refused(adapter_run: Finished, words: list[str], message: str):
    before = sorted(adapter_run.folder.parents[1].rglob("*"))
    with pytest.raises(ConfigError) as refusal:
        command.score(adapter_run.folder, words)
    assert str(refusal.value).startswith(message)
    assert sorted(adapter_run.folder.parents[1].rglob("*")) == before
