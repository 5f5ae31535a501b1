"""Time one training step in several variants, on images that are already on the device."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from simfle.batch import Batch
from simfle.bench.reference_model import ReferenceSimFLE
from simfle.bench.timing import Timing, Variant
from simfle.config.schema import ModelConfig, PretrainConfig, ViewsConfig
from simfle.models.backbone import build_backbone
from simfle.models.layers.facemae import FaceMAE
from simfle.models.registry import begin_graphs, build_method
from simfle.optim import build_optimizer
from simfle.plan.estimate import memory
from simfle.plan.hardware import device_kind, load_constants
from simfle.plan.model_cost import measure_cost
from simfle.plan.roofline import roofline
from simfle.runtime.deepspeed_engine import init_deepspeed
from simfle.runtime.distributed import BatchLayout, World
from simfle.runtime.zero_stage import wait_for_partitions
from simfle.train.checkpointing import state_dict
from simfle.train.step_status import StepReduction

REFERENCE, OURS, BACKBONE, MASKED, PRODUCT = "plain", "ours", "backbone", "masked autoencoder", "matrix product"


def images(views: ViewsConfig, count: int, device: torch.device) -> Batch:
    """Generate noise in the shapes and memory format of the loader's batches."""
    generator = torch.Generator().manual_seed(0)
    sides = (views.size, views.size, views.face_size)
    view1, view2, face = (
        torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
        for side in sides
    )
    draw = torch.rand(count, dtype=torch.float64, generator=generator)
    return Batch(view1, view2, face, torch.arange(count), draw).to(device)


def variants(
    config: PretrainConfig, count: int, world: World, side: int, stages: Sequence[int] = (), *, ours_only: bool = False
) -> dict[str, Variant]:
    """Time steps of `count` images each, and a product of two `side` x `side` matrices, in operations.

    stages: ZeRO stages that one process uses in additional variants. With stages or `ours_only`, the reference and the
    limits are left out.
    """
    batch = images(config.views, count, world.device)
    what = f"as in the trainer: {config.train.precision}, DeepSpeed"
    found = {OURS: Variant(what, count, ours(config, batch, world))}
    if stages or ours_only:
        forced = {f"ZeRO {number}": ours(config, batch, world, stage=number) for number in stages}
        return found | {name: Variant(f"{what} at {name}", count, run) for name, run in forced.items()}
    return {
        REFERENCE: Variant("fp32, channels first, as in the paper, torch.optim.SGD", count, reference(config, batch)),
        **found,
        BACKBONE: Variant(
            "forward and backward of one view through the backbone alone",
            count,
            backbone(config.model, config.train.precision, batch),
        ),
        MASKED: Variant("forward and backward of FaceMAE alone", count, masked(config, batch)),
        PRODUCT: Variant(
            f"{side} x {side}, {config.train.precision}; operations",
            2 * side**3,
            product(config.train.precision, side, world.device),
        ),
    }


def peak_bytes(config: PretrainConfig, count: int, world: World) -> float:
    """Return the peak memory of a GPU in our step of `count` images, batch and engine included; 0 without a GPU."""
    if world.device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(world.device)
    before = torch.cuda.memory_allocated(world.device)
    run = ours(config, images(config.views, count, world.device), world)
    for _ in range(2):  # the second one with the optimizer's tensors
        run()
    return float(torch.cuda.max_memory_allocated(world.device) - before)


