"""Scores of trained models, kept in the cache: the log-probs of every split, and texts."""

import functools
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from factdpo import console
from factdpo.config.schema import EngineName, Quantization
from factdpo.data.pairs import join
from factdpo.evaluation import generation
from factdpo.models.logps import Diverged
from factdpo.models.scoring import PairLogps, check_finite, kept_logps, pair_logps
from factdpo.runs.stages import Prepared
from factdpo.store import cache
from factdpo.store.result import AS_TRAINED
from factdpo.training import adapters
from factdpo.training.batched.adapter import read_adapter
from factdpo.training.batched.capacity import tokens_to_score
from factdpo.training.batched.stacked_lora import stacked
from factdpo.training.sanity_checks import SanityCheckError

log = logging.getLogger("factdpo")

SCORED_TOGETHER = 16  # runs whose scores are made in the same forwards


class Texts(NamedTuple):
    """How well a model still reads English, and its continuation of each of the prompts."""

    retention_nats_per_token: float
    said: list[str]


class Scores(NamedTuple):
    """What is measured of a trained model: log-probs of every split, and its texts."""

    logps: dict[str, PairLogps]
    texts: Texts


def score(cohort: list[Prepared]) -> Iterator[list[tuple[Prepared, Scores | Exception]]]:
    """Every split and the texts under each run's trained weights, read from the disk; or what is wrong with them.

    Yields runs that were scored together: those of the batched engine, in shared forwards. What TRL trained is scored
    by PEFT's own model, or as a whole one.
    """
    together = [prepared for prepared in cohort if _is_stacked(prepared)]
    shared = [together[start : start + SCORED_TOGETHER] for start in range(0, len(together), SCORED_TOGETHER)]
    for part in [[prepared] for prepared in cohort if not _is_stacked(prepared)] + shared:
        scores = _scores_of(part)
        for prepared, of_run in zip(part, scores, strict=True):
            if isinstance(of_run, SanityCheckError):
                shutil.rmtree(prepared.trained, ignore_errors=True)  # so that the next attempt trains again
        yield list(zip(part, scores, strict=True))


def _scores_of(part: list[Prepared]) -> list[Scores | Exception]:
    fresh = functools.cache(partial(_fresh_scores, part))  # made if those of any run are not in the cache
    return [_cached_scores(prepared, lambda place=place: fresh()[place]) for place, prepared in enumerate(part)]


def _cached_scores(prepared: Prepared, fresh: Callable[[], Scores | Exception]) -> Scores | Exception:
    """The scores in the cache, with the fresh ones where any is missing, or what kept these from being made."""

    def made() -> Scores:
        scores = fresh()
        if isinstance(scores, Exception):
            raise scores
        return scores

    device, size, folder = prepared.base.device, prepared.cfg.eval.batch_size, prepared.cache_dir
    logps: dict[str, PairLogps] = {}
    try:
        weights = prepared.weights
        for name, pairs in prepared.pairs.items():
            logps[name] = kept_logps(weights, device, pairs, size, folder, lambda name=name: made().logps[name])
        return Scores(logps, _cached_texts(prepared, weights, lambda: made().texts))
    except Exception as error:
        return error


def _fresh_scores(part: list[Prepared]) -> list[Scores | Exception]:
    if not _is_stacked(part[0]):
        return [_score_alone(prepared) for prepared in part]
    try:
        return _score_stacked(part)
    except Exception as error:
        if len(part) == 1:
            return [error]
        log.warning("%d runs could not be scored together (%s): each is scored alone", len(part), error)
        return [scores for prepared in part for scores in _fresh_scores([prepared])]


def _is_stacked(prepared: Prepared) -> bool:
    """Whether the batched engine trained it, and scores it."""
    return prepared.cfg.engine.name is EngineName.batched


def _score_alone(prepared: Prepared) -> Scores | Exception:
    try:
        with reloaded(prepared) as model:
            size, total = prepared.cfg.eval.batch_size, sum(map(len, prepared.pairs.values()))
            with console.stage(f"scoring {total} pairs with the trained model", total) as advance:
                logps = {name: pair_logps(model, pairs, size, advance) for name, pairs in prepared.pairs.items()}
            return Scores(logps, _texts(model, prepared))
    except Exception as error:
        return error


