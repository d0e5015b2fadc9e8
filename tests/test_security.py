"""What SECURITY.md says of files that may come from anybody: none runs code, leads elsewhere or keeps a secret."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from factdpo import nano
from factdpo.config.schema import Config, ConfigError, DataConfig, DataSource, ModelConfig, ModelSource, to_dict
from factdpo.config.validate import from_dict, validate
from factdpo.data.load import load_facts
from factdpo.models.base import load_base
from factdpo.models.weights import locate
from factdpo.results import sweep_status, tables
from factdpo.runs import answer
from factdpo.store import layout
from factdpo.store.result import read_record, write_result
from tests.helpers.runs import small
from tests.helpers.stored import finished

CANARY = "canary-0123456789-secret"


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What code that should not run makes."""
    return tmp_path / "code-was-run"


def model_folder(folder: Path) -> Path:
    """Nano's files as a model of one's own."""
    shutil.copytree(nano.WEIGHTS, folder)
    return folder


@pytest.mark.parametrize("place", ["", "model", "data", "lora", "engine", "track", "data.columns"])
def test_a_target_in_a_config_is_an_unknown_key_and_is_not_called(place: str, marker: Path) -> None:
    """Hydra's advisory on `instantiate`: nothing of a run's config is instantiated."""
    call = {"_target_": "os.mkdir", "_args_": [str(marker)], "path": str(marker)}
    cfg = OmegaConf.structured(Config)
    OmegaConf.set_struct(cfg, True)
    with pytest.raises(Exception, match="_target_"):
        validate(OmegaConf.merge(cfg, OmegaConf.create({place: call} if place and "." not in place else call)))  # type: ignore
    tree: Any = to_dict(Config())
    node = tree
    for part in place.split(".") if place else []:
        node = node[part]
    node |= call
    with pytest.raises(ConfigError, match="_target_"):
        from_dict(tree)
    assert not marker.exists()


def test_yaml_tags_and_targets_in_a_run_folder_run_nothing(tmp_path: Path, marker: Path) -> None:
    folder = finished(tmp_path, "a1")
    (folder / "config.yaml").write_text(f"!!python/object/apply:os.mkdir ['{marker}']\n")
    assert layout.read_yaml(folder / "config.yaml") == {}
    record = read_record(folder)
    record["config"]["_target_"] = record["name"] = f"os.mkdir {marker}"
    write_result(folder, record)
    sweep_status.look([tmp_path], {})
    tables.load(tmp_path)
    assert not marker.exists()


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_weights_are_refused_and_not_read(tmp_path: Path, marker: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(marker)))
    (folder / "training_args.bin").write_bytes(pickle.dumps(_Bomb(marker)))
    cfg = ModelConfig(source=ModelSource.pretrained, id=str(folder))
    load_base(cfg, torch.device("cpu"), tmp_path / "cache")  # beside safetensors they are left alone
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing"):
        locate(cfg)
    (folder / "model.safetensors").write_bytes(pickle.dumps(_Bomb(marker)))
    with pytest.raises(Exception, match=r"(?i)header|safetensors|invalid"):
        load_base(cfg, torch.device("cpu"), tmp_path / "cache")
    assert not marker.exists()


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_the_code_of_a_model_folder_is_not_run(where: str, tmp_path: Path, marker: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Evil: pass\n")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    content = json.loads((folder / where).read_text())
    evil = {name: ["evil.Evil", "evil.Evil"] if name == "AutoTokenizer" else "evil.Evil" for name in names}
    (folder / where).write_text(json.dumps(content | {"auto_map": evil}))
    try:
        load_base(ModelConfig(source=ModelSource.pretrained, id=str(folder)), torch.device("cpu"), tmp_path / "cache")
    except (ConfigError, ValueError) as refused:
        assert "code" in str(refused)
    assert not marker.exists()


def test_a_chat_template_of_a_file_of_facts_is_text(tmp_path: Path, marker: Path) -> None:
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }} {% include '/etc/passwd' %}"
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps({"prompt": evil, "chosen": "=cmd|' /C calc'!A0", "rejected": "b"}) + "\n")
    (fact,) = load_facts(DataConfig(source=DataSource.pairs, path=str(path))).facts
    assert fact.prompt == evil and not marker.exists()


@pytest.mark.slow
def test_no_secret_of_the_environment_is_in_any_file_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, CANARY + name)
    answer.ask(small(tmp_path / "outputs"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and [str(path) for path in files if CANARY.encode() in path.read_bytes()] == []
