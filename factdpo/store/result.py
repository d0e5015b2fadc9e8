"""result.json: written with its own digest, read back and proven, flattened, and documented key by key."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from factdpo.config.overrides import flat
from factdpo.store import shapes
from factdpo.store.cache import damaged_files, write_atomic
from factdpo.store.history import Row
from factdpo.store.shapes import DamagedFile

Result = dict[str, Any]

RUNNING, KILLED, TO_DO = "running", "killed", "to do"  # of runs without a result
STATES = ("FINISHED", "STOPPED", RUNNING, "FAILED", "DIVERGED", "PREEMPTED", KILLED, TO_DO)

TRAINING, EVALUATION = "training", "eval"  # kinds of runs

VERSION = 2  # of the record; one without a version is older, and has no digest
DIGEST = "sha256"  # key of the record's own
REMEDY = "move the folder away, or put a sound copy there; the run's command redoes it"

AS_TRAINED = "train_as_trained"  # a split that only runs with data.boundary=none have
ACCURACY_GAP = 0.2  # accuracies that should agree and differ by more are reported (D6, D8)
SHALLOW = (  # the baselines that look at no more than names, answers and lengths
    "chance", "majority", "shorter", "answer_counts", "first_name", "second_name", "additive", "bag_of_names",
)  # fmt: skip
CHANCE = 0.5  # the accuracy of a guess between two answers

# Scores that repeat `accuracy` in a split whose answers are all equally long (D8).
_LENGTHS = {
    "accuracy_per_token": "accuracy by the mean instead of the sum of an answer's log-probs per token, in [0, 1]",
    "accuracy_per_token_low": "lower end of its 95 % Wilson interval",
    "accuracy_per_token_high": "upper end of its 95 % Wilson interval",
    "chosen_tokens": "mean over facts of the true answer's scored tokens",
    "rejected_tokens": "mean over facts of the false answer's scored tokens",
    "n_shorter": "facts whose true answer has fewer tokens than the false one",
    "n_equal": "facts whose answers have as many tokens as each other",
    "n_longer": "facts whose true answer has more tokens than the false one",
    **{
        f"{metric}_{name}": f"{metric} on the facts of n_{name}, in [0, 1]; null without any"
        for name in ("shorter", "equal", "longer")
        for metric in ("accuracy", "accuracy_per_token")
    },
}
# What stands in a result.json. `<split>` is train, train_reversed, test, test_reversed or train_as_trained; `<rest>` is
# anything below. Log-probs are summed over an answer's tokens; means are over the facts of the split.
_SCORES = {
    "n": "facts in the split, each wording counted",
    "n_facts": "facts in the split, whatever the number of their wordings: what intervals rest on",
    "accuracy": "share of facts that the model ranks above their fiction, in [0, 1]",
    "accuracy_low": "lower end of accuracy's 95 % Wilson interval",
    "accuracy_high": "upper end of accuracy's 95 % Wilson interval",
    "balanced_accuracy": "mean over the true answers of the accuracy among their facts, in [0, 1]",
    "answer_shares.<answer>": "share of facts for which the model prefers this answer, true or not, in [0, 1]",
    "chosen_logp_nats": "mean over facts of log p(chosen | prompt), nats",
    "rejected_logp_nats": "mean over facts of log p(rejected | prompt), nats",
    "margin_nats": "mean over facts of log p(chosen) - log p(rejected), nats",
    "p_other": "mean over facts of the probability of neither answer, in [0, 1]",
    "greedy_accuracy": "share of facts whose true answer is what the model says, token by token, in [0, 1]",
    **_LENGTHS,
}
_ACROSS = {
    "symmetry_train": "share of training pairs ranked the same in both orders, in [0, 1]; null without reverses",
    "symmetry_test": "the same for the held-out pairs",
    "retention_nats_per_token": "mean -log p per token of a neutral text, nats; what it grew by was forgotten",
}
KEYS: dict[str, str] = {
    "id": "hash of what was asked: config, data, model, stage versions (12 hex digits)",
    "name": "how people call the run; not unique",
    "kind": "training, or eval: trained weights scored on other facts; records of old, all trainings, have none",
    "state": "FINISHED, STOPPED (by halving), FAILED, DIVERGED (NaN or Inf) or PREEMPTED (a signal)",
    "error": "why it is not FINISHED; null",
    "attempts": "times that this command tried it: 1 + what `retries` added",
    "started": "when the run began, UTC, ISO 8601",
    "config.<rest>": "the resolved config; units in factdpo/config/schema.py; of an eval of weights of other origin "
    "`weights` says whose, and nothing stands there of a training",
    "engine": "which engine trained it and why; trl under config.engine.name=batched where the base needs it",
    "asked.<rest>": "what the id is a hash of, beside the config: the data's sha256, the model, stage versions",
    "versions.<rest>": "versions of Python and the packages that matter",
    "hardware.<rest>": "processor, cores, operating system, and the device that was used",
    **{f"base.<split>.{key}": f"before training: {text}" for key, text in _SCORES.items()},
    **{f"trained.<split>.{key}": f"after training: {text}" for key, text in _SCORES.items()},
    "trained.<split>.reward_accuracy": "share of facts whose margin grew against the base, in [0, 1]; TRL's accuracy",
    "trained.<split>.wrong_to_right": "facts that the base got wrong and the trained model gets right",
    "trained.<split>.right_to_wrong": "facts that the base got right and the trained model gets wrong",
    "baselines.<split>.chance": "accuracy of a guess: 0.5",
    "baselines.<split>.majority": "accuracy of the answer that was true more often in training; null: no closed set",
    "baselines.<split>.shorter": "accuracy of the answer with fewer tokens",
    "baselines.<split>.answer_counts": "accuracy of the answer chosen more often than rejected in training, net",
    "baselines.<split>.first_name": "accuracy of a rule that looks at the first name alone; null without names",
    "baselines.<split>.second_name": "accuracy of a rule that looks at the second name alone; null without names",
    "baselines.<split>.additive": "accuracy of one weight per first plus one per second name; null without names",
    "baselines.<split>.bag_of_names": "accuracy of one weight per name, wherever it stands; null without names",
    "baselines.<split>.implied": "accuracy of what the training facts imply by logic; null without sides",
    "coverage.<split>.named": "facts whose prompt holds both names: on the others, rules about names are a tie",
    "coverage.<split>.implied": "facts that the training facts decide by logic; null without sides",
    "coverage.train.contradictions": "training facts that contradict the others by logic, at most; null without sides",
    "coverage.train.sides": "how many sides logic takes for given, and whence that is known; null without sides",
    **{f"across.base.{key}": f"before training: {text}" for key, text in _ACROSS.items()},
    **{f"across.trained.{key}": f"after training: {text}" for key, text in _ACROSS.items()},
    "rows.facts": "facts of the data that can be used under the model's tokenizer, before the splits are drawn",
    "rows.nested": "of these, with an answer that begins with the other's tokens: both are scored with their end",
    "rows.truncated": "of these, with a prompt whose beginning was cut off (data.too_long=truncate)",
    "rows.dropped.<rest>": "rows and facts left out, by what is wrong (data.bad_rows=drop, data.too_long=drop)",
    "warnings": "sentences on what is suspicious in the numbers",
    "adjusted": "what was changed in the model's own config",
    "canaries.<rest>": "the run's checks of itself, each with what it found; losses in nats",
    "scored.run": "of an eval: the id of the run whose weights were scored; null for weights of other origin",
    "scored.adapter": "of an eval: where the adapter lay; null for a run's weights, and for a whole model",
    "scored.weights.<rest>": "of an eval: sha256 of the weights' files; nothing for a whole model, which is the model",
    "training.steps": "optimizer steps taken, of an SFT before DPO too",
    "training.kept_step": "the step whose weights are kept: the last, or with eval.keep=best the best",
    "training.trainable_parameters": "numbers that training could change",
    "training.trained_together": "runs of the batch in which it trained; 1 with engine=trl",
    "training.peak_gib": "most memory held at once in training, GiB (of the accelerator; on a CPU of the process)",
    "timing.reference_seconds": "loading, tokenising and scoring the base model, s; what runs share the first one pays",
    "timing.train_seconds": "training with its evaluations, s: the run's share of its batch; 0 if the cache had it",
    "timing.score_seconds": "scoring the trained model and writing its files, s: the run's share",
    "timing.total_seconds": "the whole run but for what its trackers do once this is written, s; over the runs of a "
    "command, or of each of its workers, these add up to its time on the clock",
    "timing.batch_seconds": "training of the batch as a whole until this run ended, s; also if the cache had it",
    "files.<rest>": "sha256 of a file in the run's folder",
    "record_version": "version of this file's format; without it (older records) there is no sha256",
    "sha256": "of this record without this key, as JSON with sorted keys and no white space, in UTF-8",
}


# What a summary has that is not of a split, by how its names begin.
OF_NO_SPLIT = ("across/", "training/", "timing/")


@dataclass(frozen=True)
class Stored:
    """What a folder holds: a result, or the reason why it has none that can be trusted; the other is None."""

    result: Result | None
    reason: str | None


def write_result(folder: Path, result: Result) -> None:
    """Write result.json so that a reader sees it whole or not at all; raises OSError.

    `result` gets what the file has besides: `record_version`, and its digest.
    """
    result["record_version"] = VERSION
    result[DIGEST] = digest(json.loads(json.dumps(result)))  # as it will be read back
    write_atomic(folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False))


def digest(result: Result) -> str:
    """sha256 of a record's content, whatever its layout: of all its keys but `sha256`."""
    content = {key: value for key, value in result.items() if key != DIGEST}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def read_record(folder: Path) -> Result:
    """The result.json of a run's folder, which proves itself and belongs to the folder; its files are not looked at.

    A record without `record_version` was written before records had a digest, and is taken as it is: `is_proven`.
    Raises FileNotFoundError without one, and DamagedFile for any other than the run wrote.
    """
    return parse_record(folder, shapes.read_bytes(folder / "result.json", REMEDY))


