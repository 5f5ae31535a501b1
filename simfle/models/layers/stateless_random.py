"""Random numbers inside the model, without a generator: a pure function of each sample's random word."""

# B batch
import torch
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014), as signed 64-bit integers; torch's products wrap as intended.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def stateless_uniform(draw: Tensor, count: int) -> Tensor:
    """Map `Batch.mask_uniform` [B], a 32-bit word in [0, 1), to [B, count] float64 in [0, 1), count up to 65,536.

    Each word is a function of (seed, epoch, sample), and so are these numbers. They are the same after a resume, in any
    batch and with any number of processes.
    """
    word = (draw.double() * 2**32).long()  # [B]
    counter = (word[:, None] << 16) | torch.arange(count, device=draw.device)  # [B, count]
    bits = counter * _GAMMA
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return _shifted(bits ^ _shifted(bits, 31), 11).double() * 2.0**-53


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shift right logically: torch's shift keeps the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
