"""The planner's model against real processes: memory and traffic of DeepSpeed at each ZeRO stage."""

import json

import pytest
from distributed.launch import ROOT, processes
from distributed.runs import SETTINGS

from simfle.config.schema import PretrainConfig, load
from simfle.plan.estimate import memory, traffic
from simfle.plan.model_cost import ModelCost, measure_cost
from simfle.runtime.distributed import compute_batch_layout

WORLD = 2
# Two micro-batches of four, bf16: gradients of two types, sent once or twice per step. SGD: one optimizer tensor.
GIVEN = [*SETTINGS, "train.precision=bf16", "train.micro_batch=4"]


@pytest.fixture(scope="module")
def measured() -> dict[int, dict[str, int]]:
    out = processes(WORLD, ROOT / "tests" / "distributed" / "comm_bytes.py", "[0, 1, 2, 3]", *GIVEN)[0]
    lines = [json.loads(line) for line in out.splitlines() if line.startswith('{"stage"')]
    return {line["stage"]: line for line in lines}


@pytest.fixture(scope="module")
def work() -> ModelCost:
    return measure_cost(load(PretrainConfig, None, GIVEN))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bytes_held_and_sent(measured: dict[int, dict[str, int]], work: ModelCost, stage: int) -> None:
    config = load(PretrainConfig, None, [*GIVEN, f"train.zero_stage={stage}"])
    batch = compute_batch_layout(config.train, WORLD)
    held, sent = memory(work, config, batch, WORLD), traffic(work, config.train, batch, WORLD)
    states = held.parameters + held.optimizer + held.buffers
    # Stage 1 has partitioned its gradients by then, as stage 2 does; stage 3 keeps their memory between steps.
    gradients = {1: 2 * held.gradients / WORLD}.get(stage, held.gradients)
    assert measured[stage]["between"] == pytest.approx(states + (gradients if stage == 3 else 0), rel=0.01)
    assert measured[stage]["backward"] == pytest.approx(states + gradients, rel=0.02)
    # gloo has no reduce-scatter and uses an all-reduce, twice the bytes.
    assert measured[stage]["sent"] == pytest.approx(sent.total + sent.reduce_scatter, rel=0.01)
