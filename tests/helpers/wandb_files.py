"""Read W&B's own file of a run, a log of protobuf records in the format of LevelDB."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER = 7  # of the file, and of each part: CRC-32, length, type
BLOCK = 1 << 15
LAST = (1, 4)  # types of a part that ends a record


def records(file: Path) -> Iterator[Any]:
    """Yield the complete records of RUN/wandb/*/run-ID.wandb."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, collected = file.read_bytes(), HEADER, b""
    while place + HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        collected += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in LAST:
            record = Record()
            record.ParseFromString(collected)
            yield record
            collected = b""


def history(file: Path) -> list[dict[str, Any]]:
    """Return the logged points of a run."""
    points = [record.history for record in records(file) if record.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in p.item} for p in points]