def reference(config: PretrainConfig, batch: Batch) -> Callable[[], None]:
    """Build a step of `ReferenceSimFLE`."""
    model = ReferenceSimFLE(config.model, config.views).to(batch.view1.device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
        model.move_target()

    return step


def ours(config: PretrainConfig, batch: Batch, world: World, stage: int | None = None) -> Callable[[], None]:
    """Build a step of the configured method through DeepSpeed, as in simfle/train/trainer.py.

    stage: ZeRO stage in place of the effective one.
    """
    model: Any = build_method(config.model, config.views).to(world.device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(trained, config.optim)
    count = len(batch.ids)
    train = replace(config.train, global_batch=count, micro_batch=count)
    engine = init_deepspeed(model, optimizer, BatchLayout(count, count, 1), train, config.optim, stage=stage)
    buffers = list(state_dict.persistent_buffers(model).values())
    before = [buffer.clone() for buffer in buffers]

    def step() -> None:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        state_dict.copy_tensors(before, buffers)
        begin_graphs(config.model)
        losses = engine(batch)
        ballot = StepReduction(losses, 1, stop=False, corrupt=0)
        engine.backward(losses["total"])
        ballot.read()
        engine.step()
        model.on_step_end()
        wait_for_partitions(engine)

    return step


def backbone(settings: ModelConfig, precision: str, batch: Batch) -> Callable[[], None]:
    """Build a forward and backward pass of the backbone in the trainer's memory format and precision."""
    model = (
        build_backbone(settings.backbone, settings.output_stride)
        .to(batch.view1.device)
        .to(memory_format=torch.channels_last)
        .train()
    )
    pixels = batch.view1.float() / 255
    return _both(model, lambda: model(pixels).mean(), precision, pixels.device)


def masked(config: PretrainConfig, batch: Batch) -> Callable[[], None]:
    """Build a forward and backward pass of FaceMAE on the first patches."""
    sizes = config.model.facemae
    model = FaceMAE(config.views.face_size, sizes).to(batch.face.device).train()
    total = (config.views.face_size // sizes.patch_size) ** 2
    patches = torch.rand(len(batch.ids), total, sizes.patch_size**2 * 3, device=batch.face.device)
    visible = torch.arange(int(total * (1 - sizes.mask_ratio)), device=patches.device).expand(len(patches), -1)

    def loss() -> torch.Tensor:
        return model(patches, visible)[1].mean()

    return _both(model, loss, config.train.precision, patches.device)


def _both(
    model: nn.Module, loss: Callable[[], torch.Tensor], precision: str, device: torch.device
) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        value.backward()

    return run


def product(precision: str, side: int, device: torch.device) -> Callable[[], object]:
    """Build a matrix product in the configured precision, which measures the machine's peak."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return lambda: left @ right


def operations(run: Callable[[], object]) -> float:
    """Return the floating-point operations of one repetition."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def kind_of(device: torch.device) -> str:
    """Return the planner's name of a device; empty if the planner does not know it."""
    return device_kind(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def against_plan(config: PretrainConfig, count: int, rate: float, device: torch.device) -> dict[str, float]:
    """Return figures of the planner for a step of `count` images in one process.

    planned_memory_bytes: its memory. roofline_images_per_second: the limit of an eager step, if the device is known;
    of_roofline: the measured `rate` in images per second as a fraction of the limit.
    """
    train = replace(config.train, global_batch=count, micro_batch=count, zero_stage=0)
    config, layout, cost = replace(config, train=train), BatchLayout(count, count, 1), measure_cost(config)
    found = {"planned_memory_bytes": memory(cost, config, layout, 1).total}
    if kind := kind_of(device):
        parts = roofline(config.train, cost, layout, kind, load_constants([]))
        limit = count / sum(part.seconds for part in parts)
        found |= {"roofline_images_per_second": limit, "of_roofline": rate / limit}
    return found


def constants(found: dict[str, Timing], work: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return constants for `plan_run --constants`: rates of convolutions, of the masked autoencoder, and of a matmul.

    work: operations per image. The result is empty for a GPU that the planner does not know.
    """
    known = kind_of(device)
    if not known:
        return {}
    return {
        f"{known}.conv": found[BACKBONE].rate * work[BACKBONE],
        f"{known}.matmul": found[MASKED].rate * work[MASKED],
        f"{known}.peak": found[PRODUCT].rate,
    }
