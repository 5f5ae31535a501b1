"""Methods on several processes: losses of the global batch, and two bf16 steps of each method asked for.

Usage: on_processes.py STAGE:METHOD,METHOD ...
"""

import json
import sys

import torch
import torch.distributed as dist

from helpers.tiny_methods import VIEWS, batch, config
from simfle.config.schema import OptimConfig, TrainConfig, VICRegConfig
from simfle.models.layers.all_gather import all_gather_with_grad, local_only
from simfle.models.methods.mocov3 import contrast
from simfle.models.methods.simclr import nt_xent
from simfle.models.methods.swav import sinkhorn
from simfle.models.methods.vicreg import vicreg
from simfle.models.registry import build_method
from simfle.optim import STATES, build_optimizer
from simfle.runtime.deepspeed_engine import init_deepspeed
from simfle.runtime.distributed import World, compute_batch_layout, init_distributed
from simfle.train.checkpointing import state_dict

N, WIDTH = 8, 6


def rows(seed: int) -> torch.Tensor:
    return torch.randn(N, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shared_losses(world: World) -> dict:
    """NT-Xent, its gradients as DeepSpeed averages them, and codes, of this process's share of one global batch."""
    mine = slice(world.rank * N // world.world_size, (world.rank + 1) * N // world.world_size)
    z1, z2 = (rows(seed)[mine].requires_grad_() for seed in (0, 1))
    loss = nt_xent(z1, z2, 0.3)
    loss.backward()
    dist.all_reduce(mean := loss.detach().clone())
    gradients = [(z.grad / world.world_size).tolist() for z in (z1, z2)]  # type: ignore[operator]
    codes = sinkhorn(torch.tanh(rows(2)[mine]), 0.1, 3)
    y1, y2 = (rows(seed)[mine].requires_grad_() for seed in (0, 1))
    whole = vicreg(all_gather_with_grad(y1), all_gather_with_grad(y2), VICRegConfig())["total"]
    whole.backward()
    of_vicreg = [(y.grad / world.world_size).tolist() for y in (y1, y2)]  # type: ignore[operator]
    facts = {"vicreg": whole.item(), "of_vicreg": of_vicreg}
    query, key = (rows(seed)[mine].requires_grad_() for seed in (0, 1))
    part, accuracy = contrast(query, key, 0.3)
    part.backward()
    facts |= {"mocov3": (part.item(), accuracy.item()), "of_mocov3": (query.grad / world.world_size).tolist()}  # type: ignore[operator]
    facts |= {"nt_xent": mean.item() / world.world_size, "gradients": gradients, "codes": codes.tolist()}
    if world.is_main:  # the other one does nothing of this kind, and is not waited for
        with local_only():
            codes = sinkhorn(torch.tanh(rows(2)[mine]), 0.1, 3)
            facts["alone"] = nt_xent(rows(0)[mine], rows(1)[mine], 0.3).item(), codes.tolist()
    return facts


def steps_of(name: str, train: TrainConfig, world: World) -> dict:
    """Two optimizer steps of two micro-batches each: what moved, and how far target and queue are from expected."""
    torch.manual_seed(0)
    model = build_method(config(name, grouping_weight=1e-4), VIEWS).train()
    optim = OptimConfig(name="adamw")
    optimizer = build_optimizer([parameter for _, parameter in state_dict.trainable_parameters(model)], optim)
    engine = init_deepspeed(model, optimizer, compute_batch_layout(train, world.world_size), train, optim)
    state_dict.load_optimizer(engine, STATES[optim.name], {}, 0)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    before = state_dict.gather_model_state(engine, keep=True)
    target = {key: value.double() for key, value in before.items() if key.startswith("target.")}
    keys: list[torch.Tensor] = []
    center = torch.zeros(())
    for step in range(2):
        fresh = []
        for micro in range(2):
            losses = engine(batch(4, seed=100 * step + 10 * world.rank + micro))
            kept = {"moco": "_fresh", "dino": "_means"}.get(name)
            fresh.append(getattr(model, kept)[-1] if kept else torch.zeros(1))
            engine.backward(losses["total"])
            engine.step()
        model.on_step_end()
        shares = [torch.empty_like(torch.cat(fresh)) for _ in range(world.world_size)]
        dist.all_gather(shares, torch.cat(fresh))
        keys += shares
        center = 0.9 * center + 0.1 * torch.cat(shares).view(4, -1).mean(dim=0)  # 2 processes x 2 micro-batches
        after = state_dict.gather_model_state(engine, keep=True)
        moving = {key for key, _ in model.named_parameters() if key.startswith("target.")}
        for key in moving:
            target[key] = 0.99 * target[key] + 0.01 * after[key.replace("target.", "online.", 1)].double()
    trained = {key for key, _ in state_dict.trainable_parameters(model)}
    facts = {
        "finite": all(value.isfinite().item() for value in losses.values()),
        "still": sorted(key for key in trained if torch.equal(before[key], after[key])),
        "fixed": sorted(key for key, _ in model.named_parameters() if torch.equal(before[key], after[key])),
        "target": max((float((after[key] - target[key]).abs().max()) for key in moving), default=0.0),
    }
    if name == "moco":
        expected = torch.cat([before["queue"], *keys])[-24:]
        facts["queue"] = [torch.equal(each, expected) for each in (model.queue, after["queue"])]
    if name == "dino":
        facts["center"] = model.center.tolist()
        facts["saved"] = torch.equal(model.center, after["center"]) if world.is_main else True
        facts["error"] = float((model.center - center).abs().max())
    return facts


def main() -> None:
    settings = {"global_batch": 16, "micro_batch": 4, "precision": "bf16", "device": "cpu"}
    asked = [(stage, names.split(",")) for stage, names in (word.split(":") for word in sys.argv[1:])]
    with init_distributed(TrainConfig(**settings)) as world:
        facts = shared_losses(world)
        for stage, names in asked:
            train = TrainConfig(zero_stage=int(stage), **settings)
            facts |= {f"{stage}:{name}": steps_of(name, train, world) for name in names}
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
