"""The margins of many runs on every fact, small enough for a page; and which facts few runs learn."""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from factdpo.config.schema import ConfigError, DataConfig
from factdpo.data import load
from factdpo.evaluation.graph_layout import Edge, lay_out

if TYPE_CHECKING:
    import pandas as pd

WORDS = ["prompt", "chosen", "rejected", "subject", "object"]
COLUMNS = [
    "model", "split", "fact", *WORDS,
    "chosen_logp_nats", "rejected_logp_nats", "ref_chosen_logp_nats", "ref_rejected_logp_nats",
]  # fmt: skip
SHADE = 12.7  # a margin of m nats is stored as round(12.7 sqrt(m)): in one byte to 100 nats, by 0.16 at 1 and 0.7 at 20
LISTED = 12  # facts in a list of hard ones
NAMED = 3  # runs that are named beside a fact that few runs learn
BINS = 5  # of the share of runs that rank a fact right


Words = tuple[str, str, str, str, str]  # of WORDS
FactId = tuple[
    str, int
]  # the data, and the position in it: a fact in other words or with its names swapped is the same


@dataclass
class Beliefs:
    """Facts and margins of many runs. A margin (log p(chosen) - log p(rejected)) above 0 is a fact ranked right."""

    prompts: dict[Words, int] = field(default_factory=dict)
    texts: dict[str, int] = field(default_factory=dict)  # bytes of many runs in base64, each text once
    plans: dict[tuple[Any, ...], int] = field(default_factory=dict)  # which facts are in which split, each once
    tallies: dict[tuple[str, FactId], "Tally"] = field(default_factory=dict)  # (split, fact) -> runs that have it

    def add(self, run: str, folder: Path, keep: bool, data: str = "") -> dict[str, int] | None:
        """Add a run's items.parquet; with `keep` returns the places of its margins in `plans` and `texts`.

        Facts of the same `data` at the same position are the same. Raises OSError or ValueError for an unreadable file.
        """
        import pandas as pd

        try:
            items = pd.read_parquet(folder / "items.parquet", columns=COLUMNS)
        except KeyError as error:
            raise ValueError(f"no column {error}") from None
        items = items.loc[items["model"] == "trained"]
        splits = list(dict.fromkeys(items["split"]))
        numbers = self._numbers(items)
        order = np.lexsort((numbers, items["split"].map(splits.index)))  # the same facts are the same plan
        items, numbers = items.iloc[order], numbers[order]
        margins = (items["chosen_logp_nats"] - items["rejected_logp_nats"]).to_numpy()
        base_margins = (items["ref_chosen_logp_nats"] - items["ref_rejected_logp_nats"]).to_numpy()
        right = items.assign(right=margins > 0, base=base_margins > 0).groupby(["split", "fact"], sort=False)
        facts = right.agg({"right": "all", "base": "all", **dict.fromkeys(WORDS, "first")})
        words = facts[WORDS].astype(object).where(facts[WORDS].notna(), "").itertuples(index=False, name=None)
        for (split, fact), is_right, was_right, texts in zip(
            facts.index, facts["right"], facts["base"], words, strict=True
        ):
            tally = self.tallies.setdefault((split, (data, fact)), Tally(texts))
            tally.runs += 1
            tally.base += was_right
            if is_right:
                tally.right += 1
                if len(tally.names) <= NAMED:
                    tally.names.append(run)
        if not keep:
            return None
        counts = items["split"].value_counts()
        plan = (tuple((split, int(counts[split])) for split in splits), self._text(numbers.astype("<u4").tobytes()))
        base, trained = self._text(_bytes(base_margins)), self._text(_bytes(margins))
        return {"plan": self.plans.setdefault(plan, len(self.plans)), "base": base, "trained": trained}

    def _numbers(self, items: "pd.DataFrame") -> np.ndarray:
        words = items.loc[:, WORDS].astype(object).where(items[WORDS].notna(), "")
        keys = zip(*(words[name] for name in words), strict=True)
        return np.array([self.prompts.setdefault(key, len(self.prompts)) for key in keys], dtype=np.int64)

    def _text(self, data: bytes) -> int:
        return self.texts.setdefault(base64.b64encode(data).decode(), len(self.texts))

    def hard(self, split: str) -> "Hard":
        """The facts of a split by the share of runs that rank them right, the least learned first."""
        tallies = [tally for (name, _), tally in self.tallies.items() if name == split]
        bins = [0] * BINS
        for tally in tallies:
            bins[min(int(tally.share * BINS), BINS - 1)] += 1
        return Hard(
            total=len(tallies),
            never=sum(not tally.right for tally in tallies),
            always=sum(tally.right == tally.runs for tally in tallies),
            bins=bins,
            least=[t for t in sorted(tallies, key=lambda t: (t.share, -t.runs))[:LISTED] if t.share < 1],
        )

    def page(self, data: DataConfig | None) -> dict[str, Any]:
        """The data from which the page draws graphs; names without a position are not drawn."""
        edges = [Edge(s, o, chosen.strip(), other.strip(), "") for _, chosen, other, s, o in self.prompts if s and o]
        layout = lay_out(edges, edges, _sides(data)) if edges else None
        names = list(layout.angle) if layout else []
        place = {name: number for number, name in enumerate(names)}
        return {
            "names": names,
            "angles": [round(angle, 4) for angle in layout.angle.values()] if layout else [],
            "colours": layout.colour if layout else {},
            "note": layout.note if layout else "",
            "prompts": [
                [prompt, chosen.strip(), rejected.strip(), place.get(subject, -1), place.get(object, -1)]
                for prompt, chosen, rejected, subject, object in self.prompts
            ],
            "plans": [{"splits": splits, "prompts": text} for splits, text in self.plans],
            "texts": list(self.texts),
            "shade": SHADE,
        }


@dataclass
class Tally:
    """How many runs have a fact in a split, and how many of them rank it right, in all words in which they have it."""

    words: Words  # of the first run that has it
    runs: int = 0
    right: int = 0
    base: int = 0  # of these runs, those whose base model ranked it right
    names: list[str] = field(default_factory=list)  # of the first that rank it right, one more than is shown

    @property
    def share(self) -> float:
        return self.right / self.runs


@dataclass(frozen=True)
class Hard:
    """How many facts of a split runs learn, and the facts that the fewest runs learn."""

    total: int  # facts that are in this split in any run
    never: int
    always: int
    bins: list[int]  # facts by the share of runs that rank them right, in fifths
    least: list[Tally]


def _bytes(margins: np.ndarray) -> bytes:
    """One signed byte per margin, positive exactly where the margin is."""
    size = np.clip(np.round(SHADE * np.sqrt(np.abs(margins))), 1, 127)
    return np.where(margins > 0, size, np.where(margins < 0, -size, 0)).astype(np.int8).tobytes()


def _sides(data: DataConfig | None) -> dict[str, int]:
    try:
        return (data and load.sides(data)) or {}
    except ConfigError:  # the file is gone: all names share one circle
        return {}
