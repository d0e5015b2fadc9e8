"""Facts from preference data, as TRL documents it, ShareGPT, Alpaca and UltraFeedback: texts or lists of messages."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from factdpo.config.schema import DataConfig, Template
from factdpo.data import columns
from factdpo.data.columns import Values
from factdpo.data.facts import BadRow, Conversation, Fact, FactError, Message, RowCheck, cut
from factdpo.data.files import Row, rows
from factdpo.data.paths import common_beginning

FIELDS = (
    "prompt", "chosen", "rejected", "completion", "label", "conversations", "instruction", "input", "output", "system",
    "history", "score_chosen", "score_rejected",
)  # fmt: skip
ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}  # ShareGPT's
DRAWN_OF_SPLIT = "its false answer is the true one of another row of its split, drawn at random: the data has none"
DRAWN = (
    "its false answer is the true one of another row, drawn at random: the data has none. A row that is held out may "
    "lend its true answer to one that is trained on, which makes it less likely; give the data splits of its own"
)
Messages = tuple[Message, ...]
T = TypeVar("T")


def read(cfg: DataConfig, check: RowCheck) -> Iterator[Fact]:
    """A fact per row. With data.preference.draw_rejected, one of a prompt and a completion alone takes its false answer
    from another row of its split.

    Raises FactError for unpaired preferences, and for completions alone where no false answer is to be drawn.
    """
    completions: _Completions | None = None
    for index, row in enumerate(rows(cfg)):
        values = columns.pick(row.values, dict(zip(FIELDS, FIELDS, strict=True)))
        if index == 0:
            _check_paired(row.values, values, row.where)
            if values["completion"] is not None and values["rejected"] is None:
                _check_drawn(cfg, row.where)
                completions = _Completions(cfg)
            elif cfg.preference.draw_rejected:
                raise FactError(
                    f"data.preference.draw_rejected=true: has no effect, {row.where} has a false answer of its own; "
                    "leave it out"
                )
        try:
            if completions is not None:
                false = completions.false(index, row, values["prompt"])
                values |= {"chosen": values["completion"], "rejected": false}
                check.change(DRAWN if row.split is None else DRAWN_OF_SPLIT)
            prompt, chosen, rejected, conversation = _parts(values, cfg, row.where)
        except BadRow as bad:
            check.refuse(bad.kind, str(bad))
        else:
            yield Fact(
                index, prompt, chosen, rejected, where=row.where, split=row.split, conversation=conversation
            )  # fmt: skip


def _check_paired(row: dict[str, Any], values: Values, where: str) -> None:
    if values["label"] is not None and values["rejected"] is None:
        raise FactError(
            f"{where}: a completion with a label is an unpaired preference, and DPO needs pairs: one row per prompt, "
            "with the completion that is labelled true as chosen and the one labelled false as rejected"
        )
    if values["chosen"] is None and values["completion"] is None and not isinstance(values["output"], list):
        raise FactError(
            f"{where}: no column 'chosen' (found: {', '.join(map(str, row)) or 'none'}); preferences have chosen and "
            "rejected, with or without a prompt; other columns can be named with data=pairs data.columns.chosen=..."
        )


def _check_drawn(cfg: DataConfig, where: str) -> None:
    if not cfg.preference.draw_rejected:
        raise FactError(
            f"{where}: has a completion and no rejected one, and DPO needs pairs: add a column rejected with a false "
            "answer, and call the completion chosen; or data.preference.draw_rejected=true, which takes the completion "
            "of another row"
        )


class _Completions:
    """The completions of each split that the data names, or of all rows, and which are true of a prompt."""

    def __init__(self, cfg: DataConfig) -> None:
        self.of_split: dict[str | None, list[tuple[str, Any]]] = defaultdict(list)  # (key, completion)
        self.true: dict[tuple[str | None, str], set[str]] = defaultdict(set)  # (split, prompt) -> keys
        for row in rows(cfg):
            values = columns.pick(row.values, {name: name for name in ("prompt", "completion")})
            key = json.dumps(values["completion"], sort_keys=True, default=str)
            self.of_split[row.split].append((key, values["completion"]))
            self.true[row.split, str(values["prompt"])].add(key)

    def false(self, index: int, row: Row, prompt: Any) -> Any:
        """A completion of the row's split, drawn at random, and none of this prompt's; raises BadRow without one."""
        true = self.true[row.split, str(prompt)]
        for key, completion in in_random_order(self.of_split[row.split], random.Random(f"completion {index}")):
            if key not in true and completion is not None:
                return completion
        raise BadRow(
            "no false answer",
            f"{row.where}: '{cut(str(prompt))}' has a completion and no rejected one, and no other row"
            f"{'' if row.split is None else f' of split {row.split}'} has another: pairs are needed; add a column "
            "rejected, and call the completion chosen",
        )


def in_random_order(items: Sequence[T], rng: random.Random) -> Iterator[T]:
    """Each item once; Fisher and Yates's shuffle, as far as it is asked for."""
    moved: dict[int, int] = {}  # place -> which item lies there now
    for left in range(len(items), 0, -1):
        place = rng.randrange(left)
        yield items[moved.get(place, place)]
        moved[place] = moved.get(left - 1, left - 1)


