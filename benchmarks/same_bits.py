"""Do two checkouts of factdpo give the same bits? The default run, `sweeps=orientation`, and one run by TRL.

    python benchmarks/same_bits.py OLD/.venv/bin/factdpo NEW/.venv/bin/factdpo

Each makes the same runs in an empty folder; then ids, adapters and generations are compared byte by byte, and the
columns and keys that the old one has in items.parquet, histories and results, less what is a time, a place, a version
or memory: the new one may have more. Prints a line per run, and exits 1 if any differs.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet

COMMANDS = (
    ["track=none"],
    ["track=none", "engine=trl", "seed=1", "dpo.epochs=2"],
    ["track=none", "sweeps=orientation"],
)
TIMED = ("timing", "started", "versions", "hardware", "files", "training")  # of result.json; of training the memory


def main(commands: list[str]) -> int:
    """Prints what differs; returns the exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        outs = [Path(scratch) / name for name in ("old", "new")]
        for command, out in zip(commands, outs, strict=True):
            for words in COMMANDS:
                environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}  # PEFT writes out a set
                run = [os.path.abspath(command), *words, f"out={out}"]
                subprocess.run(run, check=True, cwd=scratch, env=environment, stdout=subprocess.DEVNULL)
        return compare(*outs)


def compare(old: Path, new: Path) -> int:
    """Prints a line per run; returns 1 if the two outputs differ."""
    runs = [{path.parent.relative_to(out) for path in out.glob("*/**/result.json")} for out in (old, new)]
    if runs[0] != runs[1] or not runs[0]:
        print(f"other runs: {sorted(map(str, runs[0] ^ runs[1]))}")
        return 1
    differing = 0
    for run in sorted(runs[0]):
        wrong = [what for what, values in parts(old / run, new / run).items() if values[0] != values[1]]
        differing += bool(wrong)
        print(f"{run}: {'differs in ' + ', '.join(wrong) if wrong else 'the same'}")
    return 1 if differing else 0


def parts(*folders: Path) -> dict[str, list[Any]]:
    """What two folders of a run must agree in, by name."""
    files = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} for folder in folders
    ]
    figures = sorted(name for name in files[0] if name.startswith(("figures/", "adapter/", "model/")))
    values: dict[str, list[Any]] = {
        name: [(folder / name).read_bytes() for folder in folders]
        for name in ("generations.json", "asked.json", *figures)
    }
    items = [pyarrow.parquet.read_table(folder / "items.parquet").to_pylist() for folder in folders]
    for name, (old, new) in {
        "items.parquet": items,
        "history.jsonl": [history(folder) for folder in folders],
        "result.json": [result(folder) for folder in folders],
    }.items():
        values[name] = [old, common(old, new)]
    return values


def common(old: Any, new: Any) -> Any:
    """The new value without the keys that the old one does not have."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: common(old.get(key), value) for key, value in new.items() if key in old}
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [common(*pair) for pair in zip(old, new, strict=True)]
    return new


def history(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time_seconds"} for row in rows]


def result(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / "result.json").read_text())
    del values["config"]["out"]
    if values["config"]["split"]["train"] is None:
        values["config"]["split"]["train"] = 300  # what null stands for
    training = {key: value for key, value in values["training"].items() if key != "peak_gib"}
    return {key: value for key, value in values.items() if key not in TIMED} | {"training": training}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
