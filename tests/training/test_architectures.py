"""Architectures of transformers, tiny: trained exactly by the batched engine, trained by TRL, or refused; never wrong.

The long rows are not in the first batch, and only the test split has prompts that begin alike. The whole list is what
benchmarks/architectures.py tries; docs/models.md has the table.
"""

from typing import Any

import pytest

from tests.helpers.architectures import examine

DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, "max_position_embeddings": 32}
LONG_ROPE = {
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 4.0,
    },
    "original_max_position_embeddings": 32, "max_position_embeddings": 256,
}  # fmt: skip
BATCHED = "batched"  # `examine` raises where that is not exact
CORE: list[tuple[str, dict[str, Any], str, str]] = [
    ("mistral", {}, BATCHED, ""),  # a window for all layers
    ("gemma3_text", {}, BATCHED, ""),  # one for some
    ("falcon", {}, BATCHED, ""),  # its own linear layer
    ("gpt_neo", {}, "trl", "log-prob"),  # local attention by place in the row
    ("mpt", {}, "trl", "log-prob"),  # ALiBi by place in the row
    ("lfm2", {}, "trl", "log-prob"),  # convolution
    ("gpt_oss", {}, BATCHED, ""),  # with a router's loss
    ("laguna", {}, "refused", "PEFT does not load back"),
    ("hrm_text", {}, "trl", "calls the adapted layer"),
    ("llama", DYNAMIC, "refused", "depends on the rows beside it"),
    ("bert", {"is_decoder": False}, "refused", "not causal as it is configured"),
]
MIXTURES = ("mixtral", "olmoe", "qwen3_moe", "flex_olmo", "ernie4_5_moe", "minimax_m2", "afmoe")
ATTENTION = {"targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}
MORE: list[tuple[str, dict[str, Any], str, str]] = [
    *((kind, {}, BATCHED, "") for kind in ("gemma2", "phi3", "starcoder2", "exaone4", "olmo3", "qwen2", "cohere2")),
    *((kind, {}, BATCHED, "") for kind in ("qwen3", "gpt_neox", "gpt2", "opt", "gptj", "codegen", "xglm", "stablelm")),
    *((kind, {}, BATCHED, "") for kind in ("qwen2_moe", "minimax_m3_vl_text")),
    *((kind, ATTENTION, BATCHED, "") for kind in MIXTURES),
    *((kind, {}, "trl", "0 times") for kind in ("bart", "marian", "gemma3")),
    *((kind, {}, "trl", "log-prob") for kind in ("rwkv", "qwen3_5_text", "olmo_hybrid")),
    *((kind, {}, "trl", "") for kind in ("bloom", "mixtral", "olmoe", "qwen3_moe", "ctrl")),
    *((kind, {}, "trl", "log-prob") for kind in ("bamba", "zamba", "zamba2")),
    *((kind, {}, "trl", "calls the adapted layer") for kind in ("gemma3n_text", "zaya")),
    ("phi3", LONG_ROPE, "refused", "depends on the rows beside it"),
    ("roberta", {"is_decoder": False}, "refused", "not causal as it is configured"),
    ("bert-generation", {"is_decoder": False}, "refused", "not causal as it is configured"),
    ("xlm", {"causal": False}, "refused", "not causal as it is configured"),
    ("mamba", {}, "refused", "lora.target_modules"),
    ("llama4_text", {}, "refused", "lora.target_modules"),
]  # fmt: skip


def ids(cases: list[tuple[str, dict[str, Any], str, str]]) -> list[str]:
    return [kind + ("-" + "-".join(changes) if changes else "") for kind, changes, _, _ in cases]


@pytest.mark.parametrize(("kind", "changes", "outcome", "reason"), CORE, ids=ids(CORE))
def test_the_core(kind: str, changes: dict[str, Any], outcome: str, reason: str) -> None:
    found = examine(kind, **changes)
    assert found.outcome == outcome, found
    assert reason in found.reason


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes", "outcome", "reason"), MORE, ids=ids(MORE))
def test_more(kind: str, changes: dict[str, Any], outcome: str, reason: str) -> None:
    found = examine(kind, **changes)
    assert found.outcome == outcome, found
    assert reason in found.reason