# ---------------------------------------------------------------------------------------------------- texts, messages


def _parts(values: Values, cfg: DataConfig, where: str) -> tuple[str, str, str, Conversation | None]:
    """Prompt, chosen and rejected as texts, and the conversation that they are if the chat template is to write it."""
    _check_scores(values, where)
    output = values["output"]
    if values["chosen"] is None and isinstance(output, list) and len(output) == 2:
        values = values | {"chosen": output[0], "rejected": output[1]}
    prompt = _prompt(values, where)
    chosen, rejected = (_side(values[name], name, where) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str) and not isinstance(prompt, tuple):
        if prompt is None:
            prompt = common_beginning(chosen, rejected, words=bool(cfg.separator))
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
            prompt = prompt.rstrip() if cfg.separator else prompt  # which stands for the white space that they share
            if not prompt.strip():
                raise BadRow("no prompt", f"{where}: no prompt, and chosen and rejected do not begin with the same")
        return prompt, chosen, rejected, None
    conversation = _conversation(prompt, chosen, rejected, where)
    is_chat = cfg.preference.template is Template.chat
    return *_plain(conversation), conversation if is_chat else None


def _check_scores(values: Values, where: str) -> None:
    scores = values["score_chosen"], values["score_rejected"]
    if all(isinstance(score, int | float) for score in scores) and not scores[0] > scores[1]:
        raise BadRow(
            "the score of chosen is not the higher one",
            f"{where}: score_chosen is {scores[0]}, score_rejected {scores[1]}: no preference",
        )


def _prompt(values: Values, where: str) -> str | Messages | None:
    """The prompt as text or messages; None where chosen and rejected begin with it."""
    prompt = values["prompt"] if values["prompt"] is not None else values["conversations"]
    if prompt is None and values["instruction"] is not None:
        parts = (columns.text(values[name], name, where) for name in ("instruction", "input"))
        prompt = "\n".join(filter(None, parts))
    is_list = isinstance(prompt, list)
    found = _messages(prompt, "prompt", where) if is_list else columns.text(prompt, "prompt", where)
    system = columns.text(values["system"], "system", where)
    before = [Message("system", system)] if system else []
    for turn in values["history"] or []:  # Alpaca's: pairs of what was asked and what was answered
        if not isinstance(turn, list) or len(turn) != 2:
            raise BadRow("history is no list of pairs", f"{where}: history holds {cut(repr(turn))}, which is no pair")
        before += [Message("user", str(turn[0])), Message("assistant", str(turn[1]))]
    return (*before, *_as_messages(found, "user")) if before and found is not None else found


def _side(value: Any, name: str, where: str) -> str | Messages:
    if isinstance(value, dict):
        return _messages([value], name, where)
    if isinstance(value, list):
        return _messages(value, name, where)
    found = columns.text(value, name, where)
    if found is None:
        raise BadRow(f"{name} is empty", f"{where}: {name} is empty")
    return found


def _messages(values: list[Any], name: str, where: str) -> Messages:
    found = []
    for value in values:
        role = value.get("role", value.get("from")) if isinstance(value, dict) else None
        content = value.get("content", value.get("value")) if isinstance(value, dict) else None
        if isinstance(content, list):  # of parts, each with its type
            content = "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
        if not isinstance(role, str) or not isinstance(content, str):
            raise BadRow(
                f"{name} is no list of messages",
                f"{where}: {name} holds {cut(repr(value))}; a message has role and content, or from and value",
            )
        found.append(Message(ROLES.get(role, role), content))
    return tuple(found)


def _as_messages(side: str | Messages, role: str) -> Messages:
    return (Message(role, side),) if isinstance(side, str) else side


def _conversation(
    prompt: str | Messages | None, chosen: str | Messages, rejected: str | Messages, where: str
) -> Conversation:
    """The conversation apart at the answer; raises BadRow if there is none, or nothing before it."""
    chosen, rejected = (_as_messages(side, "assistant") for side in (chosen, rejected))
    pairs = zip(chosen, rejected, strict=False)
    common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    before = chosen[:common]
    told = () if prompt is None else _as_messages(prompt, "user")
    if any(message in before for message in told if message.role == "user"):
        told = tuple(message for message in told if message.role == "system" and message not in before)
    before = (*told, *before)
    conversation = Conversation(before, chosen[common:], rejected[common:])
    if not conversation.chosen or not conversation.rejected:
        raise BadRow(
            "chosen and rejected do not differ", f"{where}: chosen and rejected end before any message differs"
        )
    if not before or before[-1].role == "assistant" or conversation.chosen[0].role != "assistant":
        raise BadRow(
            "no prompt before the answer",
            f"{where}: a prompt ends with a message of the user and an answer begins with one of the assistant; found "
            f"{', '.join(message.role for message in (*before, *conversation.chosen)) or 'none'}",
        )
    return conversation


def _plain(conversation: Conversation) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as lines `role: content`."""
    before = "\n".join(f"{role}: {content}" for role, content in conversation.prompt)
    chosen, rejected = (
        "\n".join([side[0].content, *(f"{role}: {content}" for role, content in side[1:])])
        for side in (conversation.chosen, conversation.rejected)
    )
    return f"{before}\nassistant:", chosen, rejected
