"""Energy, emissions and price against the formula by hand, on numbers whose products are exact."""

import pytest

from simfle.plan.energy import run_cost
from simfle.plan.estimate import ClusterSpec
from simfle.plan.hardware import DEVICES, load_constants

VALUES = {"h100.watts": 500.0, "power.pue": 1.25, "grid.intensity": 400.0}
CONSTANTS = load_constants([]).replaced(VALUES, "test")


def test_formula() -> None:
    """Ten hours on 16 GPUs: 160 GPU hours, 80 kWh in the machines, 100 kWh in the building, 40 kg."""
    cost = run_cost(10, ClusterSpec(2, 8, "h100", 50e9, 12), CONSTANTS, 2.5)
    assert (cost.gpu_hours, cost.kwh, cost.co2e, cost.price) == (160, 100, 40, 400)


def test_energy_is_proportional_to_gpu_hours() -> None:
    one, four = (run_cost(hours, ClusterSpec(1, gpus, "h100", 50e9, 12), CONSTANTS) for hours, gpus in ((8, 1), (2, 4)))
    assert one == four
    assert one.price == 0


def test_each_device_has_a_power() -> None:
    for device in DEVICES:
        assert run_cost(1, ClusterSpec(1, 1, device, 50e9, 12), load_constants([])).kwh > 0


def test_replaced_constants_are_assumed_and_the_others_stay() -> None:
    assert CONSTANTS.figures["power.pue"].kind == "assumed"
    assert CONSTANTS["h100.peak"] == load_constants([])["h100.peak"]
    assert load_constants([])["power.pue"] == pytest.approx(1.54)
