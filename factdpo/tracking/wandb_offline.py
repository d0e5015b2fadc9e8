"""Checks that W&B's file of an offline run is complete: on a full disk W&B loses rows without a warning.

The file is a log in LevelDB's format (github.com/google/leveldb, doc/log_format.md), after 7 bytes of W&B's own. Its
records are protobuf messages; the `exit` record marks the end of the run.
"""

import struct
import time
from collections.abc import Iterator
from pathlib import Path

START, BLOCK = 7, 32768  # bytes
HEADER = struct.Struct("<IHB")  # checksum, length, and which part of a record follows
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def is_whole(file: Path, patience_seconds: float = 0.0) -> bool:
    """Whether the file has the end of the run and is readable up to there.

    W&B returns from `finish` while it still writes the last records: `patience_seconds` is how long to wait for them.
    """
    deadline = time.monotonic() + patience_seconds
    while not (whole := _has_exit_record(file)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return whole


def _has_exit_record(file: Path) -> bool:
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    message = wandb_internal_pb2.Record  # pyright: ignore[reportAttributeAccessIssue]  # made when it is imported
    try:
        return any(message.FromString(record).HasField("exit") for record in _records(file))
    except (OSError, DecodeError):
        return False


def _records(file: Path) -> Iterator[bytes]:
    """The records up to where the file breaks off."""
    data, record, at = file.read_bytes(), b"", START
    while at + HEADER.size <= len(data):
        if BLOCK - at % BLOCK < HEADER.size:  # nothing begins so near the end of a block
            at += BLOCK - at % BLOCK
            continue
        _, length, part = HEADER.unpack_from(data, at)
        at += HEADER.size
        if part not in (FULL, FIRST, MIDDLE, LAST) or at + length > len(data):
            return
        record = data[at : at + length] if part in (FULL, FIRST) else record + data[at : at + length]
        at += length
        if part in (FULL, LAST):
            yield record
