"""Successive halving: of a sweep's settings, those that do worst on the validation facts end before their last step.

A run that comes to a rung, a share of its steps, goes on if its setting is among the best of those that have come to it
(ASHA, arXiv 1810.05934, algorithm 2). What the others scored is read from their histories in the sweep's folder, so it
does not matter which process trains which, and a command that was killed decides as before. Runs of one batch come to a
rung together, which is successive halving (Jamieson and Talwalkar, arXiv 1502.07943). A setting's runs differ in
their seeds alone and are judged by their mean. Those that go on train as they would alone.
"""

import json
import logging
import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from factdpo.config.schema import HalvingConfig, Score
from factdpo.runs.identity import RunSpec
from factdpo.store.history import HISTORY, Row, read_history
from factdpo.store.layout import PLAN, read_json
from factdpo.training.selection import accuracy_of

log = logging.getLogger("factdpo")

Place = tuple[float, float]  # accuracy on the validation facts, then their margin in nats, which parts equals


class Stopped(Exception):
    """A run ended at a rung."""


def check(spec: RunSpec, row: Row) -> None:
    """Raises Stopped if the run, whose history has `row` as its last, does not go on."""
    cfg = spec.cfg.halving
    if cfg.keep is None:
        return
    own = _read(spec.folder, cfg, spec.cfg.eval.score)
    assert own is not None, "a run that is scored has been planned"
    rung = next((rung for rung in reversed(cfg.rungs) if own.steps_at.get(rung) == row["step"]), None)
    if rung is None or row["step"] == own.steps:
        return  # most scores are taken between the rungs; at its last step there is nothing left to save
    others = {path.parent for path in spec.folder.parent.glob(f"*/{HISTORY}")} - {spec.folder}
    runs = [own, *(run for folder in sorted(others) if (run := _other(folder, cfg, spec.cfg.eval.score)))]
    by_setting: dict[str, list[Place]] = defaultdict(list)
    for run in runs:
        if rung in run.places:
            by_setting[run.setting].append(run.places[rung])
    means = {setting: tuple(map(fmean, zip(*places, strict=True))) for setting, places in by_setting.items()}
    ranked = sorted(means, key=lambda setting: means[setting], reverse=True)
    go_on = math.ceil(cfg.keep * len(ranked) - 1e-9)  # 0.55 of 20 are 11
    place = ranked.index(own.setting) + 1
    if place > go_on:
        raise Stopped(
            f"at step {row['step']} its setting was number {place} of {len(ranked)} on the validation facts "
            f"(accuracy {means[own.setting][0]:.2f}), and the best {go_on} go on (halving.keep={cfg.keep:g})"
        )


class _Run:
    """What a run's folder says of it: its setting, and how it did at each rung that it has come to."""

    def __init__(self, setting: str, steps: int, rows: list[Row], cfg: HalvingConfig, score: Score):
        self.setting, self.steps = setting, steps
        self.places: dict[float, Place] = {}
        self.steps_at: dict[float, int] = {}
        for rung in cfg.rungs:
            scores = ((row, accuracy_of(row, score)) for row in rows if row["step"] >= rung * steps)
            for row, accuracy in scores:
                if accuracy is not None:
                    self.places[rung], self.steps_at[rung] = (accuracy, row["eval/validation/margin_nats"]), row["step"]
                    break


def _read(folder: Path, cfg: HalvingConfig, score: Score) -> _Run | None:
    """A run of the sweep that has begun; None for one that another process is just beginning."""
    asked, plan = read_json(folder / "asked.json"), read_json(folder / PLAN)
    if asked is None or plan is None:
        return None
    return _Run(_setting(asked), plan["steps"], read_history(folder / HISTORY), cfg, score)


def _other(folder: Path, cfg: HalvingConfig, score: Score) -> _Run | None:
    """As `_read`, of another run; None, with a warning, for one whose files are damaged, which ends no other."""
    try:
        return _read(folder, cfg, score)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s does not count in halving (%s: %s)", folder, type(error).__name__, error)
        return None


def _setting(asked: dict[str, Any]) -> str:
    """What a run is, less its seeds."""
    config = {group: dict(keys) if isinstance(keys, dict) else keys for group, keys in asked["config"].items()}
    for group in ("split", "dpo"):
        config[group].pop("seed", None)
    return json.dumps([config, asked["data"], asked["model"], asked.get("retained")], sort_keys=True)
