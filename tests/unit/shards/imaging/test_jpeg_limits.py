"""JPEGs that would take minutes to decode: known by their structure, and refused by everyone who decodes."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.bombs import jpeg_of_scans
from helpers.corpus_fixtures import BUILD, VERIFY, encoded, picture, rejected, run, tool, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import shards
from shards.dedup.perceptual_hash import perceptual_hash
from shards.errors import UserError
from shards.imaging.codec import EncodeOptions, ImageRejected, encode
from shards.imaging.jpeg_limits import MAX_EXIF, MAX_SCANS, MAX_SEGMENTS, rejection
from simfle.api.backbone import read_image
from simfle.data.backends.jpeg_header import decode, size

BOMB = jpeg_of_scans(4000)
JPEG = encoded(picture(1))


def array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def reason(data: bytes) -> str:
    with pytest.raises(ImageRejected) as caught:
        encode(data, EncodeOptions())
    return caught.value.reason


def with_segments(number: int, segment: bytes) -> bytes:
    return JPEG[:2] + segment * number + JPEG[2:]


def test_a_hundred_scans_are_decoded_and_one_more_is_not() -> None:
    assert encode(jpeg_of_scans(MAX_SCANS), EncodeOptions()).width == 64
    assert decode(array(jpeg_of_scans(MAX_SCANS))) is not None
    for data in (jpeg_of_scans(MAX_SCANS + 1), BOMB):
        assert reason(data) == "too_many_scans"
        assert size(array(data)) is None
        assert decode(array(data)) is None
        with pytest.raises(ImageRejected, match="too_many_scans"):
            perceptual_hash(data)


def test_the_bomb_is_sound_and_is_refused_though_it_is_cut() -> None:
    assert BOMB.count(b"\xff\xda") == 4000
    with Image.open(io.BytesIO(jpeg_of_scans(3000))) as image:  # 63 bands of 14 bits are 882: then they come again
        assert np.ptp(np.asarray(image)) == 0
    assert reason(BOMB[: len(BOMB) // 2]) == "too_many_scans"


def test_an_encoders_progressive_jpegs_pass() -> None:
    for options in ({"progressive": True}, {"progressive": True, "subsampling": "4:4:4", "quality": 95}):
        for mode in ("RGB", "L", "CMYK"):
            assert rejection(encoded(picture(2, 99).convert(mode), **options)) is None


def test_marks_of_scans_in_metadata_and_behind_the_end_do_not_count() -> None:
    comment = b"\xff\xfe\xff\xff" + b"\xff\xda" * 32766 + b"\0"
    film = b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 5000  # a phone writes one behind the picture
    data = with_segments(2, comment) + film
    assert rejection(data) is None
    assert encode(data, EncodeOptions()).bytes_kept
    assert size(array(data)) == (48, 56)


@pytest.mark.parametrize("hidden", [b"\xff\x02\xff\xf0", b"\0\0", b"\xff\xff\xff\x01"])
def test_scans_are_not_hidden_by_what_decoders_pass_over(hidden: bytes) -> None:
    """An invalid marker, bytes between two segments, fill bytes: a parser that follows lengths may miss the rest."""
    place = BOMB.index(b"\xff\xda")
    place = BOMB.index(b"\xff\xc4", place)
    assert rejection(BOMB[:place] + hidden + BOMB[place:]) is not None


def test_metadata_in_many_pieces_are_refused() -> None:
    exif = b"\xff\xe1\x00\x10Exif\0\0" + bytes(8)
    assert encode(with_segments(MAX_EXIF, exif), EncodeOptions())
    assert reason(with_segments(MAX_EXIF + 1, exif)) == "too_large"
    empty = b"\xff\xfe\0\x02"
    assert encode(with_segments(1000, empty), EncodeOptions()).bytes_kept
    assert reason(with_segments(MAX_SEGMENTS + 1, empty)) == "too_large"
    assert size(array(with_segments(1000, empty))) == (48, 56)
    assert size(array(with_segments(MAX_SEGMENTS + 1, empty))) is None


def test_fill_bytes_are_passed_in_one_step() -> None:
    data = JPEG[:2] + b"\xff" * 1_000_000 + JPEG[2:]
    assert rejection(data) is None
    assert size(array(data)) == (48, 56)


@pytest.mark.parametrize("place", [2, len(JPEG) - 2])
def test_more_than_a_megabyte_of_fill_bytes_is_refused(place: int) -> None:
    """Before the first segment, and in the coded picture: libjpeg passes them one by one, 25 s for 200 MB."""
    data = JPEG[:place] + b"\xff" * 50_000_000 + JPEG[place:]
    assert reason(data) == "too_large"
    assert size(array(data)) is None


def test_fill_bytes_in_many_rows_are_counted_together() -> None:
    restart = b"\xff" * 1000 + b"\xff\xd0"
    assert rejection(JPEG[:2] + restart * 1000 + JPEG[2:]) is None
    assert rejection(JPEG[:2] + restart * 1100 + JPEG[2:]) is not None


def test_a_png_of_millions_of_empty_chunks_is_refused() -> None:
    png = encoded(picture(1), "PNG")
    place = png.index(b"IDAT") - 4
    empty = b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")
    assert encode(png[:place] + empty * 1000 + png[place:], EncodeOptions()).width == 56
    assert reason(png[:place] + empty * 3_000_000 + png[place:]) == "too_large"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_of_any_kind_has_a_fate_or_none(data: st.DataObject) -> None:
    content = bytearray(jpeg_of_scans(20))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert rejection(bytes(content)) is None  # what holds few marks of scans can never have too many


def test_a_build_rejects_it_and_names_why(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "good.jpg").write_bytes(JPEG)
    (tmp_path / "faces" / "scans.jpg").write_bytes(BOMB)
    assert run(*BUILD, "folder", tmp_path / "faces", tmp_path / "out").returncode == 0
    assert rejected(tmp_path / "out") == {"scans.jpg": "too_many_scans"}
    (line,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert "scans, and at most 100 are decoded" in line["detail"]
    assert run(*VERIFY, tmp_path / "out").returncode == 0


def test_shards_that_hold_one_already_are_named_by_verify_and_not_decoded(tmp_path: Path) -> None:
    """Ours, built before it was refused, and those of others, which are not decoded when they are indexed."""
    folder = tmp_path / "shards"
    folder.mkdir()
    write_tar(folder / "a.tar", [("good.jpg", JPEG), ("scans.jpg", BOMB)])
    assert run(*tool("index_shards"), folder).returncode == 0
    told = run(*VERIFY, folder)
    assert told.returncode == 1
    assert "too_many_scans" in told.stdout + told.stderr
    opened = shards.open(folder)
    assert opened["good"].image.shape == (48, 56, 3)
    with pytest.raises(UserError, match="too_many_scans"):
        _ = opened["scans"].image


def test_the_api_refuses_a_file_of_it(tmp_path: Path) -> None:
    (tmp_path / "scans.jpg").write_bytes(BOMB)
    with pytest.raises(UserError, match="too_many_scans"):
        read_image(tmp_path / "scans.jpg")
