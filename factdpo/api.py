"""factdpo from Python and notebooks, on the path of the command line: the same ids, folders and refusals."""

import html
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rich.console import Console

from factdpo import hub
from factdpo.commands import eval as eval_command
from factdpo.commands import run as run_command
from factdpo.commands.refusals import refusal
from factdpo.config.folders import conf_folders
from factdpo.config.overrides import command
from factdpo.config.schema import ConfigError
from factdpo.config.validate import from_dict
from factdpo.console import first_line, plural, say
from factdpo.results import run_status, tables
from factdpo.results.tables import Results
from factdpo.runs import summary
from factdpo.runs.answer import RunFailed
from factdpo.runs.session import Session
from factdpo.signals import Preempted
from factdpo.store import layout
from factdpo.store.history import HISTORY, read_history
from factdpo.store.result import TRAINING, Result, read_result, record_or_none
from factdpo.using.ask import Chat, Reply
from factdpo.using.export import export
from factdpo.using.finished import load_models, read_finished

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

SHOWN = 60  # runs in the HTML of many


def run(*words: str) -> "Run":
    """Do one run, as `factdpo.run` says."""
    _check(words)
    if many := next((word for word in words if word.startswith(("sweeps=", "hydra.mode="))), None):
        raise ConfigError(f"{many}: asks for many runs; factdpo.sweep does them")
    (folder,) = _done(words, alone=True)
    return Run(folder)


def sweep(*words: str) -> "Runs":
    """Do many runs, as `factdpo.sweep` says."""
    _check(words)
    is_named = any(word.startswith("sweeps=") for word in words)
    folders = _done(words if is_named else ("-m", *words), alone=False)
    if not (opened := [folder for folder in folders if layout.has_record(folder)]):
        raise RunFailed("FAILED", "no run of it was opened; what stood in its way is printed above", 1)
    return _loaded(opened)


def load(*places: str | Path | Iterable[str | Path]) -> "Runs":
    """Runs by folder or by their sweep's name, as `factdpo.load` says."""
    flat = [one for place in places for one in ([place] if isinstance(place, str | Path) else place)]
    return _loaded([_place(one) for one in flat] or [Path("outputs")])


def _place(place: str | Path) -> Path:
    """A folder, or that of a sweep in outputs/ which has this name."""
    sweep = Path("outputs") / layout.SWEEPS / place
    return sweep if not Path(place).is_dir() and sweep.is_dir() else Path(place)


def _loaded(places: Iterable[Path]) -> "Runs":
    results = tables.load(*places)
    return Runs(results.table, results.repeated)


def _check(words: tuple[str, ...]) -> None:
    for word in words:
        if not isinstance(word, str) or word.startswith("-") or "=" not in word:
            raise ConfigError(f"{word}: write key=value as text, as in factdpo.run('dpo.beta=0.1')")
        key, _, value = word.partition("=")
        if key == "dry_run" and value.lower() not in ("false", "no", "off", "n", "0"):
            raise ConfigError(f"{word}: does no run that could be returned; the command line shows the plan")


def _done(words: Iterable[str], alone: bool) -> list[Path]:
    """The folders of the runs that a command asks for, each once, when it has ended.

    Raises ConfigError, and RunFailed for a run alone that did not finish: of many, each says for itself how it ended.
    """
    session = Session()
    with run_command.undisturbed():
        try:
            run_command.main([*words], session)
        except RunFailed as error:
            if alone:
                raise
            say(str(error), "bold red")
        except Preempted as stop:  # a SystemExit: fail_fast, or a signal
            raise RunFailed("PREEMPTED", stop.why, int(str(stop.code))) from None
        except ConfigError:
            raise
        except Exception as error:
            if message := refusal(error):
                raise ConfigError(message) from error
            raise
    return list(dict.fromkeys(spec.folder for spec in session.requested))


