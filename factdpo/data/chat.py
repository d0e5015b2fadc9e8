"""Conversations as a model's chat template writes them: the prompt as it is asked, the answer as the rest."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from factdpo.config.schema import ConfigError, DataConfig
from factdpo.data.facts import Fact, Loaded, Message, RowCheck, cut
from factdpo.data.paths import common_beginning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Writer = Callable[[tuple[Message, ...], bool], str]  # (messages, is the answer next) -> text


def writer(tokenizer: "PreTrainedTokenizerBase") -> Writer | None:
    """The tokenizer's chat template, less what the tokenizer puts before every text itself; None if it has none."""
    if not tokenizer.chat_template:
        return None
    ids = tokenizer("a")["input_ids"]
    twice = str(tokenizer.bos_token) if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else ""  # type: ignore[index]

    def write(messages: tuple[Message, ...], answer_is_next: bool) -> str:
        text = tokenizer.apply_chat_template(
            [message._asdict() for message in messages], tokenize=False, add_generation_prompt=answer_is_next
        )
        return str(text).removeprefix(twice)

    return write


def in_template(facts: list[Fact], write: Writer | None, cfg: DataConfig) -> Loaded:
    """The facts, those told as messages in the model's template, and a sentence for each kind of row left out.

    The text of the prompt, up to where the answer begins, is that of the whole (D1); a row whose template breaks this
    is a bad one (data.bad_rows). Raises ConfigError if there are conversations, and the model has no chat template.
    """
    if not any(fact.conversation for fact in facts):
        return Loaded(facts, [], {})
    if write is None:
        raise ConfigError(
            "data.preference.template=chat: the model's tokenizer has no chat template; take a model that was trained "
            "to chat, or data.preference.template=plain, which writes lines `role: content`"
        )
    from jinja2 import TemplateError

    check, written = RowCheck(cfg.bad_rows), []
    for fact in facts:
        told = fact.conversation
        if told is None:
            written.append(fact)
            continue
        try:
            prompt = write(told.prompt, True)
            wholes = [write((*told.prompt, *side), False) for side in (told.chosen, told.rejected)]
        except TemplateError as error:
            check.refuse("the chat template does not take the messages", f"{fact.where}: the chat template: {error}")
            continue
        changed = next((whole for whole in wholes if not whole.startswith(prompt)), None)
        if changed is None:
            chosen, rejected = (whole[len(prompt) :] for whole in wholes)
            new = dataclasses.replace(
                fact, prompt=prompt, chosen=chosen, rejected=rejected, conversation=None, separator=""
            )
            written.append(new)
        else:
            start = max(0, len(common_beginning(prompt, changed, words=False)) - 20)
            check.refuse(
                "the chat template writes the prompt in another way once there is an answer",
                f"{fact.where}: the template's prompt goes on '{cut(prompt[start:])}', and the whole "
                f"'{cut(changed[start:])}'; take data.preference.template=plain",
            )
    return Loaded(written, check.notes(), check.dropped)
