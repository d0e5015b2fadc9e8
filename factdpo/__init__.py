"""factdpo: can preference optimisation teach a language model facts, and which facts generalise?

Letters of tensor dimensions, the same in every module:
R runs, N pairs in a split, B pairs in a batch, T tokens, V vocabulary, D width, K LoRA rank.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from factdpo.results.tables import Results

__version__ = "0.1.0"


def load(*folders: "str | Path") -> "Results":
    """The runs in folders (a run's, a sweep's, or any above; `outputs` if none is given) as pandas DataFrames.

    .runs has one row per run, .splits one per run, split and model, .items one per fact as well, .history the curves.
    """
    from factdpo.results import tables  # only now: importing factdpo stays light

    return tables.load(*folders)
