"""Lists, tables and packs that promise or unpack to far more than they hold: refused within a stated memory."""

import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from helpers.bombs import limited
from helpers.corpus_fixtures import encoded, picture, write_tar
from pyarrow import parquet

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.format.index import index_tar, read_index
from shards.io.jsonl import MAX_JSON, MAX_LINE
from shards.sources.containers import parquet_pages
from shards.sources.corpora.affectnet.arrays import _array
from shards.sources.corpora.cofw import COFW
from shards.sources.corpora.fer2013 import FER2013
from shards.sources.corpora.recordio import HEADER, MAGIC, MOST_LABELS, MOST_PARTS, RecordIO
from shards.sources.generic.huggingface import HuggingFace
from shards.sources.generic.rows import MAX_TEXT, columns_of, read_rows
from shards.sources.generic.webdataset import WebDataset

pytestmark = pytest.mark.slow

JPEG = encoded(picture(1))
MIB = 1 << 20


def images(file: Path, values: list[bytes], **options: Any) -> Path:
    table = pa.table({"image": pa.array(values, pa.binary()), "label": ["a"] * len(values)})
    parquet.write_table(table, file, **options)
    return file


def test_one_large_value_of_a_dictionary_for_every_row(tmp_path: Path) -> None:
    """4 kB that Arrow makes 64 times 16 MiB of: 1 GB."""
    file = tmp_path / "a.parquet"
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array([bytes(16 * MIB)], pa.binary()))
    table = pa.table({"image": values, "label": ["a"] * 64})
    parquet.write_table(table, file, compression="zstd", store_schema=False, write_statistics=False)
    del values, table
    assert file.stat().st_size < 16_000
    with limited(400 * MIB):
        assert sum(isinstance(entry, Entry) and len(entry.read) == 16 * MIB for entry in HuggingFace(file)) == 64
    with limited(400 * MIB):
        assert sum(len(row[0]) == 16 * MIB for _, row in read_rows(file, ["image"], images=True)) == 64


def test_a_page_that_unpacks_to_a_thousand_times_its_size(tmp_path: Path) -> None:
    options = {"compression": "zstd", "use_dictionary": False, "data_page_size": 1 << 30}
    file = images(tmp_path / "a.parquet", [bytes(8 * MIB)] * 30, **options)
    assert file.stat().st_size < MIB
    with limited(64 * MIB):
        (rejected,) = HuggingFace(file)
    assert isinstance(rejected, Rejected)
    assert "bytes of pages expand to 25" in rejected.detail
    with limited(64 * MIB), pytest.raises(UserError, match="bytes of pages expand to 25"):
        list(read_rows(file, ["image"], images=True))


def test_what_the_footer_says_is_not_believed(tmp_path: Path) -> None:
    """The sizes of columns in it are those of a small file; the pages' own headers tell the truth."""
    options = {"compression": "zstd", "use_dictionary": False, "data_page_size": 1 << 30}
    file = images(tmp_path / "a.parquet", [bytes(8 * MIB)] * 30, **options)
    true = parquet.ParquetFile(file).metadata.row_group(0).column(0).total_uncompressed_size
    said = bytearray(file.read_bytes())
    varint = bytes((true << 1 >> shift & 0x7F) | 0x80 * (shift < 28) for shift in range(0, 35, 7))
    place = said.rindex(varint)
    said[place : place + 5] = b"\x82\x80\x80\x80\x00"
    file.write_bytes(said)
    assert parquet.ParquetFile(file).metadata.row_group(0).column(0).total_uncompressed_size == 1
    with limited(64 * MIB):
        (rejected,) = HuggingFace(file)
    assert isinstance(rejected, Rejected)
    assert "expand to 25" in rejected.detail


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip", "brotli"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_sound_files_give_all_their_rows(tmp_path: Path, codec: str, version: str, dictionary: bool) -> None:
    table = pa.table(
        {
            "image": [{"bytes": b"%d" % number * 300, "path": str(number)} for number in range(700)],
            "box": [[1.0, 2.0, 3.0, float(number)] for number in range(700)],
            "name": [f"name {number % 5}" for number in range(700)],
            "none": pa.nulls(700),
        }
    )
    encoding = {} if dictionary else {"column_encoding": {"name": "DELTA_BYTE_ARRAY"}}
    file = tmp_path / "a.parquet"
    parquet.write_table(
        table, file, compression=codec, data_page_version=version, use_dictionary=dictionary, row_group_size=300,
        data_page_size=4000, write_page_index=dictionary, write_page_checksum=dictionary, **encoding,
    )  # fmt: skip
    parquet_pages.check_footer(file)
    with parquet.ParquetFile(file) as opened:
        found = pa.Table.from_batches(list(parquet_pages.batches(file, opened, table.column_names, 64)))
    assert found.select(table.column_names).to_pylist() == table.to_pylist()


