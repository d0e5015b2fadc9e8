"""What is known of a model's tokens before the model is loaded."""

from pathlib import Path
from typing import Any

from factdpo.config.schema import DataConfig, ModelConfig
from factdpo.data.encoder import Encoder
from factdpo.data.load import load_facts
from factdpo.models.encoder import load_encoder
from factdpo.models.weights import locate


def test_nanos_tokens_are_those_of_its_base_though_transformers_is_not_imported(nano_base: Any, tmp_path: Path) -> None:
    light, full = load_encoder(ModelConfig(), locate(ModelConfig()), tmp_path), nano_base.encoder
    texts = [fact.prompt for fact in load_facts(DataConfig()).facts] + [
        "Zürich 巴黎 👨‍👩‍👧\n\ta  b",
        "",
        " <|endoftext|>x",
    ]
    assert light.encode(texts) == full.encode(texts)
    assert same(light) == same(full)
    assert light.tokens([5, 700]) == full.tokens([5, 700])


def same(encoder: Encoder) -> tuple[object, ...]:
    return encoder.eos_id, encoder.longest, encoder.rows, encoder.first, encoder.last, encoder.end()
