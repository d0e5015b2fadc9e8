"""`factdpo eval`: a finished run's weights scored anew."""

import json
from pathlib import Path

from factdpo import console
from factdpo.commands.parser import Parser, folder
from factdpo.config.schema import ConfigError
from factdpo.config.validate import from_dict
from factdpo.runs import summary
from factdpo.runs.answer import RunFailed
from factdpo.runs.identity import what_is_asked
from factdpo.store import result as record

EVAL_TOLERANCE_NATS = 1e-3  # between two scorings of the same weights; another device rounds otherwise


def main(arguments: list[str]) -> None:
    """Scores the weights of a finished run anew, prints the table, and says whether the record holds.

    Raises ConfigError when there is no finished run or its data or model have changed since, RunFailed when the scores
    are not those of the record.
    """
    folder = Path(make_parser().parse_args(arguments).folder.removeprefix("run="))  # as it was once typed
    stored = record.read_result(folder)
    if stored.result is None or stored.result["state"] != "FINISHED":
        reason = f"its state is {stored.result['state']}" if stored.result else stored.reason
        raise ConfigError(f"{folder}: {reason}; give the folder of a finished run")
    cfg = from_dict(stored.result["config"])
    cfg.out = str(folder.resolve().parent.parent)  # runs/ and cache/ lie beside each other
    then, now = json.loads((folder / "asked.json").read_text(encoding="utf-8")), what_is_asked(cfg)
    if changed := [key for key in {**then, **now} if then.get(key) != now.get(key)]:
        raise ConfigError(f"{folder}: {', '.join(changed)} changed since the run; its scores cannot be repeated")
    console.quiet_libraries()
    from factdpo.runs.record import rescore

    scores = rescore(cfg, folder)
    summary.print_result(stored.result | scores, folder, console.console)
    apart = max(
        abs(scores[model][split][key] - stored.result[model][split][key])
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
        "Score the weights of a finished run anew, print the table, and say whether the record holds.",
        """examples:
  factdpo eval outputs/runs/<run>
  factdpo eval outputs/sweeps/beta/<run>     a run of a sweep""",
    )
    parser.add_argument("folder", type=folder, metavar="FOLDER", help="of a finished run")
    return parser
