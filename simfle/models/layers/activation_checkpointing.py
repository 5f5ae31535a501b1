"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): recompute in the backward pass instead of storing."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def enable_activation_checkpointing(network: nn.Module) -> None:
    """Store only the input of each block of `network`. Results are bit-identical.

    Blocks are the members of its sequences: bottlenecks of a ResNet, stages of a ConvNeXt, blocks of a ViT. Parameters
    and buffers keep their names.
    """
    for block in blocks(network):
        block.forward = partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            preserve_rng_state=False,  # forward passes use no random numbers
            context_fn=partial(_contexts, block),
        )


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the children of the outermost nn.Sequential, or of a ViT's list of blocks, that have submodules.

    Checkpointing a single layer would save no memory.
    """
    if isinstance(network, nn.Sequential) or _is_block_list(network):
        return [member for member in network.children() if any(True for _ in member.children())]
    return [block for child in network.children() for block in blocks(child)]


def _is_block_list(network: nn.Module) -> bool:
    """Return whether `network` is a list of equal layers with a forward pass, such as the blocks of timm's EVA."""
    kinds = {type(member) for member in network.children()}
    return isinstance(network, nn.ModuleList) and len(kinds) == 1 and not kinds & {nn.ModuleList, nn.Sequential}


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Protect BatchNorm's running statistics from the second forward pass of a batch, which updates copies."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: buffer.clone() for name, buffer in norm._buffers.items() if buffer is not None})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
