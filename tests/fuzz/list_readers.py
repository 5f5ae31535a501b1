"""Readers of lists and annotations, as corpora deliver them: `READERS`."""

import contextlib
import csv
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.reader import Reader
from fuzz.shard_readers import list_of, photo, source

from shards.errors import UserError
from shards.sources.corpora.affectnet import AffectNet, arrays, plus
from shards.sources.corpora.affectnet.lists import COLUMNS as COLUMNS_2017
from shards.sources.corpora.aflw19 import _read
from shards.sources.corpora.celeba import CelebA
from shards.sources.corpora.cofw import COFW
from shards.sources.corpora.expw import ExpW
from shards.sources.corpora.fer2013 import FER2013
from shards.sources.corpora.ffhq import FFHQ
from shards.sources.corpora.ibug300w import IBug300W
from shards.sources.corpora.rafdb import RAFDB
from shards.sources.corpora.recordio import RecordIO
from shards.sources.corpora.wflw import WFLW
from shards.sources.generic.huggingface import HuggingFace
from shards.sources.generic.table import Table

ROWS = [
    ["path", "label", "split", "group", "box"],
    ["a.jpg", "1", "train", "p", "1 2 3 4"],
    ["b.jpg", "2", "val", "q", ""],
]


def _table(columns: dict[str, str]) -> Callable[[Path], None]:
    def read(file: Path) -> None:
        list_of(Table(file, file.parent, **columns))

    return read


COLUMNS = {"label_column": "label", "split_column": "split", "group_column": "group", "box_columns": "box"}


def _text(delimiter: str) -> Callable[[], list[bytes]]:
    def make() -> list[bytes]:
        out = io.StringIO()
        csv.writer(out, delimiter=delimiter).writerows(ROWS)
        return [out.getvalue().encode(), b"\xef\xbb\xbf" + out.getvalue().encode()]

    return make


def json_lines() -> list[bytes]:
    rows = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]
    return [("\n".join(map(json.dumps, rows)) + "\n").encode()]


