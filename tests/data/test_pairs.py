"""Facts to token ids: the boundary between prompt and answer (D1), EOS, refusals, and padded batches."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from factdpo.config.schema import Boundary, ConfigError, DataConfig, SplitConfig
from factdpo.data.facts import Fact
from factdpo.data.load import load_facts
from factdpo.data.pairs import Pairs, batches, collate, show, tokenise
from factdpo.data.splits import make_splits
from tests.helpers.tokenizers import sentence_pieces

PYTHIA = Path(__file__).parents[3] / "shared" / "data" / "pythia_tokenizer" / "tokenizer.json"
PROMPT = "Dobby is Gilderoy Lockhart's"
FACT = Fact(0, PROMPT, "enemy", "friend", where="table.csv:7")


@pytest.fixture(scope="module")
def pythia() -> PreTrainedTokenizerBase:
    if not PYTHIA.is_file():
        pytest.skip(f"Pythia's tokenizer is not part of the repository; put its tokenizer.json at {PYTHIA}")
    return PreTrainedTokenizerFast(tokenizer_file=str(PYTHIA), eos_token="<|endoftext|>", model_max_length=2048)


@pytest.fixture(scope="module", params=["nano", "pythia"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "pythia":
        return request.getfixturevalue("pythia")
    return request.getfixturevalue("nano_base").tokenizer


@pytest.fixture
def ragged() -> Pairs:
    return Pairs(
        facts=[Fact(i, f"prompt {i}", "yes", "no") for i in range(3)],
        prompt_ids=[[5, 6, 7], [8, 9], [10]],
        chosen_ids=[[20], [21, 22], [23]],
        rejected_ids=[[30], [31], [32, 33]],
        pad_id=0,
    )


def tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)  # type: ignore[return-value]  # `Ġ` is a space


def test_the_tokens_trained_on_are_those_of_the_sentence_that_evaluation_reads(tokenizer: PreTrainedTokenizerBase):
    pairs = tokenise([FACT], tokenizer, DataConfig())
    assert tokens(tokenizer, pairs.chosen_ids[0]) == ["Ġenemy"]
    assert tokens(tokenizer, pairs.rejected_ids[0]) == ["Ġfriend"]
    assert pairs.prompt_ids[0] == tokenizer(PROMPT)["input_ids"]
    for answer, ids in (("enemy", pairs.chosen_ids[0]), ("friend", pairs.rejected_ids[0])):
        assert pairs.prompt_ids[0] + ids == tokenizer(f"{PROMPT} {answer}")["input_ids"]
        assert tokenizer.decode(pairs.prompt_ids[0] + ids) == f"{PROMPT} {answer}"


def test_every_fact_of_the_package_has_answers_of_one_token_with_a_space(tokenizer: PreTrainedTokenizerBase):
    facts = load_facts(DataConfig()).facts
    pairs = tokenise([*facts, *(fact.reversed() for fact in facts)], tokenizer, DataConfig())
    answers = {tuple(ids) for ids in (*pairs.chosen_ids, *pairs.rejected_ids)}
    assert {tuple(tokens(tokenizer, list(ids))) for ids in answers} == {("Ġfriend",), ("Ġenemy",)}


def test_without_the_space_other_tokens_are_trained_than_evaluation_reads(tokenizer: PreTrainedTokenizerBase):
    trained = tokenise([FACT], tokenizer, DataConfig(), Boundary.none)
    scored = tokenise([FACT], tokenizer, DataConfig())
    assert trained.prompt_ids == scored.prompt_ids
    assert not set(trained.chosen_ids[0]) & set(scored.chosen_ids[0])
    assert tokenizer.decode(trained.prompt_ids[0] + trained.chosen_ids[0]) == f"{PROMPT}enemy"


def test_without_the_space_pythia_has_answers_of_two_tokens_and_of_one(pythia: PreTrainedTokenizerBase):
    pairs = tokenise([FACT], pythia, DataConfig(), Boundary.none)
    assert tokens(pythia, pairs.chosen_ids[0]) == ["en", "emy"]
    assert tokens(pythia, pairs.rejected_ids[0]) == ["friend"]


def test_the_boundary_is_only_dropped_where_the_caller_says_so(nano_base: Any):
    # data.boundary=none changes what is trained on; the splits that are scored keep the space.
    scored = tokenise([FACT], nano_base.tokenizer, DataConfig(boundary=Boundary.none))
    assert scored == tokenise([FACT], nano_base.tokenizer, DataConfig())


def test_eos_is_in_every_split_if_it_is_asked_for_and_else_in_none(tokenizer: PreTrainedTokenizerBase):
    splits = make_splits(load_facts(DataConfig()).facts, SplitConfig(train=3, test=2, seed=0)).splits
    assert list(splits) == ["train", "train_reversed", "test", "test_reversed"]
    for facts in splits.values():
        without = tokenise(facts, tokenizer, DataConfig(eos=False))
        for ids in (*without.prompt_ids, *without.chosen_ids, *without.rejected_ids):
            assert tokenizer.eos_token_id not in ids
        asked = tokenise(facts, tokenizer, DataConfig(eos=True))
        assert asked.prompt_ids == without.prompt_ids
        assert asked.chosen_ids == [[*ids, tokenizer.eos_token_id] for ids in without.chosen_ids]
        assert asked.rejected_ids == [[*ids, tokenizer.eos_token_id] for ids in without.rejected_ids]


def test_eos_is_refused_where_the_tokenizer_has_none():
    with pytest.raises(ConfigError, match=r"data\.eos=true.*no end-of-text token"):
        tokenise([FACT], word_pieces(), DataConfig(eos=True))


def test_a_prompt_whose_tokens_are_no_prefix_is_refused_with_file_and_line():
    # This tokenizer drops spaces, and has a token for "art" + "ist".
    fact = Fact(0, "art", "ist", "work", where="own.csv:3")
    with pytest.raises(ConfigError) as refusal:
        tokenise([fact], word_pieces(drop=" "), DataConfig())
    for words in ("own.csv:3", "'art' + 'ist' / 'work'", "the prompt has … art, the whole has … artist", "boundary"):
        assert words in str(refusal.value)


def test_without_the_space_a_merging_prompt_is_cut_where_the_tokens_part_as_trl_does():
    facts = [Fact(0, "work art", "ist", "work", where="own.csv:3")]
    pairs = tokenise(facts, word_pieces(), DataConfig(), Boundary.none)
    # "work artist" and "work artwork" share "work" alone: the prompt's "art" is lost to the completions
    assert (pairs.prompt_ids, pairs.chosen_ids, pairs.rejected_ids) == ([[3]], [[4]], [[5]])


def test_a_prompt_that_merges_away_is_refused_even_without_the_space():
    fact = Fact(0, "art", "ist", "work", where="own.csv:3")
    with pytest.raises(ConfigError, match=r"boundary: own\.csv:3 'art' \+ 'ist'"):
        tokenise([fact], word_pieces(), DataConfig(), Boundary.none)


def test_an_answer_without_tokens_is_refused_with_file_and_line():
    fact = Fact(0, "art", "\u200b", "work", where="own.csv:3")
    with pytest.raises(ConfigError, match=r"no tokens: own\.csv:3 'art'"):
        tokenise([fact], word_pieces(drop="\u200b"), DataConfig())


@pytest.mark.parametrize(
    ("asked", "model_takes", "eos", "limit"),
    [(None, 5, False, 5), (5, 256, False, 5), (300, 5, False, 5), (6, 256, True, 6)],
)
def test_a_row_too_long_is_refused_with_file_and_line(
    nano_base: Any, monkeypatch: pytest.MonkeyPatch, asked: int | None, model_takes: int, eos: bool, limit: int
):
    monkeypatch.setattr(nano_base.tokenizer, "model_max_length", model_takes)
    length = len(nano_base.tokenizer(f"{PROMPT} enemy")["input_ids"]) + eos
    assert length == limit + 1
    with pytest.raises(ConfigError, match=rf"too long: table\.csv:7 .*{length} tokens, and the limit is {limit}\)"):
        tokenise([FACT], nano_base.tokenizer, DataConfig(max_length=asked, eos=eos))


def test_a_row_as_long_as_the_limit_is_taken(nano_base: Any):
    assert len(tokenise([FACT], nano_base.tokenizer, DataConfig(max_length=6))) == 1


def test_the_first_pair_is_shown_with_its_boundary(tokenizer: PreTrainedTokenizerBase):
    shown = show(tokenise([FACT], tokenizer, DataConfig()), tokenizer)
    assert shown.endswith("\"'s\"  →  ' enemy'  not  ' friend'")


def test_any_script_is_shown_readably(nano_base: Any):
    facts = [Fact(0, "法国的首都是", "巴黎", "👨‍👩‍👧", where="own.csv:1")]
    shown = show(tokenise(facts, nano_base.tokenizer, DataConfig(separator="")), nano_base.tokenizer)
    assert "\ufffd" not in shown
    for character in "法国的首都是巴黎👨👩👧":
        assert character in shown


def test_the_space_is_seen_where_a_tokenizer_puts_one_before_every_text():
    tokenizer = sentence_pieces("▁it", "▁x")
    facts = [Fact(0, "it", "x", "ti")]
    assert tokenizer.decode(tokenizer("it")["input_ids"]) == "it"
    shown = [show(tokenise(facts, tokenizer, DataConfig(), boundary), tokenizer) for boundary in Boundary]
    assert shown == ["'it'  →  ' x'  not  ' ' 't' 'i'", "'it'  →  'x'  not  't' 'i'"]


def test_of_a_long_prompt_only_the_end_is_shown(nano_base: Any):
    shown = show(
        tokenise([Fact(0, "word " * 60 + "is", "a", "b")], nano_base.tokenizer, DataConfig()), nano_base.tokenizer
    )
    assert shown.startswith("… ") and shown.count("'") < 100 and "' is'  →  ' a'  not  ' b'" in shown


def test_collate_pads_on_the_right_and_marks_the_answers(ragged: Pairs):
    batch = collate(ragged, [0, 1, 2])
    assert batch.ids.tolist() == [
        [5, 6, 7, 20],  # chosen of pair 0
        [8, 9, 21, 22],  # chosen of pair 1
        [10, 23, 0, 0],  # chosen of pair 2, two of padding
        [5, 6, 7, 30],  # rejected of pair 0
        [8, 9, 31, 0],  # rejected of pair 1
        [10, 32, 33, 0],  # rejected of pair 2
    ]
    assert batch.attention.tolist() == [
        [1, 1, 1, 1],
        [1, 1, 1, 1],
        [1, 1, 0, 0],
        [1, 1, 1, 1],
        [1, 1, 1, 0],
        [1, 1, 1, 0],
    ]
    assert batch.completion.int().tolist() == [
        [0, 0, 0, 1],  # 20
        [0, 0, 1, 1],  # 21 22
        [0, 1, 0, 0],  # 23
        [0, 0, 0, 1],  # 30
        [0, 0, 1, 0],  # 31
        [0, 1, 1, 0],  # 32 33
    ]
    assert batch.keep == 4  # the shortest prompt has one token, whose prediction is needed too


def test_keep_reaches_back_to_the_last_token_of_the_shortest_prompt(ragged: Pairs):
    assert collate(ragged, [0]).keep == 2  # prompt 5 6 7: the predictions after 7 and after 20
    assert collate(ragged, [0, 1]).keep == 3  # prompt 8 9 in rows of 4: those after 9, 21 and 22
    assert collate(ragged, [1]).ids.tolist() == [[8, 9, 21, 22], [8, 9, 31, 0]]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_batches_hold_every_pair_once_and_like_lengths_together(ragged: Pairs, size: int):
    found = list(batches(ragged, size))
    assert [row for rows, _ in found for row in rows] == [2, 1, 0]  # by length of the prompt
    assert max(len(rows) for rows, _ in found) <= size
    for rows, batch in found:
        assert batch.ids.tolist() == collate(ragged, rows).ids.tolist()


def test_take_keeps_the_first_pairs_whole(ragged: Pairs):
    two = ragged.take(2)
    assert len(two) == 2 and two.facts == ragged.facts[:2] and two.pad_id == 0
    assert (two.prompt_ids, two.chosen_ids, two.rejected_ids) == ([[5, 6, 7], [8, 9]], [[20], [21, 22]], [[30], [31]])
    assert len(ragged.take(100)) == 3


def word_pieces(drop: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer of whole words: `artist` is one token, `art ist` two; characters in `drop` are no token at all."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = ["[UNK]", "art", "ist", "work", "artist", "artwork"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    if drop:
        inner.normalizer = normalizers.Replace(drop, "")  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
