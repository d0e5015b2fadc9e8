"""What the base and the trained model say to a prompt, side by side."""

import html
import math
import unicodedata
from dataclasses import dataclass
from io import StringIO
from typing import NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from factdpo.config.schema import ConfigError
from factdpo.data.facts import Fact, normalised
from factdpo.runs.identity import data_identity
from factdpo.using.finished import Finished, Models, load_models

WIDEST = 120  # columns; longer lines are hard to read
MOST = 2**63 - 1  # what torch takes
COLDEST = 1e-6  # temperature; far below it logits overflow, and already here nothing but the greedy words is drawn


class Candidate(NamedTuple):
    """An answer, or a next token, with the probability that each model gives it after the prompt."""

    text: str
    is_true: bool | None  # None: a token, of which nobody says whether it is right
    base: float
    trained: float


@dataclass
class Reply:
    """What was said to one prompt; shows itself as a table in the terminal and in notebooks."""

    prompt: str
    split: str | None  # of the run that has the prompt as a fact
    greedy: tuple[str, str]  # of the base, of the trained model
    sampled: tuple[str, str]
    candidates: list[Candidate]  # of a fact its answers, else the likeliest next tokens

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDEST)
        said = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, width=width)
        said.add_column("")
        for name in ("base", "trained"):
            said.add_column(name, ratio=1, overflow="fold")
        for name, texts in (("greedy", self.greedy), ("sampled", self.sampled)):
            said.add_row(Text(name, style="dim"), *(Text(shown(text)) for text in texts))
        yield Text(self.prompt, style="bold")
        yield said
        yield Text()
        answers = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
        answers.add_column("next token" if self.split is None else "answer", overflow="fold", max_width=width - 18)
        for name in ("base", "trained"):
            answers.add_column(name, justify="right", no_wrap=True)
        for text, *numbers in self._rows():
            answers.add_row(Text(text), *numbers)
        yield answers
        if self.split is not None:
            yield Text(f"a fact of {self.split}; + is its true answer", style="dim")

    def __str__(self) -> str:
        out = StringIO()
        Console(file=out, width=80, force_jupyter=False).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        said = [("greedy", *map(shown, self.greedy)), ("sampled", *map(shown, self.sampled))]
        rows = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in [*said, *self._rows()]
        )
        note = "" if self.split is None else f"<small>a fact of {html.escape(self.split)}; + is its true answer</small>"
        head = "<tr><th></th><th>base</th><th>trained</th></tr>"
        return f"<b>{html.escape(self.prompt)}</b><table>{head}{rows}</table>{note}"

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = [
            (f"+ {one.text}" if one.is_true else one.text, _share(one.base), _share(one.trained))
            for one in self.candidates
        ]
        base, trained = (1 - math.fsum(getattr(one, model) for one in self.candidates) for model in ("base", "trained"))
        return [*rows, ("anything else", _share(max(0.0, base)), _share(max(0.0, trained)))]


