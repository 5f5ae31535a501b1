"""Three bf16 steps at the given ZeRO stage; print dtypes and the target network's distance from a reference EMA."""

import json
import os
import sys

import torch
import torch.distributed as dist

from simfle.batch import Batch
from simfle.config.schema import FaceMAEConfig, ModelConfig, OptimConfig, TrainConfig, ViewsConfig
from simfle.models.registry import build_method
from simfle.optim import STATES, build_optimizer
from simfle.runtime.deepspeed_engine import init_deepspeed
from simfle.runtime.distributed import compute_batch_layout, init_distributed
from simfle.train.checkpointing import state_dict

TINY = FaceMAEConfig(
    patch_size=8, embed_dim=48, depth=1, num_heads=3, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2
)
MODEL = ModelConfig(
    backbone="resnet10t", head_hidden_dim=64, head_out_dim=32, mask_groups=4, grouping_weight=1e-4, facemae=TINY
)
MOMENTUM = MODEL.ema_momentum


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = (torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=generator) for _ in range(3))
    return Batch(*images, ids=torch.arange(8), mask_uniform=torch.rand(8, dtype=torch.float64, generator=generator))


def dtypes(tensors: list[torch.Tensor]) -> list[str]:
    return sorted({str(tensor.dtype) for tensor in tensors if tensor.is_floating_point()})


def main() -> None:
    train = TrainConfig(global_batch=16, zero_stage=int(sys.argv[1]), precision="bf16", device="cpu")
    optim = OptimConfig(name=sys.argv[2])
    with init_distributed(train) as world:
        torch.manual_seed(0)
        model = build_method(MODEL, ViewsConfig(size=64, face_size=64)).train()
        optimizer = build_optimizer([parameter for _, parameter in state_dict.trainable_parameters(model)], optim)
        engine = init_deepspeed(model, optimizer, compute_batch_layout(train, world.world_size), train, optim)
        state_dict.load_optimizer(engine, STATES[optim.name], {}, 0)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        seen: list[str] = []
        model.online.backbone.conv1.register_forward_hook(lambda *hook: seen.append(str(hook[2].dtype)))  # type: ignore
        names = [name for name, _ in model.named_parameters() if name.startswith("target.")]
        before = state_dict.gather_model_state(engine, keep=True)
        target = {name: before[name].double() for name in names}
        for step in range(3):
            losses = engine(batch(step * world.world_size + world.rank))
            engine.backward(losses["total"])
            engine.step()
            model.on_step_end()
            online = state_dict.gather_model_state(engine, keep=True)
            for name in names:  # reference in float64
                moved = online[name.replace("target.", "online.", 1)].double()
                target[name] = MOMENTUM * target[name] + (1 - MOMENTUM) * moved
        after = state_dict.gather_model_state(engine, keep=True)
        moments = state_dict.gather_optimizer_state(engine, STATES[optim.name], keep=True)
        worst = max(float((after[name] - target[name]).abs().max()) for name in names)
        distance = max(
            float((after[name] - online[name.replace("target.", "online.", 1)]).abs().max()) for name in names
        )
        facts = {
            "parameters": dtypes(list(model.parameters())),
            "buffers": dtypes(list(model.buffers())),
            "partitions": dtypes(
                [parameter.ds_tensor for parameter in model.parameters() if hasattr(parameter, "ds_tensor")]
            ),
            "optimizer": dtypes([t for s in engine.optimizer.state.values() for t in s.values() if torch.is_tensor(t)]),
            "moments": dtypes(list(moments.values())),
            "moments_moved": min(float(moment.abs().max()) for moment in moments.values()),
            "computed_in": sorted(set(seen)),
            "worlds": [int(os.environ["WORLD_SIZE"]), dist.get_world_size(), engine.dp_world_size, world.world_size],
            "ema_error": worst,
            "ema_gap": distance,
        }
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
