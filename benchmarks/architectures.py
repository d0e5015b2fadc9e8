"""Which causal language models of the installed transformers does factdpo train exactly, and by which engine?

    python benchmarks/architectures.py                  # all of them; rewrites the table in docs/models.md
    python benchmarks/architectures.py mistral gemma2   # these alone, printed

Each is a tiny random model made from its own config class. It is asked what a run asks (models/soundness.py,
training/batched/interrogation.py), with rows longer than every window. Where the answer is "batched", a few steps of
two runs are trained by that engine and by TRL: rows, weights and scores must agree, with long rows outside the first
batch, and prompts that begin alike in the test split alone. Where it is "trl", TRL must train it.
"""

import logging
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' helpers

from tests.helpers.architectures import Found, examine, said

DOCS = Path(__file__).parents[1] / "docs" / "models.md"
MARKS = ("<!-- architectures -->", "<!-- /architectures -->")
SECONDS = 120  # for one architecture


def table(found: dict[str, Found]) -> str:
    """As docs/models.md has it."""
    by_outcome: dict[str, list[tuple[str, str]]] = {}
    for kind, (outcome, reason) in found.items():
        by_outcome.setdefault(outcome, []).append((kind, reason))
    counts = ", ".join(f"{len(kinds)} {outcome}" for outcome, kinds in sorted(by_outcome.items()))
    lines = [
        f"transformers {transformers.__version__}, torch {torch.__version__}: {counts}. By `python "
        "benchmarks/architectures.py`, on tiny random models in float32.", "",
        "| engine | types of models |", "|---|---|",
        f"| batched | {', '.join(kind for kind, _ in by_outcome.get('batched', []))} |",
        f"| not tried: no tiny model here | {', '.join(kind for kind, _ in by_outcome.get('not tried', []))} |", "",
        "| type | engine | why |", "|---|---|---|",
    ]  # fmt: skip
    for outcome in ("trl", "refused", "WRONG"):
        lines += [
            f"| {kind} | {outcome} | {reason.replace('|', '/')} |" for kind, reason in by_outcome.get(outcome, [])
        ]
    return "\n".join(lines)


def _stop(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def main(kinds: list[str]) -> int:
    """Prints a line per type; returns 1 if any is wrong."""
    torch.set_num_threads(1)  # the models are tiny
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, _stop)
    found: dict[str, Found] = {}
    for kind in kinds or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        signal.alarm(SECONDS)
        try:
            found[kind] = examine(kind)
        except TimeoutError as error:
            found[kind] = Found("not tried", said(error))
        except Exception as error:
            found[kind] = Found("WRONG", said(error))
        signal.alarm(0)
        print(f"{kind}: {found[kind].outcome}: {found[kind].reason}", flush=True)
    if not kinds:
        text = DOCS.read_text(encoding="utf-8")
        between = re.compile(f"{MARKS[0]}.*{MARKS[1]}", re.DOTALL)
        new = f"{MARKS[0]}\n{table(found)}\n{MARKS[1]}"
        DOCS.write_text(between.sub(lambda _: new, text), encoding="utf-8")
    return int(any(each.outcome == "WRONG" for each in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
