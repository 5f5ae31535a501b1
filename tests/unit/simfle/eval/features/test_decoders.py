"""DALI's pipelines of evaluations are built once, not for each pass."""

import pytest
import torch

from simfle.eval.features.decoders import DecoderPool

pytest.importorskip("nvidia.dali")


def test_a_pipeline_serves_all_passes_of_its_size() -> None:
    pool, cpu = DecoderPool("dali"), torch.device("cpu")
    first, thread = pool.dali(16, (1.0, 1.0), 1, 2, cpu, "face")
    assert pool.dali(16, (1.0, 1.0), 1, 2, cpu, "face") == (first, thread)
    other, _ = pool.dali(8, (1.0, 1.0), 1, 2, cpu, "face")
    assert other is not first
