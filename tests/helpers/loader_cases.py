"""Small loaders and comparison of their batches."""

import itertools

import torch

from simfle.batch import Batch
from simfle.config.schema import DataConfig, ViewsConfig
from simfle.data.loader import Loader

CPU = torch.device("cpu")


VIEWS = ViewsConfig(size=32, face_size=16)


DATA = DataConfig(backend="opencv", decode_threads=1, canonical_streams=8, shuffle_window=6)


def take(loader: Loader, start: int, count: int) -> list[Batch]:
    batches = loader.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()
        loader.close()


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.ids, batch.mask_uniform, batch.view1, batch.view2, batch.face]


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = [zip(tensors(x), tensors(y), strict=True) for x, y in zip(a, b, strict=True)]
    return all(torch.equal(s, t) for pair in pairs for s, t in pair)