def record_or_none(folder: Path) -> Result | None:
    """As `read_record`; None for a folder without a record, or with one that cannot be trusted."""
    try:
        return read_record(folder)
    except (FileNotFoundError, DamagedFile):
        return None


def parse_record(folder: Path, data: bytes) -> Result:
    """As `read_record`, of the bytes of result.json."""
    path = folder / "result.json"
    result = shapes.parsed(path, data, shapes.ResultShape, REMEDY)
    if result.get("record_version", VERSION) > VERSION:
        raise DamagedFile(f"{path}: written by a newer factdpo; use that one")
    if is_proven(result) and result.get(DIGEST) != digest(result):
        raise DamagedFile(f"{path}: changed since the run wrote it (its sha256 is another); {REMEDY}")
    if not _belongs(result["id"], folder):
        raise DamagedFile(f"{path}: the record of run {result['id']}, which is not this folder's; {REMEDY}")
    return result


def is_proven(result: Result) -> bool:
    """Whether a record that was read has a digest; either key says that it was written with one."""
    return "record_version" in result or DIGEST in result


def _belongs(id: str, folder: Path) -> bool:
    """A run's folder is called after its id at the end; a link to it, or `.`, is not."""
    return id in (folder.name.rpartition("-")[2], folder.resolve().name.rpartition("-")[2])


