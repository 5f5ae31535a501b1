"""The loader makes the images that a method reads and no others, and they are what they would be among all."""

from pathlib import Path

import pytest
import torch

from simfle.config.schema import DataConfig, ViewsConfig
from simfle.data.dataset import open_corpus
from simfle.data.loader import Loader, RankSlice
from simfle.data.training_data import OrderedShards, make_sampler
from simfle.models.registry import METHODS

VIEWS = ViewsConfig(size=32, face_size=16)


@pytest.mark.parametrize("backend", ["opencv", "dali"])
def test_loader_makes_only_the_images_that_are_read(backend: str, faces: Path) -> None:
    data = DataConfig(shards=[str(faces)], backend=backend, decode_threads=1)
    corpus = open_corpus(data)
    source = OrderedShards(corpus, make_sampler(corpus, data, 5, 8))
    loaders = {
        images: Loader(source, VIEWS, data, RankSlice(), torch.device("cpu"), images)
        for images in {method.images for method in METHODS.values()}
    }
    assert set(loaders) == {("view1", "view2", "face"), ("view1", "view2"), ("view1",)}
    batches = {images: loader.batch(2, 0) for images, loader in loaders.items()}
    whole = batches["view1", "view2", "face"]
    for images, batch in batches.items():
        assert torch.equal(batch.ids, whole.ids)
        assert torch.equal(batch.mask_uniform, whole.mask_uniform)
        for name in ("view1", "view2", "face"):
            found = getattr(batch, name)
            assert torch.equal(found, getattr(whole, name)) if name in images else found.shape == (8, 3, 0, 0)
    for loader in loaders.values():
        loader.close()
