"""SimFLE at scale: self-supervised pretraining for facial expression recognition in the wild.

import simfle
backbone = simfle.pretrain(data="path/to/faces", out="runs/mine")    # images or shards -> backbone.safetensors
found = simfle.embed("path/to/faces", backbone)                      # {"keys": [n], "features": [n, C]}
summary = simfle.evaluate(backbone, shards="shards/labeled")        # probes beside a random backbone
model = simfle.load_backbone(backbone); model(images)                # a timm module with its preprocessing
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from simfle.version import __version__

if TYPE_CHECKING:
    from simfle.api.backbone import Backbone, load_backbone
    from simfle.api.embedding import embed
    from simfle.api.functions import evaluate, pretrain
    from simfle.errors import RunStopped, UserError

__all__ = [
    "Backbone",
    "RunStopped",
    "UserError",
    "__version__",
    "embed",
    "evaluate",
    "load_backbone",
    "pretrain",
]
_PLACES = {
    "Backbone": "simfle.api.backbone",
    "RunStopped": "simfle.errors",
    "UserError": "simfle.errors",
    "embed": "simfle.api.embedding",
    "evaluate": "simfle.api.functions",
    "load_backbone": "simfle.api.backbone",
    "pretrain": "simfle.api.functions",
}


def __getattr__(name: str) -> Any:
    """Import all names but the version on first use (PEP 562), so that `import simfle` takes milliseconds."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'simfle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
