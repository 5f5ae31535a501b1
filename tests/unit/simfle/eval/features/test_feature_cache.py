"""Cached features: used only as written, otherwise recomputed; a killed process leaves no files."""

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.scenario import mounted
from helpers.eval_fixtures import MakeBackbone, MakeShards

from shards.io.hashing import hash_file
from simfle.errors import UserError
from simfle.eval.backbones.load import LoadedBackbone, load_backbone
from simfle.eval.config import EvalConfig
from simfle.eval.data.splits import Split, read_split
from simfle.eval.evaluator import Evaluator
from simfle.eval.features import feature_cache
from simfle.eval.features.extractor import Extractor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[5]
NAME = "0123456789abcdef.pooled"


class Kept:
    """Return a split, a backbone and the features of both in `folder`."""

    def __init__(self, shards: Path, backbone: Path, folder: Path) -> None:
        self.split: Split = read_split([str(shards)], "train")
        self.backbone: LoadedBackbone = load_backbone(backbone)
        self.folder = folder
        self.extractor = Extractor(32, 4, torch.device("cpu"), 2, folder)
        self.pooled = self.read()
        self.maps = self.read_maps()

    def read(self) -> torch.Tensor:
        return self.extractor.pooled(self.backbone, self.split, "weights")

    def read_maps(self) -> torch.Tensor:
        return self.extractor.maps(self.backbone, self.split, "weights")[np.arange(len(self.split))]

    def file(self, kind: str) -> Path:
        return next(self.folder.glob(f"*.{kind}.npy"))


@pytest.fixture
def known(make_shards: MakeShards, make_backbone: MakeBackbone, tmp_path: Path) -> Kept:
    return Kept(make_shards({"train": [5, 5, 5]}), make_backbone(), tmp_path / "features")


def zeroed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-len(content) * 2 // 3 :] = bytes(len(content) * 2 // 3 + 1)
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def not_finite(file: Path) -> None:
    np.save(file, np.full_like(np.load(file), np.nan))


def objects(file: Path) -> None:
    np.save(file, np.array([{}] * 15, object), allow_pickle=True)


def no_array(file: Path) -> None:
    file.write_bytes(b"")


def told_nothing(file: Path) -> None:
    file.with_suffix(".json").write_text("{")


def unchecked(file: Path) -> None:
    file.with_suffix(".json").unlink()


@pytest.mark.parametrize("hurt", [zeroed, cut, not_finite, objects, no_array, told_nothing, unchecked])
@pytest.mark.parametrize("kind", ["pooled", "maps"])
def test_damaged_features_are_computed_again(
    known: Kept, kind: str, hurt: "type[zeroed]", caplog: pytest.LogCaptureFixture
) -> None:
    file = known.file(kind)
    before = file.read_bytes()
    hurt(file)  # type: ignore[operator]
    assert torch.equal(known.read(), known.pooled)
    assert torch.equal(known.read_maps(), known.maps)
    assert file.read_bytes() == before
    assert len([line for line in caplog.messages if f"{file} is corrupt" in line and "recomputing" in line]) == 1


@pytest.mark.parametrize(
    ("shape", "dtype"), [((15, 3), np.float32), ((9, 64), np.float32), ((15, 64), np.float64), ((15,), object)]
)
def test_other_arrays_with_the_right_hash_are_not_taken(known: Kept, shape: tuple[int, ...], dtype: type) -> None:
    """Both files are a copy from another place."""
    file = known.file("pooled")
    np.save(file, np.zeros(shape, dtype), allow_pickle=True)
    about = {"format": 1, "shape": "x".join(map(str, shape)), "dtype": np.dtype(dtype).str}
    told = about | {"sha256": hash_file(file)}
    file.with_suffix(".json").write_text(json.dumps(told))
    assert torch.equal(known.read(), known.pooled)


def test_features_cut_while_they_are_read_end_in_one_line(known: Kept) -> None:
    """Truncated as by another process: a memory map would end this one."""
    maps = known.extractor.maps(known.backbone, known.split, "weights")
    os.truncate(known.file("maps"), 200)
    with pytest.raises(UserError, match=r"maps.npy was truncated while it was read. Fix:"):
        maps[np.arange(15)]


def test_features_beyond_half_precision_are_refused(known: Kept) -> None:
    known.backbone.module.network.conv1[0].weight.mul_(1e9)
    for name, module in known.backbone.module.network.named_modules():
        if name.endswith(("bn1", "bn2")):
            module.weight.fill_(1e4)  # type: ignore[union-attr,operator]
    known.extractor.pooled(known.backbone, known.split, "large")
    with pytest.raises(UserError, match="non-finite features on split 'train'"):
        known.extractor.maps(known.backbone, known.split, "large")
    assert len(list(known.folder.glob("*.npy"))) == 3
    assert not list(known.folder.glob("*.tmp"))


def test_features_of_crops_that_are_not_finite_are_refused(known: Kept) -> None:
    known.backbone.module.network.conv1[0].weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"non-finite features on split 'train'. Fix: use a backbone"):
        next(known.extractor.features(known.backbone, known.split))


@pytest.mark.parametrize("name", [f"{NAME}.4000000.tmp", f".{NAME}.npy.4000000.tmp", f".{NAME}.json.4000000.tmp"])
def test_what_a_killed_process_left_goes_at_the_next_start(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "eval" / "features"
    folder.mkdir(parents=True)
    for each in (name, "mine.tmp", f"{NAME}.npy"):
        (folder / each).write_bytes(b"some")
    lock = folder / f"{NAME}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as the process that still writes it
        Evaluator(EvalConfig(out=str(tmp_path / "eval"), device="cpu"))
        assert (folder / name).exists()
    Evaluator(EvalConfig(out=str(tmp_path / "eval"), device="cpu"))
    assert {path.name for path in folder.iterdir()} == {"mine.tmp", f"{NAME}.npy", lock.name}


def test_a_full_disk_ends_an_evaluation_with_one_line(
    make_shards: MakeShards, make_backbone: MakeBackbone, tmp_path: Path
) -> None:
    """A real full disk, which caused SIGBUS with a memory map."""
    shards = make_shards({"train": [40, 40, 40], "test": [16, 16, 16]})
    disk = tmp_path / "disk"
    disk.mkdir()
    words = [
        f"shards=[{shards}]",
        f"backbones=[{make_backbone()}]",
        "protocols=[landmarks]",
        "device=cpu",
        "image_size=224",
    ]
    words += [f"out={disk / 'eval'}", "val_fraction=0.2", "random_baseline=false", "threads=1"]
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    with mounted(disk, 1):
        done = subprocess.run(
            [sys.executable, "-m", "simfle", "evaluate", *words], capture_output=True, text=True, check=False, env=own
        )
        left = [path.name for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"error: cache_dir={disk}/eval/features: features cannot be written: No space left on device"
    )
    assert "Fix: check this disk" in last
    assert "Traceback" not in done.stderr
    assert not left


def test_where_space_cannot_be_reserved_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network file systems."""

    def refuse(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    path = tmp_path / f"{NAME}.npy"
    found = feature_cache.cached_features(path, (6, 2), np.float32, iter((values[:4], values[4:])))
    assert np.array_equal(found[np.arange(6)], values)
    assert np.array_equal(np.load(path), values)


def test_a_configuration_of_its_own_folder(known: Kept, tmp_path: Path) -> None:
    """A link to another folder keeps both files there."""
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "link").symlink_to(there)
    replace(known.extractor, cache=tmp_path / "link").pooled(known.backbone, known.split, "weights")
    assert sorted(path.suffix for path in there.iterdir()) == [".json", ".lock", ".npy"]
