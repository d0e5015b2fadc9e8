"""A sweep of hundreds of runs of which some raise and some kill their process, asked for until all are done."""

from contextlib import suppress
from pathlib import Path

import pytest

from factdpo.runs.answer import RunFailed
from tests.helpers import faults
from tests.helpers.runs import WEIGHTS, spec_of

pytestmark = pytest.mark.slow


def test_many_runs_of_which_some_raise_and_some_are_killed(tmp_path: Path, peace: Path) -> None:
    """A soak: one in ten raises once, one in twenty kills its process; the same command until all are done; memory."""
    import psutil

    from factdpo.runs import attempt

    out, runs = tmp_path / "outputs", faults.times(200)
    cfgs = faults.warmed(out, faults.sweep_of(out, runs=runs, dpo_max_steps=1, eval_generations=0), peace)
    folders = {faults.place(cfg): number for number, cfg in enumerate(cfgs)}
    grown = tmp_path / "grown"

    def with_faults() -> None:
        complete = attempt.Attempt.complete
        seen: list[int] = []

        def faulty(self: attempt.Attempt, measure: object, charge: object) -> object:
            number, marker = folders[self.spec.folder], tmp_path / f"struck{folders[self.spec.folder]}"
            seen.append(psutil.Process().memory_info().rss)
            if len(seen) > 10:
                grown.write_text(str(seen[-1] - seen[9]))
            if number % 20 == 7 and not marker.exists():
                marker.touch()
                faults.kill()
            if number % 10 == 3 and not marker.exists():
                marker.touch()

                def raising() -> object:
                    raise RuntimeError("one in ten")

                return complete(self, raising, charge)  # type: ignore[arg-type]
            return complete(self, measure, charge)  # type: ignore[arg-type]

        attempt.Attempt.complete = faulty  # type: ignore[assignment]
        with suppress(RunFailed):
            faults.do(cfgs)

    commands = 0
    while len(faults.finished(cfgs)) < runs and commands < runs:
        before = faults.finished(cfgs)
        ended = faults.in_child(out, with_faults)
        commands += 1
        assert ended.code in (0, -9), ended.said[-2000:]
        assert all(faults.finished(cfgs)[run] == stamp for run, stamp in before.items())
    done = len(faults.finished(cfgs))
    megabytes = int(grown.read_text()) / 1e6 if grown.exists() else 0.0
    faults.figure(f"a soak of {runs} runs in {commands} commands ({megabytes:.0f} MB grown)", runs, done)
    assert done == runs and faults.leftovers(out) == [] and megabytes < 100
    assert (spec_of(cfgs[0]).folder / WEIGHTS).is_file()
