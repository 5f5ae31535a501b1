"""Where the pixels go, boxes and points go: seen in pictures whose dots must lie where the json says."""

import io
import json
import math
import tarfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.corpus_fixtures import encoded, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.build.builder import build
from shards.build.spec import BuildSpec
from shards.edit.verify import verify
from shards.entry import Entry
from shards.errors import UserError
from shards.format.manifest import read_manifest
from shards.imaging.align import AlignOptions, Detection
from shards.imaging.codec import EncodeOptions, ImageRejected, decode
from shards.imaging.face_crops import FaceSample, extract_faces
from shards.imaging.geometry import Affine, crop_window, exif_transform, resized_size

COLORS = {"red": 0, "green": 1, "blue": 2}
DOTS = ((61.0, 40.0), (120.5, 44.5), (90.0, 83.0))
SIZE = (200, 140)
ORIENTATION = 0x0112


def dotted(
    points: Sequence[tuple[float, float]] = DOTS, size: tuple[int, int] = SIZE, radius: float = 4
) -> Image.Image:
    """A gray image with soft dots, red, green and blue, in continuous coordinates."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
    pixels = np.full((size[1], size[0], 3), 60.0)
    for color, (px, py) in enumerate(points):
        pixels[..., color] += 180 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def seen(jpeg: bytes) -> list[tuple[float, float]]:
    """Where the dots are: the centers of mass of each color."""
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(float)
    y, x = np.mgrid[0 : pixels.shape[0], 0 : pixels.shape[1]] + 0.5
    weights = [np.maximum(pixels[..., c] - pixels.min(-1) - 30, 0) for c in COLORS.values()]
    return [(float((x * w).sum() / w.sum()), float((y * w).sum() / w.sum())) for w in weights]


def check_dots(face: FaceSample, tolerance: float = 0.6) -> None:
    assert face.entry.landmarks is not None
    for found, said in zip(seen(face.image.jpeg), face.entry.landmarks, strict=True):
        assert math.dist(found, said) < tolerance


def entry(box: tuple[float, float, float, float] | None = (50, 30, 80, 60), points: tuple | None = DOTS) -> Entry:
    return Entry("a", "a.png", b"", box=box, landmarks=points)


def fate(data: bytes, what: Entry, options: EncodeOptions, found: list[Detection] | None = None) -> ImageRejected:
    with pytest.raises(ImageRejected) as caught:
        extract_faces(data, what, options, None if found is None else lambda pixels, which: found)
    return caught.value


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"crop": 0.2}, {"shorter_side": 70}, {"crop": 0.25, "shorter_side": 40}])
def test_points_and_boxes_follow_the_pixels(turn: int, options: dict) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    (face,) = extract_faces(encoded(dotted(), "PNG", exif=exif), entry(), EncodeOptions(**options))
    check_dots(face)
    left, top, width, height = face.entry.box
    # The box is the one around the same pixels: the dots keep their places in it, turned as the image is.
    inside = exif_transform(turn, 1, 1).points(tuple(((x - 50) / 80, (y - 30) / 60) for x, y in DOTS))
    for (x, y), place in zip(face.entry.landmarks, inside, strict=True):
        assert ((x - left) / width, (y - top) / height) == pytest.approx(place, abs=0.01)
    margin = options.get("crop")
    if margin is not None:
        long, short = 80 * (1 + 2 * margin), 60 * (1 + 2 * margin)
        if options.get("shorter_side"):
            long, short = long * 40 / short, 40
        size = (long, short) if turn < 5 else (short, long)
        assert (face.image.width, face.image.height) == pytest.approx(size, abs=1)
    matrix = Affine(*face.extra.get("matrix", Affine()))
    assert matrix.points(DOTS) == pytest.approx(np.array(face.entry.landmarks), abs=0.01)


def test_boxes_that_leave_the_image_are_clipped() -> None:
    data = encoded(dotted(), "PNG")
    (face,) = extract_faces(data, entry((-30, -20, 100, 90)), EncodeOptions(crop=0.1))
    assert (face.image.width, face.image.height) == (80, 79)
    assert face.entry.box == (-30, -20, 100, 90)
    (face,) = extract_faces(data, entry((150, 100, 90, 90), None), EncodeOptions(crop=0.0))
    assert (face.image.width, face.image.height) == (50, 40)
    assert (face.entry.box, face.entry.landmarks) == ((0, 0, 90, 90), None)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((200, 0, 50, 50), "bad_box"),
        ((-50, 10, 50, 50), "bad_box"),
        ((10, -80, 50, 79), "bad_box"),
        ((10, 10, 0, 50), "bad_box"),
        ((10, 10, -5, 50), "bad_box"),
        ((math.nan, 10, 50, 50), "bad_box"),
        ((10, 10, math.inf, 50), "bad_box"),
        ((190, 10, 50, 50), "too_small"),
        ((10, 10, 10, 50), "too_small"),
        (None, "no_box"),
    ],
)
def test_boxes_without_a_face_are_rejected(box: tuple | None, reason: str) -> None:
    assert fate(encoded(dotted(), "PNG"), entry(box), EncodeOptions(crop=0.1)).reason == reason


def test_a_box_that_is_none_is_no_face_either() -> None:
    align = EncodeOptions(align=AlignOptions())
    assert fate(encoded(dotted(), "PNG"), entry((10, 10, -5, 50)), align, [tilted(0)]).reason == "bad_box"


def test_what_nothing_changes_stays_byte_for_byte() -> None:
    data = encoded(dotted(), quality=90)
    for options in (EncodeOptions(shorter_side=140), EncodeOptions(shorter_side=500), EncodeOptions(crop=0.0)):
        box = (-1, -2, 300, 300)
        (face,) = extract_faces(data, entry(box), options)
        assert face.image.jpeg is data
        assert face.image.bytes_kept
        assert (face.entry, face.extra) == (entry(box), {})


def test_shrinking_averages_and_never_enlarges() -> None:
    image = picture(4, 96)
    (face,) = extract_faces(encoded(image, "PNG"), entry(None, None), EncodeOptions(100, shorter_side=48))
    assert (face.image.width, face.image.height) == (52, 48)
    wanted = np.asarray(image).reshape(48, 2, 52, 2, 3).mean((1, 3))
    got = np.asarray(Image.open(io.BytesIO(face.image.jpeg)))
    assert np.abs(got - wanted).mean() < 1.5
    gray = extract_faces(encoded(image.convert("L"), "PNG"), entry(None, None), EncodeOptions(shorter_side=48))[0]
    assert np.ptp(np.asarray(Image.open(io.BytesIO(gray.image.jpeg)).convert("RGB")).astype(int), axis=-1).max() == 0


sides = st.integers(1, 5000)


@given(sides, sides, st.integers(0, 600))
def test_shrunk_sizes(width: int, height: int, side: int) -> None:
    new = resized_size(width, height, side)
    if side == 0 or min(width, height) <= side:
        assert new == (width, height)
    else:
        assert min(new) == side
        assert new[0] / width == pytest.approx(new[1] / height, abs=0.51 / min(width, height))


places = st.floats(-300, 500, allow_nan=False)
lengths = st.floats(0.01, 600)


@given(places, places, lengths, lengths, st.floats(-0.4, 2), st.integers(1, 300), st.integers(1, 300))
def test_frames_lie_in_the_image_and_hold_the_box(
    left: float, top: float, wide: float, high: float, margin: float, width: int, height: int
) -> None:
    edges = crop_window((left, top, wide, high), margin, width, height)
    if left >= width or top >= height or left + wide <= 0 or top + high <= 0:
        assert edges is None
    elif edges is not None:
        assert 0 <= edges[0] < edges[2] <= width
        assert 0 <= edges[1] < edges[3] <= height
        if margin >= 0:
            assert edges[0] <= max(left, 0) + 0.01
            assert edges[2] >= min(left + wide, width) - 0.01
    else:
        assert margin < 0


numbers = st.floats(-5, 5)
affines = st.builds(Affine, *[numbers] * 6)


@given(affines, affines, numbers, numbers)
def test_maps_in_a_row(first: Affine, then: Affine, x: float, y: float) -> None:
    assert first.compose(then).point(x, y) == pytest.approx(then.point(*first.point(x, y)))


@given(affines, numbers, numbers)
def test_the_way_back(way: Affine, x: float, y: float) -> None:
    if abs(way.a * way.e - way.b * way.d) > 0.01:
        assert way.inverse().point(*way.point(x, y)) == pytest.approx((x, y), abs=1e-6)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_the_size_before_turning_is_known(turn: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    found = decode(encoded(dotted(), kind, exif=exif), EncodeOptions())
    assert found.orientation == turn
    assert found.size == (SIZE if turn < 5 else SIZE[::-1])


def tilted(angle: float, at: tuple[float, float] = (160, 120), scale: float = 40) -> Detection:
    """A face of a perfect shape, tilted clockwise, its eyes `scale` apart; its first three points can be dots."""
    shape = ((-0.5, -0.5), (0.5, -0.5), (0, 0.1), (-0.4, 0.5), (0.4, 0.5))
    c, s = math.cos(angle) * scale, math.sin(angle) * scale
    points = tuple((at[0] + c * x - s * y, at[1] + s * x + c * y) for x, y in shape)
    half = 1.3 * scale
    return Detection((at[0] - half, at[1] - half, 2 * half, 2 * half), points, 0.9)


@pytest.mark.parametrize("degrees", [-170, -90, -31, -5, 0, 17, 45, 120])
@pytest.mark.parametrize("options", [{}, {"crop": 0.1, "shorter_side": 60}])
def test_aligned_faces_have_level_eyes(degrees: float, options: dict) -> None:
    found = tilted(math.radians(degrees))
    data = encoded(dotted(found.points[:3], (320, 240)), "PNG")
    which = EncodeOptions(align=AlignOptions(), **options)
    (face,) = extract_faces(data, entry(None, None), which, lambda pixels, _: [found])
    (x1, y1), (x2, y2), nose = seen(face.image.jpeg)
    assert abs(y2 - y1) < 0.02 * (x2 - x1)
    assert nose[1] > y1
    for dot, said in zip(((x1, y1), (x2, y2), nose), face.entry.landmarks, strict=False):
        assert math.dist(dot, said) < 0.6
    side = options.get("shorter_side", 156)  # 104, and a quarter of it on each side
    assert (face.image.width, face.image.height) == (side, side)
    share = 1 / (1 + 2 * options.get("crop", 0.25))
    assert face.entry.box == pytest.approx([side * (1 - share) / 2] * 2 + [side * share] * 2, abs=0.2)
    assert (face.suffix, face.extra["face"], face.extra["score"]) == ("_0", 0, 0.9)


@pytest.mark.parametrize("turn", [3, 6])
def test_a_turned_photo_is_searched_upright(turn: int) -> None:
    stored = tilted(0.0)
    way = exif_transform(turn, 320, 240)
    upright = Detection(way.box(stored.box), way.points(stored.points), 0.9)
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    data = encoded(dotted(stored.points[:3], (320, 240)), "PNG", exif=exif)
    own = entry(stored.box, stored.points[:3])
    (face,) = extract_faces(data, own, EncodeOptions(align=AlignOptions()), lambda pixels, _: [upright])
    check_dots(face)


def test_which_detections_count() -> None:
    large, middle, small = tilted(0, (80, 100), 40), tilted(0, (200, 100), 30), tilted(0, (290, 100), 10)
    unsure = Detection(middle.box, middle.points, 0.5)
    data = encoded(dotted(size=(320, 240)), "PNG")

    def taken(found: list[Detection], own: Entry, **options: float) -> list[float]:
        which = EncodeOptions(align=AlignOptions(**options))
        faces = extract_faces(data, own, which, lambda pixels, _: found)
        assert [face.suffix for face in faces] == [f"_{number}" for number in range(len(faces))]
        return [round(face.image.width / 1.5 / 2.6) for face in faces]

    nobody = entry(None, None)
    assert taken([small, middle, large], nobody, min_face_size=16) == [40, 30, 10]
    assert taken([small, middle, large], nobody) == [40, 30]
    assert taken([small, middle, large], nobody, max_faces=1) == [40]
    assert taken([large, unsure], nobody) == [40]
    # The corpus has one face in this photo, and one label: it is that face's.
    assert taken([large, middle], entry((160, 60, 80, 80), None)) == [30]
    assert taken([large, middle], entry(None, middle.points)) == [30]
    align = EncodeOptions(align=AlignOptions())
    assert fate(data, entry((270, 180, 40, 40)), align, [large, middle]).reason == "no_face"
    assert fate(data, nobody, align, []).detail == "none found"
    assert "faces found: 1" in fate(data, nobody, align, [small]).detail


def corpus() -> list[Entry]:
    """Boxes inside, over the edge and beyond it; one image that stays as it is."""
    jpeg = encoded(dotted(), quality=95)
    boxes = [(50, 30, 80, 60), (-30, -20, 100, 90), (0, 0, 200, 140), (400, 0, 10, 10), None]
    return [Entry(f"k{n}.jpg", f"k{n}.jpg", jpeg, box=box, landmarks=DOTS) for n, box in enumerate(boxes)]


def test_a_build_crops(tmp_path: Path) -> None:
    request = BuildSpec(tmp_path / "out", "c", {}, encode=EncodeOptions(crop=0.0, shorter_side=100))
    report = build(request, corpus(), lambda *_: None)
    assert report.manifest.rejected == {"bad_box": 1, "no_box": 1}
    assert (report.manifest.samples, report.bytes_kept) == (3, 0)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        known = {name[:-5]: json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith("json")}
    assert {key: (item["width"], item["height"]) for key, item in known.items()} == {
        "k0": (80, 60),
        "k1": (70, 70),
        "k2": (143, 100),
    }
    assert known["k0"]["landmarks"][0] == [11.0, 10.0]
    assert known["k0"]["box"] == [0, 0, 80, 60]
    assert known["k2"]["matrix"] == pytest.approx([0.715, 0, 0, 0, 100 / 140, 0], abs=1e-5)
    assert not verify(tmp_path / "out", 1.0, 1, lambda _: None).problems
    assert read_manifest(tmp_path / "out").build["encode"]["crop"] == 0.0


@pytest.mark.parametrize("bad", [{"crop": -0.5}, {"crop": math.nan}, {"shorter_side": 8}, {"quality": 0}])
def test_options_that_cannot_be_meant(tmp_path: Path, bad: dict) -> None:
    with pytest.raises(UserError):
        build(BuildSpec(tmp_path / "out", "c", {}, encode=EncodeOptions(**bad)), corpus(), lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_threads_of_opencv_do_not_matter() -> None:
    """The bytes of a shrunk image, whatever the machine's cores."""
    made = []
    before = cv2.getNumThreads()
    for threads in (1, 2):
        cv2.setNumThreads(threads)
        made.append(extract_faces(encoded(picture(2, 700), "PNG"), entry(None), EncodeOptions(shorter_side=211)))
    cv2.setNumThreads(before)
    assert made[0] == made[1]
