"""Rows as token ids: what makes one useless, the end of nested answers, the separator, rows too long."""

import dataclasses
import json
import random
import unicodedata
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Sequence
from transformers import PreTrainedTokenizerFast

from factdpo import nano
from factdpo.config.schema import BadRows, Boundary, ConfigError, DataConfig, TooLong
from factdpo.data.encoder import Encoder, parts_at_spaces
from factdpo.data.facts import Fact
from factdpo.data.pairs import tokenise
from factdpo.data.tokens import check_tokens, encoded_rows
from tests.helpers.tokenizers import composing, lowercasing, words

DROP = DataConfig(bad_rows=BadRows.drop)


def facts(*rows: tuple[str, ...]) -> list[Fact]:
    """Facts of (prompt, chosen, rejected[, reverse_prompt]) from lines 1, 2, ... of own.csv."""
    return [
        Fact(i, *row[:3], reverse_prompt=row[3] if len(row) > 3 else None, where=f"own.csv:{i + 1}")
        for i, row in enumerate(rows)
    ]


def refusal(rows: list[Fact], tokenizer: Any, cfg: DataConfig | None = None, size: int | None = None) -> list[str]:
    with pytest.raises(ConfigError) as error:
        check_tokens(rows, Encoder.of(tokenizer, size), cfg or DataConfig())
    return str(error.value).splitlines()


# What words are parted by, and what could be taken for it.
ALPHABET = "aZ9'\u2019s.,-_\u0301\u00e9\u4e2d\u200d\U0001f600\u00a0\u3000\t\n\x1c \u0130"


@pytest.mark.parametrize("normaliser", [None, NFC()])
@pytest.mark.parametrize("parts", [None, Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])])
def test_words_that_are_tokenised_once_have_the_tokens_that_they_have_in_every_text(normaliser: Any, parts: Any):
    told = json.loads((nano.WEIGHTS / "tokenizer.json").read_text())
    told["model"]["vocab"]["ĠĠ"] = len(told["model"]["vocab"])  # two spaces in one token, as Pythia has them
    told["model"]["merges"].append(["Ġ", "Ġ"])
    tokenizer = Tokenizer.from_str(json.dumps(told))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normaliser, parts or tokenizer.pre_tokenizer
    model = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    apart = Encoder.of(model)
    assert apart.parts_at_spaces
    whole, rng = dataclasses.replace(apart, parts_at_spaces=False), random.Random(0)
    letters = ["<|endoftext|>", "it's ", *ALPHABET, " ", " ", " "]
    texts = ["", *("".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(5000))]
    assert apart.encode(texts) == whole.encode(texts) == apart.encode(texts)
    ends, encoded = [rng.choice(["", " ", " "]) + end for end in reversed(texts)], apart.encode(texts)
    assert apart.encode_after(texts, encoded, ends) == whole.encode([a + b for a, b in zip(texts, ends, strict=True)])
    assert len(apart.words) > 100, "some are parted"


@pytest.mark.parametrize("change", [
    {"add_prefix_space": True}, {"use_regex": False}, {"lstrip": True}, {"content": "is friend"},
])  # fmt: skip
def test_words_are_tokenised_once_only_where_a_space_is_known_to_begin_a_token(change: dict[str, Any]):
    tokenizer = Tokenizer.from_file(str(nano.WEIGHTS / "tokenizer.json"))
    if "use_regex" in change:
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, **change)
    elif "add_prefix_space" in change:
        tokenizer.pre_tokenizer = Metaspace()
    else:
        tokenizer.add_tokens([AddedToken(**({"content": "<x>"} | change))])
    assert not parts_at_spaces(tokenizer)


def test_answers_that_are_the_same_tokens_are_refused_by_row():
    rows = facts(("it is", "abc", "ABC"), ("it is", "x", "y"), ("so is", "x", "abc"))
    (line,) = refusal(rows, lowercasing("it", "is", "so", "abc", "x", "y"))
    assert line.startswith("1 of 3 facts: chosen and rejected are the same tokens")
    assert "own.csv:1 'it is' + 'abc' / 'ABC' (abc)" in line and "data.bad_rows=drop" in line


