"""Exported folders: loaded without factdpo in a fresh process, what goes into the card, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pyarrow.parquet
import pytest
import yaml

from factdpo.commands import export as command
from factdpo.config.schema import ConfigError
from factdpo.using.export import RECORD, export
from factdpo.using.finished import Finished

# What a stranger to factdpo does with an exported folder: log-probs of the answers, by transformers or PEFT alone.
STRANGER = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import AutoPeftModelForCausalLM

kind, folder, tokenizer, rows = sys.argv[1:]
model = {"model": AutoModelForCausalLM, "adapter": AutoPeftModelForCausalLM}[kind].from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(tokenizer)
for prompt, answer in json.loads(rows):
    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([tokenizer(f"{prompt} {answer}")["input_ids"]])
    logps = model(ids).logits[0, :-1].float().log_softmax(-1)
    print(logps.gather(1, ids[0, 1:, None])[start - 1 :].sum().item())
assert "factdpo" not in sys.modules, "a stranger has no factdpo"
"""


def logps_of_a_stranger(kind: str, folder: Path, tokenizer: Path, pairs: list[tuple[str, str]], home: Path):
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, kind, str(folder), str(tokenizer), json.dumps(pairs)],
        capture_output=True, text=True, cwd=home, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "merge", "kind"), [
    ("adapter_run", False, "adapter"), ("adapter_run", True, "model"), ("full_run", False, "model"),
])  # fmt: skip
def test_who_has_no_factdpo_gets_the_log_probs_of_the_record(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, merge: bool, kind: str
):
    run: Finished = request.getfixturevalue(name)
    folder = export(run, tmp_path / "exported", merge)
    rows = pyarrow.parquet.read_table(run.folder / "items.parquet").to_pylist()
    rows = [row for row in rows if row["model"] == "trained"][::5]
    pairs = [(row["prompt"], row[answer]) for row in rows for answer in ("chosen", "rejected")]
    wanted = [row[f"{answer}_logp_nats"] for row in rows for answer in ("chosen", "rejected")]
    tokenizer = folder if kind == "model" else folder / "base"
    assert logps_of_a_stranger(kind, folder, tokenizer, pairs, tmp_path) == pytest.approx(wanted, abs=1e-4)


def test_the_card_has_facts_figures_config_and_how_to_load(adapter_run: Finished, tmp_path: Path):
    folder = export(adapter_run, tmp_path / "card")
    text = (folder / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "peft"
    scores = adapter_run.result["trained"]["test"]
    row = next(line for line in text.splitlines() if line.startswith("| test |"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2] == str(scores["n"])
    assert cells[4] == f"{scores['accuracy']:.2f} [{scores['accuracy_low']:.2f}, {scores['accuracy_high']:.2f}]"
    assert f'AutoPeftModelForCausalLM.from_pretrained("{folder}")' in text and f'"{folder}/base"' in text
    assert "* torch 2" in text and "beta: 0.2" in text and "harry_potter: train 16" in text
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder / "base")


def test_nothing_about_places_and_the_machine_goes_with_the_weights(adapter_run: Finished, tmp_path: Path):
    record = json.loads((export(adapter_run, tmp_path / "private") / RECORD).read_text())
    assert record["id"] == adapter_run.result["id"] and record["trained"] == adapter_run.result["trained"]
    assert not {"hardware", "timing", "files"} & record.keys()
    assert not {"out", "track", "label"} & record["config"].keys() and "path" not in record["config"]["data"]


def test_an_export_is_replaced_and_what_is_none_stays(adapter_run: Finished, tmp_path: Path):
    folder = export(adapter_run, tmp_path / "twice")
    (folder / "adapter_config.json").write_text("of before")
    assert (export(adapter_run, folder) / "adapter_config.json").read_text() != "of before"
    (folder / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"twice: notes\.txt is not of the export; move it away"):
        export(adapter_run, folder)
    assert (folder / "notes.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(ConfigError, match="is there already, and is no export"):
        export(adapter_run, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.tex").exists()


def test_by_default_it_lies_beside_the_runs(adapter_run: Finished):
    folder = export(adapter_run)
    assert folder == adapter_run.folder.parents[1] / "exports" / adapter_run.folder.name


def test_an_adapter_names_a_hub_base_by_id_and_commit(
    adapter_run: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from factdpo.using import export as module

    located = SimpleNamespace(commit="c" * 40)
    monkeypatch.setattr(module, "check_base", lambda run: None)
    monkeypatch.setattr(module.weights, "locate", lambda cfg: located)
    monkeypatch.setattr(adapter_run.cfg.model, "id", "ada/base")
    folder = export(adapter_run, tmp_path / "hub")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("ada/base", "c" * 40)
    assert not (folder / "base").exists()
    assert "base_model: ada/base" in (folder / "README.md").read_text()


class Api:
    """In place of the hub's client: notes what it is asked to do."""

    calls: ClassVar[list[tuple[str, Any]]] = []

    def create_repo(self, name: str, exist_ok: bool) -> None:
        assert exist_ok
        self.calls.append(("create", name))

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> str:
        self.calls.append(("upload", (repo_id, sorted(path.name for path in Path(folder_path).iterdir()))))
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "calls", [])


def test_a_whole_model_is_pushed_with_its_card(
    adapter_run: Finished, tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    command.main([str(adapter_run.folder), "merge=true", f"to={tmp_path / 'pushed'}", "push=ada/nano-facts"])
    (created, name), (uploaded, (repo, files)) = Api.calls
    assert (created, name, uploaded, repo) == ("create", "ada/nano-facts", "upload", "ada/nano-facts")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {*files}
    assert 'from_pretrained("ada/nano-facts")' in (tmp_path / "pushed/README.md").read_text()
    assert "https://hub/ada/nano-facts/commit/1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["push=ada/x", "merge=true"], "push=ada/x: no token is configured; run `hf auth login`, or set HF_TOKEN"),
        (["push=ada"], "push=ada: no name of a repository; write user/name"),
        (["merge=yes"], "merge=yes: must be true or false"),
        (["to="], "export: to=: write merge=true, to=<folder> or push=<user>/<name>"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    adapter_run: Finished, tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    to = [] if any(word.startswith("to=") for word in words) else [f"to={tmp_path / 'no'}"]
    with pytest.raises(ConfigError) as refusal:
        command.main([str(adapter_run.folder), *words, *to])
    assert str(refusal.value).startswith(message)
    assert not Api.calls and not [*tmp_path.iterdir()]


def test_an_adapter_is_not_pushed_without_its_base(adapter_run: Finished, tmp_path: Path, online, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(ConfigError, match=r"an adapter's base must be on the hub.*merge=true"):
        export(adapter_run, tmp_path / "no", push="ada/x")


def test_merge_has_no_effect_on_a_full_model(full_run: Finished, tmp_path: Path):
    with pytest.raises(ConfigError, match="merge=true: has no effect on full fine-tuning"):
        export(full_run, tmp_path / "no", merge=True)
