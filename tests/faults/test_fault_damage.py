"""Whatever becomes of a file, it is mended, or refused by name: no wrong number is shown, no bug, and no run lost."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factdpo.config.schema import ConfigError
from factdpo.results import sweep_status, tables
from factdpo.results.sweep_status import plain
from tests.helpers import faults
from tests.helpers.runs import spec_of

pytestmark = pytest.mark.slow


def _flip(path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _directory(path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "deleted": lambda path, _: path.unlink(),
    "emptied": lambda path, _: path.write_bytes(b""),
    "cut": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a bit flipped": _flip,
    "a folder": _directory,
    "another's": lambda path, other: shutil.copyfile(other, path),
    "of another shape": lambda path, _: path.write_text('[{"runs": []}]'),
}


def damages_of(files: list[tuple[Path, Path]]) -> Iterator[tuple[str, Path, Callable[[], object]]]:
    """(what is done, to which file, by what) for each damage of each file; beside it stands one of the same kind."""
    for path, other in files:
        for name, damage in DAMAGES.items():
            yield name, path, lambda path=path, other=other, damage=damage: damage(path, other)


def read_all(out: Path) -> None:
    """What status, results and report read; raises what they would show as a bug."""
    from factdpo.report.contents import gather

    for read in (
        lambda: [json.dumps(plain(group)) for group in sweep_status.look([out], {})],
        lambda: tables.load(out),
        lambda: gather(out / "sweeps/s", []),
    ):
        try:
            read()
        except ConfigError as error:
            assert str(out) in str(error), error


def mended(out: Path, peace: Path) -> str:
    """What is not as promised when the same sweep is asked for again; empty if all is."""
    cfgs = faults.sweep_of(out)
    readers = faults.in_child(out, lambda: read_all(out))
    if readers.code:
        return f"a reader: {readers.said[-600:]}"
    again = faults.in_child(out, lambda: faults.do(cfgs))
    if again.code == faults.UNCAUGHT:
        return f"the command: {again.said[-600:]}"
    if again.code:  # refused: it has to name the place, and leaves it as it is
        return "" if str(out) in again.said else f"refused without a name: {again.said[-600:]}"
    if wrong := faults.falsely_finished(cfgs):
        return f"falsely FINISHED: {wrong}"
    return "" if faults.numbers(cfgs) == faults.numbers(faults.sweep_of(peace)) else "other numbers"


def try_all(what: str, out: Path, sound: Path, files: Callable[[], list[tuple[Path, Path]]], peace: Path) -> None:
    shutil.copytree(sound, out)
    cases = [(name, path.relative_to(out)) for name, path, _ in damages_of(files())]
    stride = max(1, round(1 / faults.TIMES))
    wrong = []
    for number in range(0, len(cases), stride):
        shutil.rmtree(out)
        shutil.copytree(sound, out)
        name, path, damage = list(damages_of(files()))[number]
        damage()
        if problem := mended(out, peace):
            wrong.append(f"{path.relative_to(out)} {name}: {problem}")
    tried = len(range(0, len(cases), stride))
    faults.figure(f"{what}: {len(DAMAGES)} damages of {len(cases) // len(DAMAGES)} files", tried, tried - len(wrong))
    assert wrong == []


def test_each_file_of_a_run(tmp_path: Path, peace: Path) -> None:
    out = tmp_path / "outputs"

    def files() -> list[tuple[Path, Path]]:
        one, other = (spec_of(cfg).folder for cfg in faults.sweep_of(out))
        names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
        return [(one / name, other / name) for name in names]

    try_all("a finished run", out, peace, files, peace)


def test_each_file_of_a_sweep(tmp_path: Path, peace: Path) -> None:
    out, sound = tmp_path / "outputs", tmp_path / "sound"
    shutil.copytree(peace, sound)
    home = sound / "sweeps/s"
    runs = {spec.id: {"folder": spec.folder.name, "label": "x"} for spec in map(spec_of, faults.sweep_of(sound))}
    (home / "sweep.json").write_text(json.dumps({"name": "s", "question": None, "axes": {}, "runs": runs}))
    tables.load(home)

    def files() -> list[tuple[Path, Path]]:
        names = ("sweep.json", "results.parquet", ".results.parquet.sha256")
        return [(out / "sweeps/s" / name, spec_of(faults.sweep_of(out)[0]).folder / "result.json") for name in names]

    try_all("a sweep", out, sound, files, peace)


def test_each_file_of_each_kind_of_cache_entry(tmp_path: Path, peace: Path) -> None:
    """The runs are gone, so that all comes from the cache."""
    out, sound = tmp_path / "outputs", tmp_path / "sound"
    shutil.copytree(peace, sound)
    for cfg in faults.sweep_of(sound):
        shutil.rmtree(spec_of(cfg).folder)
    (spec_of(faults.sweep_of(sound)[0]).folder).mkdir()
    (spec_of(faults.sweep_of(sound)[0]).folder / "asked.json").write_text(
        json.dumps(spec_of(faults.sweep_of(sound)[0]).asked)
    )

    def files() -> list[tuple[Path, Path]]:
        found = []
        for kind in sorted((out / "cache").iterdir()):
            entries = sorted(path for path in kind.iterdir() if path.is_dir())
            if len(entries) < 2:
                continue
            names = sorted(path.relative_to(entries[0]) for path in entries[0].rglob("*") if path.is_file())
            found += [(entries[0] / name, entries[1] / name) for name in names]
        return found

    try_all("entries of the cache", out, sound, files, peace)


def test_each_file_of_a_checkpoint(tmp_path: Path, peace: Path) -> None:
    """Left by a sweep that was killed as the first weights were to be stored."""
    out, sound = tmp_path / "outputs", tmp_path / "sound"
    cfgs = faults.warmed(sound, faults.sweep_of(sound), peace)

    def until_stored() -> None:
        from factdpo.runs import trainings

        trainings._save = lambda *_: faults.kill()  # type: ignore[assignment]
        faults.do(cfgs)

    assert faults.in_child(sound, until_stored).code == -9

    def files() -> list[tuple[Path, Path]]:
        older, newest = sorted(path for path in (out / "cache/batches").glob("*/[0-9]*") if path.is_dir())
        names = sorted(path.name for path in newest.iterdir())
        return [(newest / name, older / name) for name in names]

    try_all("the newest checkpoint", out, sound, files, peace)


@pytest.mark.parametrize("limit", [0, 200, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000])
def test_a_disk_that_is_full_costs_no_run(limit: int, tmp_path: Path, peace: Path) -> None:
    out = tmp_path / "outputs"
    cfgs = faults.warmed(out, faults.sweep_of(out), peace)
    full = faults.in_child(out, lambda: faults.limited(limit, lambda: faults.do(cfgs)))
    false, before = faults.falsely_finished(cfgs), faults.finished(cfgs)
    again = faults.in_child(out, lambda: faults.do(cfgs))
    kept = all(faults.finished(cfgs).get(run) == stamp for run, stamp in before.items())
    same = again.code == 0 and faults.numbers(cfgs) == faults.numbers(faults.sweep_of(peace))
    good = full.code in (0, 1) and not false and kept and same
    faults.figure(f"no file may grow beyond {limit:,} bytes", 1, int(good))
    assert good, (full, false, again)
