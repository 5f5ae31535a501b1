"""The list of faults and the definition of a row."""

from collections.abc import Callable
from dataclasses import dataclass

from faults.scenario import Scenario


@dataclass(frozen=True)
class Fault:
    """A row: the fault, the promise, and the function that injects the fault and checks the promise."""

    what: str
    promise: str
    hurt: Callable[[Scenario], None]


FAULTS: list[Fault] = []


def fault(what: str, promise: str) -> Callable[[Callable[[Scenario], None]], Callable[[Scenario], None]]:
    def add(hurt: Callable[[Scenario], None]) -> Callable[[Scenario], None]:
        FAULTS.append(Fault(what, promise, hurt))
        return hurt

    return add
