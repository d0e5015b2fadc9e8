"""Which step's weights a training keeps, and whether it stops early: by its accuracy on the validation facts."""

from dataclasses import asdict, dataclass
from typing import Any

from factdpo.config.schema import Config, Keep, Score
from factdpo.store.history import Row

METRICS = {Score.mean: ("accuracy_per_token", "accuracy"), Score.sum: ("accuracy",)}  # the first that a row has


def accuracy_of(row: Row, score: Score) -> float | None:
    """The accuracy on the validation facts that decides; None in a row without it."""
    names = [f"eval/validation/{metric}" for metric in METRICS[score]]
    return next((row[name] for name in names if name in row), None)


@dataclass
class Selection:
    """What the scores on the way say; as `load_best_model_at_end` and EarlyStoppingCallback of the Trainer decide."""

    best_step: int | None = None  # with the highest accuracy, the earliest among equals
    best: float = 0.0
    since: int = 0  # scores after it, none of them better

    def judge(self, cfg: Config, row: Row) -> bool:
        """Take note of a row of scores; whether it is the best so far."""
        accuracy = accuracy_of(row, cfg.eval.score)
        if accuracy is None:
            return False
        if self.best_step is None or accuracy > self.best:
            self.best_step, self.best, self.since = row["step"], accuracy, 0
            return True
        self.since += 1
        return False

    def stops(self, cfg: Config) -> bool:
        """Whether eval.patience is at its end."""
        return cfg.eval.patience is not None and self.since >= cfg.eval.patience

    def keeps_best(self, cfg: Config) -> bool:
        """Whether the weights of `best_step` are kept instead of the last."""
        return cfg.eval.keep is Keep.best and self.best_step is not None

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it, as JSON's types."""
        return asdict(self)

    def facts(self, cfg: Config, steps: int) -> dict[str, Any]:
        """For fit.json: the step whose weights are kept, of so many that were made."""
        return {"steps": steps, "kept_step": self.best_step if self.keeps_best(cfg) else steps}
