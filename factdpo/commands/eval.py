"""`factdpo eval`: a finished run's weights scored anew, or any weights on other facts."""

import dataclasses
import re
import shlex
from operator import attrgetter
from pathlib import Path

from factdpo import console
from factdpo.commands.parser import Parser, folder
from factdpo.config.folders import conf_folder, conf_folders, options
from factdpo.config.overrides import command, for_hydra
from factdpo.config.schema import Config, ConfigError
from factdpo.config.validate import validate
from factdpo.runs import summary
from factdpo.runs.answer import RunFailed
from factdpo.runs.identity import RunSpec, what_is_asked
from factdpo.store import layout
from factdpo.using.evaluate import SCORING, Subject, evaluate
from factdpo.using.finished import Finished, read_finished

EVAL_TOLERANCE_NATS = 1e-3  # between two scorings of the same weights; another device rounds otherwise
# What can be chosen of an evaluation; of weights of other origin the model too.
OWN = rf"(data|track)([.].+)?|eval[.]({'|'.join(SCORING)})|engine[.]device|out"
MODEL = r"model([.].+)?|adapter"


def main(arguments: list[str]) -> None:
    """Scores weights and prints the table; of a run alone it says whether the record holds.

    Raises ConfigError for what cannot be done, RunFailed when an evaluation failed, or the scores are not those of the
    record.
    """
    args = make_parser().parse_intermixed_args(arguments)
    first = args.folder or ""
    is_word = re.match(rf"({OWN}|{MODEL}|[a-z_.]+)=", first) and not first.startswith("run=")
    words = [*([first] if is_word else []), *args.words]
    if first and not is_word and not words:
        rescore(Path(first.removeprefix("run=")))  # as it was once typed
    else:
        score(None if is_word or not first else Path(first.removeprefix("run=")), words)


def score(run_folder: Path | None, words: list[str]) -> RunSpec:
    """Score a run's weights, or those that `model=` and `adapter=` name, on the facts that the words ask for."""
    if run_folder is None:
        cfg, subject = _of_others(words)
    else:
        run = read_finished(run_folder)
        cfg, subject = _of_run(run, words), Subject(run=run)
    return evaluate(cfg, subject)


def _of_run(run: Finished, words: list[str]) -> Config:
    """The config of an evaluation of a run's weights: the run's own data and settings where no word says otherwise."""
    _check(words, OWN)
    given = {word.partition("=")[0] for word in words}
    own = shlex.split(command(run.result["config"], conf_folders()))[1:]
    if "data" not in given:
        kept = [word for word in own if re.match(r"data[.=]", word) and word.partition("=")[0] not in given]
        places = {"data.path", "data.files", "data.hub.id"}  # one of which is given
        if any(key in places or key.startswith("data.files.") for key in given):
            kept = [word for word in kept if not re.match(r"data\.(path|files|hub)[.=]", word)]
        words = [*kept, *words]
    asked = _composed(words)
    engine, scoring = dataclasses.replace(run.cfg.engine), dataclasses.replace(run.cfg.eval)
    if "engine.device" in given:
        engine.device = asked.engine.device
    for name in {f"eval.{name}" for name in SCORING} & given:
        setattr(scoring, name.removeprefix("eval."), attrgetter(name)(asked))
    tracks = any(key.startswith("track") for key in given)
    return dataclasses.replace(
        run.cfg, data=asked.data, eval=scoring, engine=engine, track=asked.track if tracks else run.cfg.track,
        out=asked.out if "out" in given else run.cfg.out,
    )  # fmt: skip


def _of_others(words: list[str]) -> tuple[Config, Subject]:
    """The config and the weights of a model or a PEFT adapter that factdpo did not train."""
    _check(words, f"{OWN}|{MODEL}")
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    model = given.get("model", "custom" if "model.id" in given else "")
    if not model:
        raise ConfigError(
            "eval: give the folder of a finished run, or model=<option, hub id or folder>, and adapter=<folder>; "
            "factdpo eval --help says how it is used"
        )
    words = [word for word in words if word.partition("=")[0] not in ("model", "adapter")]
    chosen = [f"model={model}"] if model in options()["model"] else ["model=custom", f"model.id={model}"]
    cfg = _composed([*chosen, *words])
    if cfg.model.id is not None and model not in options()["model"]:
        cfg.model.name = Path(model).name
    return cfg, Subject(adapter=Path(given["adapter"]).expanduser() if "adapter" in given else None)


def _check(words: list[str], allowed: str) -> None:
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals:
            raise ConfigError(f"eval: {word}: write key=value, as in data.path=my.csv, after the folder of one run")
        if not re.fullmatch(allowed, key):
            raise ConfigError(
                f"{word}: has no effect on weights that are trained; an evaluation takes data, track, out, "
                f"engine.device and eval.{', eval.'.join(SCORING)}; without the folder of a run model and adapter too"
            )


def _composed(words: list[str]) -> Config:
    import hydra  # half a second, which `--help` must not take
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return validate(hydra.compose("config", overrides=for_hydra(words)[0]))


def rescore(folder: Path) -> None:
    """Scores the weights of a finished run anew on its own facts, and says whether the record holds."""
    run = read_finished(folder)
    then, now = layout.read_asked(folder), what_is_asked(run.cfg)
    if changed := [key for key in {**then, **now} if then.get(key) != now.get(key)]:
        raise ConfigError(f"{folder}: {', '.join(changed)} changed since the run; its scores cannot be repeated")
    console.quiet_libraries()
    from factdpo.runs.record import rescore

    scores = rescore(run.cfg, folder)
    summary.print_result(run.result | scores, folder, console.console)
    apart = max(
        abs(scores[model][split][key] - run.result[model][split][key])
        for model in ("base", "trained")
        for split in scores[model]
        for key in ("chosen_logp_nats", "rejected_logp_nats")
    )
    if apart > EVAL_TOLERANCE_NATS:
        raise RunFailed("FINISHED", f"{folder}: mean log-probs differ from the record by up to {apart:.3g} nats", 1)
    console.say(f"The table was scored anew; its mean log-probs differ from the record's by {apart:.1g} nats at most.")


def make_parser() -> Parser:
    parser = Parser(
        "eval",
        "Score trained weights: a run's on its own facts, or any on other facts.",
        """Of a run alone: prints the table, and says whether the record holds. With other facts,
or of a model or a PEFT adapter that factdpo did not train: an evaluation with an id and
a folder of its own in out/evals, which results, report and W&B show beside the runs.
Facts that a run was trained on are its split train there, all others test.

KEY=VALUE: data and its keys, track, out, engine.device, and of eval what decides how
facts are scored, as for a run.

examples:
  factdpo eval outputs/runs/<run>
  factdpo eval outputs/runs/<run> data=pairs data.path=paraphrases.csv
  factdpo eval outputs/runs/<run> data=edits data.path=counterfact.json
  factdpo eval model=gpt2 data=pairs data.path=my.csv
  factdpo eval model=smollm2_135m adapter=my-adapter""",
    )
    parser.add_argument("folder", type=folder, nargs="?", metavar="FOLDER", help="of a finished run")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="other facts, or other weights: see below")
    return parser
