"""One run, facts in, accuracies per split out: the stages in order, and nothing else."""

import json
import logging
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow
import pyarrow.parquet
from torch import nn

from factdpo import signals
from factdpo.config.schema import Config, EngineName
from factdpo.data.facts import load_facts, sides
from factdpo.data.pairs import Pairs, show
from factdpo.data.splits import make_splits
from factdpo.evaluation import belief_graph, metrics
from factdpo.evaluation.baselines import baselines
from factdpo.evaluation.metrics import score
from factdpo.models.base import load_base, pick_device
from factdpo.models.scoring import PairLogps, pair_logps
from factdpo.runs.progress_bars import Bar
from factdpo.runs.stages import Ready, Texts, base_texts, drop_base, prepare, scored, tokenised
from factdpo.store import cache
from factdpo.store.history import HISTORY, Row, read_history
from factdpo.store.result import AS_TRAINED
from factdpo.tracking.tracker import Trackers
from factdpo.training import adapters
from factdpo.training.batched import engine
from factdpo.training.schedule import planned_steps

log = logging.getLogger("factdpo")

ALARM = 0.2  # D6: reward accuracy above accuracy by more than this is said


def run(cfg: Config, out: Path, tracker: Trackers) -> tuple[Row, list[Row], list[Row]]:
    """Do one run and leave its artefacts in `out`; returns the scores, the rows per fact and the generations."""
    clock = [time.monotonic()]
    ready = prepare(cfg)  # facts -> splits -> base -> pairs -> reference log-probs
    pairs, refs = ready.pairs, ready.refs
    log.info("%d facts: %s", len(ready.facts), ", ".join(f"{name} {len(p)}" for name, p in pairs.items()))
    log.info("first pair: %s", show(ready.training, ready.base.tokenizer))
    before = base_texts(ready)
    clock.append(time.monotonic())

    _fit(ready, tracker, out)
    clock.append(time.monotonic())

    logps, after = scored(ready)
    rows = [
        row
        for name, p in pairs.items()
        for label, values in (("base", refs[name]), ("trained", logps[name]))
        for row in metrics.items(label, name, p, values, refs[name])
    ]
    generations = [
        {"prompt": prompt, "split": split, "fact": fact, "base": said_before, "trained": said_after}
        for (prompt, split, fact), said_before, said_after in zip(ready.prompts, before.said, after.said, strict=True)
    ]
    _write_artefacts(out, ready.trained, rows, generations, sides(cfg.data))
    clock.append(time.monotonic())

    fit = json.loads((ready.trained / "fit.json").read_text(encoding="utf-8"))
    scores: Row = {
        "device": str(ready.base.device),
        **_scores(pairs, refs, logps),
        "baselines": baselines(ready.splits["train"], ready.splits),
        "across": {"base": _across(pairs, refs, before), "trained": _across(pairs, logps, after)},
        "adjusted": ready.base.adjusted,
        "canaries": fit["canaries"],
        "training": {key: fit[key] for key in ("steps", "trainable_parameters", "trained_together", "peak_gib")},
        "timing": {
            "reference_seconds": clock[1] - clock[0],
            "train_seconds": fit["train_seconds"],  # of the training itself, also when it was found in the cache
            "score_seconds": clock[3] - clock[2],
            "total_seconds": clock[3] - clock[0],
        },
    }
    return scores | {"warnings": _alarms(scores, pairs)}, rows, generations


def rescore(cfg: Config, folder: Path) -> Row:
    """The scores of a finished run's weights, computed anew: `base` and `trained` as in result.json."""
    base = load_base(cfg.model, pick_device(cfg.engine.device), Path(cfg.out) / "cache")
    pairs = tokenised(make_splits(load_facts(cfg.data), cfg.split), base, cfg)
    refs = {name: pair_logps(base.model, p, cfg.eval.batch_size) for name, p in pairs.items()}
    model = adapters.load_trained(base, folder)
    return _scores(pairs, refs, {name: pair_logps(model, p, cfg.eval.batch_size) for name, p in pairs.items()})


def member(ready: Ready, tell: list[Callable[..., None]], start: Callable[[], None] = lambda: None) -> engine.Member:
    """The run as the batched engine wants it; who is in `tell` gets the rows of its history."""

    def record(*rows: Row) -> None:
        for each in tell:
            each(*rows)

    return engine.Member(
        ready.trained.name, ready.cfg, ready.training, ready.training_refs, ready.curves, ready.curve_point, record,
        start,
    )  # fmt: skip


