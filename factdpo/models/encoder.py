"""What a model makes of texts, without loading the model: rows are checked with it before the first run starts."""

import json
from pathlib import Path

from factdpo import nano
from factdpo.config.schema import ModelConfig, ModelSource
from factdpo.data.encoder import Encoder, parts_at_spaces
from factdpo.models.weights import Weights


def load_encoder(cfg: ModelConfig, weights: Weights, cache_dir: Path) -> Encoder:
    """The encoder of the model's tokenizer; raises ConfigError if that cannot be loaded.

    Of a hub model that is not on this machine, the tokenizer alone is downloaded. nano's is read without transformers,
    which takes seconds to import: a plan of runs on nano is there at once.
    """
    if cfg.source is ModelSource.nano:
        return _nano()
    from factdpo.models.base import load_tokenizer

    return load_tokenizer(cfg, weights, cache_dir)


def _nano() -> Encoder:
    """What `load_tokenizer` would return for nano, whose tokenizer.json says it all."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(nano.WEIGHTS / "tokenizer.json"))
    model = json.loads((nano.WEIGHTS / "config.json").read_text(encoding="utf-8"))

    def encode(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]

    def tokens(ids: list[int]) -> list[str]:
        return [str(tokenizer.id_to_token(i)) for i in ids]

    return Encoder(
        encode, tokens, model["eos_token_id"], model["max_position_embeddings"], model["vocab_size"],
        parts_at_spaces=parts_at_spaces(tokenizer),
    )  # fmt: skip
