"""Measure DeepSpeed's memory and traffic at each ZeRO stage: tensor bytes, and TCP bytes per step, as JSON lines."""

import faulthandler
import gc
import json
import os
import socket
import struct
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from simfle.batch import Batch
from simfle.config.schema import PretrainConfig, load
from simfle.models.registry import build_method
from simfle.optim import STATES, build_optimizer
from simfle.runtime.deepspeed_engine import BUCKET, init_deepspeed
from simfle.runtime.distributed import compute_batch_layout, init_distributed
from simfle.train.checkpointing import state_dict


def received() -> int:
    """Return the bytes that this process has received over TCP (tcp_info of linux/tcp.h); in a ring, also those sent.

    Between two barriers no data is in flight. Sent bytes are less exact, because acknowledgments arrive later.
    """
    dist.barrier()
    total = sum(_received(entry) for entry in list(Path("/proc/self/fd").iterdir()))
    dist.barrier()
    return total


def _received(entry: Path) -> int:
    try:
        if not str(entry.readlink()).startswith("socket:"):
            return 0
        handle = os.dup(int(entry.name))
    except OSError:
        return 0  # the listing's own descriptor, closed by now
    with socket.socket(fileno=handle) as each:
        if each.type != socket.SOCK_STREAM or each.family not in (socket.AF_INET, socket.AF_INET6):
            return 0
        info = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
        return int(struct.unpack_from("Q", info, 128)[0])  # tcpi_bytes_received


def held(bucket: int) -> tuple[int, int]:
    """Return the bytes of all live tensors and of communication buckets among them, each storage once."""
    gc.collect()
    storages: dict[int, int] = {}
    buckets: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):  # isinstance would query the class of lazy modules, which warn
            storage = thing.untyped_storage()
            kind = buckets if thing.numel() >= bucket else storages
            kind[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values()), sum(buckets.values())


def batch(size: int, face: int, count: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = (
        torch.randint(0, 256, (count, 3, s, s), dtype=torch.uint8, generator=generator) for s in (size, size, face)
    )
    return Batch(*images, torch.arange(count), torch.rand(count, dtype=torch.float64, generator=generator))


def main() -> None:
    stages = json.loads(sys.argv[1])
    for stage in stages:
        config = load(PretrainConfig, None, [*sys.argv[2:], f"train.zero_stage={stage}"])
        measure(config)


def measure(config: PretrainConfig) -> None:
    model = build_method(config.model, config.views).train()
    plan = compute_batch_layout(config.train, WORLD.world_size)
    optimizer = build_optimizer([parameter for _, parameter in state_dict.trainable_parameters(model)], config.optim)
    engine = init_deepspeed(model, optimizer, plan, config.train, config.optim)
    state_dict.load_optimizer(engine, STATES[config.optim.name], {}, 0)
    images = batch(config.views.size, config.views.face_size, plan.micro_batch)
    images_bytes = sum(tensor.nbytes for tensor in vars(images).values())
    before = 0
    for _ in range(2):  # twice: stage 3 records the order of parameters in its first step
        before = received()
        for micro in range(plan.grad_accum_steps):
            losses = engine(images)
            engine.backward(losses["total"])
            if micro == plan.grad_accum_steps - 1:
                del losses
                tensors, buckets = held(BUCKET)
            engine.step()
        model.on_step_end()
    after = received()
    if WORLD.is_main:
        rest, _ = held(BUCKET)
        line = {"stage": config.train.zero_stage, "backward": tensors - images_bytes, "buckets": buckets}
        print(json.dumps(line | {"between": rest - images_bytes, "sent": after - before}))
    engine.destroy()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(700, exit=True)  # before its caller gives up silently
    with init_distributed(load(PretrainConfig, None, sys.argv[2:]).train) as WORLD:
        main()
