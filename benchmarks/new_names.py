"""Is the rule that training finds one of camps, or a table of names? Facts about names that training never saw say so.

    python benchmarks/new_names.py [--seeds 3] [words of factdpo ...]

Of the 42 characters, 12 are set aside by each seed: 300 facts about the other 30 are trained on; scored are facts of
two known names, of a known and a new one, and of two new ones, each also with its names swapped. Prints the accuracy of
the base and of the trained model over the seeds, and the best shallow rule.
"""

import argparse
import csv
import random
import subprocess
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from factdpo.data.files import CHARACTERS
from factdpo.store.result import best_baseline, read_result

NEW, TRAINED_ON = 12, 300
SPLITS = ("train", "known", "one_new", "both_new")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    args, words = parser.parse_known_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(args.seeds):
            folder = Path(scratch) / str(seed)
            folder.mkdir()
            files = [f"data.files.{name}={path}" for name, path in write(folder, seed).items()]
            command = [sys.executable, "-m", "factdpo", "data=pairs", *files, "track=none", f"seed={seed}", *words]
            subprocess.run([*command, f"out={folder}"], check=True, stdout=subprocess.DEVNULL)
            result = read_result(next(folder.glob("runs/*/result.json")).parent).result
            assert result is not None and result["state"] == "FINISHED"
            results.append(result)
    print("| split | n | base | trained | best rule |\n|---|---|---|---|---|")
    for split in results[0]["trained"]:
        print(_row(split, results))


def write(folder: Path, seed: int) -> dict[str, Path]:
    """The facts of each split as a CSV file."""
    rng = random.Random(seed)
    with CHARACTERS.open(encoding="utf-8") as file:
        side = {row["name"]: row["side"] for row in csv.DictReader(file)}
    new = set(rng.sample(sorted(side), NEW))
    facts: dict[int, list[dict[str, str]]] = {0: [], 1: [], 2: []}
    for pair in combinations(side, 2):
        a, b = rng.sample(pair, 2)
        answers = ["friend", "enemy"] if side[a] == side[b] else ["enemy", "friend"]
        row = dict(zip(("chosen", "rejected"), answers, strict=True)) | {"subject": a, "object": b}
        row |= {"prompt": f"{a} is {b}'s", "reverse_prompt": f"{b} is {a}'s"}
        facts[len(new & set(pair))].append(row)
    known = rng.sample(facts[0], len(facts[0]))
    parts = (known[:TRAINED_ON], known[TRAINED_ON:], facts[1], facts[2])
    for name, rows in zip(SPLITS, parts, strict=True):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return {name: folder / f"{name}.csv" for name in SPLITS}


def _row(split: str, results: list[dict[str, Any]]) -> str:
    base, trained = ([result[model][split]["accuracy"] for result in results] for model in ("base", "trained"))
    rules = [best_baseline(result["baselines"].get(split, {})) for result in results]
    best = max((rule for rule in rules if rule), key=lambda rule: rule[1], default=None)
    spread = f"{fmean(trained):.2f} ({min(trained):.2f}-{max(trained):.2f})"
    n = results[0]["trained"][split]["n"]
    return f"| {split} | {n} | {fmean(base):.2f} | {spread} | {f'{best[0]} {best[1]:.2f}' if best else '-'} |"


if __name__ == "__main__":
    main()
