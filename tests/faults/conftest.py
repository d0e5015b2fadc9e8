"""A sweep that was left in peace, with which all others are compared."""

from pathlib import Path

import pytest
import scipy.stats  # noqa: F401  (forks have all of these then)

import factdpo.report.contents
import factdpo.results.tables
import factdpo.runs.pipeline
import factdpo.training.trl_engine  # noqa: F401
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
