"""A short run over every reader, the same cases each time; `make fuzz` is the long one (docs/reliability.md)."""

import os
import signal
import threading
from pathlib import Path

import pytest
from fuzz.all_readers import READERS
from fuzz.guard import Violation, case, watched
from fuzz.reader import Reader, fuzz

from shards.errors import UserError

CASES = int(os.environ.get("FUZZ_CASES", "30"))
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_files_end_in_documented_errors(reader: Reader, tmp_path: Path) -> None:
    counts = fuzz(reader, CASES, tmp_path, 0, shrink=False)
    assert counts.cases >= CASES


def test_every_reader_has_its_own_name() -> None:
    assert len({reader.name for reader in READERS}) == len(READERS)


def _refuse(file: Path) -> None:
    raise UserError(f"{file} is corrupt")


def _leave(file: Path) -> None:
    (file.parents[1] / "elsewhere").write_text("")


def _unpickle(file: Path) -> None:
    import pickle

    pickle.loads(b"cposix\ngetpid\n(tR.")


def _start(file: Path) -> None:
    os.system("true")


def _fill(file: Path) -> None:
    bytearray(b"x") * (300 << 20)


def _hang(file: Path) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (_leave, "open .*elsewhere"),
        (_unpickle, "pickle.find_class"),
        (_start, "os.system"),
        (_fill, "MiB"),
        (_hang, " s"),
    ],
)
def test_the_guard_sees_what_no_reader_may_do(
    act: object, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert threading.current_thread() is threading.main_thread()
    if act is _hang:
        monkeypatch.setattr("fuzz.guard.SECONDS", 0.5)
    inside = tmp_path / "inside"
    inside.mkdir()
    before = signal.getsignal(signal.SIGPROF)
    with watched(), pytest.raises(Violation, match=words), case(inside):
        act(inside / "file")  # type: ignore[operator]
    assert signal.getsignal(signal.SIGPROF) is before


def test_an_error_that_is_not_documented_is_a_failure(tmp_path: Path) -> None:
    def read(file: Path) -> None:
        if file.read_bytes() != b"1234":
            raise KeyError("no user knows what this means")

    reader = Reader("example", "file", lambda: [b"1234"], read)
    with pytest.raises(KeyError):
        fuzz(reader, 20, tmp_path, 0, shrink=False)
