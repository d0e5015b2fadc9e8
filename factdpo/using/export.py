"""A trained model as a folder that transformers or PEFT load without factdpo, with a model card."""

import json
import shutil
from pathlib import Path
from typing import Any

from factdpo import hub
from factdpo.config.schema import ConfigError, Method, Quantization
from factdpo.models import weights
from factdpo.runs.identity import config_in_id
from factdpo.store import layout
from factdpo.store.result import Result
from factdpo.using.card import card
from factdpo.using.finished import Finished, check_base, load_base_of, load_models

RECORD = "factdpo.json"  # the run's numbers, in an exported folder: what marks it as ours
WRITTEN = "exported_files"  # its key with the names of all files of the export


def export(run: Finished, to: Path | None = None, merge: bool = False, push: str | None = None) -> Path:
    """Write a run's trained model to a folder, by default out/exports/<run>, and push it if asked to.

    The folder is a PEFT adapter, or with `merge`, and after full fine-tuning, a whole model with its tokenizer. An
    adapter's base is its hub id and commit, or, where the base has none, the whole model in base/ beside it. Raises
    ConfigError, before anything is written, for what cannot be done.
    """
    is_full = run.cfg.lora.method is Method.full
    target = (to or layout.out_of(run.folder) / "exports" / run.folder.name).absolute()
    if merge and is_full:
        raise ConfigError("merge=true: has no effect on full fine-tuning, which has no adapter; leave it out")
    if merge and (how := run.cfg.model.quantization) is not Quantization.none:
        raise ConfigError(
            f"merge=true: model.quantization={how.name} rounds the base, and would round the adapter with it; leave it "
            "out"
        )
    if target.exists() and not (target / RECORD).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"to={target}: is there already, and is no export; remove it, or give another to=")
    _check_own(target)
    check_base(run)
    commit = weights.locate(run.cfg.model).commit if not run.cfg.model.random_init else None
    if push is not None:
        hub.check_push(push)
        if not (merge or is_full or commit):
            raise ConfigError(
                f"push={push}: an adapter's base must be on the hub, and {run.cfg.model.name} is not; push the whole "
                "model with merge=true"
            )
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        if merge or is_full:
            _write_model(run, part)
        else:
            _write_adapter(run, part, target, commit)
        (part / RECORD).touch()
        where = push or str(target)
        (part / "README.md").write_text(card(run, where, commit, whole=merge or is_full), encoding="utf-8")
        text = json.dumps(_record(run) | {WRITTEN: _files(part)}, indent=1, ensure_ascii=False)
        (part / RECORD).write_text(text, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    except OSError as error:
        raise ConfigError(f"to={target}: cannot be written ({error}); give another to=") from None
    return target


def _check_own(target: Path) -> None:
    """Raises ConfigError for an export to be replaced that has files of somebody else."""
    record = layout.read_json(target / RECORD) or {}
    if WRITTEN in record and (others := sorted({*_files(target)} - {*record[WRITTEN]})):
        raise ConfigError(f"to={target}: {others[0]} is not of the export; move it away, or give another to=")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _record(run: Finished) -> Result:
    """What of the run's result.json goes with its weights: the numbers, and nothing about places and the machine."""
    private = ("files", "hardware", "timing", "error", "attempts")
    record = {key: value for key, value in run.result.items() if key not in private}
    return record | {"config": config_in_id(run.cfg)}


def _write_model(run: Finished, folder: Path) -> None:
    """The trained model as a whole, in the dtype of its base, and its tokenizer."""
    models = load_models(run)
    from factdpo.training import adapters

    model: Any = adapters.merge(models.trained)
    model.save_pretrained(folder)
    models.base.tokenizer.save_pretrained(folder)


def _write_adapter(run: Finished, folder: Path, target: Path, commit: str | None) -> None:
    """The adapter; its base by id and commit, else in base/, which is named by the place where it will lie."""
    for file in (run.folder / "adapter").iterdir():
        shutil.copyfile(file, folder / file.name)
    path = folder / weights.ADAPTER
    config = json.loads(path.read_text(encoding="utf-8"))
    if commit is not None:
        config |= {"base_model_name_or_path": run.cfg.model.id, "revision": commit}
    else:
        base = load_base_of(run)
        base.model.save_pretrained(folder / "base")
        base.tokenizer.save_pretrained(folder / "base")
        config |= {"base_model_name_or_path": str(target / "base"), "revision": None}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
