"""One run, facts in, accuracies per split out: the stages in order, and nothing else."""

import json
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from torch import nn

from factdpo import cache, evaluate, graph, train
from factdpo.baselines import baselines
from factdpo.config import Boundary, Config, DpoConfig, to_dict
from factdpo.display import Bar
from factdpo.evaluate import score
from factdpo.facts import CHARACTERS, data_file, load_facts, sides
from factdpo.model import Base, load_base, pick_device
from factdpo.pairs import Pairs, show, tokenise
from factdpo.reference import PairLogps, pair_logps, reference_logps
from factdpo.results import AS_TRAINED
from factdpo.splits import Splits, make_splits
from factdpo.tracker import HISTORY, Row, Trackers, read_history

log = logging.getLogger("factdpo")

# Continued by the base and the trained model, whichever of our facts are drawn.
FIXED_PROMPTS = ("Harry Potter is Ron Weasley's", "Lord Voldemort is Harry Potter's", "Severus Snape is")
ALARM = 0.2  # D6: reward accuracy above accuracy by more than this is said


def run(cfg: Config, out: Path, tracker: Trackers) -> tuple[Row, list[Row], list[Row]]:
    """Do one run and leave its artefacts in `out`; returns the scores, the rows per fact and the generations."""
    clock = [time.monotonic()]
    cache_dir = Path(cfg.out) / "cache"
    facts = load_facts(cfg.data)
    splits = make_splits(facts, cfg.split)
    base = load_base(cfg.model, pick_device(cfg.engine.device), cache_dir)
    train.check_targets(cfg, base)
    pairs = _tokenised(splits, base, cfg)
    log.info("%d facts: %s", len(facts), ", ".join(f"{name} {len(p)}" for name, p in pairs.items()))
    log.info("first pair: %s", show(_training_pairs(pairs), base.tokenizer))

    refs = {name: reference_logps(base, p, cfg.eval.batch_size, cache_dir) for name, p in pairs.items()}
    before = _describe(base.model, base, pairs, refs, cfg)
    clock.append(time.monotonic())

    trained = _fit(base, pairs, refs, cfg, tracker, out)
    del base  # training changed it
    base, model = _reloaded(trained, pairs, cfg, cache_dir)
    clock.append(time.monotonic())

    logps = {name: pair_logps(model, p, cfg.eval.batch_size) for name, p in pairs.items()}
    after = _describe(model, base, pairs, logps, cfg)
    rows = [
        row
        for name, p in pairs.items()
        for label, values in (("base", refs[name]), ("trained", logps[name]))
        for row in evaluate.items(label, name, p, values, refs[name])
    ]
    generations = [
        {"prompt": prompt, "split": split, "fact": fact, "base": said_before, "trained": said_after}
        for (prompt, split, fact), said_before, said_after in zip(
            _prompts(pairs, cfg), before["said"], after["said"], strict=True
        )
    ]
    _write_artefacts(out, trained, rows, generations, sides(cfg.data))
    clock.append(time.monotonic())

    fit = json.loads((trained / "fit.json").read_text(encoding="utf-8"))
    scores: Row = {
        "device": str(base.device),
        **_scores(pairs, refs, logps),
        "baselines": baselines(splits["train"], splits),
        "across": {"base": before["across"], "trained": after["across"]},
        "adjusted": base.adjusted,
        "canaries": fit["canaries"],
        "training": {key: fit[key] for key in ("steps", "trainable_parameters", "peak_gib")},
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
    pairs = _tokenised(make_splits(load_facts(cfg.data), cfg.split), base, cfg)
    refs = {name: pair_logps(base.model, p, cfg.eval.batch_size) for name, p in pairs.items()}
    model = train.load_trained(base, folder)
    return _scores(pairs, refs, {name: pair_logps(model, p, cfg.eval.batch_size) for name, p in pairs.items()})


def planned_steps(pairs: int, cfg: DpoConfig) -> int:
    """Optimizer steps of a run, as the Hugging Face Trainer counts them: a short last batch is a step."""
    if cfg.max_steps is not None:
        return cfg.max_steps
    assert cfg.epochs is not None
    per_epoch = math.ceil(math.ceil(pairs / cfg.batch_size) / cfg.gradient_accumulation_steps)
    return math.ceil(cfg.epochs * per_epoch)


def _tokenised(splits: Splits, base: Base, cfg: Config) -> dict[str, Pairs]:
    """The pairs of every split as evaluation reads them; with boundary=none also as training reads them."""
    pairs = {name: tokenise(split, base.tokenizer, cfg.data) for name, split in splits.items()}
    if cfg.data.boundary is Boundary.none:
        pairs[AS_TRAINED] = tokenise(splits["train"], base.tokenizer, cfg.data, cfg.data.boundary)
    return pairs


def _training_pairs(pairs: dict[str, Pairs]) -> Pairs:
    return pairs.get(AS_TRAINED, pairs["train"])


def _scores(pairs: dict[str, Pairs], refs: dict[str, PairLogps], logps: dict[str, PairLogps]) -> Row:
    return {
        "base": {name: score(p, refs[name]) for name, p in pairs.items()},
        "trained": {name: score(p, logps[name], refs[name]) for name, p in pairs.items()},
    }


def _fit(
    base: Base, pairs: dict[str, Pairs], refs: dict[str, PairLogps], cfg: Config, tracker: Trackers, out: Path
) -> Path:
    """Train, or take what the same training left before; either way the tracker gets the whole history."""
    training, training_refs = _training_pairs(pairs), refs.get(AS_TRAINED, refs["train"])
    curves = {name: p.take(cfg.eval.max_facts) for name, p in pairs.items()} if cfg.eval.every != "never" else {}

    def curve_points(model: nn.Module) -> Row:
        row: Row = {}
        for name, p in curves.items():
            values = score(p, pair_logps(model, p, cfg.eval.batch_size))
            keys = ("accuracy", "balanced_accuracy", "margin_nats", "chosen_logp_nats", "rejected_logp_nats", "p_other")
            row |= {f"eval/{name}/{key}": values[key] for key in keys}
        return row

    ids = {name: [p.prompt_ids, p.chosen_ids, p.rejected_ids] for name, p in (*curves.items(), ("", training))}
    asked = {
        "model": base.identity,
        "device": base.device.type,
        "ids": ids,
        **{key: to_dict(getattr(cfg, key)) for key in ("lora", "dpo", "engine")},
        "eval": [cfg.eval.every, cfg.eval.batch_size],
        "log_every": cfg.track.log_every,
        "versions": {stage: cache.STAGE_VERSIONS[stage] for stage in ("logps", "train", "evaluate")},
    }
    folder = Path(cfg.out) / "cache" / "adapters" / cache.signature(asked)

    def make(target: Path) -> None:
        with Bar(planned_steps(len(training), cfg.dpo), cfg.track.progress) as bar:

            def record(row: Row) -> None:
                tracker.log(row)
                bar(row)

            train.fit(base, training, training_refs, cfg, target, record, curve_points)
        shutil.copyfile(out / HISTORY, target / HISTORY)

    if cache.fetch(folder, make):
        log.info("training: found in %s", folder)
        for row in read_history(folder / HISTORY):
            tracker.log(row)
    return folder


def _reloaded(trained: Path, pairs: dict[str, Pairs], cfg: Config, cache_dir: Path) -> tuple[Base, nn.Module]:
    """The trained weights from disk in a fresh base, proven to score as the model in training did."""
    base = load_base(cfg.model, pick_device(cfg.engine.device), cache_dir)
    model = train.load_trained(base, trained)
    try:
        train.check_reloaded(model, trained, _training_pairs(pairs), cfg.eval.batch_size)
    except train.CanaryError:
        shutil.rmtree(trained)  # so that the next call trains again
        raise
    return base, model


def _describe(
    model: nn.Module, base: Base, pairs: dict[str, Pairs], logps: dict[str, PairLogps], cfg: Config
) -> dict[str, Any]:
    """What is measured across splits, and what the model says after each prompt."""
    return {
        "across": {
            "symmetry_train": evaluate.symmetry(pairs, logps, "train"),
            "symmetry_test": evaluate.symmetry(pairs, logps, "test"),
            "retention_nats_per_token": evaluate.retention_nats_per_token(model, base.tokenizer),
        },
        "said": evaluate.continuations(
            model, base.tokenizer, [prompt for prompt, _, _ in _prompts(pairs, cfg)], cfg.eval.max_new_tokens
        ),
    }


def _prompts(pairs: dict[str, Pairs], cfg: Config) -> list[tuple[str, str, str | None]]:
    """(prompt, split, true answer): the fixed ones, then eval.generations facts of each split."""
    ours = data_file(cfg.data).read_bytes() == CHARACTERS.read_bytes()  # by its bytes, as in the run's id
    prompts: list[tuple[str, str, str | None]] = [(prompt, "fixed", None) for prompt in FIXED_PROMPTS if ours]
    for name, p in pairs.items():
        if name != AS_TRAINED:
            prompts += [(fact.prompt, name, fact.chosen) for fact in p.facts[: cfg.eval.generations]]
    return prompts


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
    weights = train.trained_weights(trained)
    shutil.copytree(weights, out / weights.name, dirs_exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out / "items.parquet")
    cache.write_atomic(out / "generations.json", json.dumps(generations, indent=1, ensure_ascii=False))
    graph.write_graphs(rows, characters, out / "figures")
