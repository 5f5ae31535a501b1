"""The corpora of drawn faces: DigiFace-1M and Face Synthetics."""

from pathlib import Path

import pytest
from helpers.source_kit import built, entries, photo, rejects, write

from shards.errors import UserError
from shards.sources.corpora import digiface, facesynthetics
from shards.sources.corpora.digiface import DigiFace
from shards.sources.corpora.facesynthetics import FaceSynthetics

POINTS = "".join(f"{200 + n}.25 {100 + n}.5\n" for n in range(70))


def test_digiface_subjects_are_groups(tmp_path: Path) -> None:
    for name in (
        "subjects_0-1999_72_imgs/0/0.png",
        "subjects_0-1999_72_imgs/0/1.png",
        "subjects_0-1999_72_imgs/7/0.png",
    ):
        write(tmp_path / "digi" / name, photo(len(name), kind="PNG"))
    write(tmp_path / "digi" / "sample.png", photo(kind="PNG"))
    write(tmp_path / "digi" / "LICENSE", "")
    manifest, found = built(DigiFace(tmp_path / "digi"), tmp_path / "out")
    assert sorted(sample["group"] for sample in found.values()) == ["0", "0", "7"]
    assert manifest.rejected == {"bad_row": 1}


@pytest.mark.parametrize(
    ("folders", "count"),
    [
        (("subjects_0-1999_72_imgs", "subjects_100000-133332_5_imgs"), 2000 * 72 + 33_333 * 5),
        (("0", "9999"), 720_000),
        (("100000",), 499_995),
        (("0", "100000"), 1_219_995),
    ],
)
def test_digiface_parts_are_told_apart(tmp_path: Path, folders: tuple[str, ...], count: int) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    assert digiface.expected(DigiFace(tmp_path)) == {"train": {"": count}}


def test_digiface_needs_subjects(tmp_path: Path) -> None:
    assert digiface.expected(DigiFace(tmp_path / "absent")) == {}
    write(tmp_path / "faces" / "a.png", photo(kind="PNG"))
    with pytest.raises(UserError, match=r"digiface: no <subject>/<number>\.png"):
        list(DigiFace(tmp_path))


def write_synthetics(folder: Path) -> Path:
    for number in ("000000", "000001", "000002"):
        write(folder / f"{number}.png", photo(int(number), kind="PNG"))
        write(folder / f"{number}_seg.png", photo(kind="PNG", mode="L"))
        write(folder / f"{number}_ldmks.txt", POINTS)
    return folder


def test_face_synthetics_have_landmarks_and_no_masks_among_them(tmp_path: Path) -> None:
    source = FaceSynthetics(write_synthetics(tmp_path / "all" / "dataset_1000").parent)
    manifest, found = built(source, tmp_path / "out")
    assert set(found) == {"000000.png", "000001.png", "000002.png"}
    assert found["000001.png"]["landmarks"][69] == [269.25, 169.5]
    assert (source.release, facesynthetics.expected(source)) == ("dataset_1000", {"train": {"": 1000}})
    assert manifest.samples == 3


def test_face_synthetics_with_holes(tmp_path: Path) -> None:
    folder = write_synthetics(tmp_path)
    (folder / "000000_ldmks.txt").unlink()
    write(folder / "000001_ldmks.txt", POINTS.replace("201.25", "x"))
    (folder / "000002.png").unlink()
    assert entries(FaceSynthetics(folder))["000000"].landmarks is None
    assert rejects(FaceSynthetics(folder)) == {"000001.png": "bad_row", "000002.png": "missing"}


def test_face_synthetics_need_images(tmp_path: Path) -> None:
    write(tmp_path / "a.png", photo(kind="PNG"))
    with pytest.raises(UserError, match=r"facesynthetics: no images such as 000000\.png .*found: a\.png"):
        list(FaceSynthetics(tmp_path))
