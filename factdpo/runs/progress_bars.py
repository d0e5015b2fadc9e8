"""Progress bars: of one run, and of runs that train together."""

from collections.abc import Callable, Iterable
from operator import attrgetter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from factdpo.config.schema import KEYS, Config, Score, to_dict
from factdpo.console import console, in_notebook, plural
from factdpo.store.history import Row

CHOOSING = ("validation", "test", "train")  # splits to name the best run by, the first that all have


def bar_of(trainings: int, enabled: bool, screen: Console = console) -> "Bar | CohortBar":
    """The progress bar of so many trainings."""
    return CohortBar(trainings, enabled, screen) if trainings > 1 else Bar(enabled, screen)


def labels(cfgs: list[Config]) -> list[str]:
    """What distinguishes these runs: the keys in which they differ, as key=value."""
    settings = [{name: to_dict(attrgetter(name)(cfg)) for name, key in KEYS.items() if key.in_id} for cfg in cfgs]
    keys = [key for key in settings[0] if any(of_run[key] != settings[0][key] for of_run in settings)]
    if "split.seed" in keys and all(of_run["split.seed"] == of_run["dpo.seed"] for of_run in settings):
        keys.remove("split.seed")  # one `seed` sets both
    return [" ".join(f"{key.rsplit('.', 1)[-1]}={of_run[key]}" for key in keys) for of_run in settings]


def leading(rows: Iterable[Row], score: Score) -> list[Row]:
    """The rows of a history without accuracies per token where these do not lead (eval.score=sum)."""
    if score is Score.mean:
        return list(rows)
    return [{key: value for key, value in row.items() if not key.endswith("/accuracy_per_token")} for row in rows]


class Bar:
    """A progress bar of optimizer steps with loss and reward accuracy; a line per evaluation."""

    def __init__(self, enabled: bool, screen: Console = console):
        self.total = 1
        self.progress = _progress("training", enabled, screen)
        self.task = self.progress.add_task("training", total=1, numbers="")

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self) -> None:
        """The training begins."""

    def end(self) -> None:
        """It has ended: no bar stands in the way of what is printed next."""
        self.progress.stop()

    def run(self, name: str, steps: int) -> Callable[..., None]:
        """The callback for the rows of the run."""
        self.total = steps
        self.progress.update(self.task, total=steps)
        return self._rows

    def _rows(self, *rows: Row) -> None:
        for row in rows:
            if "loss" in row:
                numbers = f"loss {row['loss']:.3f}"
                if "rewards/accuracies" in row:  # SFT has none
                    numbers += f"  reward accuracy {row['rewards/accuracies']:.2f}"
                self.progress.update(self.task, completed=row["step"], numbers=numbers)
                continue
            accuracies = "  ".join(f"{split} {value:.2f}" for split, value in _accuracies(row).items())
            self.progress.console.print(
                f"  {row['step']:>{len(str(self.total))}}/{self.total}  {accuracies}", highlight=False
            )


class CohortBar:
    """One progress bar for runs that train together: the steps of them all, and the best of them."""

    def __init__(self, runs: int, enabled: bool, screen: Console = console):
        self.totals: dict[str, int] = {}  # run -> optimizer steps
        self.steps: dict[str, int] = {}  # run -> steps made
        self.longest = self.scored_at = 0
        self.scores: dict[str, dict[str, float]] = {}  # run -> split -> accuracy
        self.progress = _progress(plural(runs, "run"), enabled, screen)
        self.task = self.progress.add_task("training", total=1, numbers="")

    def __enter__(self) -> "CohortBar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.progress.stop()

    def begin(self) -> None:
        """Runs begin at their own first step: print the latest scores before the set of training runs changes."""
        self.end()

    def end(self) -> None:
        """Runs have ended: print the latest scores before the set of training runs changes."""
        self._line()
        self.scores, self.scored_at = {}, 0

    def run(self, name: str, steps: int) -> Callable[..., None]:
        """The callback for the rows of one of the runs."""
        key = f"{len(self.totals)} {name}"  # names need not differ
        self.totals[key], self.steps[key], self.longest = steps, 0, max(self.longest, steps)
        self.progress.update(self.task, total=sum(self.totals.values()))
        return lambda *rows: self._rows(key, rows)

    def _rows(self, key: str, rows: tuple[Row, ...]) -> None:
        """Rows as they arise; or, of a run that goes on, all it has so far, whose last scores alone are news."""
        step, scores = 0, {}
        for row in rows:
            self.steps[key] = row["step"]
            if found := _accuracies(row):
                step, scores = row["step"], found
        if scores:
            if step > self.scored_at:
                self._line()  # of the step before: all that were due have come
                self.scored_at = step
            self.scores[key] = scores
        self.progress.update(self.task, completed=sum(self.steps.values()), numbers=self._best())

    def _best(self) -> str:
        """The run with the highest accuracy on the facts to choose by: set aside, else held out, else trained on."""
        if not self.scores:
            return ""
        split = next(name for name in CHOOSING if name == "train" or all(name in s for s in self.scores.values()))
        key = max(self.scores, key=lambda key: self.scores[key].get(split, 0.0))
        which = key.split(" ", 1)[1]
        return f"best {split} {self.scores[key].get(split, 0.0):.2f}" + f" ({which})" * bool(which)

    def _line(self) -> None:
        """The runs' last accuracies at a glance."""
        if not self.scores:
            return
        ranges = []
        for split in next(iter(self.scores.values())):
            values = [scores[split] for scores in self.scores.values() if split in scores]
            ranges.append(f"{split} {min(values):.2f}-{max(values):.2f}")
        where = f"{self.scored_at:>{len(str(self.longest))}}/{self.longest}"
        self.progress.console.print(f"  {where}  {'  '.join(ranges)}  {self._best()}", highlight=False, soft_wrap=True)


def _progress(what: str, enabled: bool, screen: Console) -> Progress:
    return Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=screen,
        disable=not (enabled and (screen.is_terminal or in_notebook(screen))),
        transient=True,
    )


def _accuracies(row: Row) -> dict[str, float]:
    """Split -> its accuracy in a row of the history, per token where that leads and lengths differ; empty if none."""
    summed = {key: value for key, value in row.items() if key.endswith("/accuracy")}
    return {key.split("/")[1]: row.get(f"{key}_per_token", value) for key, value in summed.items()}
