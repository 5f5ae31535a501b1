"""Check that a visible GPU works: available kernels, arithmetic, and JPEG decoding."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simfle.doctor.findings import Finding, broken, note, ok

if TYPE_CHECKING:
    import torch

GRAY = 90  # gray level of the picture that is decoded
SIDE = 256  # side of the matrices that are multiplied


def examine_gpu(number: int) -> list[Finding]:
    """Check kernels, memory and bf16 of GPU `number`; if torch has kernels for it, also try arithmetic and decoding."""
    import torch

    known, name = torch.cuda.get_device_properties(number), f"GPU {number}"
    text = f"{known.name}, {known.total_memory / 1e9:.0f} GB"
    if not has_kernels((known.major, known.minor), torch.cuda.get_arch_list()):
        advice = (
            "install a torch for an older CUDA: CUDA 13 dropped GPUs before Turing (V100, P100)"
            if known.major < 7 or (known.major, known.minor) < (7, 5)
            else "install a newer torch"
        )
        lacks = f"torch for CUDA {torch.version.cuda} has no kernels for its compute capability"
        return [broken(name, f"{text}; {lacks} {known.major}.{known.minor}", advice)]
    slow = "train.precision=fp32: this GPU has no bf16 arithmetic"
    found = [ok(name, text) if known.major >= 8 else note(name, text, slow)]
    device = torch.device("cuda", number)
    return [*found, *arithmetic(device), *decoding(device)]


def has_kernels(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Return whether a build of torch can run on a GPU.

    built: list from `torch.cuda.get_arch_list`. sm_XY runs on XY and later minors of X; compute_XY, which the driver
    translates, on all later GPUs.
    """
    for each in built:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", each)
        if match is None:
            continue
        major, minor = int(match[2]), int(match[3])
        if match[1] == "compute" and (major, minor) <= capability:
            return True
        if major == capability[0] and minor <= capability[1]:
            return True
    return False


def arithmetic(device: "torch.device") -> list[Finding]:
    """Compute a product, a convolution and an attention in bf16, and compare them with the known results."""
    import torch
    import torch.nn.functional as F

    name = f"arithmetic on {device}"
    ones = torch.ones(SIDE, SIDE, device=device, dtype=torch.bfloat16)
    product = (ones @ ones).float().mean().item()
    image = torch.ones(1, 8, 16, 16, device=device, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    convolved = F.conv2d(image, torch.ones(8, 8, 1, 1, device=device, dtype=torch.bfloat16)).float().mean().item()
    heads = torch.ones(1, 2, 16, 32, device=device, dtype=torch.bfloat16)
    attended = F.scaled_dot_product_attention(heads, heads, heads).float().mean().item()
    if (product, convolved, attended) != (SIDE, 8, 1):
        text = f"bf16 gave {product:g}, {convolved:g}, {attended:g} instead of {SIDE}, 8, 1"
        return [broken(name, text, "see nvidia-smi -q -d ECC, and use another GPU")]
    return [ok(name, "a product, a convolution and an attention in bf16 are correct")]


def decoding(device: "torch.device") -> list[Finding]:
    """Decode a JPEG through DALI's graph (on a GPU, with nvJPEG); report nothing if DALI is not installed."""
    import cv2
    import numpy as np

    from simfle.config.schema import ViewsConfig
    from simfle.data.loader import has_dali
    from simfle.data.views import sample_view_params

    if not has_dali():
        return []
    from simfle.data.backends.dali import Dali

    name = f"JPEG on {device}"
    picture = cv2.imencode(".jpg", np.full((64, 64, 3), GRAY, np.uint8))[1]
    views = ViewsConfig(face_size=32)
    dali = Dali(views, 1, 1, device, images=["face"])
    try:
        face = dali.render([picture.reshape(-1)], sample_view_params(0, 0, [0], views)).face
        wrong = (face.float() - GRAY).abs().max().item()
    finally:
        dali.close()
    if wrong > 2:
        return [broken(name, "a decoded image differs from the original", "reinstall DALI, or use data.backend=opencv")]
    return [ok(name, "DALI decoded a picture")]
