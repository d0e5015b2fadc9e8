from pathlib import Path

import psutil

from factdpo.store.provenance import memory_bytes


def test_memory_is_that_of_the_container_where_it_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("262144\n")
    assert memory_bytes(tmp_path) == (1048576, 786432)


def test_memory_is_that_of_the_machine_where_there_is_no_limit(tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    assert memory_bytes(tmp_path)[0] == total, "no cgroup"
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("262144\n")
    assert memory_bytes(tmp_path)[0] == total
