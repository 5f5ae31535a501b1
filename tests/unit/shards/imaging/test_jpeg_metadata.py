"""Metadata go, the picture stays bit for bit."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.corpus_fixtures import BUILD, encoded, picture, run
from PIL import Image, ImageCms, JpegImagePlugin

from shards.build.builder import build
from shards.build.spec import BuildSpec
from shards.entry import Entry
from shards.imaging.codec import EncodeOptions, encode
from shards.imaging.jpeg_metadata import strip_metadata

pytestmark = pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")

FACE = picture(1)
PLACE, AUTHOR, COMMENT, MOVIE = b"48.8584N 2.2945E", b"Jane Doe", b"taken at home", b"ftypmp42 a moving picture"
HOWS = [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"keep_rgb": True}, {"restart_marker_rows": 1}]


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def exif() -> bytes:
    """An Exif segment as a camera writes it: upright, with an author and a thumbnail, which is a whole JPEG."""
    tags = Image.Exif()
    tags[0x0112], tags[0x013B], tags[0x010E] = 1, AUTHOR.decode(), PLACE.decode()
    return tags.tobytes() + encoded(FACE.resize((32, 32)))


def laden(data: bytes) -> bytes:
    """A JPEG with everything that people do not know of."""
    said = [
        segment(0xE1, exif()),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + AUTHOR),
        segment(0xED, b"Photoshop 3.0\x008BIM" + AUTHOR),
        segment(0xEB, b"JP\0\1jumb" + AUTHOR),
        segment(0xE0, b"JFXX\0\x10" + encoded(FACE.resize((16, 16)))),
        segment(0xE2, b"MPF\0" + PLACE),
        segment(0xFE, COMMENT),
    ]
    return data[:2] + b"".join(said) + data[2:] + encoded(FACE) + MOVIE


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("how", HOWS)
def test_metadata_are_taken_out_and_the_picture_stays(how: dict) -> None:
    plain = encoded(FACE, quality=85, **how)
    data = laden(plain)
    left = strip_metadata(data)
    assert left == plain
    made = encode(data, EncodeOptions())
    assert (made.jpeg, made.bytes_kept) == (plain, True)
    kept = encode(data, EncodeOptions(strip_metadata=False))
    assert (kept.jpeg, kept.bytes_kept) == (data, True)


def test_comments_between_scans_go_too() -> None:
    plain = encoded(FACE, progressive=True)
    places = [n for n in range(len(plain) - 1) if plain[n : n + 2] == b"\xff\xda"]
    assert len(places) > 2
    data = plain[: places[1]] + segment(0xFE, COMMENT) + b"\xff\xff" + plain[places[1] :]
    left = strip_metadata(data)
    assert left is not None
    assert COMMENT not in left
    assert (pixels(left) == pixels(plain)).all()


def test_what_decides_the_colors_stays() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(FACE, icc_profile=profile)
    assert strip_metadata(data) is data
    cmyk = encoded(FACE.convert("CMYK"))  # with an Adobe segment
    assert b"Adobe" in cmyk
    assert strip_metadata(cmyk) is cmyk
    left = strip_metadata(laden(data))
    assert left is not None
    assert Image.open(io.BytesIO(left)).info["icc_profile"] == profile


def test_a_thumbnail_in_jfif_goes() -> None:
    plain = encoded(FACE)
    start = plain.index(b"JFIF\0")
    head = plain[start : start + 12]
    thumbnail = bytes(range(48))
    data = plain[:2] + segment(0xE0, head + b"\4\4" + thumbnail) + plain[start + 14 :]
    assert strip_metadata(data) == plain


def test_nothing_to_take_out_is_nothing_done() -> None:
    data = encoded(FACE)
    assert strip_metadata(data) is data


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 5, 20, 200, -1, -2])
def test_what_is_not_built_as_a_jpeg_is_not_judged(cut: int) -> None:
    assert strip_metadata(encoded(FACE)[:cut]) is None
    assert strip_metadata(encoded(FACE, "PNG")) is None


def test_a_picture_that_decodes_but_cannot_be_searched_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of unknown meaning are not kept, because they may contain metadata."""
    monkeypatch.setattr("shards.imaging.codec.strip_metadata", lambda data: None)
    made = encode(laden(encoded(FACE, quality=95)), EncodeOptions())
    assert not made.bytes_kept
    assert AUTHOR not in made.jpeg
    assert np.abs(pixels(made.jpeg).astype(int) - np.asarray(FACE)).mean() < 3


def test_written_anew_says_nothing_either() -> None:
    tags = Image.Exif()
    tags[0x0112], tags[0x013B] = 6, AUTHOR.decode()
    made = encode(encoded(FACE, exif=tags, comment=COMMENT), EncodeOptions(strip_metadata=False))
    assert not made.bytes_kept
    assert AUTHOR not in made.jpeg
    assert COMMENT not in made.jpeg


def test_builds_strip_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.jpg").write_bytes(laden(encoded(FACE)))
    for options, said in (([], False), (["--no-strip-metadata"], True)):
        out = tmp_path / f"out{said}"
        done = run(*BUILD, "folder", tmp_path / "faces", out, *options)
        assert done.returncode == 0, done.stderr
        assert "1 written (1 kept as is)" in done.stdout
        tar = (out / "train-000000.tar").read_bytes()
        for secret in (PLACE, AUTHOR, COMMENT, MOVIE):
            assert (secret in tar) is said


def test_every_marker_between_scans_is_understood(tmp_path: Path) -> None:
    """Real encoders' varieties: each decodes to the same pixels after stripping."""
    for number, how in enumerate([*HOWS, {"optimize": True, "progressive": True, "quality": 20}]):
        for seed in range(3):
            plain = encoded(picture(seed, 60 + number), **how)
            left = strip_metadata(laden(plain))
            assert left is not None
            assert (pixels(left) == pixels(plain)).all()
            assert isinstance(Image.open(io.BytesIO(left)), JpegImagePlugin.JpegImageFile)
    entries = [Entry("a", "a", laden(encoded(FACE, progressive=True)))]
    build(BuildSpec(tmp_path / "out", "c", {}), entries, lambda *_: None)