def test_a_footer_of_many_megabytes(tmp_path: Path) -> None:
    file = images(tmp_path / "a.parquet", [JPEG])
    with file.open("r+b") as data:
        data.truncate(40 * MIB)
        data.seek(0, 2)
        data.write((32 * MIB).to_bytes(4, "little") + b"PAR1")
    with limited(16 * MIB), pytest.raises(UserError, match="its footer has"):
        list(HuggingFace(file))
    with limited(16 * MIB), pytest.raises(UserError, match="its footer has"):
        columns_of(file)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_line_without_end(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    begin = b'{"path": "' if name == "a.jsonl" else b"path,image\n" if name == "a.csv" else b"path\timage\n"
    with file.open("wb") as data:
        data.write(begin)
        data.truncate(MAX_TEXT * 8)
    if name == "a.jsonl":
        with limited(5 * MAX_TEXT), pytest.raises(UserError, match="Fix: pass a file with one row per line"):
            columns_of(file)
    for images, most in ((False, 32 * MIB), (True, 5 * MAX_TEXT)):
        if images or name != "a.jsonl":
            with limited(most), pytest.raises(UserError, match="Fix: pass a file with one row per line"):
                list(read_rows(file, ["path"], images))


def test_a_line_without_end_in_a_corpus(tmp_path: Path) -> None:
    with (tmp_path / "fer2013.csv").open("wb") as data:
        data.write(b"emotion,pixels,Usage\n0,")
        data.truncate(512 * MIB)
    with limited(32 * MIB), pytest.raises(UserError, match=f"more than {MAX_LINE} characters"):
        list(FER2013(tmp_path))


def record(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", MAGIC, kind << 29 | len(content)) + content + bytes(-len(content) % 4)


def test_a_record_of_a_million_parts_and_one_of_a_million_labels(tmp_path: Path) -> None:
    good = record(0, HEADER.pack(0, 1.0, 0, 0) + JPEG)
    parts = record(1, b"") + record(2, b"") * 1_000_000 + record(3, b"")
    labels = record(0, HEADER.pack(1_000_000, 0.0, 0, 0) + bytes(4_000_000) + JPEG)
    (tmp_path / "train.rec").write_bytes(good + parts)
    with limited(16 * MIB):
        first, damaged = RecordIO(tmp_path)
    assert isinstance(first, Entry)
    assert isinstance(damaged, Rejected)
    assert f"more than {MOST_PARTS} parts" in damaged.detail
    (tmp_path / "train.rec").write_bytes(good + labels)
    with limited(16 * MIB):
        first, damaged = RecordIO(tmp_path)
    assert isinstance(damaged, Rejected)
    assert f"the maximum is {MOST_LABELS}" in damaged.detail


def test_an_index_and_a_tar_in_which_every_sample_has_an_ending_of_its_own(tmp_path: Path) -> None:
    count = 5_000  # 25 million places of 16 bytes
    lines = [f"e{number} 512 1 k{number}.e{number}" for number in range(count)]
    (tmp_path / "a.idx").write_text("\n".join([f"v1.2 {count}", *lines]) + "\n")
    with limited(64 * MIB), pytest.raises(UserError, match="different extensions"):
        read_index(tmp_path / "a.idx")
    write_tar(tmp_path / "a.tar", [(f"k{number}.e{number}", b"") for number in range(count)])
    with limited(64 * MIB), pytest.raises(UserError, match="different extensions"):
        index_tar(tmp_path / "a.tar")


@pytest.mark.parametrize(("shape", "kind"), [((10**9, 0), "<f8"), ((10**9,), "<U0")])
def test_an_array_of_a_thousand_million_nothings(tmp_path: Path, shape: tuple, kind: str) -> None:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    with limited(16 * MIB):
        assert _array(tmp_path / "a.npy") is None


def test_chunks_and_texts_of_hdf5(tmp_path: Path) -> None:
    """A chunk is unpacked as a whole, whatever part of it is asked for; one text may stand for any number of places."""
    with h5py.File(tmp_path / "COFW_train_color.mat", "w") as data:
        marks = data.create_dataset(
            "phisTr", (87, 1), "f8", maxshape=(None, None), chunks=((1 << 25) + 1, 1), compression=1
        )
        marks[:] = 1
        data["bboxesTr"] = np.ones((4, 1))
        data.create_dataset("IsTr", (1, 1), h5py.ref_dtype)
    with limited(64 * MIB), pytest.raises(UserError, match="phisTr has 268435464 bytes"):
        list(COFW(tmp_path))
    with h5py.File(tmp_path / "COFW_train_color.mat", "a") as data:
        del data["phisTr"]
        data.create_dataset("phisTr", (87, 1), h5py.string_dtype())
    with pytest.raises(UserError, match="phisTr contains neither numbers nor references"):
        list(COFW(tmp_path))


def told(file: Path, size: int) -> Iterator[Entry | Rejected]:
    member = tarfile.TarInfo("a.json")
    member.size = size
    image = tarfile.TarInfo("a.jpg")
    image.size = len(JPEG)
    with file.open("wb") as data:
        data.write(image.tobuf() + JPEG + bytes(-len(JPEG) % 512) + member.tobuf())
        data.seek(size + -size % 512, 1)
        data.write(bytes(1024))
    yield from WebDataset(file)


def test_what_is_told_of_a_sample_has_a_limit(tmp_path: Path) -> None:
    with limited(32 * MIB):
        (rejected,) = told(tmp_path / "a.tar", 512 * MIB)
    assert isinstance(rejected, Rejected)
    assert f"more than {MAX_JSON >> 20} MiB" in rejected.detail
