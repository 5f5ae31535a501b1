"""Shards as a PyTorch dataset. Separate from `shards.reading.dataset`, which works without torch."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch.utils.data import Dataset


class ImageLabelDataset(Dataset):
    """Dataset of (image, label number, or -1 without label). Can be pickled if `transform` can."""

    def __init__(self, shards: Sequence[Any], transform: Callable[[Any], Any] | None) -> None:
        self._shards, self._transform = shards, transform

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        item = self._shards[position]
        image = Image.fromarray(item.image)
        return self._transform(image) if self._transform else image, -1 if item.label_id is None else item.label_id
