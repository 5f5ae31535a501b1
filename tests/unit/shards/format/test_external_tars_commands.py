"""Commands on tars of other tools, whose names and keys follow other rules."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.corpus_fixtures import BUILD, VERIFY, encoded, picture, run, tool, write_faces, write_tar

from shards.dedup.duplicates import find_duplicates
from shards.dedup.perceptual_hash import NEAR
from shards.edit.remove import remove_samples
from shards.edit.summary import BACKGROUND, GAP, draw_contact_sheet, summarize
from shards.errors import UserError
from shards.format.external_tars import infer_manifest
from shards.format.manifest import read_manifest
from shards.format.samples import read_samples
from simfle.data.dataset import ShardCorpus

MERGE, SPLIT, SUBSET = (tool(f"{name}_shards") for name in ("merge", "split", "subset"))
INDEX = tool("index_shards")


def indexed(folder: Path, tars: dict[str, list[str]]) -> Path:
    """A folder of indexed tars: file -> keys."""
    for number, (file, keys) in enumerate(tars.items()):
        write_tar(
            folder / file,
            [(f"{key}.jpg", encoded(picture(10 * number + place))) for place, key in enumerate(keys)],
        )
    done = run(*INDEX, folder)
    assert done.returncode == 0, done.stderr
    return folder


def keys(folder: Path) -> list[str]:
    return [sample.key for info in read_manifest(folder).shards for sample in read_samples(folder, info)]


def check_sound(folder: Path) -> None:
    verified = run(*VERIFY, folder, "--workers", 1)
    assert verified.returncode == 0, verified.stdout


def test_no_other_shard_is_overwritten(tmp_path: Path) -> None:
    folder = indexed(
        tmp_path / "f", {"faces-1.tar": ["b0", "b1"], "faces-2.tar": ["c0", "c1"], "faces.tar": ["a0", "a1"]}
    )
    (folder / "faces-3.idx").write_text("of another tool")
    remove_samples(folder, ["a0"])
    assert keys(folder) == ["b0", "b1", "c0", "c1", "a1"]
    assert [info.file for info in read_manifest(folder).shards] == ["faces-1.tar", "faces-2.tar", "faces-4.tar"]
    (folder / "faces-3.idx").unlink()
    check_sound(folder)
    remove_samples(folder, ["b1", "a1"])
    assert keys(folder) == ["b0", "c0", "c1"]
    check_sound(folder)


def test_two_shards_never_get_one_name(tmp_path: Path) -> None:
    folder = indexed(tmp_path / "f", {"x-000000-1.tar": ["a0", "a1"], "x-000000.tar": ["b0", "b1"]})
    remove_samples(folder, ["a0", "b0"])
    assert keys(folder) == ["a1", "b1"]
    check_sound(folder)


def test_all_samples_of_a_repeated_key_are_counted(tmp_path: Path) -> None:
    folder = indexed(tmp_path / "f", {"0.tar": ["001", "002"], "1.tar": ["001", "003"]})
    done = remove_samples(folder, ["001"])
    assert (done.samples, done.shards) == (2, 2)
    assert read_manifest(folder).rejected == {"removed": 2}
    check_sound(folder)


def test_parts_and_merges_of_them_stay_foreign(tmp_path: Path) -> None:
    """They have no json, which verify would miss in ours."""
    first = indexed(tmp_path / "first", {"0.tar": ["a", "b", "c", "d"]})
    second = indexed(tmp_path / "second", {"1.tar": ["e", "f"]})
    ours = write_faces(tmp_path / "faces", 4)
    assert run(*BUILD, "folder", ours, tmp_path / "ours").returncode == 0
    commands: list[list[object]] = [
        [*SUBSET, first, tmp_path / "subset", "--fraction", "0.5", "--stratify-by", "sample"],
        [*SPLIT, first, tmp_path / "split", "--splits", "train=0.5,val=0.5", "--stratify-by", "sample"],
        [*MERGE, first, second, tmp_path / "merge"],
        [*MERGE, tmp_path / "ours", first, tmp_path / "mixed"],
        [*SUBSET, tmp_path / "merge", tmp_path / "again", "--fraction", "0.5", "--stratify-by", "sample"],
    ]
    for command in commands:
        done = run(*command)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("next: simfle shards verify")
    for name in ("subset", "split", "merge", "mixed", "again"):
        check_sound(tmp_path / name)


LONG = ["gesicht_grün", "z/" + "very_" * 30, "m\udcfcde", "p", "q"]


def test_names_that_no_short_header_holds(tmp_path: Path) -> None:
    folder = indexed(tmp_path / "f", {"0.tar": LONG})
    before = {
        sample.key: sample.members for info in read_manifest(folder).shards for sample in read_samples(folder, info)
    }
    done = run(*SUBSET, folder, tmp_path / "subset", "--fraction", "0.75", "--stratify-by", "sample")
    assert done.returncode == 0, done.stderr
    check_sound(tmp_path / "subset")
    remove_samples(folder, ["p"])
    check_sound(folder)
    (info,) = read_manifest(folder).shards
    after = {sample.key: sample.members for sample in read_samples(folder, info)}
    assert after == {key: members for key, members in before.items() if key != "p"}
    with tarfile.open(folder / info.file) as tar:
        assert tar.getnames() == [f"{key}.jpg" for key in LONG if key != "p"]


def test_all_formats_are_looked_at(tmp_path: Path) -> None:
    """Whatever index and verify take: also webp, png, gray, and extensions in capitals."""
    kinds = {"a.jpg": "JPEG", "b.PNG": "PNG", "c.webp": "WEBP", "d.JPEG": "JPEG", "e.png": "PNG"}
    same = picture(3).convert("L")
    files = {name: encoded(same if name[0] in "be" else picture(ord(name[0])), kind) for name, kind in kinds.items()}
    write_tar(tmp_path / "f" / "0.tar", files.items())
    assert run(*INDEX, tmp_path / "f").returncode == 0
    looked = summarize(tmp_path / "f", (), 5, 0, lambda *_: None)
    assert looked.bytes.tolist() == [len(content) for content in files.values()]
    sheet = np.asarray(draw_contact_sheet(tmp_path / "f", looked, 64))
    (info,) = looked.manifest.shards
    assert [info for info, _ in looked.sheet] == [info] * 5
    assert all(sheet[38, GAP + 32 + number * (64 + GAP)].tolist() != list(BACKGROUND) for number in range(5))
    lines = find_duplicates(tmp_path / "f", None, (), NEAR, 1, lambda *_: None)
    assert [(line["key"], line["of"], line["kind"]) for line in lines] == [("e", "b", "exact")]


def labeled(folder: Path, labels: list[str], member: str) -> Path:
    """An indexed tar of samples 000, 001, ... with these labels in their members of one kind."""
    files = []
    for number, label in enumerate(labels):
        files += [(f"{number:03d}.jpg", encoded(picture(number))), (f"{number:03d}.{member}", label.encode())]
    write_tar(folder / "0.tar", files)
    assert run(*INDEX, folder).returncode == 0
    return folder


KINDS = {
    "numbers": ("cls", ["0", "2 "]),
    "words": ("cls", ["calm", "glad\n"]),
    "json": ("json", ['{"label": 0}', '{"label": "glad"}']),
}


@pytest.mark.parametrize("kind", KINDS)
def test_their_labels_count_wherever_they_are(tmp_path: Path, kind: str) -> None:
    """One of 40 is of another class; no part may lose it, and none may hold it twice."""
    member, (rare, usual) = KINDS[kind]
    names = {"numbers": ("0", "2"), "words": ("calm", "glad"), "json": ("0", "glad")}[kind]
    folder = labeled(tmp_path / "f", [usual] * 17 + [rare] + [usual] * 22, member)
    looked = summarize(folder, (), 4, 0, lambda *_: None)
    assert looked.counts == {("train", names[0]): 1, ("train", names[1]): 39}
    assert run(*SUBSET, folder, tmp_path / "part", "--fraction", "0.1").returncode == 0
    assert summarize(tmp_path / "part", (), 0, 0, lambda *_: None).counts == {
        ("train", names[0]): 1,
        ("train", names[1]): 4,
    }
    into = [tmp_path / "halves", "--splits", "train=0.5,val=0.5", "--stratify-by", "label"]
    assert run(*SPLIT, folder, *into).returncode == 0
    halves = summarize(tmp_path / "halves", (), 0, 0, lambda *_: None).counts
    assert sum(halves[split, names[1]] for split in ("train", "val")) == 39
    assert abs(halves["train", names[1]] - halves["val", names[1]]) == 1


def test_duplicates_of_another_label_are_told(tmp_path: Path) -> None:
    files = [(f"{key}.jpg", encoded(picture(7))) for key in "ab"]
    write_tar(tmp_path / "f" / "0.tar", [files[0], ("a.cls", b"0"), files[1], ("b.cls", b"1")])
    assert run(*INDEX, tmp_path / "f").returncode == 0
    (line,) = find_duplicates(tmp_path / "f", None, (), NEAR, 1, lambda *_: None)
    assert (line["label"], line["of_label"]) == ("1", "0")


def test_a_sheet_shows_their_labels(tmp_path: Path) -> None:
    """The same image, once labeled and once not: only what is written under it differs."""
    sheets = []
    for place, label in (("a", "0"), ("b", "")):
        folder = labeled(tmp_path / place, [label], "cls")
        sheets.append(np.asarray(draw_contact_sheet(folder, summarize(folder, (), 1, 0, lambda *_: None), 64)))
    different = np.argwhere((sheets[0] != sheets[1]).any(-1))
    assert len(different)
    assert (different[:, 0] >= GAP + 64).all()


def test_no_image_is_told_in_one_line(tmp_path: Path) -> None:
    png = encoded(picture(1), "PNG")
    folder = write_tar(tmp_path / "f" / "0.tar", [("a.png", png[: len(png) // 2])]).parent
    assert run(*INDEX, folder).returncode == 0
    with pytest.raises(UserError, match=r"a has no readable image \(truncated"):
        find_duplicates(folder, None, (), NEAR, 1, lambda *_: None)
    with pytest.raises(UserError, match=r"a cannot be decoded \(truncated"):
        draw_contact_sheet(folder, summarize(folder, (), 1, 0, lambda *_: None), 64)


def test_other_labels_are_other_data(tmp_path: Path) -> None:
    """With new labels of the same length at the same place, evaluations with the old labels are not reused."""

    def digest(label: bytes) -> str:
        files = [("a.jpg", encoded(picture(1))), ("a.cls", label), ("a.txt", b"calm")]
        return ShardCorpus([write_tar(tmp_path / "f" / "0.tar", files).parent]).digest()

    assert digest(b"1") == digest(b"1") != digest(b"2")


def test_large_class_numbers_are_no_labels(tmp_path: Path) -> None:
    """A thousand million names would fill the memory."""
    images = [("a.jpg", encoded(picture(1))), ("a.cls", b"99999999999999")]
    assert infer_manifest(write_tar(tmp_path / "ids" / "0.tar", images).parent).labels == ()
    few = [("a.jpg", encoded(picture(1))), ("a.cls", b"8630")]
    assert len(infer_manifest(write_tar(tmp_path / "few" / "0.tar", few).parent).labels) == 8631
