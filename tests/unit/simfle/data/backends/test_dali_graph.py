"""DALI's graph for a GPU, constructed without one: where each operator runs, and that it is registered there."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from simfle.config.schema import ViewsConfig
from simfle.data.backends.base import IMAGES
from simfle.data.loader import LAUNCHING, threads_per_process

dali = pytest.importorskip("nvidia.dali")


def operators(edges: list[Any]) -> Iterator[Any]:
    """All that lead to the outputs, each once."""
    waiting, seen = list(edges), set()
    while waiting:
        operator = waiting.pop().source
        if operator is not None and id(operator) not in seen:
            seen.add(id(operator))
            waiting += operator.inputs
            yield operator


def graph(*, on_gpu: bool) -> list[Any]:
    from simfle.data.backends.dali import _graph

    with dali.Pipeline(4, 2, 0 if on_gpu else None, prefetch_queue_depth=1):
        return _graph(ViewsConfig(), IMAGES, on_gpu=on_gpu)


def test_pixels_are_made_on_the_gpu_and_parameters_beside_it() -> None:
    from nvidia.dali import backend

    outputs = graph(on_gpu=True)
    assert [output.device for output in outputs] == ["gpu"] * 3
    devices = {"gpu": set(), "cpu": set()}
    for operator in operators(outputs):
        kind = re.sub(r"_\d+$", "", operator.name).removeprefix("__")
        devices[operator.outputs[0].device].add(kind if operator.inputs else "ExternalSource")
    assert devices["cpu"] == {"ExternalSource"}
    assert devices["gpu"] == {"Image", "Resize", "Mean", "Sum", "_ArithmeticGenericOp", "CoordTransform", "Cast",
                              "GaussianBlur"}  # fmt: skip
    known = set(backend.RegisteredGPUOps())
    for kind in devices["gpu"] - {"Image"}:
        assert known & {kind, f"reductions__{kind}"}, kind
    assert "decoders__Image" in backend.RegisteredMixedOps()  # bytes on the host, pixels on the GPU


def test_nothing_is_on_a_gpu_where_there_is_none() -> None:
    assert {edge.device for operator in operators(graph(on_gpu=False)) for edge in operator.outputs} == {"cpu"}


def test_two_cores_are_left_to_the_launching_threads() -> None:
    assert threads_per_process(0, 1, LAUNCHING) == max(1, threads_per_process(0, 1) - 2)
    assert threads_per_process(5, 1, LAUNCHING) == 5
