import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.corpus_fixtures import BUILD, VERIFY, encoded, picture, run, write_faces

from shards.edit.verify import verify
from shards.format.index import index_tar, read_index, write_index
from shards.format.manifest import read_manifest
from shards.format.tar_writer import TarShardWriter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    write_faces(folder / "faces", 24, ("a", "b"))
    (folder / "faces" / "a" / "empty.jpg").write_bytes(b"")
    command = [*BUILD, "folder", folder / "faces", folder / "out", "--class-folders", "--shard-samples", 7]
    assert run(*command).returncode == 0
    return folder / "out"


def flip_a_byte(shards: Path) -> None:
    """In the pixels of the third image."""
    index = read_index(shards / "train-000001.idx")
    member = index.members(2)["jpg"]
    with (shards / "train-000001.tar").open("r+b") as file:
        file.seek(member.offset + member.size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0xFF]))


def cut_a_tar(shards: Path) -> None:
    path = shards / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:-10240])


def lose_a_tar(shards: Path) -> None:
    (shards / "train-000002.tar").unlink()


def lose_an_index(shards: Path) -> None:
    (shards / "train-000002.idx").unlink()


def swap_indexes(shards: Path) -> None:
    shutil.copy(shards / "train-000000.idx", shards / "train-000001.idx")


def lose_a_reject(shards: Path) -> None:
    (shards / "rejected.jsonl").write_text("")


def leave_a_stray(shards: Path) -> None:
    shutil.copy(shards / "train-000000.tar", shards / "train-000009.tar")


def leave_a_removal(shards: Path) -> None:
    (shards / ".removal").mkdir()


def miscount(shards: Path) -> None:
    edit(shards, lambda manifest: manifest | {"entries": manifest["entries"] + 1})


def rename_labels(shards: Path) -> None:
    edit(shards, lambda manifest: manifest | {"labels": ["b", "a"]})


def edit(shards: Path, change: Callable[[dict], dict]) -> None:
    path = shards / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))


def rewrite(shards: Path, change: Callable[[str, dict[str, bytes]], tuple[str, dict[str, bytes]]]) -> None:
    """Rewrite the first shard with other samples, and a manifest and index that match it."""
    path = shards / "train-000000.tar"
    with tarfile.open(path) as tar:
        contents = {name: tar.extractfile(name).read() for name in tar.getnames()}
    keys = list(dict.fromkeys(name.split(".")[0] for name in contents))
    tar = TarShardWriter(path)
    for key in keys:
        tar.add(*change(key, {kind: contents[f"{key}.{kind}"] for kind in ("jpg", "cls", "json")}))
    written = tar.finish()
    write_index(path.with_suffix(".idx"), written.index)
    update = {"bytes": written.bytes, "sha256": written.sha256}
    edit(shards, lambda manifest: manifest | {"shards": [manifest["shards"][0] | update, *manifest["shards"][1:]]})


def make_gray(shards: Path) -> None:
    rewrite(shards, lambda key, sample: (key, sample | {"jpg": encoded(picture(0, mode="L"))}))


def damage_images(shards: Path) -> None:
    rewrite(shards, lambda key, sample: (key, sample | {"jpg": sample["jpg"][:-300]}))


def resize_images(shards: Path) -> None:
    rewrite(shards, lambda key, sample: (key, sample | {"jpg": encoded(picture(0, 50))}))


def drop_labels(shards: Path) -> None:
    rewrite(shards, lambda key, sample: (key, {"jpg": sample["jpg"], "json": sample["json"]}))


def drop_images(shards: Path) -> None:
    rewrite(shards, lambda key, sample: (key, {"cls": sample["cls"], "json": sample["json"]}))


def rename_samples(shards: Path) -> None:
    rewrite(shards, lambda key, sample: (key + "x", sample))


def repeat_a_key(shards: Path) -> None:
    second = index_tar(shards / "train-000001.tar").keys[0]

    def change(key: str, sample: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
        if key != index_tar(shards / "train-000000.tar").keys[0]:
            return key, sample
        return second, sample | {"json": sample["json"].replace(key.encode(), second.encode())}

    rewrite(shards, change)


FAULTS = [
    (flip_a_byte, "train-000001.tar: its sha256 differs from the manifest's"),
    (cut_a_tar, "train-000000.tar: .* bytes, the manifest says"),
    (lose_a_tar, "train-000002.tar: No such file"),
    (lose_an_index, "train-000002.tar: shards: index "),
    (swap_indexes, "train-000001.idx: does not match the samples"),
    (lose_a_reject, "rejected.jsonl: counts by reason"),
    (leave_a_stray, "train-000009.tar: not in the manifest"),
    (leave_a_removal, ".removal: a removal was interrupted"),
    (miscount, "manifest.json: 26 entries are not 24 samples"),
    (rename_labels, "cls '0' does not match label 'a'"),
    (make_gray, "its image is Gray, not RGB"),
    (damage_images, "its image is corrupt"),
    (resize_images, "its image is 58 x 50, its json says 56 x 48"),
    (drop_labels, "cls 'absent' does not match label"),
    (drop_images, "has no jpg or no json"),
    (rename_samples, "its json describes"),
    (repeat_a_key, "manifest.json: 1 keys occur twice"),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_is_found(built: Path, tmp_path: Path, fault: Callable[[Path], None], words: str) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(built, shards)
    assert verify(shards, 1.0, 1, lambda _: None).problems == []
    fault(shards)
    problems = "\n".join(verify(shards, 1.0, 1, lambda _: None).problems)
    assert re.search(words, problems), problems


def test_the_command_lists_what_is_wrong_and_fails(built: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(built, shards)
    fine = run(*VERIFY, shards, "--workers", 2)
    assert (fine.returncode, fine.stderr) == (0, "")
    assert "no problems: 4 shards, 24 samples, 24 decoded" in fine.stdout
    flip_a_byte(shards)
    lose_a_tar(shards)
    wrong = run(*VERIFY, shards, "--workers", 2)
    assert wrong.returncode == 1
    assert len(wrong.stderr.splitlines()) == 1
    assert wrong.stdout.splitlines()[0].startswith("train-000001.tar: ")
    assert wrong.stdout.splitlines()[-1].startswith("train-000002.tar: ")


def test_other_files_are_mentioned(built: Path, tmp_path: Path) -> None:
    """They are no fault of the shards."""
    shards = tmp_path / "shards"
    shutil.copytree(built, shards)
    for name in ("README.md", ".train-000000.tar.77.tmp", "removed.jsonl"):
        (shards / name).write_text("")
    verdict = verify(shards, 0.0, 1, lambda _: None)
    assert verdict.problems == []
    assert verdict.notes == [
        ".train-000000.tar.77.tmp: left by a killed process. Fix: delete it",
        "unrelated files: README.md",
    ]


def test_a_share_is_decoded(built: Path) -> None:
    assert verify(built, 0.0, 1, lambda _: None).decoded == 0
    half = verify(built, 0.5, 1, lambda _: None).decoded
    assert 4 < half < 20
    assert verify(built, 0.5, 1, lambda _: None).decoded == half
    assert read_manifest(built).samples == verify(built, 1.0, 1, lambda _: None).decoded


@pytest.mark.parametrize(
    ("arguments", "words"), [(["absent"], "is not a folder"), ([".", "--decode", "2"], "--decode=2")]
)
def test_bad_arguments_get_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run("env", "-C", tmp_path, *VERIFY, *arguments)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
