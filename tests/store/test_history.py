import math
from pathlib import Path

import numpy as np
import pytest

from factdpo.store.history import LocalTracker, read_history


def test_rows_come_back_as_they_were_logged(tmp_path):
    tracker = LocalTracker(tmp_path)
    tracker.log({"step": 1, "loss": np.float32(0.5), "note": None})
    tracker.log({"step": 2, "loss": math.inf, "rewards/margins": -math.inf})
    tracker.log({"step": 3, "loss": math.nan})
    first, second, third = read_history(tmp_path / "history.jsonl")  # on the disk before finish
    assert first == {"step": 1, "loss": 0.5, "note": None}
    assert second == {"step": 2, "loss": math.inf, "rewards/margins": -math.inf}
    assert third["step"] == 3 and math.isnan(third["loss"])


def test_the_history_of_an_earlier_attempt_is_cut_off(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 7}\n')
    LocalTracker(tmp_path).log({"step": 1})
    assert read_history(tmp_path / "history.jsonl") == [{"step": 1}]


def test_a_torn_last_line_is_left_out_and_a_broken_one_before_it_refused(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "not\xc3')
    assert read_history(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"history\.jsonl:2: not a row"):
        read_history(path)
    path.write_text('[{"step": 1}]\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"history\.jsonl:1: not a row of a history \(no JSON object\)"):
        read_history(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_full_disk_is_an_error_of_the_local_record(tmp_path):
    (tmp_path / "history.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        LocalTracker(tmp_path).log({"step": 1})
