"""Corrupt valid files: flip bits, truncate, splice, repeat and omit parts, and insert numbers and words."""

import struct
from collections.abc import Sequence

from hypothesis import strategies as st

NUMBERS = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
]
# What has hurt readers of text before: no numbers, too large ones, ways out of a folder, ways into an interpreter.
WORDS = [
    b"NaN", b"-Infinity", b"1e999", b"-1", b"9" * 5000, b"99999999999999999999", b"null", b"true", b"{}", b"[]", b'""',
    b"[" * 20_000, b'{"a":' * 20_000, b"../../../etc/passwd", b"/etc/passwd", b"file:///etc/passwd", b"\0", b"\xff\xfe",
    b"\xed\xa0\x80", b"\r\n", b"\n\n", b"\t", b'"', b"'; touch pwned; '", b"$(touch pwned)", b"${oc.env:HOME}",
    b"!!python/object/apply:os.system [touch pwned]", b"&a [*a]", b"${a.b}", b"cposix\nsystem\n(S'touch pwned'\ntR.",
]  # fmt: skip


@st.composite
def files(draw: st.DrawFn, seeds: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """One of the valid files with up to six damages; now and then bytes that were never one."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=400))
    data = bytearray(draw(st.sampled_from(seeds)))
    known = [*words, *WORDS]
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from("bbbncswdrfz"))
        # Headers and ends are where readers decide: half of the places lie in the first or last 512 bytes.
        last = max(len(data) - 1, 0)
        near = draw(st.integers(0, min(last, 511)))
        at = {0: near, 1: last - near}.get(draw(st.integers(0, 3)), draw(st.integers(0, last)))
        length = draw(st.sampled_from([1, 2, 4, 8, 16, 64, 512, 4096]))
        if kind == "b" and data:  # a bit
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "n":  # a number, of either order of bytes
            number, size = draw(st.sampled_from(NUMBERS)), draw(st.sampled_from("BHIQ"))
            packed = struct.pack(draw(st.sampled_from("<>")) + size, number & (1 << 8 * struct.calcsize(size)) - 1)
            data[at : at + len(packed)] = packed
        elif kind == "c":  # cut
            del data[at:]
        elif kind == "s":  # a part of another file
            other = draw(st.sampled_from(seeds))
            start = draw(st.integers(0, max(len(other) - 1, 0)))
            data[at : at + length] = other[start : start + length]
        elif kind == "w":  # a word
            data[at:at] = draw(st.sampled_from(known))
        elif kind == "d":  # left out
            del data[at : at + length]
        elif kind == "r":  # repeated
            data[at:at] = data[at : at + length] * draw(st.integers(1, 3))
        elif kind == "f":  # a whole field of a text replaced
            end = next((place for place in range(at, min(at + 200, len(data))) if data[place] in b',:\n\t ]}"'), at)
            data[at:end] = draw(st.sampled_from(known))
        elif kind == "z":
            data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)
