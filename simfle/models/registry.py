"""Pretraining methods by name."""

import torch
from torch import nn

from shards.errors import UserError
from simfle.config.schema import ModelConfig, ViewsConfig
from simfle.config.unused_fields import unused_model_fields
from simfle.config.validate import validate
from simfle.models.backbone import freeze_patch_embed
from simfle.models.base import Method
from simfle.models.layers.activation_checkpointing import enable_activation_checkpointing
from simfle.models.methods.byol import BYOL
from simfle.models.methods.care import CARE
from simfle.models.methods.dino import DINO
from simfle.models.methods.fra import FRA
from simfle.models.methods.mae import MAE
from simfle.models.methods.moco import MoCo
from simfle.models.methods.mocov3 import MoCoV3
from simfle.models.methods.simclr import SimCLR
from simfle.models.methods.simfle import SimFLE
from simfle.models.methods.simsiam import SimSiam
from simfle.models.methods.swav import SwAV
from simfle.models.methods.vicreg import VICReg

GRAPHS = "graphs"  # model.compile with CUDA graphs
METHODS: dict[str, type[Method]] = {
    "simfle": SimFLE,
    "byol": BYOL,
    "simsiam": SimSiam,
    "simclr": SimCLR,
    "moco": MoCo,
    "mocov3": MoCoV3,
    "swav": SwAV,
    "vicreg": VICReg,
    "mae": MAE,
    "dino": DINO,
    "care": CARE,
    "fra": FRA,
}


def build_method(model: ModelConfig, views: ViewsConfig) -> Method:
    """Build the root module of `model.method`; SimFLE without FaceMAE is BYOL with SimFLE's heads.

    Raises:
        UserError: If a value is out of range, or values do not fit each other.
    """
    validate(model, "model", unused_model_fields(model))
    is_compiled = model.compile in ("true", GRAPHS)
    if is_compiled and model.activation_checkpointing:
        raise UserError(
            f"model.compile={model.compile} with model.activation_checkpointing=true: not supported. Fix: set one of "
            "them to false."
        )
    kind = BYOL if model.method == "simfle" and not model.facemae.enabled else METHODS[model.method]
    method = kind(model, views)  # type: ignore[call-arg]
    if model.freeze_patch_embed:
        freeze_patch_embed(method.online.backbone, model.backbone)  # type: ignore[arg-type, union-attr]
    for network in method.networks():
        if model.activation_checkpointing:
            enable_activation_checkpointing(network)
        if is_compiled:
            compiled(network, graphs=model.compile == GRAPHS)
    return method


def compiled(network: nn.Module, backend: str = "inductor", *, graphs: bool = False) -> None:
    """Compile `network` in place with torch.compile; names do not change. On failure, log it and run uncompiled.

    graphs: whether to launch the kernels of a call as one CUDA graph. Call `begin_graphs` before each forward pass.
    """
    torch._dynamo.config.suppress_errors = True
    network.compile(backend=backend, mode="reduce-overhead" if graphs else None)


def begin_graphs(model: ModelConfig) -> None:
    """Allow CUDA graphs to overwrite the outputs of the previous forward and backward pass."""
    if model.compile == GRAPHS:
        torch.compiler.cudagraph_mark_step_begin()
