"""A sweep that was left in peace, with which all others are compared."""

from pathlib import Path

import pytest

import factdpo.runs.pipeline
import factdpo.training.trl_engine  # noqa: F401  (forks have both then)
from tests.helpers import faults


@pytest.fixture(scope="session")
def peace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `out` of two runs, done by both engines, that nothing happened to."""
    out = tmp_path_factory.mktemp("peace") / "outputs"
    for engine in ("batched", "trl"):
        cfgs = faults.sweep_of(out, engine)
        ended = faults.in_child(out, lambda cfgs=cfgs: faults.do(cfgs))
        assert ended.code == 0, ended.said
    return out
