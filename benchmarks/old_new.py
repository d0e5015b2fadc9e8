"""Is one checkout of factdpo slower than another? Seconds of the same commands, the two in turn.

    python benchmarks/old_new.py OLD/.venv/bin/factdpo NEW/.venv/bin/factdpo [--rounds 3] [--answered 200]

The default run, `sweeps=orientation`, both from nothing, and a sweep of runs that are answered from their records,
which the old one made. Prints the median of each and their ratio; ratios hold on other machines, seconds do not.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs=2, metavar="FACTDPO")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answered", type=int, default=200, help="runs of the answered sweep")
    args = parser.parse_args()
    commands = [os.path.abspath(command) for command in args.commands]
    answered = [
        "-m", f"seed=range(0,{args.answered})", "split.train=8", "split.test=8", "dpo.epochs=null", "dpo.max_steps=2",
        "eval.generations=0", "eval.every=never",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        for name, words in (("default run", []), ("sweeps=orientation", ["sweeps=orientation"])):
            compare(name, commands, words, args.rounds, out, keep=False)
        seconds(commands[0], answered, out)
        compare(f"{args.answered} answered runs", commands, answered, args.rounds, out, keep=True)


def compare(name: str, commands: list[str], words: list[str], rounds: int, out: Path, keep: bool) -> None:
    """Prints a line: median seconds of both, and new / old."""
    times: list[list[float]] = [[], []]
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            if not keep:
                shutil.rmtree(out, ignore_errors=True)
            times[side].append(seconds(commands[side], words, out))
    old, new = map(statistics.median, times)
    print(f"{name}: old {old:.1f} s, new {new:.1f} s, new/old {new / old:.2f} (medians of {rounds})", flush=True)


def seconds(command: str, words: list[str], out: Path) -> float:
    started = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = [command, *words, "track=none", f"out={out}"]  # -m comes first, as older command lines want it
    subprocess.run(run, check=True, cwd=out.parent, env=environment, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
