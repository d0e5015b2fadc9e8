"""Runs as they lie on the disk, written without training: a real config, made-up numbers."""

import itertools
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import yaml

from factdpo.config.schema import Config, to_dict
from factdpo.config.validate import validate
from factdpo.store.result import write_result

NAMES = ["Ann", "Ben", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo", "Kim"]
FACTS = [f"{a} is {b}'s" for a, b in itertools.pairwise(NAMES)]
EVIL = "<script>alert(1)</script>"  # a name that would be code
TRACEBACK = """2026-01-01 00:00:00,000 INFO factdpo: engine: trl
2026-01-01 00:00:01,000 ERROR factdpo: RuntimeError: <b>no</b> memory
Traceback (most recent call last):
  File "run.py", line 1, in run
RuntimeError: <b>no</b> memory
"""


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
    """A run's folder with result.json, config.yaml, asked.json and plan.json; in state killed without the first."""
    folder = home / f"run-{id}"
    folder.mkdir(parents=True)
    made = config(**changes)
    asked = {"config": made, "data": "", "model": {}, "versions": {}}
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "config.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    if made["dpo"]["max_steps"]:
        (folder / "plan.json").write_text(json.dumps({"steps": made["dpo"]["max_steps"]}))
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
        write_result(folder, result)
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


def leave(folder: Path, right: str = "++--", names: tuple[str, ...] = ("Ann", "Ben", "Cy", "Di", "Ed")) -> Path:
    """What a finished run leaves beside its result: a held-out fact per sign, `+` ranked right; the base gets none."""
    rows = [
        {
            "model": model, "split": "test", "fact": number, "prompt": f"{names[number]} is {names[number + 1]}'s",
            "chosen": "friend", "rejected": "enemy", "subject": names[number], "object": names[number + 1],
            "chosen_logp_nats": -1.0 if sign == "+" and model == "trained" else -3.0, "rejected_logp_nats": -2.0,
            "ref_chosen_logp_nats": -3.0, "ref_rejected_logp_nats": -2.0,
        }
        for model in ("base", "trained")
        for number, sign in enumerate(right)
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(folder / "items.parquet")
    history = [{"step": step, "loss": 1 / step} for step in range(1, 301)]
    history.append({"step": 300, "eval/test/accuracy": 0.5, "eval/test/margin_nats": 1.0})
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    said = {"split": "fixed", "prompt": "Ann is", "fact": None, "base": " tall", "trained": " friend"}
    (folder / "generations.json").write_text(json.dumps([said]))
    return folder


def finished(home: Path, id: str, accuracy: float = 0.5, **changes: Any) -> Path:
    """A finished run with all its files, which took two seconds."""
    folder = leave(store(home, id, accuracy=accuracy, **changes))
    path = folder / "result.json"
    result = json.loads(path.read_text())
    result["timing"] = {"reference_seconds": 0.5, "train_seconds": 1.0, "score_seconds": 0.5, "total_seconds": 2.0}
    write_result(folder, result)
    return folder


def opened(home: Path, id: str, *losses: float | str) -> Path:
    """A run without a result, which has made so many steps; nobody is at work on it unless its lock is held."""
    folder = store(home, id, state="killed", dpo_epochs=None, dpo_max_steps=20)
    rows = [{"step": step, "loss": loss, "time_seconds": step / 2} for step, loss in enumerate(losses, start=1)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.log").write_text("one line\n")
    return folder


def planned(home: Path, *folders: str, question: str = "Does it help?") -> None:
    """The sweep.json of what lies in the folder, and of runs that were not begun."""
    names = [*sorted(path.name for path in home.iterdir() if path.is_dir()), *folders]
    runs = {name.rpartition("-")[2]: {"folder": name, "label": f"label of {name}"} for name in names}
    plan = {"name": home.name, "question": question, "axes": {}, "runs": runs, "commands": []}
    (home / "sweep.json").write_text(json.dumps(plan))
