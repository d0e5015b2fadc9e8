"""What a finished run leaves: its numbers, a row per fact, its texts, weights and figures."""

import json
import logging
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet

from factdpo import console
from factdpo.config.schema import Config, Figures
from factdpo.data.load import sides
from factdpo.data.pairs import Pairs, show
from factdpo.evaluation import belief_graph, metrics
from factdpo.evaluation.warnings import warnings
from factdpo.models.base import load_base
from factdpo.models.devices import pick_device
from factdpo.models.scoring import PairLogps, pair_logps
from factdpo.models.weights import fetch_template, locate
from factdpo.runs.attempt import Attempt, Measured
from factdpo.runs.identity import is_chat
from factdpo.runs.scoring import Scores, base_texts
from factdpo.runs.stages import Prepared, splits_of, tokenised
from factdpo.store import cache
from factdpo.store.history import HISTORY, Row, read_history
from factdpo.training import adapters
from factdpo.training.schedule import steps_of_run

log = logging.getLogger("factdpo")


def log_inputs(run: Prepared) -> None:
    """Into the run's log: how many facts its splits have, and the tokens of its first pair."""
    splits = ", ".join(f"{name} {len(pairs)}" for name, pairs in run.pairs.items())
    log.info("%d facts: %s", len(run.inputs.checked.facts), splits)
    log.info("first pair: %s", show(run.training, run.base.tokenizer))
    for note in run.inputs.notes:
        log.info(note)


def measure(attempt: Attempt, run: Prepared, ending: Scores | Exception) -> Measured:
    """The numbers of a run, and its artefacts in its folder; raises what ended it."""
    if isinstance(ending, Exception):
        raise ending
    if attempt.trackers.rows == 0:
        log_inputs(run)
        attempt.plan(steps_of_run(len(run.training), run.cfg))  # halving reads it
        log.info("training: found in %s", run.trained)
    if missing := read_history(run.trained / HISTORY)[attempt.trackers.rows :]:
        attempt.log(*missing)
    before, after, refs, pairs = base_texts(run), ending.texts, run.inputs.refs, run.pairs
    items = item_rows(pairs, {"base": refs, "trained": ending.logps}, refs)
    generations: list[Row] = [
        {"prompt": prompt, "split": split, "fact": fact, "base": of_base, "trained": of_trained}
        for (prompt, split, fact), of_base, of_trained in zip(run.prompts, before.said, after.said, strict=True)
    ]
    _write_artefacts(attempt.spec.folder, run, items, generations)
    rules = run.inputs.rules
    scores: Row = {
        "device": str(run.base.device),
        **scores_of(pairs, refs, ending.logps, run.reference),
        "baselines": rules.accuracies,
        "coverage": rules.coverage,
        "across": {
            "base": across(pairs, refs, before.retention_nats_per_token),
            "trained": across(pairs, ending.logps, after.retention_nats_per_token),
        },
        "rows": run.inputs.checked.record(),
        "adjusted": run.base.adjusted,
        "canaries": run.fit["canaries"],
        "training": _training(run),
        "timing": {"batch_seconds": run.fit["train_seconds"]},
    }
    scores["warnings"] = run.inputs.notes + warnings(scores["trained"], pairs)
    return Measured(scores, items, generations)


def rescore(cfg: Config, folder: Path) -> Row:
    """The scores of a finished run's weights, computed anew: `base` and `trained` as in result.json."""
    if is_chat(cfg.data):
        fetch_template(locate(cfg.model))
    base = load_base(cfg.model, pick_device(cfg.engine.device), Path(cfg.out) / "cache")
    _, splits, _ = splits_of(cfg, base, {})
    pairs = tokenised(splits, base, cfg)
    total, size = sum(map(len, pairs.values())), cfg.eval.batch_size
    with console.stage(f"scoring {total} pairs with the base", total) as advance:
        refs = {name: pair_logps(base.model, of_split, size, advance) for name, of_split in pairs.items()}
    model = adapters.load_trained(base, folder)
    with console.stage(f"scoring {total} pairs with the trained model", total) as advance:
        logps = {name: pair_logps(model, of_split, size, advance) for name, of_split in pairs.items()}
    return scores_of(pairs, refs, logps, refs)


def _training(run: Prepared) -> Row:
    """How the training went; steps count those of the SFT that it began with."""
    fit, before = run.fit, run.done_before[0]
    of_training = {key: fit[key] for key in ("trainable_parameters", "trained_together", "peak_gib")}
    kept = fit.get("kept_step", fit["steps"])  # absent from what earlier versions left
    return {"steps": before + fit["steps"], "kept_step": before + kept, **of_training}


def scores_of(
    pairs: dict[str, Pairs], refs: dict[str, PairLogps], logps: dict[str, PairLogps], start: dict[str, PairLogps]
) -> Row:
    """`base` and `trained` of result.json, by split; `refs` is empty where the base is no other model."""
    return {
        "base": {name: metrics.score(pairs[name], of_base) for name, of_base in refs.items()},
        "trained": {
            name: metrics.score(of_split, logps[name], refs.get(name), start.get(name))
            for name, of_split in pairs.items()
        },
    }


def item_rows(
    pairs: dict[str, Pairs], models: dict[str, dict[str, PairLogps]], refs: dict[str, PairLogps]
) -> list[Row]:
    """The rows of items.parquet: of each split, of each of the models by its label."""
    return [
        row
        for name, of_split in pairs.items()
        for label, logps in models.items()
        for row in metrics.items(label, name, of_split, logps[name], refs[name])
    ]


def across(pairs: dict[str, Pairs], logps: dict[str, PairLogps], retention_nats_per_token: float) -> Row:
    """What is measured across splits."""
    return {
        "symmetry_train": metrics.symmetry(pairs, logps, "train"),
        "symmetry_test": metrics.symmetry(pairs, logps, "test"),
        "retention_nats_per_token": retention_nats_per_token,
    }


def _write_artefacts(folder: Path, run: Prepared, items: list[Row], generations: list[Row]) -> None:
    """The weights, one row per fact, the generations and the figures, into the run's folder."""
    weights = adapters.trained_weights(run.trained)
    (folder / weights.name).mkdir()
    for file in weights.iterdir():
        shutil.copyfile(file, folder / weights.name / file.name)
    write_rows(folder, items, generations)
    if draws_figures(run.cfg):
        with cache.writing(folder / "figures"), console.stage("drawing figures"):
            belief_graph.write_graphs(items, sides(run.cfg.data), folder / "figures")


def write_rows(folder: Path, items: list[Row], generations: list[Row]) -> None:
    """items.parquet and generations.json."""
    with cache.writing(folder / "items.parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(items), folder / "items.parquet")
    cache.write_atomic(folder / "generations.json", json.dumps(generations, indent=1, ensure_ascii=False))


def draws_figures(cfg: Config) -> bool:
    """Whether a run draws the graph of its facts when it ends."""
    return cfg.eval.figures is Figures.always or (cfg.eval.figures is Figures.auto and cfg.sweep is None)