def read_result(folder: Path) -> Stored:
    """The result of a run's folder; a FINISHED one only if each of its files still has the sha256 written down."""
    path = folder / "result.json"
    try:
        result = read_record(folder)
    except FileNotFoundError:
        return Stored(None, f"{path}: not there")
    except DamagedFile as error:
        return Stored(None, str(error))
    if result["state"] == "FINISHED":
        if not (files := result.get("files")):
            return Stored(None, f"{path}: FINISHED, but names no files")
        if wrong := damaged_files(folder, files):
            return Stored(None, f"{folder}: missing, or changed since the run wrote it: {', '.join(wrong)}")
    return Stored(result, None)


def best_baseline(rules: dict[str, float | None]) -> tuple[str, float] | None:
    """The best shallow baseline and its accuracy, never below chance; None for a split without baselines.

    `implied`, the logical closure of the training facts, is not shallow.
    """
    values = {"chance": CHANCE} | {rule: rules[rule] for rule in SHALLOW if rules.get(rule) is not None}
    return max(values.items(), key=lambda item: item[1]) if rules else None  # type: ignore[return-value]


def accuracy_metric(runs: Iterable[Row]) -> Literal["accuracy", "accuracy_per_token"]:
    """Which accuracy headlines and `best` go by, in all of these runs: what eval.score asks for.

    `accuracy_per_token` if any of the runs has eval.score=mean and answers of different lengths, else `accuracy`. Rows
    are those of Results.table, or `headline_row` of a result. Runs without eval.score, which are older, have neither.
    """
    per_token = any(row.get("eval.score") == "mean" and any(lengths_differ(row).values()) for row in runs)
    return "accuracy_per_token" if per_token else "accuracy"


def headline_row(result: Result) -> Row:
    """A result as `accuracy_metric` takes it: its config and its summary."""
    return flat(result.get("config") or {}) | summary(result)


def lengths_differ(row: Row) -> dict[str, bool]:
    """Split -> whether any of its facts has answers of different lengths; without the splits of which it is unknown."""
    splits = [key.removeprefix("n_equal/") for key in row if key.startswith("n_equal/")]
    return {split: row[f"n_equal/{split}"] < row[f"n/{split}"] for split in splits}  # NaN is never less


def summary(result: Row) -> Row:
    """The flat view of a result: `accuracy/<split>` and the rest after training, the same under `base/` before it."""
    row: Row = {"state": result["state"]}
    for prefix, model in (("", "trained"), ("base/", "base")):
        for split, scores in (result.get(model) or {}).items():
            row |= {f"{prefix}{metric}/{split}": value for metric, value in _present(scores)}
        across = (result.get("across") or {}).get(model) or {}
        row |= {f"{prefix}across/{name}": value for name, value in _present(across)}
    for split, scores in (result.get("baselines") or {}).items():
        row |= {f"baseline/{rule}/{split}": value for rule, value in _present(scores)}
    for group in ("training", "timing"):
        row |= {f"{group}/{name}": value for name, value in _present(result.get(group) or {})}
    return row


def without_equal_lengths(row: Row) -> Row:
    """A summary less what repeats the accuracy: the scores by length of splits whose answers are equally long."""
    repeated = {split for split, differ in lengths_differ(row).items() if not differ}
    names = {f"{prefix}{metric}/{split}" for prefix in ("", "base/") for metric in _LENGTHS for split in repeated}
    return {name: value for name, value in row.items() if name not in names}


def _present(scores: Row) -> list[tuple[str, Any]]:
    """(`name` or `name.inner`, value) of a nested dict, without nulls."""
    return [(name, value) for name, value in flat(scores).items() if value is not None]
