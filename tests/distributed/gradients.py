"""Gradients of one SimFLE step in float64 with synchronized statistics, averaged over processes as in DeepSpeed."""

import json
import os

import torch
import torch.distributed as dist

from simfle.config.schema import FaceMAEConfig, ModelConfig, ViewsConfig
from simfle.models.layers.sync_batchnorm import convert_sync_batchnorm
from simfle.models.methods.simfle import SimFLE

BATCH = 8
TINY = FaceMAEConfig(
    patch_size=8, embed_dim=48, depth=1, num_heads=3, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2
)


def main() -> None:
    world = int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = SimFLE(
        ModelConfig(backbone="resnet10t", head_hidden_dim=64, head_out_dim=32, facemae=TINY),
        ViewsConfig(size=64, face_size=64),
    )
    convert_sync_batchnorm(model.double().train(), torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(BATCH, 3, 64, 64, dtype=torch.float64, generator=generator) for _ in range(3)]
    draw = torch.rand(BATCH, dtype=torch.float64, generator=generator)
    rows = slice(dist.get_rank() * BATCH // world, (dist.get_rank() + 1) * BATCH // world)
    losses = model.compute(*(image[rows] for image in images), draw[rows])
    losses["total"].backward()
    result = {}
    for name, loss in losses.items():
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        result[name] = mean.item() / world
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            result[name] = (parameter.grad / world).flatten()[:50].tolist()
    result |= {name: buffer.double().flatten()[:50].tolist() for name, buffer in model.named_buffers()}
    print(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
