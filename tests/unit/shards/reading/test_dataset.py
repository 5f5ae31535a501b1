"""The dataset of shards.open in PyTorch's loaders."""

import pickle
from pathlib import Path

import numpy as np
from helpers.data_fixtures import drawn_corpus
from PIL import Image
from torch.utils.data import Dataset

import shards


def mean(image: Image.Image) -> float:
    return float(np.asarray(image).mean())


def test_processes_that_are_started_anew_read_the_same(tmp_path: Path) -> None:
    """With spawn, as on macOS, all that a worker gets is pickled."""
    pairs = shards.open(drawn_corpus(tmp_path / "shards")).as_torch_dataset(mean)
    assert isinstance(pairs, Dataset)
    again = pickle.loads(pickle.dumps(pairs))
    assert [again[position] for position in range(len(again))] == [pairs[position] for position in range(len(pairs))]
