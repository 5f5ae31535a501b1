"""One SimFLE forward and backward on a GPU, against the same on the CPU."""

import pytest
import torch

from simfle.batch import Batch
from simfle.config.schema import FaceMAEConfig, ModelConfig, ViewsConfig
from simfle.models.registry import build_method

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]

TINY = FaceMAEConfig(
    patch_size=16, embed_dim=96, depth=2, num_heads=3, decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=2
)
MODEL = ModelConfig(backbone="resnet18", head_hidden_dim=256, head_out_dim=64, facemae=TINY)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = (torch.randint(0, 256, (16, 3, 224, 224), dtype=torch.uint8, generator=generator) for _ in range(2))
    face = torch.randint(0, 256, (16, 3, 112, 112), dtype=torch.uint8, generator=generator)
    draw = torch.rand(16, dtype=torch.float64, generator=generator)
    images = (image.contiguous(memory_format=torch.channels_last) for image in (*views, face))
    return Batch(*images, ids=torch.arange(16), mask_uniform=draw)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)], ids=str)
def test_losses_on_the_gpu_are_those_of_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = build_method(MODEL, ViewsConfig()).train()
    wanted = {name: value.item() for name, value in model(batch()).items()}
    model.cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = model(batch().to(torch.device("cuda")))
    losses["total"].backward()
    for name in ("similarity", "reconstruction", "distillation"):
        assert losses[name].item() == pytest.approx(wanted[name], rel=tolerance), name
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}
