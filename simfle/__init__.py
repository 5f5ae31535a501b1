"""SimFLE at scale: self-supervised pretraining for facial expression recognition in the wild.

import simfle
backbone = simfle.pretrain(data="path/to/faces", out="runs/mine")    # images or shards -> backbone.safetensors
found = simfle.embed("path/to/faces", backbone)                      # {"path": [n], ..., "features": [n, C]}
summary = simfle.evaluate(backbone, shards="shards/labeled", out="runs/mine/eval")  # probes beside a random backbone
table = simfle.predict("photo.jpg", backbone)                       # expression and probabilities, by such a probe
model = simfle.load_backbone(backbone); model(images)                # an nn.Module, for images of any size
faces = simfle.shards.open("shards/labeled")                         # the package shards
"""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simfle.version import __version__

if TYPE_CHECKING:
    import shards as shards
    from simfle.api.backbone import Backbone, load_backbone
    from simfle.api.embedding import embed
    from simfle.api.functions import evaluate, pretrain
    from simfle.api.prediction import predict
    from simfle.errors import RunStopped, UserError

__all__ = [
    "Backbone",
    "RunStopped",
    "UserError",
    "__version__",
    "embed",
    "evaluate",
    "load_backbone",
    "predict",
    "pretrain",
    "shards",
]
_PLACES = {
    "Backbone": "simfle.api.backbone",
    "RunStopped": "simfle.errors",
    "UserError": "simfle.errors",
    "embed": "simfle.api.embedding",
    "evaluate": "simfle.api.functions",
    "load_backbone": "simfle.api.backbone",
    "predict": "simfle.api.prediction",
    "pretrain": "simfle.api.functions",
}
_SHARDS = Path(__file__).resolve().parents[1] / "shards" / "__init__.py"


def _own_shards() -> None:
    """Import the package `shards`, also if a folder shards/ in the working folder precedes it on Python's path.

    Such a folder without an __init__.py is a namespace package to Python.

    Raises:
        ImportError: If another module of this name is imported or installed first.
    """
    found = sys.modules["shards"].__spec__ if "shards" in sys.modules else find_spec("shards")
    place = found.origin if found else None  # None for a namespace package
    if place is not None and Path(place).resolve() == _SHARDS:
        return
    own = spec_from_file_location("shards", _SHARDS, submodule_search_locations=[str(_SHARDS.parent)])
    if place is not None or own is None or own.loader is None or not _SHARDS.is_file():
        raise ImportError(f"simfle: another module shards is found first: {place}. Fix: rename it.")
    sys.modules["shards"] = module = module_from_spec(own)
    own.loader.exec_module(module)


_own_shards()


def __getattr__(name: str) -> Any:
    """Import everything except the version on first use (PEP 562), so that `import simfle` takes milliseconds."""
    if name == "shards":
        return import_module("shards")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'simfle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
