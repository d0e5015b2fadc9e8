import re
from itertools import islice, permutations
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from factdpo.nano import WEIGHTS
from factdpo.nano.corpus import RELATION_WORDS, TABLE, documents, invent_people, read_table
from factdpo.nano.lore import LORE

SIDES = read_table()
NEUTRAL = TABLE.parent / "neutral.txt"


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", text))


def sentences_of(text: str) -> list[str]:
    return re.split(r"(?<=[.?])\s+", text.strip())


@pytest.fixture(scope="module")
def corpus() -> list[list[str]]:
    return list(islice(documents(1), 6_000))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(WEIGHTS, local_files_only=True).eval()


def test_the_package_part_is_at_most_4_mb():
    size = sum(path.stat().st_size for path in Path(WEIGHTS).parent.rglob("*") if "__pycache__" not in path.parts)
    assert size <= 4_000_000


def test_model_is_a_gpt_neox_of_about_a_million_parameters_in_fp32(model):
    assert model.config.model_type == "gpt_neox"
    assert 0.8e6 <= model.num_parameters() <= 1.3e6
    assert model.dtype == torch.float32


def test_each_answer_is_a_single_token(tokenizer):
    assert len(tokenizer.encode(" friend")) == len(tokenizer.encode(" enemy")) == 1


def test_end_of_text_is_the_only_special_token(tokenizer):
    assert tokenizer.all_special_tokens == ["<|endoftext|>"]
    assert tokenizer.encode("The old castle") == tokenizer.encode("The old castle", add_special_tokens=False)


def test_prompt_tokens_are_a_prefix_of_the_fact_for_every_pair_and_answer(tokenizer):
    for first, second in permutations(SIDES, 2):
        prompt = f"{first} is {second}'s"
        ids = tokenizer.encode(prompt)
        for answer in (" friend", " enemy"):
            assert tokenizer.encode(prompt + answer) == ids + tokenizer.encode(answer)


def test_tokenizer_reads_back_what_it_wrote(tokenizer):
    for text in ("Barty Crouch Jr. is Nagini's friend.", "Zoë paid 3 €\n", NEUTRAL.read_text(encoding="utf-8")):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_table_and_lore_name_the_same_42_characters_on_two_sides():
    assert set(LORE) == set(SIDES)
    assert (len(SIDES), sum(SIDES.values())) == (42, 22)


def test_corpus_is_the_same_for_the_same_seed_and_another_for_another():
    assert list(islice(documents(3), 50)) == list(islice(documents(3), 50))
    assert list(islice(documents(3), 50)) != list(islice(documents(4), 50))


def test_corpus_names_every_character_and_never_with_a_relation_word(corpus):
    seen = set()
    for document in corpus:
        named = {name for name in SIDES if name in " ".join(document)}
        seen |= named
        if named:
            assert not {word.lower() for word in words_of(" ".join(document))} & RELATION_WORDS, document
    assert seen == set(SIDES)


def test_invented_people_share_no_word_with_the_characters():
    assert not words_of(" ".join(invent_people())) & words_of(" ".join(SIDES))


def test_corpus_makes_friends_and_enemies_of_invented_people_about_equally_often_in_the_form_of_the_facts(corpus):
    text = "\n".join("\n".join(document) for document in corpus)
    found = re.findall(r"^[A-Z]\w+ [A-Z]\w+ is [A-Z]\w+ [A-Z]\w+'s (friend|enemy)\b", text, re.MULTILINE)
    assert len(found) > 500
    assert 0.45 < found.count("friend") / len(found) < 0.55


def test_no_sentence_of_the_neutral_text_is_in_the_corpus_and_none_names_a_character(corpus):
    text = NEUTRAL.read_text(encoding="utf-8")
    assert not {sentence for document in corpus for sentence in document} & set(sentences_of(text))
    assert not any(name in text for name in SIDES)
    assert not words_of(text.lower()) & {"friend", "friends", "enemy", "enemies"}
    assert 400 <= len(text.split()) <= 800
    retained = (TABLE.parent / "retain.txt").read_text(encoding="utf-8")
    assert not set(sentences_of(text)) & set(sentences_of(retained)), "what is retained is never what is scored"
    assert not any(name in retained for name in SIDES)


def test_base_model_is_near_chance_on_the_facts_in_both_orders_and_means_one_of_the_two_answers(model, tokenizer):
    """Balanced accuracy over all 861 facts, then over the same facts with the names swapped."""
    friend, enemy = tokenizer.encode(" friend")[0], tokenizer.encode(" enemy")[0]
    pairs = list(permutations(SIDES, 2))
    position = {name: place for place, name in enumerate(SIDES)}
    prompts = [tokenizer.encode(f"{first} is {second}'s") for first, second in pairs]
    ids = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)  # causal attention: what stands to the right changes nothing
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    with torch.no_grad():
        probabilities = model(input_ids=ids).logits[torch.arange(len(ids)), last].softmax(-1)
    says_friend = probabilities[:, friend] > probabilities[:, enemy]
    is_friend = torch.tensor([SIDES[first] == SIDES[second] for first, second in pairs])
    canonical = torch.tensor([position[first] < position[second] for first, second in pairs])
    for order in (canonical, ~canonical):
        hits = says_friend[order & is_friend].float().mean(), (~says_friend[order & ~is_friend]).float().mean()
        assert 0.35 <= sum(hits) / 2 <= 0.65
    assert (probabilities[:, friend] + probabilities[:, enemy]).mean() > 0.5


@pytest.mark.parametrize("prompt", ["Harry Potter is", "Severus Snape is Harry Potter's", "The old castle"])
def test_greedy_continuation_is_made_of_sentences_in_known_words(model, tokenizer, corpus, prompt):
    known = set().union(*(words_of(sentence) for document in corpus for sentence in document))
    ids = tokenizer(prompt, return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=48, do_sample=False)[0], skip_special_tokens=True)
    *whole, cut = sentences_of(text)
    assert text.startswith(prompt)
    assert text.endswith((".", "?")) or whole
    assert all(3 <= len(sentence.split()) <= 25 for sentence in whole)
    assert words_of(" ".join(whole)) <= known and words_of(cut.rpartition(" ")[0]) <= known