def test_two_unknown_answers_are_the_same_token():
    (line,) = refusal(facts(("it is", "x", "y")), words("it", "is"))
    assert "the same tokens" in line and "(<unk>)" in line


def test_two_forms_of_one_text_are_one_fact_told_twice_under_a_tokenizer_that_composes():
    twice = [("Zürich is", "big", "small"), (unicodedata.normalize("NFD", "Zürich") + " is", "big", "small")]
    tokenizer = composing("Zürich", "is", "big", "small")
    (line,) = refusal(facts(*twice), tokenizer)
    assert "one fact told twice" in line and "own.csv:2" in line and "already at own.csv:1" in line
    assert [fact.where for fact in check_tokens(facts(*twice), Encoder.of(tokenizer), DROP).facts] == ["own.csv:1"]


def test_a_reverse_that_is_another_facts_prompt_in_other_case_is_told_twice():
    rows = facts(("ann loves bob", "yes", "no", "bob loves ann"), ("Bob loves Ann", "yes", "no"))
    (line,) = refusal(rows, lowercasing("ann", "bob", "loves", "yes", "no"))
    assert "told twice" in line and "own.csv:2" in line


def test_the_same_tokens_with_the_answers_swapped_are_a_contradiction():
    rows = facts(("ann is", "yes", "no"), ("ANN is", "no", "yes"))
    (line,) = refusal(rows, lowercasing("ann", "is", "yes", "no"))
    assert "with the answers swapped" in line and "own.csv:2" in line


def test_prompts_of_the_same_tokens_must_be_of_one_group_so_that_no_split_parts_them():
    tokenizer = words("Zurich", "Zürich", "is", "big", "old", "x", normalizer=normalizers.StripAccents())
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    rows = facts(("Zürich is", "big", "x"), ("Zurich is", "old", "x"))
    (line,) = refusal(rows, tokenizer)
    assert "the same tokens in its prompt" in line and "own.csv:2" in line and "data.columns.group" in line
    together = [dataclasses.replace(fact, group="Zürich") for fact in rows]
    assert check_tokens(together, Encoder.of(tokenizer), DataConfig()).facts == together


def test_rows_of_different_splits_of_the_datas_own_may_tell_the_same_fact():
    rows = [dataclasses.replace(fact, split=split) for fact, split in zip(
        facts(("it is", "x", "y"), ("IT is", "x", "y")), ("train", "again"), strict=True)]  # fmt: skip
    assert check_tokens(rows, Encoder.of(lowercasing("it", "is", "x", "y")), DataConfig()).facts == rows


def test_the_probes_of_a_fact_are_checked_with_it():
    (fact,) = facts(("it is", "x", "y"))
    probe = Fact(0, "so is", "x", "X", where="own.csv:1")
    rows = [dataclasses.replace(fact, probes=(("locality", probe),))]
    (line,) = refusal(rows, lowercasing("it", "is", "so", "x", "y"))
    assert "'so is' + 'x' / 'X'" in line


def test_bad_rows_are_all_named_at_once_by_kind_and_only_the_first_of_a_kind_are_shown():
    same = [(f"it is {i}", "x", "X") for i in range(5)]
    rows = facts(*same, ("it is " + "y " * 70, "x", "y"))
    lines = refusal(rows, lowercasing("it", "is", "x", "y", *"01234"))
    assert len(lines) == 2 and lines[0].startswith("5 of 6") and lines[1].startswith("1 of 6")
    assert lines[0].count("own.csv:") == 3 and "; and 2 more" in lines[0]
    assert "73 tokens, and the limit is 64" in lines[1] and "y " * 40 not in lines[1] and "…" in lines[1]


def test_dropped_rows_are_counted_by_kind_and_the_others_stay_as_they_are():
    rows = facts(("it is", "x", "X"), ("it is", "x", "y"), ("so is", "y", "Y"))
    checked = check_tokens(rows, Encoder.of(lowercasing("it", "is", "so", "x", "y")), DROP)
    assert checked.facts == rows[1:2]
    assert checked.record() == {"facts": 1, "nested": 0, "truncated": 0, "dropped": {"same_tokens": 2}}
    (said,) = checked.warnings()
    assert said.startswith("2 of 3 facts were dropped: chosen and rejected are the same tokens")


