"""The doctor's trials of a GPU, on the CPU, and which GPUs a build of torch has kernels for."""

import pytest
import torch

from simfle.doctor.findings import OK
from simfle.doctor.gpu import arithmetic, decoding, has_kernels

CUDA13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "works"),
    [((7, 0), False), ((6, 0), False), ((7, 5), True), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 1), True)],
)
def test_a_build_for_cuda_13_has_no_kernels_for_a_v100(capability: tuple[int, int], works: bool) -> None:
    assert has_kernels(capability, CUDA13) is works


def test_only_translated_kernels_run_on_later_gpus() -> None:
    assert not has_kernels((11, 0), ["sm_90"])
    assert has_kernels((11, 0), ["sm_90", "compute_90"])
    assert not has_kernels((8, 0), ["sm_86"])
    assert has_kernels((9, 0), ["sm_90a"])
    assert not has_kernels((9, 0), [])


def test_arithmetic_and_decoding_are_tried() -> None:
    assert [each.state for each in arithmetic(torch.device("cpu"))] == [OK]
    pytest.importorskip("nvidia.dali")
    assert [each.state for each in decoding(torch.device("cpu"))] == [OK]
