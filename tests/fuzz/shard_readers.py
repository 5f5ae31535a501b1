"""Readers of what corpora are delivered as, and of shards: `READERS`."""

import contextlib
import csv
import io
import itertools
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.reader import Reader
from PIL import Image

from shards.encode import EncodeOptions, Unusable, encode
from shards.entry import REASONS, Entry, Rejected
from shards.foreign import examine, synthesise
from shards.index import index_tar, read_index, write_index
from shards.manifest import Manifest, ShardInfo, parse_manifest, write_manifest
from shards.samples import read_samples
from shards.sources.affectnet import arrays, plus
from shards.sources.archive import Archive
from shards.sources.cofw import COFW
from shards.sources.ffhq import FFHQ
from shards.sources.huggingface import HuggingFace
from shards.sources.ibug300w import IBug300W
from shards.sources.recordio import RecordIO
from shards.sources.table import Table
from shards.sources.webdataset import WebDataset
from shards.sources.wflw import WFLW
from shards.work import load

OPTIONS = EncodeOptions(max_pixels=2_000_000)  # so that the bound on memory is a bound on every format's decoder
MOST_ENTRIES = 500  # that are looked at; a reader gives them one by one


def photo(number: int = 0, kind: str = "JPEG", mode: str = "RGB", **how: Any) -> bytes:
    """A picture of 24 x 20 pixels in a format."""
    pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, kind, **how)
    return content.getvalue()


def pictures() -> list[bytes]:
    turned = Image.Exif()
    turned[0x0112] = 6
    two = io.BytesIO()
    frames = [Image.new("P", (20, 20), number) for number in range(2)]
    frames[0].save(two, "GIF", save_all=True, append_images=frames[1:])
    return [
        photo(),
        photo(1, progressive=True),
        photo(2, mode="L"),
        photo(3, mode="CMYK"),
        photo(4, exif=turned),
        *(photo(5, "PNG", mode) for mode in ("RGB", "RGBA", "P", "1", "I;16")),
        photo(6, "WEBP"),
        photo(6, "WEBP", lossless=True),
        *(photo(7, kind) for kind in ("BMP", "TIFF", "PPM", "GIF")),
        photo(7, "TIFF", compression="tiff_lzw"),
        two.getvalue(),
    ]


