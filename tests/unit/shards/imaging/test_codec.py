import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from helpers.corpus_fixtures import encoded, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from shards.entry import REJECT_REASONS, Entry
from shards.imaging.codec import EncodeOptions, ImageRejected, encode
from shards.imaging.face_crops import extract_faces

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
OPTIONS = EncodeOptions()
FACE = picture(1)


def pixels(jpeg: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(jpeg, "RGB", strict=True).astype(int)


def check_rgb(data: bytes, like: Image.Image, tolerance: float = 3.0) -> None:
    """`data` becomes an RGB JPEG that looks like `like`: mean absolute difference of at most `tolerance` of 255."""
    made = encode(data, OPTIONS)
    assert simplejpeg.decode_jpeg_header(made.jpeg)[2] == "YCbCr"
    assert b"Exif" not in made.jpeg or made.bytes_kept
    wanted = np.asarray(like.convert("RGB")).astype(int)
    assert (made.height, made.width) == wanted.shape[:2]
    assert np.abs(pixels(made.jpeg) - wanted).mean() <= tolerance


def reason(data: bytes, options: EncodeOptions = OPTIONS) -> str:
    with pytest.raises(ImageRejected) as caught:
        encode(data, options)
    assert caught.value.reason in REJECT_REASONS
    return caught.value.reason


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"keep_rgb": True}])
def test_an_rgb_jpeg_is_left_untouched(how: dict) -> None:
    data = encoded(FACE, quality=80, **how)
    made = encode(data, OPTIONS)
    assert made.bytes_kept
    assert made.jpeg is data
    assert (made.width, made.height) == FACE.size


@pytest.mark.parametrize(
    ("kind", "mode", "how"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("PNG", "1", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "L", {"compression": "tiff_lzw"}),
        ("WEBP", "RGB", {"lossless": True}),
        ("JPEG", "L", {"quality": 95}),
        ("GIF", "L", {}),
        ("PPM", "RGB", {}),
    ],
)
def test_other_formats_become_rgb_jpeg(kind: str, mode: str, how: dict) -> None:
    image = FACE.convert(mode)
    check_rgb(encoded(image, kind, **how), image, tolerance=8.0 if mode == "1" else 3.0)


def test_gray_stays_gray_exactly() -> None:
    made = encode(encoded(picture(3, 49, "L"), quality=95), OPTIONS)
    rgb = pixels(made.jpeg)
    assert (rgb[..., 0] == rgb[..., 1]).all()
    assert (rgb[..., 1] == rgb[..., 2]).all()
    assert not made.bytes_kept


def test_cmyk_jpegs_have_the_right_colors() -> None:
    check_rgb(encoded(FACE.convert("CMYK"), quality=95), FACE, tolerance=4.0)


def test_palette_images_keep_their_colors() -> None:
    image = FACE.quantize(64)
    check_rgb(encoded(image, "PNG"), image, tolerance=6.0)  # dithered: more noise than JPEG keeps


def test_transparency_becomes_white() -> None:
    image = FACE.copy()
    image.putalpha(Image.new("L", FACE.size, 0))
    assert pixels(encode(encoded(image, "PNG"), OPTIONS).jpeg).min() > 250
    palette = FACE.quantize(8)
    palette.info["transparency"] = bytes(8)
    assert pixels(encode(encoded(palette, "PNG", transparency=bytes(8)), OPTIONS).jpeg).min() > 250
    image.putalpha(255)
    check_rgb(encoded(image, "WEBP", lossless=True), FACE)


