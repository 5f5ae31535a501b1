import io

import cv2
import numpy as np
import pytest
from helpers.data_fixtures import jpeg, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simfle.data.backends.jpeg_header import decode, size, sizes


def array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (1, 1), (301, 17), (20, 2049)])
def test_size_is_what_decoders_see(height: int, width: int, progressive: bool) -> None:
    stream = io.BytesIO()
    image = Image.fromarray(picture(0, height, width))
    exif = Image.Exif()
    exif[0x010E] = "a description " * 100
    image.save(stream, "jpeg", progressive=progressive, exif=exif, comment=b"\xff\xc0 not a frame", dpi=(72, 72))
    content = array(stream.getvalue())
    assert size(content) == (height, width)
    assert cv2.imdecode(content, cv2.IMREAD_COLOR).shape[:2] == (height, width)
    gray = io.BytesIO()
    image.convert("L").save(gray, "jpeg")
    assert size(array(gray.getvalue())) == (height, width)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("png", {}),
        ("webp", {"lossless": True}),
        ("webp", {"quality": 80}),
        ("webp", {"quality": 80, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
    ],
)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (1, 1), (301, 17), (20, 2049)])
def test_sizes_of_other_formats(height: int, width: int, kind: str, options: dict) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture(0, height, width)).save(stream, kind, **options)
    content = array(stream.getvalue())
    assert size(content) == (height, width)
    assert cv2.imdecode(content, cv2.IMREAD_COLOR).shape[:2] == (height, width)
    assert size(content[:29]) is None


def test_fill_bytes_before_a_marker() -> None:
    content = jpeg(picture(0, 20, 30))
    assert size(array(content[:2] + b"\xff\xff\xff" + content[2:])) == (20, 30)


@given(st.integers(0, 700))
@settings(deadline=None)
def test_a_cut_header_has_no_size(length: int) -> None:
    content = jpeg(picture(0, 20, 30))
    frame = content.index(b"\xff\xc0")
    assert size(array(content[:length])) == ((20, 30) if length >= frame + 9 else None)


@given(st.binary(max_size=200))
def test_anything_else_has_no_size_or_one(content: bytes) -> None:
    for data in (content, b"\xff\xd8" + content):
        found = size(array(data))
        assert found is None or min(found) > 0


def test_sizes_marks_what_has_none() -> None:
    shape, good = sizes([array(jpeg(picture(0, 20, 30))), array(b"GIF89a"), array(b"")])
    assert shape.tolist() == [[20, 30], [1, 1], [1, 1]]
    assert good.tolist() == [True, False, False]


@pytest.mark.parametrize("length", [0x7F0005BF, 0xFFFFFFFF, 5000])
def test_a_png_whose_chunk_is_longer_than_the_file_is_not_decoded(length: int) -> None:
    """OpenCV takes memory for the whole chunk before it reads it: 2 GiB of a file of 1 kB (found by the fuzzing)."""
    content = bytearray(cv2.imencode(".png", picture(0, 20, 24))[1].tobytes())
    at = content.index(b"IDAT") - 4
    assert size(array(bytes(content))) == (20, 24)
    content[at : at + 4] = length.to_bytes(4, "big")
    assert size(array(bytes(content))) is None
    assert decode(array(bytes(content))) is None


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_promises_more_than_its_bytes_can_hold_is_not_decoded(progressive: bool) -> None:
    stream = io.BytesIO()
    plain = Image.new("RGB", (4096, 4096))  # the smallest file that a real encoder writes for this number of pixels
    plain.save(stream, "jpeg", progressive=progressive, optimize=True, quality=1, subsampling=2)
    content = bytearray(stream.getvalue())
    assert size(array(bytes(content))) == (4096, 4096)
    frame = content.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    content[frame + 5 : frame + 9] = b"\x2c\x00\x2c\x00"  # 11264 x 11264: within the limit of pixels
    assert decode(array(bytes(content))) is None


@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
@settings(deadline=None)
def test_no_real_image_is_refused(height: int, width: int, optimize: bool) -> None:
    stream = io.BytesIO()
    Image.new("L", (8 * width, 8 * height), 128).save(stream, "jpeg", optimize=optimize, progressive=True, quality=1)
    assert decode(array(stream.getvalue())).shape == (8 * height, 8 * width, 3)
