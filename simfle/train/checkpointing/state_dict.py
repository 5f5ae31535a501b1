"""Full tensors by name, to and from a DeepSpeed engine, at any ZeRO stage and number of processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from simfle.errors import UserError
from simfle.models.base import local_shard

State = dict[str, Tensor]


@torch.no_grad()
def gather_model_state(engine: Any, *, keep: bool, below: str = "") -> State:
    """Gather parameters and buffers, fp32 on the CPU. Collective: processes without `keep` get {}.

    below: prefix of the requested names (empty = all).

    Buffers are BatchNorm statistics, which each process computes from its own samples. Their mean is saved: it follows
    the same recursion as each of them, so an interrupted run computes the same mean. Buffers in a method's
    `replicated_buffers`, such as MoCo's queue, are saved bit-identical to those of the main process.
    """
    alike = getattr(engine.module, "replicated_buffers", ())
    state: State = {}
    for name, parameter in engine.module.named_parameters():
        if not name.startswith(below):
            continue
        with _gathered(parameter):
            if keep:
                state[name] = parameter.detach().to("cpu", copy=True)
    for name, buffer in persistent_buffers(engine.module).items():
        if not name.startswith(below):
            continue
        shared = buffer.clone()
        if shared.is_floating_point() and name not in alike:
            dist.all_reduce(shared)
            shared /= dist.get_world_size()
        if keep:
            state[name] = shared.cpu()
    return state


@torch.no_grad()
def gather_optimizer_state(engine: Any, keys: tuple[str, ...], *, keep: bool) -> State:
    """Gather optimizer tensors as `parameter name.key`, in the parameter's shape.

    Collective, like `gather_model_state`.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    state: State = {}
    for name, parameter in trainable_parameters(engine.module):
        for key in keys:
            if engine.zero_optimization_stage() == 0:
                value = engine.optimizer.state[parameter][key]
            else:
                value = safe_get_full_optimizer_state(parameter, key)
            if keep:
                state[f"{name}.{key}"] = value.detach().view(full_shape(parameter)).to("cpu", copy=True)
    return state


@torch.no_grad()
def copy_tensors(into: list[torch.Tensor], tensors: list[torch.Tensor]) -> None:
    """Copy tensors with one launch per type, instead of one per tensor."""
    for kind in dict.fromkeys(each.dtype for each in tensors):
        pairs = [pair for pair in zip(into, tensors, strict=True) if pair[1].dtype == kind]
        torch._foreach_copy_([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def is_finite(module: nn.Module, device: torch.device) -> bool:
    """Return whether all parameters and saved buffers are finite on every process. Collective."""
    parts = [*map(local_shard, module.parameters()), *persistent_buffers(module).values()]
    # Sums of absolute values: one pass without copies, and any non-finite value makes the sum non-finite.
    sums = torch._foreach_norm([part for part in parts if part.numel() and part.is_floating_point()], 1)
    bad = (~torch.stack([value.float() for value in sums]).isfinite()).any().float().to(device)
    dist.all_reduce(bad, dist.ReduceOp.MAX)
    return not bad


@torch.no_grad()
def load_model(model: nn.Module, state: State, source: str) -> None:
    """Fill parameters and buffers, before DeepSpeed wraps the model.

    Raises:
        UserError: If names or shapes are those of another model. The error lists the first few.
    """
    expected = dict(model.named_parameters()) | persistent_buffers(model)
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    for names, what in ((missing, "lacks"), (unknown, "also has"), (wrong, "has in another shape")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{source} is a checkpoint of another model: it {what} {', '.join(names[:3])}{more}")
    for name, tensor in expected.items():
        tensor.copy_(state[name])


@torch.no_grad()
def load_optimizer(engine: Any, keys: tuple[str, ...], state: State, steps: int) -> None:
    """Set every optimizer tensor, to zeros if `state` has none, and AdamW's step count.

    Also called at the start of a run: zero momentum leaves the first steps of SGD and AdamW unchanged, and saving
    always finds optimizer tensors.

    Args:
        engine: DeepSpeed engine.
        keys: names of the optimizer's tensors per parameter.
        state: tensors as returned by `gather_optimizer_state`; empty at the start of a run.
        steps: optimizer steps done.
    """
    from deepspeed.utils import safe_set_full_optimizer_state

    counts = {"step": float(steps)} if "exp_avg" in keys else {}
    inner = engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer
    for flat in _optimized(engine):
        inner.state[flat] = {key: torch.zeros_like(flat) for key in keys}
        # The fused optimizers need the count on the parameter's device.
        inner.state[flat].update({key: torch.tensor(value, device=flat.device) for key, value in counts.items()})
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # links each parameter to its part of the flat tensors
    if not state:
        return
    for name, parameter in trainable_parameters(engine.module):
        for key in keys:
            value = state[f"{name}.{key}"].to(parameter.device)
            if engine.zero_optimization_stage() == 0:
                inner.state[parameter][key].copy_(value)
            else:
                safe_set_full_optimizer_state(parameter, _padded(engine, parameter, value), key)


def trainable_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that the optimizer updates, by name."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def persistent_buffers(module: nn.Module) -> State:
    """Return the buffers that belong to the model's state, without constants such as positions."""
    names = module.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in names}


def full_shape(parameter: Tensor) -> torch.Size:
    """Return the full shape of a parameter, also if ZeRO stage 3 has partitioned it."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _optimized(engine: Any) -> list[Tensor]:
    """Return the tensors that the inner optimizer steps: parameters, or ZeRO's flat partitions of them."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return [parameter for _, parameter in trainable_parameters(engine.module)]
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return list(engine.optimizer.single_partition_of_fp32_groups)


def _padded(engine: Any, parameter: Tensor, value: Tensor) -> Tensor:
    # Stage 3 splits a parameter into equal partitions, the last one padded, and expects padded values.
    if engine.zero_optimization_stage() != 3:
        return value
    wanted = parameter.ds_tensor.numel() * dist.get_world_size()  # type: ignore[attr-defined]
    return torch.nn.functional.pad(value.flatten(), (0, wanted - value.numel()))


@contextmanager
def _gathered(parameter: nn.Parameter) -> Iterator[None]:
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield
