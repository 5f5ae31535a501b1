"""Energy, emissions and price of a run, from its planned hours. docs/cost.md lists the assumptions.

    kWh     = hours x GPUs x watts / 1000 x PUE
    kg CO2e = kWh x grid intensity / 1000
    price   = hours x GPUs x price of a GPU hour

watts: of a GPU with its share of the node. PUE: energy of the data center over that of its machines (ISO/IEC 30134-2).
Grid intensity: g CO2e per kWh.
"""

from dataclasses import dataclass

from simfle.plan.estimate import ClusterSpec
from simfle.plan.hardware import Constants


@dataclass(frozen=True)
class RunCost:
    """Cost of a run. gpu_hours: hours times processes; co2e: kilograms; price: 0 without a price of a GPU hour."""

    gpu_hours: float
    kwh: float
    co2e: float
    price: float


def run_cost(hours: float, cluster: ClusterSpec, constants: Constants, hourly_price: float = 0.0) -> RunCost:
    """Compute the cost of a run.

    Args:
        hours: duration of the run.
        cluster: its machines.
        constants: watts of the device, PUE and grid intensity.
        hourly_price: price of one GPU for an hour, in any currency (0 = unknown).

    Returns:
        GPU hours, kWh, kg CO2e, and the price in the same currency.
    """
    gpu_hours = hours * cluster.processes
    kwh = gpu_hours * constants.of(cluster.device, "watts") / 1000 * constants["power.pue"]
    return RunCost(gpu_hours, kwh, kwh * constants["grid.intensity"] / 1000, gpu_hours * hourly_price)