def test_a_token_that_the_embedding_does_not_have_is_refused_by_row_and_token():
    tokenizer = words("it", "is", "x", "y", "<new>")
    (line,) = refusal(facts(("it is", "x", "y"), ("is <new>", "x", "y")), tokenizer, size=6)
    assert "own.csv:2 'is <new>'" in line and "<new> has id 6, the embedding has 6 rows" in line
    check_tokens(facts(("it is", "x", "y")), Encoder.of(tokenizer, 6), DataConfig())


# ----------------------------------------------------------------------------------------------------- nested answers


def test_where_one_answer_begins_with_the_other_both_get_their_end(nano_base: Any):
    rows = facts(
        ("The publisher is", "Renegade Software", "Renegade"), ("It is", "Renegade", "Renegade Software"),
        ("It is", "red", "blue"),
    )  # fmt: skip
    tokenizer, eos = nano_base.tokenizer, nano_base.tokenizer.eos_token_id
    pairs = tokenise(rows, tokenizer, DataConfig())
    for number in (0, 1):
        assert pairs.chosen_ids[number][-1] == pairs.rejected_ids[number][-1] == eos
        assert tokenizer.decode(pairs.chosen_ids[number][:-1]) == f" {rows[number].chosen}"
    assert eos not in pairs.chosen_ids[2] + pairs.rejected_ids[2], "other pairs keep their tokens"
    checked = check_tokens(rows, nano_base.encoder, DataConfig())
    assert checked.record()["nested"] == 2
    (said,) = checked.warnings()
    assert said.startswith("in 2 of 3 facts one answer begins with the other, as in 'Renegade Software' and 'Renegade'")
    assert "<|endoftext|>" in said and "own.csv:1" in said


def test_with_eos_everywhere_no_answer_is_nested(nano_base: Any):
    rows = facts(("The publisher is", "Renegade Software", "Renegade"))
    checked = check_tokens(rows, nano_base.encoder, DataConfig(eos=True))
    assert checked.nested == 0 and checked.warnings() == []
    assert tokenise(rows, nano_base.tokenizer, DataConfig(eos=True)).chosen_ids[0].count(0) == 1


def test_without_an_end_of_text_a_line_break_ends_nested_answers_and_without_both_they_are_refused(pieces: Any):
    nested = facts(("it is", "ab", "a"))
    (row,) = encoded_rows(nested, Encoder.of(pieces), DataConfig())
    assert row.chosen[-1] == row.rejected[-1] == pieces.convert_tokens_to_ids("\n")
    (line,) = refusal(facts(("it is", "a b", "a")), words("it", "is", "a", "b", eos=False))
    assert "one answer begins with the other" in line and "own.csv:1" in line