def tars(mode: Any = "w", kind: int = tarfile.USTAR_FORMAT) -> list[bytes]:
    """A tar of three samples, and one of links, a device, a sparse file's header, and names that lead out."""
    plain, odd = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=plain, mode=mode, format=kind) as tar:
        for number in range(3):
            members = {"jpg": photo(number), "cls": b"1", "json": json.dumps({"key": number}).encode()}
            for extension, content in members.items():
                _add(tar, f"a/s{number:03d}.{extension}", content)
    with tarfile.open(fileobj=odd, mode=mode, format=kind) as tar:
        for name in ("../../out.jpg", "/etc/out.jpg", "a\nb 'c'.jpg", "x" * 90 + ".jpg"):
            _add(tar, name, photo())
        for name, type_ in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("d.jpg", tarfile.CHRTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = type_, "/etc/passwd"
            tar.addfile(link)
    return [plain.getvalue(), odd.getvalue()]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def zips() -> list[bytes]:
    made = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", method) as archive:
            for name in ("a/0.jpg", "b/1.jpg", "../2.jpg", "/3.jpg", "a/zero.png"):
                archive.writestr(name, photo() if "zero" not in name else bytes(50_000))
        made.append(content.getvalue())
    return made


def list_of(source: Any, images: bool = True) -> None:
    """All that a source gives, and the bytes of the images that it lists, decoded."""
    for item in itertools.islice(source, MOST_ENTRIES):
        if isinstance(item, Rejected):
            assert item.reason in REASONS, item
            continue
        assert isinstance(item, Entry)
        json.dumps([item.key, item.label, item.split, item.group, item.box, item.landmarks, item.extras])
        if images:
            with contextlib.suppress(Unusable):
                encode(load(item), OPTIONS)


def _image(file: Path) -> None:
    made = encode(file.read_bytes(), OPTIONS)
    assert made.width * made.height <= OPTIONS.max_pixels
    again = encode(made.jpeg, OPTIONS)  # what is written can be read
    assert (again.width, again.height) == (made.width, made.height)


def _decoded(file: Path) -> None:
    """As training does: header first, then OpenCV."""
    from simfle.data.jpeg import size
    from simfle.data.opencv import _decode

    data = np.frombuffer(file.read_bytes(), np.uint8)
    found = size(data)
    if found and found[0] * found[1] <= OPTIONS.max_pixels:
        _decode(data)


def _tar(file: Path) -> None:
    index_tar(file)
    examine(file)


def _folder_of_tars(file: Path) -> None:
    """Shards that others wrote, opened without a manifest, as training does."""
    from simfle.data.reader import Corpus

    synthesise(file.parent)
    _all_samples(Corpus([file.parent]))


def _all_samples(corpus: Any) -> None:
    for shard in range(len(corpus.shards)):
        for sample in range(int(corpus.counts[shard])):
            corpus.image(shard, sample)
            corpus.label(shard, sample)
            json.dumps([corpus.key(shard, sample), corpus.meta(shard, sample)])


def _our_shards(file: Path) -> None:
    """A tar with an index, under a manifest that fits its size: what a hostile folder of shards would be."""
    from simfle.data.reader import Corpus

    file.write_bytes(tars()[0])
    size = file.stat().st_size
    info = ShardInfo(file.name, "train", 3, size, "0" * 64)
    write_manifest(file.parent, Manifest(1, "c", "", ("a", "b"), 3, {}, (info,), {}))
    for sample in read_samples(file.parent, info):
        json.dumps(sample.known)
    _all_samples(Corpus([file.parent]))


def indexes() -> list[bytes]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        tar = Path(folder) / "a.tar"
        tar.write_bytes(tars()[0])
        write_index(tar.with_suffix(".idx"), index_tar(tar))
        return [tar.with_suffix(".idx").read_bytes()]


def manifests() -> list[bytes]:
    info = {"file": "train-000000.tar", "split": "train", "samples": 3, "bytes": 10240, "sha256": "0" * 64}
    content = {"format": 1, "corpus": "c", "terms": "t", "labels": ["a", "b"], "entries": 4, "rejected": {"empty": 1}}
    return [json.dumps(content | {"shards": [info], "build": {"source": {"kind": "folder"}}}).encode()]


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
    from shards.errors import UserError
    from shards.sources.aflw19 import _read

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


def _source(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda file: list_of(make(file))


def _compressed(mode: str) -> Callable[[], Sequence[bytes]]:
    return lambda: tars(mode)


NAMES = (b'"file": "../../out.tar"', b'"samples": -1', b"v1.2 9999999999", b"jpg 0 99999999999 a.jpg")
READERS = (
    Reader("index", "a.idx", indexes, read_index, words=NAMES),
    Reader("tar", "a.tar", tars, _tar),
    Reader("pax tar", "a.tar", lambda: tars(kind=tarfile.PAX_FORMAT), _tar),
    Reader("shards: tar", "shards/a.tar", tars, _folder_of_tars),
    Reader("shards: index", "ours/a.idx", indexes, lambda file: _our_shards(file.with_suffix(".tar")), words=NAMES),
    Reader(
        "manifest.json", "manifest.json", manifests, lambda file: parse_manifest(file.read_bytes(), "x"), words=NAMES
    ),
    Reader("image", "image", pictures, _image, (Unusable,)),
    Reader("image in training", "image", pictures, _decoded),
    Reader("csv", "t.csv", _text(","), _table(COLUMNS)),
    Reader("tsv", "t.tsv", _text("\t"), _table(COLUMNS)),
    Reader("jsonl", "t.jsonl", json_lines, _table(COLUMNS)),
    Reader("parquet", "t.parquet", parquets, _table(COLUMNS)),
    Reader("huggingface parquet", "t.parquet", parquets, _source(HuggingFace)),
    Reader("zip", "a.zip", zips, _source(Archive)),
    Reader("archive: tar", "a.tar", tars, _source(Archive)),
    Reader("archive: tar.gz", "a.tar.gz", _compressed("w:gz"), _source(Archive)),
    Reader("archive: tar.xz", "a.tar.xz", _compressed("w:xz"), _source(Archive)),
    Reader("webdataset", "a.tar", tars, _source(lambda file: WebDataset(file, label_field="key"))),
    Reader("recordio", "train.rec", records, _source(RecordIO)),
    Reader("recordio index", "rec/train.idx", lambda: [b"0\t0\n1\t48\n2\t700\n"], _record_index),
    Reader(".pts", "300w/afw/1.pts", points, _points),
    Reader(
        "wflw list", "wflw/WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt", wflw, _wflw
    ),
    Reader(".npy", "a.npy", numpy_files, _numpy),
    Reader(".mat (HDF5)", "cofw/COFW_train_color.mat", hdf5, _source(lambda file: COFW(file.parent))),
    Reader(".mat", "AFLWinfo_release.mat", matlab, _matlab),
    Reader("ffhq json", "ffhq/ffhq-dataset-v2.json", ffhq, _ffhq),
    Reader("affectnet+ json", "plus/human_annotated/train_set/annotations/0.json", annotations, _plus),
)
