"""A sweep: a question that takes many runs. Which runs they are, what is known of each, and what came of all of them.

Light to import: a sweep whose runs are all finished is answered without torch.
"""

import json
import logging
import shlex
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from factdpo import console
from factdpo.runs.answer import ended_well
from factdpo.runs.identity import RunSpec
from factdpo.store import cache, index, provenance, result
from factdpo.store.sweep_file import FILE, Metric, metrics_asked, read

NAMED = 10  # runs that are not there, before the rest is only counted


@dataclass
class Sweep:
    """What one command asks of a sweep; sweep.json adds up what all commands asked."""

    folder: Path
    question: str | None  # as the sweep's file has it
    command: list[str]  # as it was typed
    axes: dict[str, list[str]]  # what is swept -> its values
    conf_folders: list[Path]  # where the options of its groups lie
    runs: dict[str, RunSpec] = field(default_factory=dict)  # by id, in the order of the jobs
    before: dict[str, str] = field(default_factory=dict)  # id -> state before this command
    jobs: int = 0  # that ask for these runs
    metrics: list[Metric] = field(default_factory=list)  # that it asks about, the deciding one first
    missed: set[str] = field(default_factory=set)  # ids of runs that were told to be done again
    names_best: bool = True  # at its end; a search does so itself
    started: float = field(default_factory=time.monotonic)
    at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    def add(self, runs: list[RunSpec]) -> None:
        """Count these runs in; some may be the same run, asked for in other words."""
        self.jobs += len(runs)
        for run in runs:
            if run.id not in self.runs:
                self.runs[run.id], self.before[run.id] = run, run.state()

    def write(self) -> None:
        """Bring sweep.json up to date: the question, the axes and runs of all commands so far, and the commands.

        A command whose runs become known one after another writes it again and again.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{FILE}.lock"):
            record = {"name": self.folder.name, "question": None, "axes": {}} | (read(self.folder) or {"runs": {}})
            for key, values in self.axes.items():
                record["axes"][key] = list(dict.fromkeys([*record["axes"].get(key, []), *values]))
            record.setdefault("id", uuid.uuid4().hex[:12])  # of the sweep in W&B, where another may have its name
            record["question"] = self.question or record["question"]
            if self.metrics:
                record["metrics"] = [metric._asdict() for metric in self.metrics]
            self._tell_lost(record["runs"])
            for id, run in self.runs.items():
                is_finished = {"finished": True} if self.before[id] == "FINISHED" else {}
                record["runs"][id] = {"folder": run.folder.name, "label": run.cfg.label, **is_finished}
            this = self._command()
            others = [
                command
                for command in record.get("commands", [])
                if (command["started"], command["command"]) != (this["started"], this["command"])
            ]
            record["commands"] = [*others, this]
            cache.write_atomic(self.folder / FILE, json.dumps(record, indent=1, ensure_ascii=False))

    def _tell_lost(self, known: dict[str, Any]) -> None:
        """Say of each run that was finished once, and is no longer, why it is redone."""
        indexed = index.finished(self.folder)
        for id, run in self.runs.items():
            was = known.get(id, {}).get("finished") or run.folder.name in indexed
            if was and id not in self.missed and self.before[id] != "FINISHED":
                self.missed.add(id)
                if not run.folder.is_dir():
                    reason = f"its folder is gone ({run.folder})"
                else:
                    reason = result.read_result(run.folder).reason or f"it is now {self.before[id]}"
                console.say(f"{run.cfg.label or run.name}: was FINISHED, and is redone: {reason}", "yellow")

    def _keep_finished(self, states: dict[str, str]) -> None:
        """Into sweep.json, which of its runs are finished."""
        with FileLock(self.folder / f".{FILE}.lock"):
            if (record := read(self.folder)) is not None:
                for id in states.keys() & record["runs"].keys():
                    record["runs"][id]["finished"] = states[id] == "FINISHED"
                cache.write_atomic(self.folder / FILE, json.dumps(record, indent=1, ensure_ascii=False))

    def _command(self) -> dict[str, Any]:
        """This command as sweep.json lists it."""
        return {
            "command": shlex.join(self.command),
            "started": self.at,
            "runs": len(self.runs),
            "commit": provenance.commit(),
            "versions": provenance.versions(),
        }

    def plan(self) -> str:
        """How many runs, and how many of them are answered, in one line."""
        count = len(self.before)
        line = f"{self.folder.name}: {count} run" if count == 1 else f"{self.folder.name}: {count} runs"
        if self.jobs > count:
            line += f", asked for by {self.jobs} jobs"
        line += f": {_counts(list(self.before.values()))}"
        return f"{line}  {self.question}" if self.question else line

    def close(self) -> int:
        """Print how the runs ended; returns how many of them are not finished."""
        states = {id: run.state_now() for id, run in self.runs.items()}
        opened = [id for id, run in self.runs.items() if (run.folder / "asked.json").is_file()]
        if opened:
            self._print_table(opened)
        for id in [id for id in states if id not in opened][:NAMED]:
            console.say(f"{result.TO_DO}  {self.runs[id].folder}")
        self._keep_finished(states)
        duration = console.duration(time.monotonic() - self.started)
        console.say(f"{self.folder.name}: {_counts(list(states.values()))}; {duration}")
        self._publish(states)
        return sum(not ended_well(run, states[id]) for id, run in self.runs.items())

    def remedy(self) -> str:
        """What finishes the runs that are not."""
        if all(ended_well(run, state) or state == "DIVERGED" for run in self.runs.values() for state in [run.state()]):
            return "retry_diverged=true does those that DIVERGED again"
        return "rerun the same command to resume"

    def _print_table(self, ids: list[str]) -> None:
        """A row per setting with means over its seeds, the runs that failed by name, and the best settings."""
        from factdpo.results import views, winners
        from factdpo.results.tables import Results, load

        table = load(self.folder).table
        own = table.loc[table["id"].isin(ids)].reset_index(drop=True)
        empty = [name for name in own.columns if "/" in name and own[name].isna().all()]  # of the folder's other runs
        results = Results(own.drop(columns=empty))
        asked = metrics_asked(read(self.folder))
        if len(results.finished):
            names = [metric.name for metric in asked if metric.name in results.metrics]
            columns = list(dict.fromkeys([*names, *results.default_metrics]))
            view = views.groups(results, results.settings or ["model.name"], columns)
        else:
            view = views.runs(results, [])
        view.below += views.caveats(results)
        if self.names_best and results.settings:
            view.below += winners.lines(results, asked, self.conf_folders)
        console.console.print()
        views.show(view, console.console)

    def _publish(self, states: dict[str, str]) -> None:
        """Show the sweep as a whole to the dashboards, unless they have it and nothing has changed."""
        published = states == self.before and (self.folder / "wandb").exists()
        if published or "FINISHED" not in states.values():
            return
        from factdpo.sweep.publish import show_sweep

        with console.logging_to([logging.NullHandler()], quiet=True):
            show_sweep(self.folder, next(iter(self.runs.values())).cfg.track, read(self.folder) or {})


def refusal(problems: dict[str, list[int]], labels: list[list[str]]) -> str:
    """Each problem once, with the jobs it is in; only the problems if all jobs have them all."""
    if all(len(numbers) == len(labels) for numbers in problems.values()):
        return "\n".join(problems)
    wrong = {number for numbers in problems.values() for number in numbers}
    lines = [f"{len(wrong)} of these {len(labels)} jobs cannot be run, so none of them was started:"]
    for problem, numbers in problems.items():
        lines += [f"  {problem}", *(f"    in {which}" for which in _names(numbers, labels))]
    return "\n".join(lines)


def _names(numbers: list[int], labels: list[list[str]]) -> list[str]:
    """Jobs by their overrides, without those that every job of the sweep has; by what they share if that says which."""
    everywhere = set.intersection(*map(set, labels))
    telling = [[override for override in label if override not in everywhere] for label in labels]
    shared = [override for override in telling[numbers[0]] if all(override in telling[n] for n in numbers)]
    if numbers == [n for n, label in enumerate(telling) if set(shared) <= set(label)]:
        which = " ".join(shared)
        return [f"each of the {len(numbers)} jobs with {which}" if len(numbers) > 1 and which else which or "every job"]
    return [" ".join(telling[n]) or "the job without overrides" for n in numbers]


def _counts(states: list[str]) -> str:
    """`16 FINISHED, 1 DIVERGED`."""
    return ", ".join(f"{states.count(state)} {state}" for state in result.STATES if state in states)
