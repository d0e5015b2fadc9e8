"""Random models of six architectures and random pairs: real, and so small that a training takes a second."""

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from factdpo import nano
from factdpo.config.schema import Config
from factdpo.config.validate import validate
from factdpo.data.facts import Fact
from factdpo.data.pairs import Pairs
from factdpo.models.base import Base
from factdpo.models.weights import Weights

VOCABULARY = 2048  # as nano's tokenizer has
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
WIDE: dict[str, Any] = {"intermediate_size": 64}
IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
# Weights large enough that the predictions differ, and no dropout: model.load_base takes it out.
MODELS: dict[str, Callable[[], Any]] = {
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, **WIDE, **IDS, initializer_range=0.3)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **WIDE, **IDS, initializer_range=0.3)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            **IDS, n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=0.3, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0,
        )
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SHAPE, **IDS, ffn_dim=64, word_embed_proj_dim=32, init_std=0.3, dropout=0.0, attention_dropout=0.0)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, **WIDE, **IDS, num_key_value_heads=1, initializer_range=0.3)
    ),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(  # a loss of its routers is added
        Qwen2MoeConfig(
            **SHAPE, **WIDE, **IDS, num_key_value_heads=1, initializer_range=0.3, moe_intermediate_size=32,
            shared_expert_intermediate_size=32, num_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.1,
        )
    ),
}  # fmt: skip


@functools.cache
def tokenizer() -> Any:
    found = AutoTokenizer.from_pretrained(nano.WEIGHTS)
    found.pad_token = found.pad_token or found.eos_token
    return found


@functools.cache
def _model(family: str) -> Any:
    torch.manual_seed(0)
    return MODELS[family]().eval()


def tiny_base(family: str = "gpt_neox", dtype: torch.dtype = torch.float32) -> Base:
    """A fresh base with the same random weights each time, frozen as load_base leaves it; who asks may change it."""
    model = copy.deepcopy(_model(family)).to(dtype).requires_grad_(False)
    return Base(model, tokenizer(), Weights(family, {"files": family, "dtype": str(dtype)}), adjusted=[])


def tiny_pairs(count: int, longest: int = 1, seed: int = 0) -> Pairs:
    """Random tokens: prompts of 2 to 9, answers of 1 to `longest`."""
    rng = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [rng.randrange(1, VOCABULARY) for _ in range(length)]

    prompts = [ids(rng.randint(2, 9)) for _ in range(count)]
    chosen, rejected = ([ids(rng.randint(1, longest)) for _ in range(count)] for _ in range(2))
    return Pairs([Fact(i, f"prompt {i}", "yes", "no") for i in range(count)], prompts, chosen, rejected, pad_id=0)


def tiny_config(**changes: Any) -> Config:
    """A validated config of a short training of rank 4; `changes` by key, as in dpo_beta=0.5 or lora_rank=8."""
    cfg = Config()
    cfg.dpo.epochs, cfg.dpo.max_steps, cfg.dpo.batch_size = None, 6, 4
    cfg.lora.rank, cfg.lora.alpha = 4, 8.0
    cfg.eval.every = "never"
    cfg.track.wandb = False
    for key, value in changes.items():
        group, _, name = key.partition("_")
        setattr(getattr(cfg, group), name, value)
    return validate(cfg)
