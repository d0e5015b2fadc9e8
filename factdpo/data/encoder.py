"""What a tokenizer makes of texts: their token ids, its own special tokens, and the longest row."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from factdpo.data.chat import Writer, writer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


MOST_WORDS = 500_000  # that are kept: about 100 MB


@dataclass(frozen=True)
class Encoder:
    """What a model's tokenizer makes of texts, less an end-of-text that it adds itself, and what the model takes."""

    encode_all: Callable[[list[str]], list[list[int]]]
    tokens: Callable[[list[int]], list[str]]  # as the vocabulary has them, for messages
    eos_id: int | None
    longest: int  # tokens of a row
    rows: int | None = None  # of the model's embedding; None: not known
    first: int = 0  # tokens that it puts before every text
    last: int = 0  # tokens that it puts after every text, and that are left off
    chat: Writer | None = None  # writes messages in its chat template; None without one
    template: str | None = None  # the template itself
    parts_at_spaces: bool = False  # whether one space between two words always begins a token, whatever is around it
    words: dict[str, list[int]] = field(default_factory=dict, compare=False, repr=False)  # those known so far

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", rows: int | None = None) -> "Encoder":
        """The encoder of a transformers tokenizer, for a model with so many rows in its embedding."""

        def encode(texts: list[str]) -> list[list[int]]:
            if not texts:  # which transformers does not take
                return []
            encoded = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False)
            return encoded["input_ids"]  # type: ignore[return-value]

        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        first, last = _around(bare, encode(["a"])[0])  # type: ignore[arg-type]
        return cls(
            encode,
            tokenizer.convert_ids_to_tokens,  # type: ignore[arg-type]
            tokenizer.eos_token_id,  # type: ignore[arg-type]
            tokenizer.model_max_length,
            rows,
            first,
            last,
            writer(tokenizer),
            str(tokenizer.chat_template) if tokenizer.chat_template else None,
            tokenizer.is_fast and parts_at_spaces(tokenizer.backend_tokenizer),  # type: ignore[attr-defined]
        )

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each text, with what the tokenizer puts before it and without what it puts after it."""
        if not self.parts_at_spaces:
            return self._encode_whole(texts)
        parted = [_parted(text) for text in texts]
        whole = iter(self._encode_whole([text for text, words in zip(texts, parted, strict=True) if words is None]))
        self._learn(set(chain.from_iterable(words for words in parted if words is not None)))
        of = self.words.__getitem__
        return [next(whole) if words is None else list(chain.from_iterable(map(of, words))) for words in parted]

    def encode_after(self, prompts: list[str], encoded: list[list[int]], ends: list[str]) -> list[list[int]]:
        """`encode` of each prompt followed by its end, given that of the prompts, most of which is not done again."""
        apart = [
            self.parts_at_spaces and end[:1] == " " and " " not in end[1:] and end[1:].isprintable() and len(end) > 1
            and not prompt[-1:].isspace()
            for prompt, end in zip(prompts, ends, strict=True)
        ]  # fmt: skip
        rows = list(zip(prompts, encoded, ends, apart, strict=True))
        whole = iter(self.encode([prompt + end for prompt, _, end, is_apart in rows if not is_apart]))
        self._learn({end for _, _, end, is_apart in rows if is_apart})
        return [ids + self.words[end] if is_apart else next(whole) for _, ids, end, is_apart in rows]

    def _encode_whole(self, texts: list[str]) -> list[list[int]]:
        encoded = self.encode_all(texts)
        return [ids[: len(ids) - self.last] for ids in encoded] if self.last else encoded

    def _learn(self, words: set[str]) -> None:
        """Have the tokens of these words among `words`; what begins with a space has nothing before it."""
        if len(self.words) > MOST_WORDS:
            self.words.clear()
        new = [word for word in words if word not in self.words]
        for word, ids in zip(new, self._encode_whole(new), strict=True):
            self.words[word] = ids[self.first :] if word[0] == " " else ids

    def end(self) -> list[int]:
        """What ends an answer: the end-of-text, else a line break; [] where the tokenizer has neither."""
        if self.eos_id is not None:
            return [self.eos_id]
        before, after, unknown = self.encode(["a", "a\n", "\U000f1234"])
        rest = after[len(before) :] if after[: len(before)] == before else []
        return [] if set(rest) & set(unknown[self.first :]) else rest


def _parted(text: str) -> list[str] | None:
    """The words of a text, each with the space before it; None for a text with other white space, or at its ends."""
    if not text.isprintable() or "  " in text or text != text.strip(" ") or not text:
        return None
    return text.replace(" ", "\n ").split("\n")  # printable, it has no line break of its own


def parts_at_spaces(tokenizer: "Tokenizer") -> bool:
    r"""Whether the tokens of `a b` are those of `a` and those of ` b`, wherever `a` ends and `b` begins without space.

    So it is where words are parted by GPT-2's regular expression, none of whose alternatives goes on over a space
    (openai/gpt-2, src/encoder.py: `'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`), and no
    added token takes the space beside it.
    """
    told: dict[str, Any] = json.loads(tokenizer.to_str())
    before: dict[str, Any] = told["pre_tokenizer"] or {"type": None}
    parts = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    by_words = parts[-1]["type"] == "ByteLevel" and parts[-1]["use_regex"]
    by_words = by_words and all(part["type"] == "Digits" for part in parts[:-1])
    kept = (told["normalizer"] or {"type": "NFC"})["type"] == "NFC" and told["truncation"] is None
    whole = all(
        not added["lstrip"] and not added["rstrip"] and (not added["content"].strip() or " " not in added["content"])
        for added in told["added_tokens"]
    )
    return bool(by_words and kept and whole and not told["model"].get("dropout"))


def _around(bare: list[int], whole: list[int]) -> tuple[int, int]:
    """How many tokens of `whole` stand before and after those of `bare`."""
    starts = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
    return (starts[0], len(whole) - len(bare) - starts[0]) if bare and starts else (0, 0)
