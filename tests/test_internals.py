"""Private interfaces of dependencies: a test per row of docs/internals.md, which fails when the interface changes."""

import fcntl
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FOLDERS = ("factdpo", "hydra_plugins")
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (ROOT / "docs" / "internals.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]


# -------------------------------------------------------------------------------------------------------- the table


def test_nothing_of_hydras_internals_is_used() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert not [str(path) for path in files if "hydra._internal" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_a_row_names_files_a_pinned_dependency_and_tests_that_exist(row: list[str]) -> None:
    where, what, why, pin, tests = row
    assert what and why
    assert all((ROOT / file).is_file() for file in in_code(where))
    wanted = Requirement(*in_code(pin))
    (pinned,) = [one for one in requirements() if one.name.replace("_", "-") == wanted.name.replace("_", "-")]
    assert set(wanted.specifier) <= set(pinned.specifier), f"pyproject.toml has {pinned}"
    assert any(bound.operator == "<" for bound in wanted.specifier), f"{wanted} has no upper bound"
    for test in in_code(tests):
        file, _, name = test.rpartition("::")
        assert f"def {name}(" in (ROOT / (file or "tests/test_internals.py")).read_text(encoding="utf-8"), test


def test_every_interface_that_is_tested_here_has_a_row() -> None:
    source = Path(__file__).read_text(encoding="utf-8").rpartition("- the interfaces\n")[2]
    assert set(re.findall(r"^def (test_\w+)", source, re.MULTILINE)) <= {t for row in ROWS for t in in_code(row[-1])}


def test_what_was_tested_is_what_pyproject_allows() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = dict(line.replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    for one in requirements():
        version = exact.get(one.name.replace("_", "-").lower())
        assert version is None or one.specifier.contains(version), f"constraints.txt has {version}, but {one}"


def in_code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = [*project["dependencies"], *(one for group in project["optional-dependencies"].values() for one in group)]
    return [one for one in map(Requirement, every) if one.name != "factdpo"]


# --------------------------------------------------------------------------------------------------- the interfaces


def test_trl_calls_what_our_trainer_overrides_and_takes_ready_ids(tmp_path: Path) -> None:
    from datasets import Dataset
    from helpers.tiny import tiny_base
    from peft import LoraConfig
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from factdpo.training.trl_trainers import _PairsTrainer

    def parameters(function: Callable[..., Any]) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert parameters(DPOTrainer._prepare_dataset) == ["self", "dataset", "processing_class", "args", "dataset_name"]
    assert parameters(DPOTrainer._precompute_ref_logps) == ["self", "dataset", "name", "batch_size"]
    base = tiny_base()
    rows = {
        "prompt_ids": [[5, 6, 7]], "chosen_ids": [[8]], "rejected_ids": [[9, 10]],
        "ref_chosen_logps": [-1.5], "ref_rejected_logps": [-2.5],
    }  # fmt: skip
    arguments = DPOConfig(
        output_dir=str(tmp_path), precompute_ref_log_probs=True, report_to=[], use_cpu=True, bf16=False, max_length=None
    )
    trainer = _PairsTrainer(
        model=base.model, args=arguments, train_dataset=Dataset.from_dict(rows), processing_class=base.tokenizer,
        peft_config=LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear"),
    )  # fmt: skip
    (batch,) = trainer.get_train_dataloader()
    assert batch["input_ids"][0, :4].tolist() == [5, 6, 7, 8] and batch["input_ids"][1].tolist() == [5, 6, 7, 9, 10]
    assert batch["completion_mask"].tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert (batch["ref_chosen_logps"].tolist(), batch["ref_rejected_logps"].tolist()) == ([-1.5], [-2.5])


def test_trls_trainers_take_log_probs_by_the_function_that_is_asked() -> None:
    from trl.trainer import dpo_trainer, utils

    assert dpo_trainer.add_fused_lm_head is utils.add_fused_lm_head  # type: ignore[attr-defined]
    assert "fused_lm_head=True" in inspect.getsource(dpo_trainer.DPOTrainer._compute_loss)


def test_the_trainer_counts_gpus_as_we_tell_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainingArguments

    from factdpo.training.trl_trainers import _DPOArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    arguments = _DPOArguments(output_dir=str(tmp_path), per_device_train_batch_size=8, use_cpu=True, bf16=False)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 8)


def test_scores_between_steps_are_taken_without_the_autocast_of_the_training(
    make_tiny_model: Callable[[], Any],
) -> None:
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from factdpo.training.trl_engine import _without_autocast

    model, ids = make_tiny_model(), torch.arange(12)[None]
    plain = model(ids).logits
    try:
        prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    finally:
        AcceleratorState._reset_state(True)
    in_training = prepared(ids).logits
    assert not torch.equal(in_training, plain)
    for _ in range(2):
        with _without_autocast(prepared):
            assert torch.equal(prepared(ids).logits, plain)
        assert torch.equal(prepared(ids).logits, in_training)


def test_adamw_keeps_its_moments_under_these_names() -> None:
    import torch

    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    state = optimizer.state[weight]
    assert {name: value.shape for name, value in state.items()} == {
        "step": torch.Size([]), "exp_avg": torch.Size([3]), "exp_avg_sq": torch.Size([3]),
    }  # fmt: skip
    # State that is written by hand before the first step is gone on with.
    other = weight.detach().clone().requires_grad_()
    resumed = torch.optim.AdamW([other], fused=True)
    resumed.state[other] = {name: value.clone() for name, value in state.items()}
    other.grad = weight.grad.clone()
    optimizer.step()
    resumed.step()
    assert torch.equal(weight, other) and resumed.state[other]["step"] == 2


def test_adamw_decays_before_it_steps() -> None:
    """With a rate and a decay of 1 the weight before is gone, and what is left is the step alone."""
    import torch

    def stepped(start: float) -> torch.Tensor:
        weight = torch.full((3,), start, requires_grad=True)
        weight.grad = torch.tensor([1.0, -2.0, 3.0])
        torch.optim.AdamW([weight], lr=1.0, weight_decay=1.0, eps=0.0, fused=True).step()
        return weight.detach()

    assert torch.equal(stepped(7.0), stepped(0.0))
    torch.testing.assert_close(stepped(7.0), torch.tensor([-1.0, 1.0, -1.0]))


def test_peft_names_an_adapters_tensors_as_we_do(make_tiny_model: Callable[[], Any]) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    from factdpo.training.batched.adapter import KEY

    model = get_peft_model(make_tiny_model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    inner = model.base_model.model.named_modules()
    names = [name for name, module in inner if isinstance(module, LoraLayer)]
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert names and set(tensors) == {KEY.format(name, side) for name in names for side in "AB"}


def test_the_hub_cache_names_a_snapshot_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from factdpo.models import weights

    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--owner--name"
    files = {f"snapshots/{commit}/{name}": "{}" for name in ("config.json", "tokenizer.json", "model.safetensors")}
    for file, text in {"refs/main": commit, **files}.items():
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(text)
    folder = huggingface_hub.snapshot_download("owner/name", cache_dir=tmp_path, local_files_only=True)
    assert Path(folder).name == commit
    (repo,) = huggingface_hub.scan_cache_dir(tmp_path).repos
    assert [(one.commit_hash, one.refs) for one in repo.revisions] == [(commit, {"main"})]

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert weights._commit("owner/name", "main") == commit


def test_wandb_has_the_settings_that_keep_the_machine_private() -> None:
    import wandb

    settings = wandb.Settings(x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False, host="-")
    assert (settings.x_disable_meta, settings.x_disable_machine_info, settings.x_save_requirements) == (
        True, True, False,
    )  # fmt: skip
    assert isinstance(type(settings).sync_file, property)


def test_wandb_agent_speaks_through_these_variables() -> None:
    from wandb import env

    assert (env.SWEEP_ID, env.RUN_ID) == ("WANDB_SWEEP_ID", "WANDB_RUN_ID")


@pytest.mark.parametrize("place", ["netrc", "settings", "nowhere"])
def test_wandb_looks_for_a_key_where_we_look(tmp_path: Path, place: str) -> None:
    from factdpo.tracking.wandb_settings import DEFAULT_BASE_URL, key_source

    key = "0123456789" * 4
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    if place == "netrc":
        host = DEFAULT_BASE_URL.removeprefix("https://")
        (tmp_path / ".netrc").write_text(f"machine {host}\n  login user\n  password {key}\n")
        (tmp_path / ".netrc").chmod(0o600)
    elif place == "settings":
        (tmp_path / ".config" / "wandb" / "settings").write_text(f"[default]\napi_key = {key}\n")
    code = (
        "import wandb\nfrom wandb.sdk.lib.wbauth import read_netrc_auth\nsettings = wandb.setup().settings\n"
        "print(settings.base_url, read_netrc_auth(host=settings.base_url) or settings.api_key)"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    env |= {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == [DEFAULT_BASE_URL, "None" if place == "nowhere" else key], done.stderr
    assert (key_source(env) is None) == (place == "nowhere")


def test_a_lock_of_filelock_is_a_flock(tmp_path: Path) -> None:
    from filelock import FileLock

    from factdpo.store.run_lock import is_held

    path = tmp_path / "lock"
    with FileLock(path):
        assert is_held(path)
        with path.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not is_held(path)
    path.touch()
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not FileLock(path, blocking=False).is_locked and is_held(path)


def test_hydras_basic_launcher_has_this_name() -> None:
    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher

    from factdpo.sweep.jobs import IN_PROCESS

    assert {launcher.__name__ for launcher in Plugins.instance().discover(Launcher)} >= IN_PROCESS


def test_hydras_own_config_can_be_put_back() -> None:
    from hydra.conf import HydraConf
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    one, other = (OmegaConf.create({"hydra": HydraConf, "seed": 0}) for _ in range(2))
    one.hydra.job.name, other.hydra.job.name = "one", "other"
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(one)
        kept: Any = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(other)
        HydraConfig.instance().set_config(kept)
        assert HydraConfig.get().job.name == "one"
    finally:
        HydraConfig.instance().cfg = before


def test_ops_can_be_counted() -> None:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.name())
            return func(*args, **kwargs or {})

    ones = torch.ones(2)
    with Count():
        _ = ones + ones
    assert names == ["aten::add.Tensor"]
