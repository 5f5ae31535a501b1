"""How OpenCV's views look beside torchvision's and DALI's is in test_parity.py; here is what else they must do."""

import cv2
import numpy as np
import pytest
import torch
from helpers.data_fixtures import jpeg, picture

from simfle.config.schema import ViewsConfig
from simfle.data.backends.base import CORRUPT, RenderedViews
from simfle.data.backends.opencv import OpenCV
from simfle.data.views import sample_view_params

VIEWS = ViewsConfig(size=64, face_size=32)


def images(count: int) -> list[np.ndarray]:
    return [np.frombuffer(jpeg(picture(i, 50 + 13 * i, 90)), dtype=np.uint8) for i in range(count)]


def render(some: list[np.ndarray], ids: list[int], threads: int = 1) -> RenderedViews:
    backend = OpenCV(VIEWS, threads)
    try:
        return backend.render(some, sample_view_params(0, 0, ids, VIEWS))
    finally:
        backend.close()


def test_shapes_and_memory() -> None:
    got = render(images(3), [0, 1, 2])
    for view, side in ((got.view1, 64), (got.view2, 64), (got.face, 32)):
        assert view.shape == (3, 3, side, side)
        assert view.dtype == torch.uint8
        assert view.is_contiguous(memory_format=torch.channels_last)
    assert got.corrupt == []
    assert not torch.equal(got.view1, got.view2)


def test_a_sample_depends_neither_on_its_batch_nor_on_threads() -> None:
    some = images(6)
    together = render(some, list(range(6)), threads=3)
    for i in range(6):
        alone = render(some[i : i + 1], [i])
        for a, b in zip(
            (alone.view1, alone.view2, alone.face), (together.view1, together.view2, together.face), strict=True
        ):
            assert torch.equal(a[0], b[i])


@pytest.mark.parametrize("broken", [b"", b"no image", jpeg(picture(0, 40, 40))[:200]])
def test_a_damaged_image_is_gray_and_named(broken: bytes) -> None:
    some = [*images(2), np.frombuffer(broken, dtype=np.uint8)]
    got = render(some, [0, 1, 2])
    assert got.corrupt == [2]
    assert (got.view1[2] == CORRUPT).all()
    assert (got.face[2] == CORRUPT).all()
    assert torch.equal(got.view2[:2], render(some[:2], [0, 1]).view2)


def test_exif_rotation_is_ignored() -> None:
    content = jpeg(picture(1, 50, 90))
    turned = (
        b"\xff\xe1\x00\x22Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00"
        + bytes(6)
    )
    rotated = np.frombuffer(content[:2] + turned + content[2:], dtype=np.uint8)
    assert cv2.imdecode(rotated, cv2.IMREAD_COLOR).shape == (90, 50, 3)  # the tag is understood
    assert torch.equal(render([rotated], [1]).face, render([np.frombuffer(content, dtype=np.uint8)], [1]).face)


def test_opencvs_own_threads_are_off() -> None:
    OpenCV(VIEWS, 1).close()
    assert cv2.getNumThreads() == 1
