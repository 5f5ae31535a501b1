"""Methods on two real processes: losses of the whole batch, and steps at each kind of ZeRO stage."""

import json
from pathlib import Path

import pytest
import torch
from distributed.launch import processes
from helpers.method_processes import rows

from simfle.config.schema import VICRegConfig
from simfle.models.methods.mocov3 import contrast
from simfle.models.methods.simclr import nt_xent
from simfle.models.methods.swav import sinkhorn
from simfle.models.methods.vicreg import vicreg

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[4] / "helpers" / "method_processes.py"


# Stage 3 partitions parameters; 1 and 2 keep flat copies of what is trained.
CASES = {"1": ["moco"], "3": ["simclr", "moco", "mocov3", "swav", "vicreg", "mae", "dino", "care", "fra"]}
EACH = [f"{stage}:{name}" for stage, names in CASES.items() for name in names]


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    """Return the output of each of two processes."""
    outputs = processes(2, SCRIPT, *(f"{stage}:{','.join(names)}" for stage, names in CASES.items()))
    return [json.loads(output.strip().splitlines()[-1]) for output in outputs]


def test_simclr_and_swav_see_the_global_batch(ranks: list[dict]) -> None:
    z1, z2 = rows(0).requires_grad_(), rows(1).requires_grad_()
    loss = nt_xent(z1, z2, 0.3)
    loss.backward()
    assert [rank["nt_xent"] for rank in ranks] == pytest.approx([loss.item()] * 2, rel=1e-12)
    for view, z in enumerate((z1, z2)):
        gradient = torch.tensor([row for rank in ranks for row in rank["gradients"][view]], dtype=torch.float64)
        assert torch.allclose(gradient, z.grad, rtol=1e-10, atol=1e-14)
    codes = torch.tensor([row for rank in ranks for row in rank["codes"]], dtype=torch.float64)
    assert torch.allclose(codes, sinkhorn(torch.tanh(rows(2)), 0.1, 3), rtol=1e-10)


def test_vicreg_sees_the_global_batch(ranks: list[dict]) -> None:
    z1, z2 = rows(0).requires_grad_(), rows(1).requires_grad_()
    loss = vicreg(z1, z2, VICRegConfig())["total"]
    loss.backward()
    assert [rank["vicreg"] for rank in ranks] == pytest.approx([loss.item()] * 2, rel=1e-12)
    for view, z in enumerate((z1, z2)):
        gradient = torch.tensor([row for rank in ranks for row in rank["of_vicreg"][view]], dtype=torch.float64)
        assert torch.allclose(gradient, z.grad, rtol=1e-10, atol=1e-14)


def test_moco_v3_sees_the_keys_of_the_global_batch(ranks: list[dict]) -> None:
    query, key = rows(0).requires_grad_(), rows(1)
    loss, accuracy = contrast(query, key, 0.3)
    loss.backward()
    parts = torch.tensor([rank["mocov3"] for rank in ranks], dtype=torch.float64)
    assert parts.mean(dim=0).tolist() == pytest.approx([loss.item(), accuracy.item()], rel=1e-12)
    gradient = torch.tensor([row for rank in ranks for row in rank["of_mocov3"]], dtype=torch.float64)
    assert torch.allclose(gradient, query.grad, rtol=1e-10, atol=1e-14)


def test_one_process_alone_waits_for_nobody(ranks: list[dict]) -> None:
    """As in the trial of train.micro_batch=auto, which may run out of memory on some processes only."""
    half = slice(0, 4)
    loss, codes = ranks[0]["alone"]
    assert loss == pytest.approx(nt_xent(rows(0)[half], rows(1)[half], 0.3).item(), rel=1e-12)
    assert torch.allclose(torch.tensor(codes, dtype=torch.float64), sinkhorn(torch.tanh(rows(2)[half]), 0.1, 3))


@pytest.mark.parametrize("case", EACH)
def test_a_step_moves_what_is_trained_and_the_target_follows(case: str, ranks: list[dict]) -> None:
    for rank in ranks:
        facts = rank[case]
        assert facts["finite"]
        assert facts["still"] == []
        assert facts["fixed"] == (["online.backbone.pos_embed"] if case.endswith("mae") else [])
        assert facts["target"] < 1e-6


@pytest.mark.parametrize("stage", CASES)
def test_moco_queue_is_the_global_batch_in_order_everywhere(stage: str, ranks: list[dict]) -> None:
    assert [rank[f"{stage}:moco"]["queue"] for rank in ranks] == [[True, True]] * 2


def test_dino_center_is_the_mean_of_the_global_batch_everywhere(ranks: list[dict]) -> None:
    facts = [rank["3:dino"] for rank in ranks]
    assert facts[0]["center"] == facts[1]["center"]
    assert max(map(abs, facts[0]["center"])) > 0.01
    for each in facts:
        assert each["saved"]
        assert each["error"] < 1e-6
