"""Tiny random models of transformers' causal types, and what factdpo makes of each: asked, then tried."""

import dataclasses
import random
import tempfile
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from factdpo.config.schema import Config
from factdpo.data.facts import Fact
from factdpo.data.pairs import Pairs
from factdpo.models.base import Base, without_randomness
from factdpo.models.scoring import PairLogps, pair_logps
from factdpo.models.soundness import extremes, why_unsound
from factdpo.models.weights import Weights
from factdpo.training import trl_engine
from factdpo.training.adapters import load_trained, unload
from factdpo.training.batched import engine as batched_engine
from factdpo.training.batched.adapter import Adapter, read_adapter
from factdpo.training.batched.interrogation import interrogate
from factdpo.training.batched.stacked_lora import stacked
from factdpo.training.engine import Member, Trained
from factdpo.training.schedule import micro_batches
from tests.helpers.tiny import tiny_config, tokenizer

WINDOW = 16  # positions of every sliding window and chunk
LONG = 40  # tokens of a long prompt
VOCABULARY = 512
# What may differ: of a row's number; of a tensor's norm (AdamW divides by the gradient's size, so that rounding shows
# where it is near 0: most are at 1e-6, DiffLlama at 2e-3, while a leak gives 0.1 and more); of a score, in nats.
ROWS, WEIGHTS, SCORES = 1e-4, 5e-3, 1e-3

# A small number for every name of a size; a config takes those that it has.
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "n_embed", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("input_embedding_size", "dim_model", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 2),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "num_encoder_attention_heads"), 2),
    **dict.fromkeys(("num_decoder_attention_heads", "num_decoder_layers", "num_encoder_layers"), 2),
    "num_key_value_heads": 1, "head_dim": 16, "kv_channels": 16,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner"), 64),
    "ffn_hidden_size": 64,
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"), 256),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "attention_window_size", "window_size"), WINDOW),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "v_head_dim", "rotary_dim"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    "vocab_size": VOCABULARY, "is_decoder": True, "use_cache": False,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
INDEXER = {"n_heads": 2, "kv_heads": 1, "head_dim": 16, "budget": 8, "compress_ratio": 2}
# What a few need besides.
OWN: dict[str, dict[str, Any]] = {
    "diffllama": {"num_key_value_heads": 2},
    "codegen": {"n_head": 4, "rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "xlm": {"causal": True},
    "rwkv": {"attention_hidden_size": 32, "context_length": 256},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": 1, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4},
    },
    **{kind: {"layer_types": ["conv", "full_attention"]} for kind in ("lfm2", "lfm2_moe")},
    "lfm3": {"layer_types": ["conv", "sliding_attention", "full_attention"]},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": MAMBA | {"layer_types": ["linear_attention", "full_attention"], "shared_intermediate_size": 32},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
        "attention_head_dim": 32, "num_key_value_heads": 2,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"], "n_mamba_heads": 4, "mamba_d_state": 8, "chunk_size": 8,
        "num_key_value_heads": 2,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.5, 0.0],
        "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 4,
    },
    "reformer": {
        "axial_pos_embds": False, "attn_layers": ["local", "local"], "local_attn_chunk_length": 8,
        "attention_head_size": 16, "feed_forward_size": 64,
    },
    "qwen4_exp_text": {f"indexer_{name}": size for name, size in INDEXER.items()} | {
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "hc_lowrank": 8, "ngram_vocab_size_base": 200, "heads_per_ngram": 2, "split_ngram_parts": 2,
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
    },
}  # fmt: skip


class Found(NamedTuple):
    """What became of an architecture."""

    outcome: str  # batched, trl, refused, or not tried
    reason: str


# ------------------------------------------------------------------------------------------------- a tiny model of each


