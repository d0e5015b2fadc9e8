"""A job of a sweep has the config that Hydra composes for it, and a wrong one is refused in Hydra's words."""

from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

import factdpo.commands.run  # noqa: F401  (registers the schema)
from factdpo.config.folders import conf_folder
from factdpo.sweep.compose import Composer


@pytest.fixture(scope="module")
def loader() -> Iterator[ConfigLoader]:
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture(scope="module")
def composer(loader: ConfigLoader) -> Composer:
    """One for all tests, as for all jobs of a sweep."""
    config = sweep_config(loader, "track=none", "hydra.verbose=true", "hydra.job.name=${now:%f}")
    str(config.hydra.job.name)  # which all jobs share from now on
    return Composer(loader, config)


def sweep_config(loader: ConfigLoader, *overrides: str) -> DictConfig:
    return loader.load_configuration("config", list(overrides), run_mode=RunMode.MULTIRUN)


def stock(composer: Composer, overrides: list[str], number: int) -> DictConfig:
    """The job as Hydra's basic launcher composes it."""
    job = composer.loader.load_sweep_config(composer.config, overrides)
    with open_dict(job):
        job.hydra.job.id = job.hydra.job.num = number
    return job


def facts_of(job: DictConfig) -> tuple[object, ...]:
    """All that a reader of the config can see: text, flags, and values once interpolations are resolved."""
    HydraConfig.instance().set_config(job)  # which `${hydra:...}` reads
    flags = [(OmegaConf.is_struct(node), OmegaConf.is_readonly(node)) for node in (job, job.hydra, job.dpo)]
    values = [*(job[key] for key in job if key != "hydra"), job.hydra.job, job.hydra.sweep, job.hydra.overrides]
    resolved = [OmegaConf.to_container(one, resolve=True) if OmegaConf.is_config(one) else one for one in values]
    return OmegaConf.to_yaml(job), flags, resolved


JOBS = [
    [],
    ["seed=1"],
    ["seed=2", "dpo.beta=0.3", "track.tags=[a,b]", "label='a b, c'"],
    ["dpo.beta=1e-3", "dpo.loss=[sigmoid,sft]", "dpo.loss_weights=[1,0.5]"],
    ["label=null", "out='/tmp/with space'", "sweep='a=b'", r"label=back\,slash"],
    ["label='it is \\'quoted\\''", 'label="äöü 日本"', "out='${hydra:job.name}'"],
    ["seed=3", "seed=4"],
    ["model=pythia_14m", "split=canonical", "model=nano"],
    ["model=nano", "model.name=elsewhere", "model.revision=step1000"],
    ["lora=none"],
    ["lora=none", "dpo={beta: 0.5}"],
    ["lora={rank: 4, alpha: 8}"],
    ["experiment=seed"],
    ["experiment=seed", "++dpo.beta=2"],
    ["sweeps=beta"],
    ["sweeps=beta", "~experiment"],
    ["~track"],
    ["+new=3", "dpo={beta:0.5}"],
    ["+new.deep.key=3", "++new.deep.other=[1,{a: 2}]", "new.deep.key=4"],
    ["+track.tags=[c]", "++track.tags=[d]"],
    ["+new=null", "+new=1"],
    ["++seed=5", "++seed=6"],
    ["dpo.beta=${oc.env:NOT_SET,2}", "dpo.learning_rate=${dpo.beta}", "label=${now:%f}"],
    ["+new=1", "~new"],
    ["+new={a: 1}", "~new.a=1", "+new={b: 2}"],
    ["hydra.job.name=other", "seed=1"],
    ["hydra/launcher=basic", "seed=1"],
    ["hydra.job.config.override_dirname.exclude_keys=[seed]", "seed=1", "dpo.beta=1"],
]

WRONG = [
    ["nonsense=1"],
    ["dpo.nonsense=1"],
    ["seed=many"],
    ["dpo.loss=[a,{b:c}]"],
    ["dpo=3"],
    ["model=nanoo"],
    ["nogroup@pack=1"],
    ["model@pack=nano"],
    ["++model=nano"],
    ["~nonsense"],
    ["~dpo.beta"],
    ["~dpo.beta=17"],
    ["+experiment=seed"],
    ["+seed=1"],
    ["+dpo.beta=1"],
    ["seed=1,2"],
    ["seed=range(1,3)"],
    ["seed=[1"],
    ["=1"],
    ["seed=1", "nonsense=1", "model=nanoo"],
    ["hydra.nonsense=1"],
    ["hydra=1"],
]


@pytest.mark.parametrize("overrides", JOBS, ids=" ".join)
def test_a_job_is_composed_as_hydra_composes_it(composer: Composer, overrides: list[str]) -> None:
    expected = facts_of(stock(composer, overrides, 3))
    for _ in range(2):  # the second time from memory, which the first must have left as it was
        job = composer.compose(overrides, 3)
        assert facts_of(job) == expected
        job.seed = 99


@pytest.mark.parametrize("overrides", WRONG, ids=" ".join)
def test_a_wrong_job_is_refused_as_hydra_refuses_it(composer: Composer, overrides: list[str]) -> None:
    with pytest.raises(Exception) as expected:
        stock(composer, overrides, 0)
    with pytest.raises(expected.type) as refused:
        composer.compose(overrides, 0)
    assert str(refused.value) == str(expected.value)
    assert str(refused.value.__cause__) == str(expected.value.__cause__)


def test_options_of_a_folder_that_the_command_names_are_options(loader: ConfigLoader, tmp_path: Path) -> None:
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    composer = Composer(loader, sweep_config(loader, f"hydra.searchpath=[{tmp_path}]"))
    job = composer.compose(["+label=mine"], 0)
    assert (job.seed, job.label) == (7, None)
    assert facts_of(job) == facts_of(stock(composer, ["+label=mine"], 0))


def test_values_are_set_without_composing_anew(composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
    composer.compose(["model=nano", "seed=0", "++x=1"], 0)
    monkeypatch.setattr(composer, "loader", None)
    assert [composer.compose([f"seed={n}", "model=nano", "++x=1"], n).seed for n in range(3)] == [0, 1, 2]
