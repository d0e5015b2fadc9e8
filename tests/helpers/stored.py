"""Runs as they lie on the disk, written without training: a real config, made-up numbers."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

from factdpo.config.schema import Config, to_dict
from factdpo.config.validate import validate

NAMES = ["Ann", "Ben", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo", "Kim"]
FACTS = [f"{a} is {b}'s" for a, b in itertools.pairwise(NAMES)]


def config(**changes: Any) -> dict[str, Any]:
    """A validated config as a record has it; `changes` by key, as in dpo_beta=0.5; seed is that of everything."""
    cfg = Config(seed=changes.pop("seed", 0))
    cfg.track.wandb = False
    for key, value in changes.items():
        group, _, name = key.partition("_")
        setattr(getattr(cfg, group), name, value)
    made = to_dict(validate(cfg))
    made["engine"]["name"] = "batched"  # a record has what ran in place of auto
    return made


def store(home: Path, id: str, accuracy: float = 0.5, state: str = "FINISHED", warnings=(), **changes: Any) -> Path:
    """A run's folder with result.json, config.yaml and asked.json; in state killed without the first."""
    folder = home / f"run-{id}"
    folder.mkdir(parents=True)
    made = config(**changes)
    asked = {"config": made, "data": "", "model": {}, "versions": {}}
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "config.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    result: dict[str, Any] = {
        "id": id, "name": f"run {id}", "state": state, "error": None, "started": "2026-01-01T00:00:00Z", "config": made,
    }  # fmt: skip
    if state == "FINISHED":
        scores = {
            "n": 300,
            "accuracy": accuracy,
            "answer_shares": {"friend": 0.5, "and/or": 0.5},
            "p_other": 1 - accuracy,
        }
        result |= {
            "base": {"train": {"n": 300, "accuracy": 0.25}, "test": {"n": 561, "accuracy": 0.25}},
            "trained": {"train": scores, "test": scores | {"n": 561, "accuracy": accuracy / 2}},
            "baselines": {"train": {"additive": 0.75, "first_name": None}, "test": {"additive": 0.5}},
            "across": {"base": {}, "trained": {"symmetry_train": 1.0, "symmetry_test": None}},
            "timing": {"total_seconds": 2.0},
            "warnings": list(warnings),
        }
    elif state != "killed":
        result["error"] = "loss is nan at step 3\nand more"
    if state != "killed":
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def answers(folder: Path, train: str, split: str = "train", first: int = 0, words: str = "") -> Path:
    """items.parquet with one fact per letter of `train`: `+` ranked right by the trained model; the base gets none."""
    rows = [
        {
            "model": model, "split": split, "fact": first + number, "prompt": FACTS[first + number] + words,
            "chosen": "friend", "rejected": "enemy", "right": model == "trained" and right == "+",
        }
        for model in ("base", "trained")
        for number, right in enumerate(train)
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "items.parquet")
    return folder