def tiny_model(kind: str, **changes: Any) -> Any:
    """A random model of this type in eval mode, frozen, with two layers or one of each kind."""
    torch.manual_seed(0)
    config, _ = without_randomness(_shrunk(CONFIG_MAPPING[kind], OWN.get(kind, {}) | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for module in model.modules():  # weights so large that the predictions differ
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D) and module.weight.is_floating_point():
            nn.init.normal_(module.weight, std=0.25)
    return model.eval().requires_grad_(False)


def _shrunk(cls: Any, changes: dict[str, Any]) -> Any:
    """The config with every size that it has small, and so those of the configs within it."""
    known = {field.name for field in dataclasses.fields(cls)}
    mapped = {inner: outer for outer, inner in getattr(cls, "attribute_map", {}).items()}
    default = cls()
    sizes = {name: value for name, value in SIZES.items() if name in known}
    sizes |= {inner: SIZES[outer] for inner, outer in mapped.items() if inner in known and outer in SIZES}
    for name in getattr(cls, "sub_configs", {}):
        if name in known and name not in changes and (inside := getattr(default, name, None)) is not None:
            sizes[name] = _shrunk(type(inside), {})
    if "qk_rope_head_dim" in known:  # multi-head latent attention: what is rotated is the head
        sizes |= {"head_dim": sizes["qk_rope_head_dim"], "num_key_value_heads": 2}
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or []))
    if kinds and "layer_types" in known:
        layers = max(2, len(kinds))
        sizes["layer_types"] = (kinds * 2)[:layers]
        sizes["num_hidden_layers"] = layers
    return cls(**(sizes | {name: value for name, value in changes.items() if name in known}))


def base_of(kind: str, model: Any) -> Base:
    return Base(model, tokenizer(), Weights(kind, {"files": kind}), adjusted=[])


# ----------------------------------------------------------------------------------------------------------- its data


def training_pairs(cfg: Config, long: int = LONG) -> Pairs:
    """Short prompts, and two long ones that are not in the first batch."""
    pairs = random_pairs(24, seed=1)
    (first,) = next(micro_batches(len(pairs), cfg.dpo))
    rng = random.Random(2)
    for row in [row for row in range(len(pairs)) if row not in first][:2]:
        pairs.prompt_ids[row][:] = [rng.randrange(1, VOCABULARY) for _ in range(long)]
    return pairs


def held_out_pairs(long: int = LONG) -> Pairs:
    """Prompts that begin alike by twos, some of them long."""
    pairs, rng = random_pairs(16, seed=3), random.Random(4)
    for row in range(0, 8, 2):
        beginning = [rng.randrange(1, VOCABULARY) for _ in range(long if row == 0 else 6)]
        for other in (row, row + 1):
            pairs.prompt_ids[other][:] = [*beginning, other + 1]
    return pairs


def random_pairs(count: int, seed: int) -> Pairs:
    """Prompts of 2 to 9 random tokens, answers of 1 to 3 that begin differently."""
    rng = random.Random(seed)

    def ids(length: int, low: int, high: int) -> list[int]:
        return [rng.randrange(low, high) for _ in range(length)]

    half = VOCABULARY // 2
    prompts = [ids(rng.randint(2, 9), 1, VOCABULARY) for _ in range(count)]
    chosen = [ids(rng.randint(1, 3), 1, half) for _ in range(count)]
    rejected = [ids(rng.randint(1, 3), half, VOCABULARY) for _ in range(count)]
    return Pairs([Fact(i, f"prompt {i}", "yes", "no") for i in range(count)], prompts, chosen, rejected, pad_id=0)


# ----------------------------------------------------------------------------------------------------------- the answer


def examine(kind: str, long: int = LONG, targets: list[str] | None = None, **changes: Any) -> Found:
    """What factdpo does with a model of this type, tried, with adapters on these layers or on all linear ones."""
    try:
        base = base_of(kind, tiny_model(kind, **changes))
    except Exception as error:
        return Found("not tried", f"no tiny model: {said(error)}")
    cfg = _config(targets)
    pairs, test = training_pairs(cfg, long), held_out_pairs(long)
    probes = extremes([pairs, test])
    if sentence := why_unsound(base, probes, longest=max(128, long + 20)):
        return Found("refused", sentence)
    no_engine, sentence = interrogate(base, cfg, probes)
    if no_engine:
        return Found("refused", no_engine)
    if sentence:
        ending = _trl(base, Run(cfg, pairs))
        if isinstance(ending, TimeoutError):
            raise ending
        if isinstance(ending, Exception):
            return Found("refused", f"{sentence}; and by TRL {said(ending)}")
        return Found("trl", sentence)
    return Found("batched", _difference(kind, changes, targets, base, pairs, test))


