"""QLoRA: TRL trains an adapter on a base whose weights are packed, which bitsandbytes computes on a CPU too."""

from pathlib import Path

import pytest
import torch

from factdpo.config.schema import ConfigError, EngineName, Method, ModelConfig, Quantization
from factdpo.models import base
from factdpo.models.base import load_base
from factdpo.runs import answer
from tests.helpers.runs import small, spec_of


@pytest.mark.parametrize("kind", [Quantization.nf4, pytest.param(Quantization.int8, marks=pytest.mark.slow)])
def test_a_quantised_base_is_trained_by_trl_and_scored_as_it_was(tmp_path: Path, kind: Quantization) -> None:
    pytest.importorskip("bitsandbytes")
    result = answer.ask(small(tmp_path, model_quantization=kind, dpo_max_steps=6, dpo_learning_rate=3e-3))
    assert (
        result["state"] == "FINISHED"
        and result["engine"] == f"trl (auto: only TRL does model.quantization={kind.name})"
    )
    whole = load_base(ModelConfig(), torch.device("cpu"), tmp_path).model
    packed = load_base(ModelConfig(quantization=kind), torch.device("cpu"), tmp_path).model
    assert packed.get_memory_footprint() < 0.9 * whole.get_memory_footprint()
    assert not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in packed.modules()), "packed, it cannot train"
    unquantised = answer.ask(small(tmp_path, dpo_max_steps=6, dpo_learning_rate=3e-3))
    assert unquantised["id"] != result["id"]
    for model in ("base", "trained"):
        there, here = (found[model]["train"]["chosen_logp_nats"] for found in (result, unquantised))
        assert there != here and abs(there - here) < 1


def test_what_a_quantised_base_cannot_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = small(tmp_path, model_quantization=Quantization.nf4)
    cfg.lora.method = Method.full
    with pytest.raises(ConfigError, match=r"model\.quantization=nf4: not with lora=none"):
        spec_of(cfg)
    with pytest.raises(ConfigError, match=r"engine=batched: cannot do model\.quantization=nf4"):
        spec_of(small(tmp_path, model_quantization=Quantization.nf4, engine_name=EngineName.batched))
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'factdpo\[qlora\]'"):
        load_base(ModelConfig(quantization=Quantization.nf4), torch.device("cpu"), tmp_path)