@pytest.fixture
def pieces() -> Any:
    """A tokenizer of single characters without any special token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = {c: i for i, c in enumerate("?abist \n")}
    inner = Tokenizer(models.WordLevel(characters, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?", model_max_length=64)


# ----------------------------------------------------------------------------------------------- separator, own tokens


def test_the_separator_stands_between_prompt_and_answer(nano_base: Any):
    tokenizer = nano_base.tokenizer

    def whole(prompt: str, separator: str) -> str:
        pairs = tokenise(facts((prompt, "Blue", "Green")), tokenizer, DataConfig(separator=separator))
        return tokenizer.decode(pairs.prompt_ids[0] + pairs.chosen_ids[0])

    assert whole("The sky:", " ") == "The sky: Blue"
    assert whole("Q: sky?\nA:\n", "") == "Q: sky?\nA:\nBlue"
    assert whole("The sky:", r"\n") == whole("The sky:", "\n") == "The sky:\nBlue"


def test_chinese_needs_no_separator(nano_base: Any):
    rows = facts(("法国的首都是", "巴黎", "罗马"))
    pairs = tokenise(rows, nano_base.tokenizer, DataConfig(separator=""))
    assert nano_base.tokenizer.decode(pairs.prompt_ids[0] + pairs.chosen_ids[0]) == "法国的首都是巴黎"


@pytest.mark.parametrize(
    ("prompt", "separator", "advice"),
    [
        ("it ", " ", "the prompt ends with white space: remove that, or data.separator="),
        ("it", "", "nothing stands between them: end the prompt where a token ends, or data.separator=' '"),
    ],
)
def test_a_boundary_inside_a_token_is_refused_with_the_advice_that_helps(prompt: str, separator: str, advice: str):
    tokenizer = runs_of_spaces("it", " ", "  ", "so", "its", "itso")
    (line,) = refusal(facts((prompt, "so", "s")), tokenizer, DataConfig(separator=separator))
    assert "not a prefix" in line and advice in line and "own.csv:1" in line


def test_an_end_that_the_tokenizer_adds_by_itself_is_left_off_and_that_is_said():
    tokenizer = words("it", "is", "x", "y", ends=True)
    assert tokenizer("it is")["input_ids"][-1] == tokenizer.eos_token_id
    rows = facts(("it is", "x", "y"))
    pairs = tokenise(rows, tokenizer, DataConfig())
    assert (pairs.prompt_ids, pairs.chosen_ids, pairs.rejected_ids) == ([[2, 3]], [[4]], [[5]])
    (said,) = check_tokens(rows, Encoder.of(tokenizer), DataConfig()).warnings()
    assert said == "the tokenizer ends every text with '</s>' by itself, which is left off"
    assert tokenise(rows, tokenizer, DataConfig(eos=True)).chosen_ids == [[4, 1]]


def runs_of_spaces(*vocabulary: str) -> Any:
    """A tokenizer of words and of runs of spaces."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *vocabulary])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(" +"), "isolated")  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", model_max_length=64)


# ------------------------------------------------------------------------------------------------------------ too long

LONG = ("a b c d e", "x", "y z")  # 7 tokens with the longer answer


@pytest.fixture
def letters() -> Any:
    return words(*"abcdexyz")


def test_a_row_too_long_is_refused_dropped_or_cut_at_the_prompts_beginning(letters: Any):
    rows, encoder = facts(LONG, ("a", "x", "y z")), Encoder.of(letters)
    (line,) = refusal(rows, letters, DataConfig(max_length=5, bad_rows=BadRows.drop))
    assert "7 tokens, and the limit is 5" in line and "data.too_long=drop or truncate" in line
    dropped = check_tokens(rows, encoder, DataConfig(max_length=5, too_long=TooLong.drop))
    assert dropped.facts == rows[1:] and dropped.dropped == {"too long": 1}
    cut = DataConfig(max_length=5, too_long=TooLong.truncate)
    checked = check_tokens(rows, encoder, cut)
    assert checked.facts == rows and checked.truncated == 1
    assert checked.warnings() == ["data.too_long=truncate: the beginning of the prompt is cut off in 1 facts"]
    pairs = tokenise(rows, letters, cut)
    assert letters.decode(pairs.prompt_ids[0]) == "c d e" and letters.decode(pairs.rejected_ids[0]) == "y z"


def test_an_answer_is_never_cut(letters: Any):
    cut = DataConfig(max_length=2, too_long=TooLong.truncate)
    (line,) = refusal(facts(LONG), letters, cut)
    assert "7 tokens, and the limit is 2" in line


def test_prompts_that_are_the_same_once_they_are_cut_are_one_fact_told_twice(letters: Any):
    rows = facts(("a b c d", "x", "y"), ("b b c d", "x", "y"))
    cut = DataConfig(max_length=4, too_long=TooLong.truncate)
    (line,) = refusal(rows, letters, cut)
    assert "told twice" in line


def test_what_is_trained_without_the_separator_is_checked_too(letters: Any):
    tokenizer = words("art", "ist", "work", "artist", "artwork")
    rows = facts(("art", "ist", "work"))
    check_tokens(rows, Encoder.of(tokenizer), DataConfig())
    assert "not a prefix" in refusal(rows, tokenizer, DataConfig(boundary=Boundary.none))[0]
