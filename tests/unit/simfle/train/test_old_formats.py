"""Files of an earlier version are refused with one line that names the version."""

import hashlib
import json
from pathlib import Path

import pytest
from helpers.synthetic_shards import make_faces

from shards.errors import UserError
from shards.format.manifest import NAME, read_manifest
from simfle.config.schema import PretrainConfig
from simfle.train.run_dir import check_same_config

pytestmark = pytest.mark.slow


def test_a_build_of_an_earlier_format(tmp_path: Path) -> None:
    make_faces(tmp_path / "faces", "--people", "4")
    file = tmp_path / "faces" / NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1}))
    with pytest.raises(UserError, match=r"has format 1, but this version reads 2") as found:
        read_manifest(tmp_path / "faces")
    assert "\n" not in str(found.value)


def test_a_run_of_an_earlier_format(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000002"
    folder.mkdir(parents=True)
    state = json.dumps({"format": 1, "step": 2, "samples": 8, "config": "0" * 16, "corpus": "", "optimizer": "sgd"})
    (folder / "state.json").write_text(state)
    marker = {"state.json": {"bytes": len(state), "sha256": hashlib.sha256(state.encode()).hexdigest()}}
    (folder / "COMPLETE").write_text(json.dumps(marker))
    with pytest.raises(
        UserError, match=r"step-00000002 has format 1, but this version reads 2. Fix: use a new"
    ) as found:
        check_same_config(tmp_path, PretrainConfig())
    assert "\n" not in str(found.value)
