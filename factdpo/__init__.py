"""factdpo: can preference optimisation teach a language model facts, and which facts then generalise?

From Python and notebooks: `run`, `sweep` and `load`, each as the command line does it (docs/using.md).

Letters of tensor dimensions, the same in every module:
R runs, N pairs in a split, B pairs in a batch, T tokens, V vocabulary, D width, K LoRA rank.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from factdpo.api import Run, Runs

__version__ = "0.1.0"


def run(*words: str) -> "Run":
    """Do one run, as `factdpo WORDS` does it, and return it: `factdpo.run("model=nano", "dpo.beta=0.1")`.

    The same words in a terminal have the same id and folder; a run that is finished is returned at once. Raises
    ConfigError for what the command line refuses, and factdpo.runs.answer.RunFailed if the run did not finish.
    """
    from factdpo import api  # only now: importing factdpo stays light

    return api.run(*words)


def sweep(*words: str) -> "Runs":
    """Do many runs, as `factdpo -m WORDS` does them, and return them: `factdpo.sweep("sweeps=beta")`.

    Runs that did not finish are returned too; their `state` says so. Raises ConfigError for what the command line
    refuses.
    """
    from factdpo import api

    return api.sweep(*words)


def load(*places: "str | Path | Iterable[str | Path]") -> "Runs":
    """The runs in folders (a run's, a sweep's, or any above; `outputs` if none is given), or of sweeps by their names.

    A list of Run objects, and pandas DataFrames of them all: .runs has one row per run, .splits one per run, split and
    model, .items one per fact as well, .history the curves, .frame() every config key and metric.
    Raises ConfigError if a place is missing or holds no run.
    """
    from factdpo import api

    return api.load(*places)