def _score_stacked(part: list[Prepared]) -> list[Scores | Exception]:
    """Scores of runs on one base, in shared forwards; those of a run whose weights did not reload are its error."""
    base = part[0].base
    loaded = [read_adapter(prepared.trained / "adapter") for prepared in part]
    joined = [join(list(prepared.pairs.values())) for prepared in part]
    with stacked(base, loaded, max(adapter.config.r for adapter in loaded)) as stack:
        with console.stage(f"scoring {sum(map(len, joined))} pairs with {console.plural(len(part), 'trained model')}"):
            logps = stack.logps(joined, tokens_to_score(part[0].cfg, base))
        texts = _texts_together(part)
    scores: list[Scores | Exception] = []
    for prepared, pairs, values, of_run in zip(part, joined, logps, texts, strict=True):
        try:
            sizes = [len(of_split) for of_split in prepared.pairs.values()]
            by_split = dict(zip(prepared.pairs, check_finite(pairs, values).split(sizes), strict=True))
            training = by_split.get(AS_TRAINED, by_split["train"])
            adapters.check_probe(prepared.trained, training.take(adapters.PROBE_PAIRS), base.model.dtype)
            scores.append(Scores(by_split, of_run))
        except (Diverged, SanityCheckError) as error:
            scores.append(error)
    return scores


@contextmanager
def reloaded(prepared: Prepared) -> Iterator[nn.Module]:
    """The trained weights from disk on the base, proven to score as the model in training did."""
    model = adapters.load_trained(prepared.base, prepared.trained)
    try:
        probe = pair_logps(model, prepared.training.take(adapters.PROBE_PAIRS), prepared.cfg.eval.batch_size)
        is_quantised = prepared.cfg.model.quantization is not Quantization.none  # TRL trains its adapter in bfloat16
        dtype = torch.bfloat16 if is_quantised else next(model.parameters()).dtype
        adapters.check_probe(prepared.trained, probe, dtype)
        yield model
    finally:
        adapters.unload(model)


# --------------------------------------------------------------------------------------------------------------- texts


def base_texts(prepared: Prepared) -> Texts:
    """The texts of the base, which nothing may have changed."""
    return _cached_texts(prepared, prepared.base.identity, lambda: _texts(prepared.base.model, prepared))


def _texts(model: nn.Module, prepared: Prepared) -> Texts:
    retained = generation.retention_nats_per_token(model, prepared.base)[0]
    length = prepared.cfg.eval.max_new_tokens
    return Texts(retained, generation.continuations(model, prepared.base, prepared.prompt_ids, length))


def _texts_together(part: list[Prepared]) -> list[Texts]:
    """The texts of runs that are stacked on the base: their rows one after the other, as many for each."""
    base = part[0].base
    retained = generation.retention_nats_per_token(base.model, base, len(part))
    prompts = [prepared.prompt_ids for prepared in part]
    most, filler = max(map(len, prompts)), [prompt for of_run in prompts for prompt in of_run][:1]
    rows = [prompt for of_run in prompts for prompt in (of_run + filler * most)[:most]]
    longest = max(prepared.cfg.eval.max_new_tokens for prepared in part)
    texts = generation.continuations(base.model, base, rows, longest)
    return [
        Texts(nats, texts[run * most :][: len(of_run)])
        for run, (nats, of_run) in enumerate(zip(retained, prompts, strict=True))
    ]


def _cached_texts(prepared: Prepared, model: object, make: Callable[[], Texts]) -> Texts:
    """The texts of a model that `model` identifies, from the cache where the prompts are the same; raises Diverged."""
    texts = [prompt for prompt, _, _ in prepared.prompts]
    whole = prepared.base.encoder.encode(texts)
    asked = {
        "model": model,
        "device": prepared.base.device.type,
        "prompts": [  # by its tokens where those are not all of the text's
            text if ids == of_text else ids
            for text, ids, of_text in zip(texts, prepared.prompt_ids, whole, strict=True)
        ],
        "max_new_tokens": prepared.cfg.eval.max_new_tokens,
        "versions": {stage: cache.STAGE_VERSIONS[stage] for stage in ("logps", "evaluate")},
    }
    folder = prepared.cache_dir / "texts" / cache.signature(asked)

    def write(target: Path) -> None:
        texts = make()
        if not math.isfinite(texts.retention_nats_per_token):
            raise Diverged("the log-likelihood of the neutral text is not finite")
        (target / "texts.json").write_text(json.dumps(texts._asdict(), ensure_ascii=False), encoding="utf-8")

    cache.fetch(folder, write)
    return Texts(**json.loads((folder / "texts.json").read_text(encoding="utf-8")))
