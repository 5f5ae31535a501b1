"""A run on shards with corrupt images: the same samples on any number of processes, also when resumed."""

import json
import shutil
from pathlib import Path

import pytest
from distributed import runs

from shards.format.index import read_index

# One epoch of the 240 faces reads every corrupt one.
SETTINGS = ("train.steps=15", "train.log_sample_ids=true", "train.checkpoint_every=100", "data.splits=[]")


@pytest.fixture
def hurt(faces: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Return the synthetic faces with one corrupt image in each of three shards, and the keys of those."""
    folder, keys = shutil.copytree(faces, tmp_path / "hurt"), []
    for number, tar in enumerate(sorted(folder.glob("*.tar"))[:3]):
        index = read_index(tar.with_suffix(".idx"))
        place = index.members(5 * number)["jpg"]
        keys.append(index.keys[5 * number])
        with tar.open("r+b") as file:
            file.seek(place.offset)
            file.seek(place.offset + file.read(place.size).index(b"\xff\xda"))
            file.write(bytes(2))  # no marker, no image data after the tables
    return folder, keys


def hurt_every(folder: Path, sample: int) -> None:
    """Corrupt the image at this position in each shard."""
    for tar in sorted(folder.glob("*.tar")):
        place = read_index(tar.with_suffix(".idx")).members(sample)["jpg"]
        with tar.open("r+b") as file:
            file.seek(place.offset)
            file.seek(place.offset + file.read(place.size).index(b"\xff\xda"))
            file.write(bytes(2))


def told(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "corrupt_samples.jsonl").read_text().splitlines()]


def test_damage_changes_nothing_but_the_damaged_samples(hurt: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, keys = hurt
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    output = runs.finish(1, folder, alone, *SETTINGS)
    assert sorted(line["key"] for line in told(alone)) == sorted(keys)
    assert all(output.count(f"{key} cannot be decoded") == 1 for key in keys)
    # With none allowed, two processes stop together at the first one; otherwise one process finishes as two do.
    output = runs.finish(2, folder, shared, *SETTINGS, "data.max_corrupt_fraction=0", code=1)
    assert "1 of " in output
    assert "data.max_corrupt_fraction=0 allows 0" in output
    assert "Traceback" not in output.partition("error:")[0]
    stopped = told(shared)[0]["step"]
    assert (shared / "checkpoints" / f"step-{stopped:08d}" / "COMPLETE").exists()
    runs.finish(1, folder, shared, *SETTINGS)
    assert runs.samples(shared) == runs.samples(alone)
    by_id = {line["id"]: line for line in told(alone)}
    assert {line["id"]: line for line in told(shared)} == by_id
    fed = {number for pairs in runs.samples(alone).values() for number, _ in pairs}
    assert not fed & by_id.keys()
    assert fed >= {line["replaced_by"] for line in by_id.values()}


def test_restored_samples_no_longer_count_and_the_run_goes_on(faces: Path, tmp_path: Path) -> None:
    """Follow the advice of a run that stopped because of its shards: rerunning the command resumes it."""
    folder, run = shutil.copytree(faces, tmp_path / "hurt"), tmp_path / "run"
    for sample in range(3):  # of each of eight shards: more than the ten that are always allowed
        hurt_every(folder, sample)
    assert "Fix: restore the shards and rerun" in runs.finish(1, folder, run, *SETTINGS, code=1)
    first = told(run)
    assert len(first) > 10
    assert f"{len(first)} of " in runs.finish(2, folder, run, *SETTINGS, code=1)  # nothing was restored
    assert told(run) == first
    left = first[0]  # all shards are restored except this one's
    for tar in faces.glob("*.tar"):
        if tar.name != Path(left["shard"]).name:
            shutil.copy(tar, folder / tar.name)
    output = runs.finish(2, folder, run, *SETTINGS)
    still = [line for line in first if line["shard"] == left["shard"]]
    assert f"{len(first) - len(still)} corrupt samples can be decoded again" in output
    assert [line for line in told(run)[: len(first)] if "restored" not in line] == still
    assert all(line["shard"] == left["shard"] for line in told(run)[len(first) :])
