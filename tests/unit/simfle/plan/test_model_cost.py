"""Bytes and launches are those of kernels: nothing for views, allocations and queries."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from simfle.plan.model_cost import REST, _Operations


def counted(work) -> _Operations:
    """Apply `work` to a fake tensor of 1,000 fp32 numbers (4,000 bytes), and count."""
    with FakeTensorMode(), torch.no_grad():
        given = torch.empty(10, 100)
        with _Operations() as operations:
            work(given)
    return operations


def test_a_kernel_reads_its_operands_and_writes_its_result() -> None:
    for work, launched, moved in (
        (lambda x: (x.device, x + x), 1, 12_000),
        (lambda x: x.relu_(), 1, 8_000),
        (lambda x: x.bfloat16(), 1, 6_000),
        (lambda x: x.view(1000), 0, 0),
        (torch.empty_like, 0, 0),
        (lambda x: x.copy_(x.detach()), 1, 8_000),  # what it overwrites is not read
    ):
        found = counted(work)
        assert (found.launched, found.moved[REST]) == (launched, moved)
