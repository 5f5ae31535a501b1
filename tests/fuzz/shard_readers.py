"""Readers of what corpora are delivered as, and of shards: `READERS`."""

import contextlib
import io
import itertools
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.reader import Reader
from PIL import Image

from shards.build.shard_task import read_entry_bytes
from shards.entry import REJECT_REASONS, Entry, Rejected
from shards.format.external_tars import infer_manifest, scan_tar
from shards.format.index import index_tar, read_index, write_index
from shards.format.manifest import FORMAT, Manifest, ShardInfo, parse_manifest, write_manifest
from shards.format.samples import read_samples
from shards.imaging.codec import EncodeOptions, ImageRejected, encode
from shards.sources.generic.archive import Archive
from shards.sources.generic.webdataset import WebDataset

OPTIONS = EncodeOptions(max_pixels=2_000_000)  # so that the bound on memory is a bound on every format's decoder
MOST_ENTRIES = 500  # that are looked at; a reader gives them one by one


def photo(number: int = 0, kind: str = "JPEG", mode: str = "RGB", **how: Any) -> bytes:
    """A picture of 24 x 20 pixels in a format."""
    pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, kind, **how)
    return content.getvalue()


def deep_photo(number: int) -> bytes:
    """A gray PNG of 24 x 20 pixels of 16 bits, with values up to the largest."""
    pixels = np.random.default_rng(number).integers(0, 255, (20, 24), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint16) * 257).save(content, "PNG")
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
        *(photo(5, "PNG", mode) for mode in ("RGB", "RGBA", "P", "1")),
        deep_photo(5),
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
            assert item.reason in REJECT_REASONS, item
            continue
        assert isinstance(item, Entry)
        json.dumps([item.key, item.label, item.split, item.group, item.box, item.landmarks, item.extras])
        if images:
            with contextlib.suppress(ImageRejected):
                encode(read_entry_bytes(item), OPTIONS)


def source(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda file: list_of(make(file))


def _image(file: Path) -> None:
    made = encode(file.read_bytes(), OPTIONS)
    assert made.width * made.height <= OPTIONS.max_pixels
    again = encode(made.jpeg, OPTIONS)  # what is written can be read
    assert (again.width, again.height) == (made.width, made.height)


def _decoded(file: Path) -> None:
    """As training does: header first, then OpenCV."""
    from simfle.data.backends.jpeg_header import decode_strict, size

    data = np.frombuffer(file.read_bytes(), np.uint8)
    found = size(data)
    if found and found[0] * found[1] <= OPTIONS.max_pixels:
        decode_strict(data)


def _tar(file: Path) -> None:
    index_tar(file, lambda name: None)  # the seeds hold a name that leads out: without this it is refused
    scan_tar(file)


def _folder_of_tars(file: Path) -> None:
    """Shards that others wrote, opened without a manifest, as training does."""
    from simfle.data.dataset import ShardCorpus

    infer_manifest(file.parent)
    _all_samples(ShardCorpus([file.parent]))


def _all_samples(corpus: Any) -> None:
    for shard in range(len(corpus.shards)):
        for sample in range(int(corpus.counts[shard])):
            corpus.read_image(shard, sample)
            corpus.label(shard, sample)
            json.dumps([corpus.key(shard, sample), corpus.metadata(shard, sample)])


def _our_shards(file: Path) -> None:
    """A tar with an index, under a manifest that fits its size: what a hostile folder of shards would be."""
    from simfle.data.dataset import ShardCorpus

    file.write_bytes(tars()[0])
    size = file.stat().st_size
    info = ShardInfo(file.name, "train", 3, size, "0" * 64)
    write_manifest(file.parent, Manifest(FORMAT, "c", "", ("a", "b"), 3, {}, (info,), {}))
    for sample in read_samples(file.parent, info):
        json.dumps(sample.metadata)
    _all_samples(ShardCorpus([file.parent]))


def indexes() -> list[bytes]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        tar = Path(folder) / "a.tar"
        tar.write_bytes(tars()[0])
        write_index(tar.with_suffix(".idx"), index_tar(tar))
        return [tar.with_suffix(".idx").read_bytes()]


def manifests() -> list[bytes]:
    info = {"file": "train-000000.tar", "split": "train", "samples": 3, "bytes": 10240, "sha256": "0" * 64}
    content = {
        "format": FORMAT,
        "corpus": "c",
        "terms": "t",
        "labels": ["a", "b"],
        "entries": 4,
        "rejected": {"empty": 1},
    }
    return [json.dumps(content | {"shards": [info], "build": {"source": {"kind": "folder"}}}).encode()]


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
    Reader("image", "image", pictures, _image, (ImageRejected,)),
    Reader("image in training", "image", pictures, _decoded),
    Reader("zip", "a.zip", zips, source(Archive)),
    Reader("archive: tar", "a.tar", tars, source(Archive)),
    Reader("archive: tar.gz", "a.tar.gz", _compressed("w:gz"), source(Archive)),
    Reader("archive: tar.xz", "a.tar.xz", _compressed("w:xz"), source(Archive)),
    Reader("webdataset", "a.tar", tars, source(lambda file: WebDataset(file, label_field="key"))),
)
