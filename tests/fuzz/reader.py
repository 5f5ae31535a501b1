"""Targets of the fuzzing: a name, valid files, and a function that reads them completely."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fuzz.guard import Hog, Violation, case, watched
from fuzz.mutate import files
from hypothesis import HealthCheck, Phase, given, seed, settings

from shards.errors import UserError


@dataclass(frozen=True)
class Reader:
    """Reader under test. seeds: makes valid files; read: reads the file `given` completely, in a separate folder.

    errors: beside UserError, what is documented: the fate of one image, which the builder counts.
    """

    name: str
    file: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = ()
    words: tuple[bytes, ...] = ()


@dataclass
class Counts:
    """Cases tried, and how many of them were read as if nothing were wrong with them."""

    cases: int = 0
    read: int = 0


def fuzz(reader: Reader, cases: int, folder: Path, number: int, *, shrink: bool = True) -> Counts:
    """Try `cases` cases, the same for the same `number`. Raises any undocumented error, with the case in its notes."""
    seeds, counts = reader.seeds(), Counts()
    for content in seeds:  # all that is imported is imported here; and the seeds are valid
        read_it(reader, folder, content)

    @seed(number)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )
    @given(files(seeds, reader.words))
    def a_case(content: bytes) -> None:
        counts.cases += 1
        try:
            try:
                counts.read += try_it(reader, folder, content)
            except Hog:  # once more: a hog takes it each time
                try_it(reader, folder, content)
        except Violation as violation:  # which hypothesis would raise at once, without the case
            raise AssertionError(str(violation)) from violation

    with watched():
        a_case()
    return counts


def try_it(reader: Reader, folder: Path, content: bytes) -> bool:
    """Whether it was read as if nothing were wrong with it."""
    with case(folder):
        try:
            read_it(reader, folder, content)
        except (UserError, *reader.errors) as error:
            assert str(error) or error.args, "an error without a message"  # noqa: PT017
            return False
        return True


def read_it(reader: Reader, folder: Path, content: bytes) -> None:
    file = folder / reader.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    reader.read(file)