def _config(targets: list[str] | None, **changes: Any) -> Config:
    return tiny_config(**changes, lora_target_modules=targets or ["all-linear"])


class Run(NamedTuple):
    cfg: Config
    pairs: Pairs


def _trl(base: Base, run: Run, rows: list[dict[str, Any]] | None = None) -> Trained | Exception:
    refs = pair_logps(base.model, run.pairs, 64)
    rows = [] if rows is None else rows
    member = Member("0", run.cfg, run.pairs, refs, {}, lambda scores: {}, lambda *new: rows.extend(new))
    (((_, ending),),) = trl_engine.fit(base, [member])
    return ending


def _difference(
    kind: str, changes: dict[str, Any], targets: list[str] | None, base: Base, pairs: Pairs, test: Pairs
) -> str:
    """Trains two runs at once, the first by TRL too, and compares; raises AssertionError where they part."""
    cfgs = [_config(targets), _config(targets, dpo_seed=1)]
    refs = pair_logps(base.model, pairs, 64)
    histories: list[list[dict[str, Any]]] = [[], []]
    members = [
        Member(str(number), cfg, pairs, refs, {}, lambda scores: {}, lambda *new, of=of: of.extend(new))
        for number, (cfg, of) in enumerate(zip(cfgs, histories, strict=True))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        groups = batched_engine.fit_many(base, members, Path(scratch))
        endings = {member.key: ending for group in groups for member, ending in group}
        own = endings["0"]
        if isinstance(own, Exception):
            raise own
        rows: list[dict[str, Any]] = []
        other_base = base_of(kind, tiny_model(kind, **changes))
        ending = _trl(other_base, Run(cfgs[0], pairs), rows)
        if isinstance(ending, Exception):
            return f"TRL cannot: {said(ending)}"
        ending.save(folder := Path(scratch) / "trl")
        theirs = read_adapter(folder / "adapter")
        apart = {
            "rows": max(abs(a["loss"] - b["loss"]) for a, b in zip(histories[0], rows, strict=True)),
            "weights": _weights_apart(own.weights, theirs),  # type: ignore[arg-type]
            "scores": _scores_apart(base, folder, theirs, test),
        }
    limits = {"rows": ROWS, "weights": WEIGHTS, "scores": SCORES}
    if bad := {name: value for name, value in apart.items() if not value <= limits[name]}:
        raise AssertionError(f"{kind}: engine=batched is not TRL: {bad}")
    return f"{apart['rows']:.0e}, {apart['weights']:.0e}, {apart['scores']:.0e}"


def _weights_apart(one: Adapter, other: Adapter) -> float:
    """Largest difference of a tensor, relative to its norm; to a hundredth of the largest A's or B's where it is less.

    A router that takes one expert has gradients of zero: its B is rounding, of rounding's size.
    """
    assert one.layers.keys() == other.layers.keys()
    apart = 0.0
    for side in range(2):
        norms = {name: both[side].norm() for name, both in other.layers.items()}
        least = max(norms.values()) / 100
        for name, norm in norms.items():
            difference = (one.layers[name][side] - other.layers[name][side]).norm() / max(norm, least)
            apart = max(apart, difference.item())
    return apart


def _scores_apart(base: Base, folder: Path, adapter: Adapter, pairs: Pairs) -> float:
    """Of the trained model, between PEFT's and the stack's scoring, in nats."""
    with stacked(base, [adapter, adapter], adapter.config.r) as stack:
        ours = stack.logps([pairs, pairs], 2048)[1]
    model = load_trained(base, folder)
    try:
        theirs: PairLogps = pair_logps(model, pairs, 4)
    finally:
        unload(model)
    return max((getattr(ours, side) - getattr(theirs, side)).abs().max().item() for side in ("chosen", "rejected"))


def said(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return textwrap.shorten(f"{type(error).__name__}: {first}", 200, placeholder=" ...")
