"""Digests of files and values. They identify data and runs, so their values are pinned."""

import hashlib
from pathlib import Path

import pytest

from shards.io.atomic import CHUNK, RefusedFileError
from shards.io.hashing import digest, hash_file, short_hash


@pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK + 1])
def test_a_file_is_hashed_in_parts(size: int, tmp_path: Path) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    path = tmp_path / "a"
    path.write_bytes(content[:size])
    assert hash_file(path) == hash_file(str(path)) == hashlib.sha256(content[:size]).hexdigest()
    assert hash_file(path, "md5") == hashlib.md5(content[:size]).hexdigest()
    with path.open("rb") as file:
        file.seek(size // 2)
        assert hash_file(file) == hashlib.sha256(content[size // 2 : size]).hexdigest()
        assert file.tell() == size


def test_a_device_is_refused() -> None:
    with pytest.raises(RefusedFileError):
        hash_file("/dev/zero")


def test_digests_of_values_are_pinned() -> None:
    assert digest([["train", 3, "ab"], {"b": 1, "a": None}]) == "e8e69f38410a656d"
    assert digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    assert short_hash(b"face") == hashlib.blake2b(b"face", digest_size=8).digest()
    assert len(short_hash(b"face", 16)) == 16
