"""Small cases that long fuzzing runs found: read as in the fuzzing, each raises a documented error."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz.all_readers import READERS
from fuzz.guard import watched
from fuzz.reader import Reader, read_it, try_it

pytestmark = pytest.mark.filterwarnings("ignore")
BY_NAME = {reader.name: reader for reader in READERS}
NPY_HEAD = b"{'descr': '<U1', 'fortran_order': False, 'shape': (), }"


def replaced(old: bytes, new: bytes) -> Callable[[Reader], bytes]:
    """The reader's first valid file, with the last `old` in it replaced."""

    def make(reader: Reader) -> bytes:
        content = bytes(reader.seeds()[0])
        at = content.rindex(old)
        return content[:at] + new + content[at + len(old) :]

    return make


FOUND: dict[str, bytes | Callable[[Reader], bytes]] = {
    # A chunk of 2 GiB in a PNG of 45 bytes: OpenCV took the memory before it read.
    "image in training": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x18\0\0\0\x14\x08\x02\0\0\0\x18\xd7j\xd4\x7f\0\0\0IDAT",
    # A text whose code point is none: SystemError, when the element is taken out.
    ".npy": b"\x93NUMPY\x01\x00" + len(NPY_HEAD + b"\n").to_bytes(2, "little") + NPY_HEAD + b"\n3\0\0\x01",
    # Cells that say they are numbers: scipy crashed the process.
    ".mat": replaced(b"\x06\0\0\0\x08\0\0\0\x01\0\0\0", b"\x06\0\0\0\x08\0\0\0\x06\0\0\0"),
    # A field that the csv module does not take: csv.Error.
    "vggface2 people": b'"' + b"a" * 140_000,
    # No object: AttributeError; a number without end: OverflowError; four colors: RuntimeError.
    "checkpoint: state": b'"format"',
    "metrics": b'{"step": 1e9998, "losses": {"total": 1.0}}\n',
    "backbone.json": replaced(b"0.5, 0.5]", b"0.5, 0.5, 0.5]"),
    # A shard of nothing, which was drawn again and again without end.
    "streamed tar": bytes(10_240),
    # No word of people: KeyError.
    "report: results": replaced(b'"people"', b'"qeople"'),
}

# Not refused as a whole: the image, value, line or word counts as absent.
TAKEN = {"image in training", ".npy", ".mat", "metrics", "report: results"}


@pytest.mark.parametrize("name", FOUND)
def test_found_and_mended(name: str, tmp_path: Path) -> None:
    reader, content = BY_NAME[name], FOUND[name]
    for seed in reader.seeds():
        read_it(reader, tmp_path, seed)
    with watched():
        taken = try_it(reader, tmp_path, content(reader) if callable(content) else content)
    assert taken is (name in TAKEN)
