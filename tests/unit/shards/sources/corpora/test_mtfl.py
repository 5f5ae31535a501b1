"""MTFL: landmarks and attributes, from the folder and from the zip; and what landmark probes read of its shards."""

from pathlib import Path

import numpy as np
import pytest
from helpers.mtfl_corpus import POINTS, TEST, TRAIN, line, packed, write_mtfl
from helpers.source_kit import built, entries, photo, rejects, write

from shards.errors import UserError
from shards.sources.corpora import mtfl
from shards.sources.corpora.mtfl import MTFL
from simfle.eval.config import EvalConfig
from simfle.eval.data.benchmarks import open_benchmark
from simfle.eval.data.splits import read_split
from simfle.eval.data.targets import landmarks
from simfle.eval.protocols.landmarks import nme_normalizer


def given(tmp_path: Path, how: str) -> Path:
    """The corpus as a folder, a folder around it, a zip of either, or a folder that holds the zip."""
    root = write_mtfl(tmp_path / "given" / "MTFL")
    if how in ("folder", "around"):
        return root if how == "folder" else root.parent
    (tmp_path / "zip").mkdir()
    archive = packed(root, tmp_path / "zip" / "mtfl112.zip", "MTFL/" if how != "flat zip" else "")
    return archive.parent if how == "folder of a zip" else archive


@pytest.mark.parametrize("how", ["folder", "around", "zip", "flat zip", "folder of a zip"])
def test_faces(tmp_path: Path, how: str) -> None:
    source = MTFL(given(tmp_path, how))
    found = entries(source)
    keys = ["train/net_7876/0_0_0", "train/net_7876/_60_980_0", "train/net_7876/a b"]
    assert list(found) == [*keys, "test/AFLW/0001-image20056", "test/AFLW/0002-image04733"]
    first, second = found[keys[0]], found[keys[1]]
    assert first.landmarks == tuple(zip(POINTS[:5], POINTS[5:], strict=True))
    assert first.extras == {"gender": "male", "smile": "smiling", "glasses": "no glasses", "pose": "frontal"}
    assert second.extras == {"gender": "female", "smile": "not smiling", "glasses": "glasses", "pose": "right profile"}
    assert [face.label for face in found.values()] == ["smiling", "not smiling", "smiling", *["not smiling"] * 2]
    assert [face.source for face in found.values()] == [path.replace("\\", "/") for path in (*TRAIN, *TEST)]


def test_landmark_probes_and_smiles_read_its_shards(tmp_path: Path) -> None:
    manifest, samples = built(MTFL(given(tmp_path, "zip")), tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (5, {})
    assert samples["net_7876/a b.jpg"]["extras"]["pose"] == "left profile"
    benchmark = open_benchmark(f"mtfl={tmp_path / 'out'}", EvalConfig())
    split = read_split(benchmark.shards, "train")
    rows, points = landmarks(split, benchmark.landmark_indices)
    assert points.shape == (3, 5, 2)
    unit = nme_normalizer(points, benchmark.nme_points.left, benchmark.nme_points.right, split.only(rows))
    np.testing.assert_allclose(unit, np.hypot(POINTS[0] - POINTS[1], POINTS[5] - POINTS[6]))
    assert {split.classes[label] for label in split.labels} == set(benchmark.classes) == set(mtfl.SMILES)


def test_published_counts_are_those_of_the_parts_that_are_listed(tmp_path: Path) -> None:
    root = write_mtfl(tmp_path)
    assert mtfl.expected(MTFL(root)) == {"train": {"": 5849}, "test": {"": 2995}}
    write(root / "training.txt", line("lfw_5590\\Aaron.jpg") + (root / "training.txt").read_text())
    assert mtfl.expected(MTFL(root)) == {"train": {"": 10_000}, "test": {"": 2995}}


def test_damaged_lines_and_missing_images(tmp_path: Path) -> None:
    root = write_mtfl(tmp_path / "mtfl")
    wrong = (
        line("net_7876\\x.jpg", "1 1 2 6"),
        line("net_7876\\x.jpg", "1 1 2"),
        line("net_7876\\x.jpg").replace("42.200", "nan"),
        line("..\\x.jpg"),
        line("\\etc\\x.jpg"),
        " \r\n",
    )
    write(root / "training.txt", (root / "training.txt").read_text() + "".join(wrong))
    assert rejects(MTFL(root)) == {
        **{f"training.txt line {number}": "bad_row" for number in (4, 5, 6)},
        **{f"training.txt line {number}": "outside" for number in (7, 8)},
    }
    archive = packed(root, tmp_path / "mtfl.zip")
    (root / "net_7876" / "0_0_0.jpg").unlink()
    assert built(MTFL(root), tmp_path / "out")[0].rejected == {"bad_row": 3, "missing": 1, "outside": 2}
    assert len(entries(MTFL(archive))) == 5
    again = packed(root, tmp_path / "again.zip")
    assert rejects(MTFL(again))["net_7876/0_0_0.jpg"] == "missing"


def test_what_is_not_mtfl_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "other" / "testing.txt", line(TEST[0]))
    with pytest.raises(UserError, match=r"mtfl: no testing.txt beside AFLW/ in .* Fix: pass its zip or folder"):
        list(MTFL(tmp_path / "other"))
    root = write_mtfl(tmp_path / "mtfl")
    archive = packed(root, tmp_path / "cut.zip")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"cut.zip: not a complete zip: .* Fix: download it again"):
        list(MTFL(archive))
    (root / "training.txt").unlink()
    with pytest.raises(UserError, match=r"mtfl: training.txt in .* is missing, empty or corrupt"):
        list(MTFL(root))


@pytest.mark.parametrize("how", ["folder", "zip"])
def test_lists_and_files_in_different_unicode_forms(tmp_path: Path, how: str) -> None:
    root = write_mtfl(tmp_path / "MTFL")
    write(root / "training.txt", line("net_7876\\Jos\u00e9.jpg") + (root / "training.txt").read_text())
    write(root / "net_7876" / "Jose\u0301.jpg", photo(9, 120, 112))
    source = MTFL(root if how == "folder" else packed(root, tmp_path / "mtfl.zip"))
    assert rejects(source) == {}
    manifest, samples = built(source, tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (6, {})
    assert samples["net_7876/Jos\u00e9.jpg"]["split"] == "train"