class Chat:
    """A run's models, loaded once for any number of prompts, and the facts that the run knows."""

    def __init__(self, run: Finished, models: Models | None = None) -> None:
        self.run, self.models = run, models or load_models(run)
        self.note = ""  # why its facts are not known
        try:
            self._facts = self._of_run()
        except ConfigError as error:
            self._facts = {}
            self.note = f"the facts of the run cannot be read: its answers are not known ({error})"

    def _of_run(self) -> dict[str, list[tuple[str, Fact]]]:
        """Normalised prompt -> (split, fact), of all splits of the run."""
        from factdpo.runs.stages import splits_of

        if data_identity(self.run.cfg.data) != self.run.asked.get("data"):
            raise ConfigError("the data changed since the run")
        known: dict[str, list[tuple[str, Fact]]] = {}
        for split, facts in splits_of(self.run.cfg, self.models.base, {})[1].items():
            for fact in facts:
                known.setdefault(normalised(fact.prompt), []).append((split, fact))
        return known

    def ask(self, prompt: str, tokens: int = 20, temperature: float = 1.0, seed: int = 0, top: int = 5) -> Reply:
        """What both models say: greedily, and drawn at a temperature by a seed, `tokens` tokens each.

        Beside it the probabilities of the fact's own answers where the prompt is one of the run's facts, else of the
        `top` likeliest next tokens of each model. Raises ConfigError for a prompt that the model has no room for.
        """
        import torch

        from factdpo.evaluation.generation import continuations

        _check(prompt, tokens, temperature, seed, top)
        base, prompt = self.models.base, prompt.strip()
        (ids,) = base.encoder.encode([prompt])
        self._check_room(prompt, len(ids), tokens)

        def say(model, draw: float | None) -> str:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return continuations(model, base, [ids], tokens, draw)[0]

        known = self._facts.get(normalised(prompt), [])
        with self.models.as_base() as model:
            greedy, sampled = say(model, None), say(model, temperature)
        return Reply(
            prompt,
            known[0][0] if known else None,
            (greedy, say(self.models.trained, None)),
            (sampled, say(self.models.trained, temperature)),
            self._answers([fact for _, fact in known]) if known else self._next_tokens(ids, top),
        )

    def _check_room(self, prompt: str, length: int, tokens: int) -> None:
        longest = self.models.base.encoder.longest
        if not length:
            raise ConfigError("ask: the prompt is empty; give a text to continue")
        if length + tokens > longest:
            raise ConfigError(
                f"--tokens {tokens}: the model takes {longest} tokens and the prompt has {length}; give 1 to "
                f"{longest - length}" if length < longest else f"ask: '{prompt[:40]}...' has {length} tokens, and the "
                f"model takes {longest}; shorten it"
            )  # fmt: skip

    def _answers(self, facts: list[Fact]) -> list[Candidate]:
        """The true and the false answers of facts with one prompt, each once, the likeliest after training first."""
        from factdpo.data.pairs import tokenise
        from factdpo.models.scoring import pair_logps

        pairs = tokenise(facts, self.models.base.tokenizer, self.run.cfg.data)
        with self.models.as_base() as model:
            before = pair_logps(model, pairs, 8)
        after = pair_logps(self.models.trained, pairs, 8)
        found: dict[str, Candidate] = {}
        for i, fact in enumerate(facts):
            for is_true, text, column in ((True, fact.chosen, "chosen"), (False, fact.rejected, "rejected")):
                logps = [getattr(logps, column)[i].item() for logps in (before, after)]
                known = found.get(text)
                if known is None or (is_true and not known.is_true):  # several facts may ask alike
                    found[text] = Candidate(text, is_true, *map(math.exp, logps))
        return sorted(found.values(), key=lambda one: -one.trained)

    def _next_tokens(self, ids: list[int], top: int) -> list[Candidate]:
        """The likeliest next tokens of each of the models, the likeliest after training first."""
        import torch

        tokenizer, row = self.models.base.tokenizer, torch.tensor([ids], device=self.models.base.device)

        @torch.no_grad()
        def probabilities(model) -> torch.Tensor:  # [V]
            return model(input_ids=row, use_cache=False).logits[0, -1].float().softmax(-1).cpu()

        with self.models.as_base() as model:
            before = probabilities(model)
        after = probabilities(self.models.trained)
        likeliest = {
            int(token) for of_model in (before, after) for token in of_model.topk(min(top, len(before))).indices
        }
        found = [
            Candidate(repr(tokenizer.decode([token])), None, before[token].item(), after[token].item())
            for token in likeliest
        ]
        return sorted(found, key=lambda one: -one.trained)


def _check(prompt: str, tokens: int, temperature: float, seed: int, top: int) -> None:
    """Raises ConfigError for a value that cannot be; `top` and the like are named as the command line has them."""
    if not isinstance(prompt, str):
        raise ConfigError(f"ask: {prompt!r} is no text; give one prompt at a time")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ConfigError("ask: the prompt has bytes that are no UTF-8; correct its encoding") from None
    for name, value, low in (("tokens", tokens, 1), ("top", top, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or not low <= value <= MOST:
            raise ConfigError(f"--{name} {value}: must be a whole number from {low} to {MOST}")
    if not (temperature >= COLDEST and math.isfinite(temperature)):
        raise ConfigError(
            f"--temperature {temperature:g}: must be at least {COLDEST:g}, and finite; greedy stands beside it"
        )


def _share(value: float) -> str:
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def shown(text: str) -> str:
    """A continuation on one line: line breaks as a sign, other control characters left out."""
    text = text.strip(" ").replace("\n", "⏎")
    return "".join(sign for sign in text if unicodedata.category(sign)[0] != "C") or "(nothing)"