def parquets() -> list[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    made = []
    for compression in ("none", "snappy"):
        table = pa.table(
            {
                "image": [{"bytes": photo(n), "path": f"{n}.jpg"} for n in range(3)],
                "label": [0, 1, -1],
                "path": ["a.jpg", "b.jpg", None],
                "split": ["train", "val", "test"],
                "group": ["p", "q", "r"],
                "box": ["1 2 3 4", "", None],
            }
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        out = io.BytesIO()
        parquet.write_table(table, out, compression=compression)
        made.append(out.getvalue())
    return made


def records() -> list[bytes]:
    def frame(data: bytes) -> bytes:
        return struct.pack("<II", 0xCED7230A, len(data)) + data + bytes(-len(data) % 4)

    heads = [struct.pack("<IfQQ2f", 2, 0, 0, 0, 4, 6)]
    images = [struct.pack("<IfQQ", 0, float(n), n, 0) + photo(n) for n in range(1, 4)]
    return [b"".join(map(frame, heads + images)), b"".join(map(frame, images))]


def _record_index(file: Path) -> None:
    file.with_suffix(".rec").write_bytes(records()[0])
    list_of(RecordIO(file.parent))


def points() -> list[bytes]:
    rows = "".join(f"{10.5 + n:.6f} {20 + n % 7:.6f}\n" for n in range(68))
    return [f"version: 1\nn_points:  68\n{{\n{rows}}}\n".encode()]


def _points(file: Path) -> None:
    file.with_suffix(".jpg").write_bytes(photo())
    list_of(IBug300W(file.parents[1]))


def wflw() -> list[bytes]:
    marks = " ".join(f"{30.25 + n} {40.5 + n % 9}" for n in range(98))
    return [f"{marks} 20 30 140 90 0 1 0 0 1 0 0--Parade/0_1.jpg\n".encode() * 2]


def _wflw(file: Path) -> None:
    (file.parents[2] / "WFLW_images").mkdir(exist_ok=True)
    list_of(WFLW(file.parents[2]))


def numpy_files() -> list[bytes]:
    made = []
    for value in (np.array("3"), np.array([0.5]), np.arange(136.0), np.arange(4, dtype=">i2")):
        out = io.BytesIO()
        np.lib.format.write_array(out, value, allow_pickle=False)
        made.append(out.getvalue())
    return made


def _numpy(file: Path) -> None:
    arrays._value(file)
    arrays._number(file)
    arrays._array(file)


def hdf5() -> list[bytes]:
    import h5py

    out = io.BytesIO()
    with h5py.File(out, "w") as data:
        cells = data.create_dataset("IsTr", (1, 2), h5py.ref_dtype)
        for number in range(2):
            cells[0, number] = data.create_dataset(f"#refs#/{number}", data=np.full((3, 24, 20), number, np.uint8)).ref
        data["phisTr"] = np.ones((87, 2))
        data["bboxesTr"] = np.array([[1.0, 2, 20, 15]] * 2).T
    return [out.getvalue()]


def matlab() -> list[bytes]:
    from scipy.io import savemat

    made = []
    for packed in (False, True):
        out = io.BytesIO()
        fields = {"ra": np.arange(5.0), "data": np.ones((5, 38)), "nameList": np.array([["a.jpg"]] * 5, object)}
        savemat(out, fields, do_compression=packed)
        made.append(out.getvalue())
    return made


def _matlab(file: Path) -> None:
    """Five rows are too few, which is said only when all has been read."""
    with contextlib.suppress(UserError):
        _read(file)


def ffhq() -> list[bytes]:
    entry = {
        "category": "training",
        "metadata": {"license": "x"},
        "image": {"file_path": "images1024x1024/00000/00000.png", "face_landmarks": [[1.5, 2.5]] * 68},
    }
    return [json.dumps({"0": entry, "1": entry}).encode()]


def _ffhq(file: Path) -> None:
    (file.parent / "images1024x1024").mkdir(exist_ok=True)
    list_of(FFHQ(file.parent))


def annotations() -> list[bytes]:
    about = {"landmark-68": [1.0] * 136, "valence": 0.5, "arousal": -0.5, "age": 30}
    return [json.dumps({"human-label": 3, "soft-label": [0.5], "subset": "easy", "meta-data": about}).encode()]


def _plus(file: Path) -> None:
    root = file.parents[3]
    for folder, _ in plus.HUMAN:
        (root / folder / "images").mkdir(parents=True, exist_ok=True)
        (root / folder / "annotations").mkdir(parents=True, exist_ok=True)
    (file.parents[1] / "images" / "0.jpg").write_bytes(photo())
    list_of(plus.read_plus(root, automatic=False))


def _corpus(make: Callable[[Path], Any], images: str) -> Callable[[Path], None]:
    """A corpus of one list and an empty folder of images."""

    def read(file: Path) -> None:
        root = next(folder for folder in file.parents if folder.name == "corpus")
        (root / images).mkdir(parents=True, exist_ok=True)
        list_of(make(root))

    return read


def fer2013() -> list[bytes]:
    pixels = " ".join(str(number % 256) for number in range(48 * 48))
    return [f"emotion,pixels,Usage\n0,{pixels},Training\n6,{pixels},PrivateTest\n".encode()]


def affectnet() -> list[bytes]:
    marks = ";".join(f"{10.5 + n};{20 + n}" for n in range(68))
    header = ",".join(COLUMNS_2017)
    return [f"{header}\n1/a.jpg,1,2,30,40,{marks},3,0.5,-0.5\n1/b.jpg,1,2,30,40,{marks},0,-2,-2\n".encode()]


def celeba() -> list[bytes]:
    return [b"2\nBald Smiling Young\n000001.jpg -1 1 1\n000002.jpg 1 -1 -1\n"]


def _celeba(root: Path) -> CelebA:
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 2\n")
    return CelebA(root)


READERS = (
    Reader("fer2013 csv", "f/corpus/fer2013.csv", fer2013, _corpus(FER2013, "unused")),
    Reader("affectnet csv", "g/corpus/training.csv", affectnet, _corpus(AffectNet, "Manually_Annotated_Images")),
    Reader("expw list", "h/corpus/label.lst", lambda: [b"a b.jpg 0 10 20 90 80 77.5 3\n"] * 2, _corpus(ExpW, "origin")),
    Reader(
        "rafdb list",
        "i/corpus/EmoLabel/list_patition_label.txt",
        lambda: [b"train_00001.jpg 5\ntest_0001.jpg 4\n"],
        _corpus(RAFDB, "Image/aligned"),
    ),
    Reader("celeba list", "j/corpus/list_attr_celeba.txt", celeba, _corpus(_celeba, "img_align_celeba")),
    Reader("csv", "t.csv", _text(","), _table(COLUMNS)),
    Reader("tsv", "t.tsv", _text("\t"), _table(COLUMNS)),
    Reader("jsonl", "t.jsonl", json_lines, _table(COLUMNS)),
    Reader("parquet", "t.parquet", parquets, _table(COLUMNS)),
    Reader("huggingface parquet", "t.parquet", parquets, source(HuggingFace)),
    Reader("recordio", "train.rec", records, source(RecordIO)),
    Reader("recordio index", "rec/train.idx", lambda: [b"0\t0\n1\t48\n2\t700\n"], _record_index),
    Reader(".pts", "300w/afw/1.pts", points, _points),
    Reader(
        "wflw list", "wflw/WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt", wflw, _wflw
    ),
    Reader(".npy", "a.npy", numpy_files, _numpy),
    Reader(".mat (HDF5)", "cofw/COFW_train_color.mat", hdf5, source(lambda file: COFW(file.parent))),
    Reader(".mat", "AFLWinfo_release.mat", matlab, _matlab),
    Reader("ffhq json", "ffhq/ffhq-dataset-v2.json", ffhq, _ffhq),
    Reader("affectnet+ json", "plus/human_annotated/train_set/annotations/0.json", annotations, _plus),
)