@dataclass
class Run:
    """A run by its folder. What has to be read or loaded is, once, when it is asked for."""

    folder: Path

    def __repr__(self) -> str:
        if self.state != "FINISHED":
            return f"{self.folder}: {self.state}"
        out = StringIO()
        summary.print_result(self.result, self.folder, Console(file=out, width=100, force_jupyter=False))
        return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())

    def _repr_html_(self) -> str:
        head = f"<b>{html.escape(self.name)}</b> ({html.escape(self.id)}) {html.escape(self.state)}"
        scores = self.scores.to_html(float_format="{:.2f}".format) if self.state == "FINISHED" else ""
        return f"{head}<br><small>{html.escape(str(self.folder))}</small>{scores}"

    @property
    def state(self) -> str:
        """FINISHED, STOPPED, FAILED, DIVERGED, PREEMPTED, running or killed, as it is now."""
        return run_status.look(self.folder, None, {}).state

    @property
    def result(self) -> Result:
        """result.json, proven by its files; docs/record.md has its keys. Raises ConfigError if there is none."""
        stored = read_result(self.folder)
        if stored.result is None:
            raise ConfigError(str(stored.reason))
        return stored.result

    @property
    def id(self) -> str:
        """12 hex digits: the hash of what was asked."""
        return self.folder.name.rpartition("-")[2]

    @property
    def name(self) -> str:
        """What people call it."""
        return (record_or_none(self.folder) or {}).get("name", self.folder.name)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, nested; units in factdpo/config/schema.py."""
        return self.result["config"]

    @property
    def command(self) -> str:
        """The command line that repeats the run; raises ConfigError for an evaluation, which `eval` repeats."""
        if self.result.get("kind", TRAINING) != TRAINING:
            raise ConfigError(f"{self.folder}: an evaluation has no command; `eval` of what it scored repeats it")
        return command(self.config, conf_folders())

    @property
    def scores(self) -> "pd.DataFrame":
        """A row per split: n, and accuracy before and after training with its 95 % Wilson interval; all in [0, 1]."""
        import pandas as pd

        if "trained" not in (result := self.result):
            raise ConfigError(f"{self.folder}: no scores, since the run is {self.state}")
        metric = summary.accuracy_metric([summary.headline_row(result)])
        rows = {
            split: {
                "n": after["n"], "base": result["base"].get(split, {}).get(metric), "trained": after[metric],
                "low": after[f"{metric}_low"], "high": after[f"{metric}_high"],
                "reward_accuracy": after.get("reward_accuracy"),
            }
            for split, after in result["trained"].items()
        }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("split")

    @cached_property
    def items(self) -> "pd.DataFrame":
        """items.parquet: a row per fact, split and model, with both log-probs in nats, and right or wrong."""
        import pandas as pd

        return self._read("items.parquet", pd.read_parquet)

    @cached_property
    def history(self) -> "pd.DataFrame":
        """The curves, row by row under TRL's names."""
        import pandas as pd

        return self._read(HISTORY, lambda path: pd.DataFrame(read_history(path)))

    @cached_property
    def generations(self) -> "pd.DataFrame":
        """What the base and the trained model say after the same prompts."""
        import pandas as pd

        return self._read("generations.json", lambda path: pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))))

    def model(self) -> tuple[Any, Any]:
        """The trained model and its tokenizer, as transformers and PEFT have them; loaded anew each time."""
        models = load_models(read_finished(self.folder))
        return models.trained, models.base.tokenizer

    @cached_property
    def _chat(self) -> Chat:
        return Chat(read_finished(self.folder))

    def ask(self, prompt: str, tokens: int = 20, temperature: float = 1.0, seed: int = 0, top: int = 5) -> Reply:
        """What the base and the trained model say to a prompt, as `factdpo ask` shows it; both stay in memory."""
        return self._chat.ask(prompt, tokens, temperature, seed, top)

    def graph(self, split: str = "test") -> "Image":
        """Who is whose friend as the base and as the trained model believe it, side by side, on the facts of a split.

        A picture that notebooks show, and with a `save`. Raises ConfigError without such a split, or without names.
        """
        from factdpo.data.load import sides
        from factdpo.evaluation.belief_graph import graphs
        from factdpo.evaluation.graph_pictures import side_by_side

        data = from_dict({"data": self.config["data"]}).data
        made = graphs(self.items.to_dict("records"), sides(data))  # type: ignore[arg-type]
        if made is None:
            raise ConfigError(f"{self.folder}: no fact names a subject and an object, so there is no graph")
        if split not in made.drawn:
            raise ConfigError(f"{split}: no such split; the run has {', '.join(made.drawn)}")
        return side_by_side(made.panels(split))

    def export(self, to: str | Path | None = None, merge: bool = False, push: str | None = None) -> Path:
        """Write the trained model for transformers or PEFT, as `factdpo export` does, and return its folder."""
        if not isinstance(merge, bool):
            raise ConfigError(f"merge={merge!r}: give True or False")
        where = export(read_finished(self.folder), Path(to).expanduser() if to else None, merge, push)
        if push:
            hub.push(where, push, f"Upload {where.name}")
        return where

    def eval(self, *words: str) -> "Run":
        """Score its weights on other facts, as `factdpo eval` does: `run.eval("data=pairs", "data.path=my.csv")`."""
        _check(words)
        with run_command.undisturbed():
            return Run(eval_command.score(self.folder, [*words]).folder)

    def _read(self, name: str, read: "Callable[[Path], pd.DataFrame]") -> "pd.DataFrame":
        if not (path := self.folder / name).is_file():
            raise ConfigError(f"{path}: not there; the run is {self.state}")
        try:
            return read(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read ({first_line(error)}); the run's command redoes it") from None


class Runs(Results):
    """Many runs: a list of Run, and DataFrames of all of them."""

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Run]:
        return (self[number] for number in range(len(self)))

    @overload
    def __getitem__(self, which: int | str) -> Run: ...
    @overload
    def __getitem__(self, which: slice) -> list[Run]: ...
    def __getitem__(self, which: int | str | slice) -> Run | list[Run]:
        """By its number, or by its id or the beginning of it; several by a slice of numbers."""
        if isinstance(which, slice):
            return [*self][which]
        if isinstance(which, str):
            matches = [number for number, id in enumerate(self.table["id"]) if id.startswith(which)]
            if len(matches) != 1:
                raise KeyError(f"{which}: {len(matches)} of {len(self)} runs have such an id")
            which = matches[0]
        return Run(Path(self.table["folder"].iloc[which]))

    def frame(self) -> "pd.DataFrame":
        """A row per run: id, state and the like, every config key whether it differs or not, and every metric."""
        return self.table.copy()

    def __repr__(self) -> str:
        return f"{plural(len(self), 'run')}\n{self._shown().to_string(index=False)}"

    def _repr_html_(self) -> str:
        left = f"<small>and {len(self) - SHOWN} more</small>" if len(self) > SHOWN else ""
        table = self._shown().head(SHOWN).to_html(index=False, float_format="{:.3f}".format)
        return f"{plural(len(self), 'run')}{table}{left}"

    def _shown(self) -> "pd.DataFrame":
        """The keys that differ, and the accuracies."""
        return self.table.loc[:, ["id", "state", *self.keys, *self.default_metrics]]