def test_sixteen_bits_become_eight() -> None:
    gray = np.asarray(FACE.convert("L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    check_rgb(encoded(deep, "PNG"), FACE.convert("L"))
    check_rgb(encoded(deep, "TIFF"), FACE.convert("L"))


def test_sixteen_bits_of_color() -> None:
    """A 16-bit RGB PNG, put together by hand: Pillow cannot write one."""
    values = np.asarray(FACE).astype(">u2") * 257
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    check_rgb(png, FACE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("turn", range(2, 9))
def test_exif_rotation_is_carried_out(kind: str, mode: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    image = FACE.convert(mode)
    how = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    transposed = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }[turn]
    data = encoded(image, kind, exif=exif, **how)
    check_rgb(data, image.transpose(transposed))
    assert not encode(data, OPTIONS).bytes_kept


@pytest.mark.parametrize("turn", [0, 1, 9])
def test_upright_or_senseless_exif_leaves_a_jpeg_untouched(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    assert encode(encoded(FACE, exif=exif), OPTIONS).bytes_kept


def test_damaged_exif_does_not_cost_a_sound_picture() -> None:
    data = encoded(FACE, quality=90, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 30)
    assert encode(data, OPTIONS).bytes_kept


def test_the_first_picture_of_several_is_taken() -> None:
    frames = [picture(n, mode="L") for n in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    check_rgb(data, frames[0])


def test_damage_is_named() -> None:
    jpeg, png = encoded(FACE, quality=90), encoded(FACE, "PNG")
    assert reason(b"") == "empty"
    assert reason(b"<html>not found</html>") == "not_an_image"
    assert reason(bytes(5000)) == "not_an_image"
    assert reason(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason(jpeg[:-2]) == "truncated"
    assert reason(png[: len(png) // 2]) == "truncated"
    tables = jpeg.index(b"\xff\xc4")
    assert reason(jpeg[: tables + 5] + b"\xff" * 40 + jpeg[tables + 45 :]) == "unreadable"
    assert reason(png[:200] + b"\0" * 20 + png[220:]) in ("unreadable", "truncated")
    assert reason(png[:20]) in ("unreadable", "truncated")
    assert reason(encoded(Image.fromarray(np.ones((20, 20), np.float32)), "TIFF")) == "unreadable"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_cut_jpegs_of_every_kind_are_found(mode: str) -> None:
    """Those that go through Pillow too, which forgives more than the strict decoder."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for how in ({}, {"exif": exif}):
        data = encoded(FACE.convert(mode), quality=90, **how)
        assert reason(data[: len(data) * 3 // 4]) == "truncated"


def test_sizes_out_of_range() -> None:
    assert reason(encoded(Image.new("RGB", (15, 400)))) == "too_small"
    assert reason(encoded(Image.new("RGB", (400, 15)), "PNG")) == "too_small"
    encode(encoded(Image.new("RGB", (16, 16))), OPTIONS)
    small = EncodeOptions(max_pixels=10_000)
    assert reason(encoded(Image.new("RGB", (101, 100))), small) == "too_large"
    assert reason(encoded(Image.new("L", (101, 100)), "PNG"), small) == "too_large"
    encode(encoded(Image.new("RGB", (100, 100))), small)


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    bomb = io.BytesIO()
    Image.new("1", (40_000, 40_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 1_000_000
    assert reason(bomb.getvalue()) == "too_large"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n/a 1 def\nshowpage\n%%EOF\n"


def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would give an EPS to gs, whatever its file is called."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho run >> {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    assert reason(EPS) == "not_an_image"
    assert not (tmp_path / "started").exists()


def test_a_side_longer_than_a_jpeg_can_have() -> None:
    for mode in ("RGB", "L"):
        data = encoded(Image.new(mode, (66_000, 20)), "PNG")
        assert reason(data) == "too_large"
        (face,) = extract_faces(data, Entry("a", "a", data), EncodeOptions(shorter_side=16))
        assert (face.image.width, face.image.height) == (52_800, 16)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_escapes(data: st.DataObject) -> None:
    """Whatever bytes a file holds, it is written or has a reason."""
    kind, how = data.draw(
        st.sampled_from([("JPEG", {}), ("PNG", {}), ("GIF", {}), ("TIFF", {}), ("WEBP", {}), ("BMP", {})])
    )
    content = bytearray(encoded(picture(2, 20), kind, **how))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        made = encode(bytes(content[: data.draw(st.integers(0, len(content)))]), EncodeOptions(max_pixels=1_000_000))
    except ImageRejected as fate:
        found = fate.reason
    else:
        found = ""
        assert pixels(made.jpeg).shape == (made.height, made.width, 3)
    assert found in ("", *REJECT_REASONS)
