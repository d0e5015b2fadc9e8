"""Small tokenizers of whole words that mislead, each in a way that real ones do."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def words(*vocabulary: str, normalizer: Any = None, ends: bool = False, eos: bool = True, **more: Any) -> Any:
    """One token per word, `<unk>` for others. `ends`: it adds its end-of-text to every text; `eos`: it has one."""
    special = ["<unk>", *(["</s>"] if eos else [])]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *vocabulary])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    inner.decoder = decoders.WordPiece()  # type: ignore[assignment]
    if normalizer is not None:
        inner.normalizer = normalizer
    if ends:
        ending = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", special.index("</s>"))])
        inner.post_processor = ending  # type: ignore[assignment]
    named = {"eos_token": "</s>"} if eos else {}
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", model_max_length=64, **named, **more)


def lowercasing(*vocabulary: str) -> Any:
    return words(*vocabulary, normalizer=normalizers.Lowercase())


def composing(*vocabulary: str) -> Any:
    """Normalises to NFC, as many do."""
    return words(*vocabulary, normalizer=normalizers.NFC())


def sentence_pieces(*vocabulary: str) -> Any:
    """Llama 2's way: a space becomes `▁`, and one is put before every text. A word that begins with it is a token."""
    merges = list(dict.fromkeys((word[:stop], word[stop]) for word in vocabulary for stop in range(1, len(word))))
    pieces = ["<unk>", "</s>", *sorted({"▁", *"".join(vocabulary)}), *(a + b for a, b in merges)]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore
    inner.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", model_max_length=64)
