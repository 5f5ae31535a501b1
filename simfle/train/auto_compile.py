"""model.compile=auto: compile where it is expected to help."""

import importlib.util
import logging
from dataclasses import replace

import torch

from simfle.config.schema import PretrainConfig

log = logging.getLogger(__name__)
AUTO = "auto"


def resolve_compile(config: PretrainConfig, device: torch.device) -> PretrainConfig:
    """Replace model.compile=auto by true or false, and log the reason.

    True on a GPU at ZeRO stages 0 to 2 with Triton, whose kernels torch.compile writes. A network that does not compile
    runs uncompiled. No GPU has measured whether compilation pays, so auto is not the default.
    """
    if config.model.compile != AUTO:
        return config
    reason = ""
    if device.type != "cuda":
        reason = "there is no GPU"
    elif config.train.zero_stage == 3:
        reason = "ZeRO stage 3 replaces parameters at runtime"
    elif config.model.activation_checkpointing:
        reason = "model.activation_checkpointing=true"
    elif importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed"
    log.info("model.compile=auto: %s", f"false, {reason}" if reason else "true; the first steps take minutes")
    return replace(config, model=replace(config.model, compile="false" if reason else "true"))
