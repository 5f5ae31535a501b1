"""The corpora of landmarks: 300-W, WFLW, COFW, AFLW-19."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.landmark_corpora import (
    AFLW_FACES,
    cofw_pixels,
    pts,
    wflw_line,
    write_300w,
    write_aflw,
    write_cofw,
    write_wflw,
)
from helpers.source_kit import built, entries, photo, pixels, rejects, write

from shards.entry import Entry
from shards.errors import UserError
from shards.sources.corpora import aflw19, cofw, ibug300w, wflw
from shards.sources.corpora.aflw19 import AFLW19
from shards.sources.corpora.cofw import COFW
from shards.sources.corpora.ibug300w import IBug300W
from shards.sources.corpora.wflw import WFLW

pytestmark = pytest.mark.slow


def test_300w(tmp_path: Path) -> None:
    manifest, found = built(IBug300W(write_300w(tmp_path / "300w")), tmp_path / "out")
    splits = {source: sample["split"] for source, sample in found.items()}
    assert splits == {
        "afw/134212_1.jpg": "train",
        "afw/134212_2.jpg": "train",
        "helen/trainset/232194_1.jpg": "train",
        "helen/testset/296814969_3.jpg": "test",
        "lfpw/trainset/image_0001.png": "train",
        "lfpw/testset/image_0001.png": "test",
        "ibug/image_003_1.jpg": "test",
    }
    face = found["afw/134212_2.jpg"]
    assert (len(face["landmarks"]), face["landmarks"][0], face["landmarks"][67]) == (68, [14.5, 19], [81.5, 23])
    assert face["box"] == [14.5, 19, 67, 6]
    assert found["ibug/image_003_1.jpg"]["extras"] == {"part": "ibug"}
    assert manifest.rejected == {}
    assert ibug300w.expected(IBug300W(tmp_path / "300w")) == {"train": {"": 3148}, "test": {"": 689}}


def test_300w_of_dlib_has_mirrored_copies(tmp_path: Path) -> None:
    root = write_300w(tmp_path / "ibug_300W_large_face_landmark_dataset")
    write(root / "afw" / "134212_1_mirror.jpg", photo())
    write(root / "afw" / "134212_1_mirror.pts", pts())
    assert rejects(IBug300W(tmp_path)) == {"afw/134212_1_mirror.jpg": "repeated"}
    assert len(entries(IBug300W(tmp_path))) == 7


def test_300w_with_holes(tmp_path: Path) -> None:
    root = write_300w(tmp_path)
    (root / "afw" / "134212_1.jpg").unlink()
    (root / "afw" / "134212_2.pts").unlink()
    write(root / "ibug" / "image_003_1.pts", pts(count=67))
    write(root / "lfpw" / "testset" / "image_0001.pts", pts(end=""))
    write(root / "helen" / "testset" / "296814969_3.pts", pts().replace("20.000000", "?", 1))
    assert rejects(IBug300W(root)) == {
        "afw/134212_1": "missing",
        "afw/134212_2.jpg": "bad_row",
        "ibug/image_003_1.jpg": "bad_row",
        "lfpw/testset/image_0001.png": "bad_row",
        "helen/testset/296814969_3.jpg": "bad_row",
    }


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(("name", "points"), [("AFLW", 21), ("Helen", 194), ("AFW", 68)])
def test_other_sets_of_pts_files(tmp_path: Path, name: str, points: int, header: bool) -> None:
    for number in range(2):
        text = pts(number, points)
        if not header:
            text = "\n".join(row.replace(" ", " , ") for row in text.splitlines() if row[0].isdigit())
        write(tmp_path / name / f"image0000{number}.jpg", photo(number, 240, 40))
        write(tmp_path / name / f"image0000{number}.pts", text)
    source = IBug300W(tmp_path / name, points=points)
    manifest, found = built(source, tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (2, {})
    face = found[f"{name.lower()}/image00001.jpg"]
    assert (face["split"], face["extras"]) == ("train", {"part": name.lower()})
    assert (len(face["landmarks"]), face["landmarks"][0]) == (points, [10.5, 19])
    assert set(rejects(IBug300W(tmp_path / name, points=points + 1)).values()) == {"bad_row"}
    with pytest.raises(UserError, match=r"none of afw.*, and no \.pts file in"):
        list(IBug300W(tmp_path))


def test_300w_in_parts(tmp_path: Path) -> None:
    root = write_300w(tmp_path)
    for name in ("afw", "helen", "lfpw"):
        shutil.rmtree(root / name)
    assert ibug300w.expected(IBug300W(root)) == {"test": {"": 135}}
    assert set(entries(IBug300W(root))) == {"ibug/image_003_1.jpg"}
    with pytest.raises(UserError, match=r"300w: none of afw, .*found: ibug"):
        list(IBug300W(write(tmp_path / "photos" / "ibug.jpg", photo()).parent))


def test_wflw(tmp_path: Path) -> None:
    root = write_wflw(tmp_path / "wflw")
    source = WFLW(root)
    assert built(source, tmp_path / "out")[0].samples == 3
    found = entries(source)
    second = found["train/0--Parade/0_Parade_1_116/2"]
    assert second.box == (27, 30, 120, 60)
    assert (len(second.landmarks), second.landmarks[97]) == (98, (134.25, 47.5))
    assert second.extras == {"flags": ["expression", "occlusion"]}
    assert second.group == second.source == "0--Parade/0_Parade_1_116.jpg"
    assert found["test/50--Party/50_Party_2_9/1"].extras == {"flags": []}
    assert wflw.CORPUS.published_counts(source) == {"train": {"": 7500}, "test": {"": 2500}}


def test_wflw_damaged_lines(tmp_path: Path) -> None:
    root = write_wflw(tmp_path)
    with next(root.rglob("*_train.txt")).open("a") as rows:
        rows.write(wflw_line("../x.jpg") + "\n" + wflw_line("a.jpg")[9:] + "\n\n1 2 3\n")
    assert rejects(WFLW(root)) == {
        "../x.jpg": "outside",
        "list_98pt_rect_attr_train.txt line 4": "bad_row",
        "list_98pt_rect_attr_train.txt line 6": "bad_row",
    }


def test_wflw_needs_its_lists(tmp_path: Path) -> None:
    write(tmp_path / "WFLW_images" / "a.jpg", photo())
    with pytest.raises(UserError, match=r"wflw: no list .*found: WFLW_images"):
        list(WFLW(tmp_path))


def test_cofw(tmp_path: Path) -> None:
    (tmp_path / "cofw").mkdir()
    manifest, found = built(COFW(write_cofw(tmp_path / "cofw")), tmp_path / "out", workers=2)
    assert (manifest.samples, manifest.splits, manifest.rejected) == (7, ("train", "test"), {})
    face = found["COFW_train_color.mat/1"]
    assert (face["width"], face["height"], face["box"]) == (28, 20, [1, 2, 20, 15])
    assert face["landmarks"][:2] == [[0.25, 100.25], [1.25, 101.25]]
    assert face["extras"]["occluded"][:4] == [1, 0, 1, 0]


def test_cofw_images_are_as_they_were(tmp_path: Path) -> None:
    """Axes, channels and values; gray ones too. PNG loses nothing."""
    faces = list(entries(COFW(write_cofw(tmp_path))).values())
    assert len(faces) == 7
    for number, face in enumerate(faces[:4]):
        wanted = cofw_pixels(number)
        if wanted.ndim == 2:
            wanted = np.repeat(wanted[:, :, None], 3, 2)
        assert (pixels(face.read()) == wanted).all()


def test_cofw_of_another_kind(tmp_path: Path) -> None:
    write_cofw(tmp_path)
    with h5py.File(tmp_path / "COFW_train_color.mat", "a") as data:
        del data["bboxesTr"]
    with pytest.raises(UserError, match=r"COFW_train_color.mat is not MATLAB 7.3 .*bboxesTr"):
        list(COFW(tmp_path))
    write(tmp_path / "COFW_train_color.mat", "MATLAB 5.0 MAT-file")
    with pytest.raises(UserError, match=r"COFW_train_color.mat is not MATLAB 7.3"):
        list(COFW(tmp_path))
    (tmp_path / "COFW_train_color.mat").unlink()
    assert len(entries(COFW(tmp_path))) == 3
    assert cofw.CORPUS.published_counts(COFW(tmp_path)) == {"test": {"": 507}}


def test_cofw_coordinates_and_pixels_that_are_none(tmp_path: Path) -> None:
    write_cofw(tmp_path)
    with h5py.File(tmp_path / "COFW_test_color.mat", "a") as data:
        data["phisT"][5, 1] = np.nan
        del data["#refs#/2"]
        data["IsT"][0, 2] = data.create_dataset("#refs#/9", data=np.zeros((28, 20))).ref
    (tmp_path / "COFW_train_color.mat").unlink()
    assert rejects(COFW(tmp_path)) == {"COFW_test_color.mat/1": "bad_row"}
    assert built(COFW(tmp_path), tmp_path / "out")[0].rejected == {"bad_row": 1, "unreadable": 1}


@pytest.fixture(scope="module")
def aflw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aflw(tmp_path_factory.mktemp("aflw"))


def test_aflw19(aflw: Path, tmp_path: Path) -> None:
    manifest, found = built([item for item in AFLW19(aflw) if item.read.is_file()], tmp_path / "out")
    assert manifest.samples == 4
    last = found[f"{(0, 2, 3)[(AFLW_FACES - 1) % 3]}/image{AFLW_FACES - 1:05d}.jpg"]
    assert last["box"] == [3, 5, 20, 10]
    assert last["landmarks"][0] == [0, 119]
    assert last["landmarks"][18] == [18, 137]
    assert last["extras"]["visible"][:3] == [0, 1, 0]
    assert last["split"] == "train"
    assert found["3/image00002.jpg"]["split"] == "test"


def test_aflw19_lists_everybody(aflw: Path) -> None:
    found = list(AFLW19(aflw))
    assert [item.split for item in found if isinstance(item, Entry)].count("train") == 20_000
    assert len({item.key for item in found}) == len(found) == AFLW_FACES
    assert found[0].group == found[1].group == found[1].source == "0/image00000.jpg"
    assert sum(aflw19.CORPUS.published_counts(AFLW19(aflw))[split][""] for split in ("train", "test")) == AFLW_FACES


def test_aflw19_of_another_kind(tmp_path: Path) -> None:
    write_aflw(tmp_path, ra=np.arange(100)[None])
    with pytest.raises(UserError, match=r"AFLWinfo_release\.mat cannot be read \(ra is not a permutation"):
        list(AFLW19(tmp_path))
    write(tmp_path / "AFLWinfo_release.mat", "nothing")
    with pytest.raises(UserError, match=r"AFLWinfo_release\.mat cannot be read"):
        list(AFLW19(tmp_path))


def test_aflw19_needs_its_photos(aflw: Path, tmp_path: Path) -> None:
    (tmp_path / "AFLWinfo_release.mat").symlink_to(aflw / "AFLWinfo_release.mat")
    with pytest.raises(UserError, match=r"aflw19: no photos .*searched: data/flickr/0"):
        list(AFLW19(tmp_path))
