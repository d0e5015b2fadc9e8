"""Two small runs on the embedded model, an adapter and a full one, which no test changes."""

from pathlib import Path
from typing import Any

import pytest

from factdpo.config.schema import Method
from factdpo.runs.answer import answer
from factdpo.using.finished import Finished, read_finished
from tests.helpers.runs import folder_of, new_session, small, spec_of


def _finished(out: Path, **changes: Any) -> Finished:
    result = answer(spec_of(small(out, **changes)), new_session())
    return read_finished(folder_of(out, result))


@pytest.fixture(scope="session")
def adapter_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return _finished(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return _finished(tmp_path_factory.mktemp("full"), lora_method=Method.full, dpo_learning_rate=1e-4)
