"""The DALI graph on a GPU beside OpenCV on the CPU, on the same parameters.

The GPU decodes JPEGs by another IDCT than libjpeg-turbo, so the limits are wider than those of the CPU graph.
"""

import io
import itertools
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from shards.format.index import index_tar, write_index
from shards.format.manifest import FORMAT, Manifest, ShardInfo, write_manifest
from simfle.config.schema import DataConfig, ViewsConfig
from simfle.data.backends.dali import Dali
from simfle.data.backends.opencv import OpenCV
from simfle.data.dataset import ShardCorpus
from simfle.data.loader import Loader, RankSlice, choose_backend
from simfle.data.training_data import OrderedShards, make_sampler
from simfle.data.views import sample_view_params

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: torch sees none"),
]
VIEWS = ViewsConfig()
CUDA = torch.device("cuda")
MEAN, MOST = 1.5, 8.0  # gray levels: mean difference, 99th percentile


def picture(seed: int, height: int, width: int) -> bytes:
    """A drawn image as JPEG."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), rng.integers(0, 256, 3), dtype=np.uint8)
    for _ in range(8):
        center = (int(rng.integers(width)), int(rng.integers(height)))
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        cv2.circle(image, center, int(rng.integers(3, 9 + width // 4)), color, -1, cv2.LINE_AA)
    return cv2.imencode(".jpg", image)[1].tobytes()


def images() -> list[np.ndarray]:
    sizes = [(48, 48), (112, 96), (218, 178), (350, 350), (600, 450)]
    return [np.frombuffer(picture(i, *size), dtype=np.uint8) for i, size in enumerate(sizes)]


def apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.cpu().int() - b.cpu().int()).abs().float()


def test_views_are_near_to_opencvs() -> None:
    draws = sample_view_params(3, 0, range(5), VIEWS)
    dali, opencv = Dali(VIEWS, 2, 5, CUDA), OpenCV(VIEWS, 2)
    got, expected = dali.render(images(), draws), opencv.render(images(), draws)
    for name in ("view1", "view2", "face"):
        view = getattr(got, name)
        assert view.is_cuda
        assert view.dtype == torch.uint8
        assert view.is_contiguous(memory_format=torch.channels_last)
        difference = apart(view, getattr(expected, name))
        assert difference.mean() < MEAN
        assert np.percentile(difference.numpy(), 99) <= MOST
    dali.close()
    opencv.close()


def test_a_batch_outlives_those_after_it() -> None:
    dali = Dali(VIEWS, 2, 5, CUDA)
    draws = [sample_view_params(3, epoch, range(5), VIEWS) for epoch in range(6)]
    first = dali.render(images(), draws[0])
    kept = first.view1.cpu()
    for some in draws[1:]:
        dali.render(images(), some)
    assert torch.equal(first.view1.cpu(), kept)
    assert torch.equal(dali.render(images(), draws[0]).view1.cpu(), kept)
    dali.close()


def test_pixels_do_not_depend_on_the_batch() -> None:
    """Alone and among many: the position in a batch does not change an image's decoder."""
    many = [np.frombuffer(picture(i, 200 + i, 180), dtype=np.uint8) for i in range(64)]
    whole = Dali(VIEWS, 2, 64, CUDA).render(many, sample_view_params(3, 0, range(64), VIEWS))
    alone = Dali(VIEWS, 2, 1, CUDA)
    for place in (0, 31, 63):
        found = alone.render([many[place]], sample_view_params(3, 0, [place], VIEWS))
        for name in ("view1", "view2", "face"):
            assert torch.equal(getattr(found, name)[0], getattr(whole, name)[place])


def test_a_damaged_image_is_survived() -> None:
    some = images()
    some[2] = some[2][:300]
    dali = Dali(VIEWS, 2, 5, CUDA)
    draws = sample_view_params(3, 0, range(5), VIEWS)
    got = dali.render(some, draws)
    assert got.corrupt == [2]
    assert (got.view1[2] == 128).all()
    assert torch.equal(got.face[3:].cpu(), dali.render(images(), draws).face[3:].cpu())
    dali.close()


def shards(folder: Path) -> Path:
    path = folder / "train-000000.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(24):
            content = picture(i, 80 + i, 90)
            member = tarfile.TarInfo(f"s{i:06d}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    write_index(path.with_suffix(".idx"), index_tar(path))
    info = ShardInfo(path.name, "train", 24, path.stat().st_size, "0" * 64)
    write_manifest(folder, Manifest(FORMAT, "drawn", "none", (), 24, {}, (info,), {}))
    return folder


def test_the_loader_on_a_gpu_gives_what_it_gives_without_one(tmp_path: Path) -> None:
    assert choose_backend("auto", CUDA) == "dali"
    corpus = ShardCorpus([shards(tmp_path)])
    found = {}
    for backend, device in (("dali", CUDA), ("opencv", CUDA), ("opencv", torch.device("cpu"))):
        data = DataConfig(backend=backend, decode_threads=2, canonical_streams=4, shuffle_window=8)
        loader = Loader(
            OrderedShards(corpus, make_sampler(corpus, data, 1, 8)), VIEWS, data, RankSlice(grad_accum_steps=2), device
        )
        batches = loader.batches(1)
        found[backend, device.type] = list(itertools.islice(batches, 8))
        batches.close()
        loader.close()
    for on_gpu, uploaded, reference in zip(*found.values(), strict=True):
        assert on_gpu.view1.is_cuda
        assert on_gpu.ids.is_cuda
        assert torch.equal(on_gpu.ids.cpu(), reference.ids)
        assert torch.equal(on_gpu.mask_uniform.cpu(), reference.mask_uniform)
        assert torch.equal(uploaded.view2.cpu(), reference.view2)
        assert apart(on_gpu.view2, reference.view2).mean() < MEAN
