"""What a row of the table of faults is, and the list of them."""

from collections.abc import Callable
from dataclasses import dataclass

from faults.story import Story


@dataclass(frozen=True)
class Fault:
    """A row: what is done, what is promised, and the function that does it and looks."""

    what: str
    promise: str
    hurt: Callable[[Story], None]


FAULTS: list[Fault] = []


def fault(what: str, promise: str) -> Callable[[Callable[[Story], None]], Callable[[Story], None]]:
    def add(hurt: Callable[[Story], None]) -> Callable[[Story], None]:
        FAULTS.append(Fault(what, promise, hurt))
        return hurt

    return add
