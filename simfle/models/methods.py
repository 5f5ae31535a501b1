"""The pretraining methods by name."""

from torch import nn

from shards.errors import UserError
from simfle.config import ModelConfig, ViewsConfig
from simfle.models.simfle import SimFLE

METHODS = {"simfle": SimFLE}


def build_method(model: ModelConfig, views: ViewsConfig) -> nn.Module:
    """The root module that `model.method` names: `forward(batch) -> losses`, `after_step()`.

    Raises:
        UserError: there is no such method.
    """
    if model.method not in METHODS:
        raise UserError(f"model.method is {model.method!r}; known are {', '.join(METHODS)}")
    return METHODS[model.method](model, views)