def keep(trained: engine.Trained, out: Path, target: Path) -> None:
    """What the cache keeps of a training by the batched engine: its weights, and the history that stands in `out`."""
    trained.save(target)
    shutil.copyfile(out / HISTORY, target / HISTORY)


def _fit(ready: Ready, tracker: Trackers, out: Path) -> None:
    """Train into the cache, unless it is there; either way the tracker gets the whole history."""
    cfg = ready.cfg

    def make(target: Path) -> None:
        with Bar(planned_steps(len(ready.training), cfg.dpo), cfg.track.progress) as bar:
            if cfg.engine.name is EngineName.trl:
                _fit_with_trl(ready, tracker, bar, target)
                shutil.copyfile(out / HISTORY, target / HISTORY)
                return
            alone = member(ready, [tracker.log, bar])
            with signals.held(), closing(engine.fit_many(ready.base, [alone], ready.cache_dir / "batches")) as groups:
                for ((_, ending),) in groups:
                    if isinstance(ending, Exception):
                        raise ending
                    keep(ending, out, target)

    found = cache.fetch(ready.trained, make)
    signals.raise_waiting()  # one that came at the training's end, whose weights are kept now
    if found and not tracker.rows:
        log.info("training: found in %s", ready.trained)
        tracker.log(*read_history(ready.trained / HISTORY))


def _fit_with_trl(ready: Ready, tracker: Trackers, bar: Bar, target: Path) -> None:
    from factdpo.training import trl_engine  # TRL takes seconds to import

    def record(row: Row) -> None:
        tracker.log(row)
        bar(row)

    def curve_point(model: nn.Module) -> Row:
        size = ready.cfg.eval.batch_size
        return ready.curve_point({name: pair_logps(model, p, size) for name, p in ready.curves.items()})

    drop_base()  # training changes it: no other run may find it
    trl_engine.fit(ready.base, ready.training, ready.training_refs, ready.cfg, target, record, curve_point)
    ready.take_fresh_base()


def _scores(pairs: dict[str, Pairs], refs: dict[str, PairLogps], logps: dict[str, PairLogps]) -> Row:
    return {
        "base": {name: score(p, refs[name]) for name, p in pairs.items()},
        "trained": {name: score(p, logps[name], refs[name]) for name, p in pairs.items()},
    }


def _across(pairs: dict[str, Pairs], logps: dict[str, PairLogps], texts: Texts) -> Row:
    """What is measured across splits."""
    return {
        "symmetry_train": metrics.symmetry(pairs, logps, "train"),
        "symmetry_test": metrics.symmetry(pairs, logps, "test"),
        "retention_nats_per_token": texts.retention_nats_per_token,
    }


def _alarms(scores: Row, pairs: dict[str, Pairs]) -> list[str]:
    """What is suspicious in the numbers (D1, D6), each as a sentence."""
    said = []
    if AS_TRAINED in pairs:
        trained, read = pairs[AS_TRAINED].prompt_ids, pairs["train"].prompt_ids
        merged = sum(a != b for a, b in zip(trained, read, strict=True))
        said.append(
            "data.boundary=none: the answers were trained without the space that the evaluation reads"
            + (f"; in {merged} of {len(trained)} pairs the prompt's last token merged with them" * (merged > 0))
        )
    reward = scores["trained"][AS_TRAINED if AS_TRAINED in pairs else "train"]["reward_accuracy"]
    accuracy = scores["trained"]["train"]["accuracy"]
    if reward - accuracy > ALARM:
        said.append(
            f"reward accuracy on the training pairs is {reward:.2f}, accuracy on train only {accuracy:.2f}: what was "
            "trained moved the right way, and the model still does not rank the facts above the fictions"
        )
    if accuracy - reward > ALARM:
        said.append(
            f"reward accuracy on the training pairs is only {reward:.2f}, accuracy on train {accuracy:.2f}: the base "
            "ranked them so before, and training moved many of them the wrong way"
        )
    return said


def _write_artefacts(
    out: Path, trained: Path, rows: list[Row], generations: list[Row], characters: dict[str, int] | None
) -> None:
    """The weights, one row per fact, the generations and the figures, into the run's folder."""
    weights = adapters.trained_weights(trained)
    (out / weights.name).mkdir()
    for file in weights.iterdir():
        shutil.copyfile(file, out / weights.name / file.name)
    with cache.writing(out / "items.parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out / "items.parquet")
    cache.write_atomic(out / "generations.json", json.dumps(generations, indent=1, ensure_ascii=False))
    with cache.writing(out / "figures"):
        belief_graph.write_graphs(rows, characters, out / "figures")
