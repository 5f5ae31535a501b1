"""Unit of work of a worker process: write one planned shard as a tar, an index and a result file."""

import json
import os
import sqlite3
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards.build.exclusion import ExclusionFilter, load_filter
from shards.build.failures import describe_failure
from shards.build.plan import BuildPlan, ShardSpec, entry_to_json
from shards.build.split_copies import write_hashes
from shards.entry import Entry, LazyBytes, Rejected
from shards.errors import UserError
from shards.format.index import write_index
from shards.format.tar_writer import TarShardWriter
from shards.imaging.align import Detector, build_detector
from shards.imaging.codec import MAX_BYTES, EncodeOptions, ImageRejected
from shards.imaging.face_crops import FaceSample, extract_faces
from shards.io.atomic import MISSING, UNREADABLE, open_regular, read_bytes, write_atomic
from shards.io.hashing import short_hash
from shards.io.unicode_paths import find_spelling

REPORT_EVERY = 32  # entries between two progress updates


@dataclass(frozen=True)
class ShardJob:
    """Settings shared by all shards of a build.

    partial: staging folder; face_model: model of the face detector; excluded: file written by `build_exclusion_index`.
    """

    partial: Path
    labels: tuple[str, ...]
    encode: EncodeOptions
    face_model: Path | None = None
    excluded: Path | None = None

    def detect(self) -> Detector | None:
        """Return the face detector, or None if the build does not align faces."""
        return build_detector(self.face_model) if self.face_model else None


@dataclass
class ShardResult:
    """Result of one shard, without a tar if samples is 0. extra: samples beyond the first of their entry."""

    file: str
    split: str
    samples: int = 0
    extra: int = 0
    bytes: int = 0
    sha256: str = ""
    bytes_kept: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)


def read_result(partial: Path, shard: ShardSpec) -> ShardResult:
    """Read the result of a finished shard."""
    content = json.loads(read_bytes(partial / "work" / f"{shard.name}.json"))
    return ShardResult(**content | {"rejected": [Rejected(**item) for item in content["rejected"]]})


def write_shard(job: ShardJob, shard: ShardSpec, advance: Callable[[int], None]) -> None:
    """Write the tar, the index and finally the result file, which marks both as complete.

    `advance` receives the number of entries done since its last call.

    Raises:
        UserError: If a failure occurs that no image causes, such as a full disk or a failed device.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about corrupt files; the result records them
        try:
            _write_shard(job, shard, advance)
        except (OSError, sqlite3.Error) as error:
            cause, _, fix = describe_failure(error, job.partial).partition(". Fix: ")
            raise UserError(f"{cause} while writing {shard.name}; finished shards are kept. Fix: {fix}") from None


def _write_shard(job: ShardJob, shard: ShardSpec, advance: Callable[[int], None]) -> None:
    numbers = {label: number for number, label in enumerate(job.labels)}
    path = job.partial / "shards" / f"{shard.name}.tar"
    result = ShardResult(path.name, shard.split)
    counts: Counter[str] = Counter()
    images: list[tuple[int, int]] = []  # hash and label of each
    detect = job.detect()
    screened = load_filter(job.excluded) if job.excluded else None
    plan = BuildPlan(job.partial / "work" / "plan.sqlite")
    try:
        tar = TarShardWriter(path)
        try:
            for done, planned in enumerate(plan.entries(shard), 1):
                try:
                    if screened:
                        screened.check_person(planned.entry.group)
                    faces = extract_faces(read_entry_bytes(planned.entry), planned.entry, job.encode, detect)
                except ImageRejected as fate:
                    result.rejected.append(Rejected(planned.entry.source, fate.reason, fate.detail))
                else:
                    result.extra += len(faces) - 1
                    if screened:
                        faces = _screened(faces, screened, result)
                    for face in faces:
                        key = planned.key + face.suffix
                        tar.add(key, to_tar_members(key, face, numbers))
                        images.append(
                            (
                                int.from_bytes(short_hash(face.image.jpeg), "little"),
                                numbers.get(face.entry.label or "", -1),
                            )
                        )
                        result.bytes_kept += face.image.bytes_kept
                    result.samples += len(faces)
                    counts[planned.entry.label or ""] += len(faces)
                if done % REPORT_EVERY == 0:
                    advance(REPORT_EVERY)
            advance(shard.entries % REPORT_EVERY)
            if result.samples:
                written = tar.finish()
                write_index(path.with_suffix(".idx"), written.index)
                result.bytes, result.sha256 = written.bytes, written.sha256
        finally:
            tar.abort()
        result.labels = dict(sorted(counts.items()))
        write_hashes(job.partial / "work", shard.name, images)
        write_atomic(job.partial / "work" / f"{shard.name}.json", json.dumps(asdict(result)).encode())
    finally:
        plan.close()


def _screened(faces: list[FaceSample], screened: ExclusionFilter, result: ShardResult) -> list[FaceSample]:
    """Return the faces that are not excluded; record the others as rejected."""
    kept = []
    for face in faces:
        try:
            screened.check_image(face.image.jpeg)
        except ImageRejected as fate:
            result.rejected.append(Rejected(face.entry.source, fate.reason, fate.detail))
        else:
            kept.append(face)
    return kept


def read_entry_bytes(entry: Entry) -> bytes:
    """Read the bytes of an entry.

    Raises:
        ImageRejected: If the file is missing, unreadable or too large.
        OSError: If a disk or network fails.
    """
    if isinstance(entry.read, bytes):
        return entry.read
    if isinstance(entry.read, LazyBytes):
        return entry.read()
    try:
        return _read(entry.read)
    except FileNotFoundError as error:
        other = find_spelling(entry.read)
        if other is None:
            raise ImageRejected("missing", error.strerror or "") from None
        return _read(other)


def _read(path: Path) -> bytes:
    try:
        with open_regular(path, "rb", buffering=0) as file:
            # Check the size first: read(MAX_BYTES) would allocate that many bytes each time.
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise ImageRejected("too_large", "more than 1 GiB")
            return file.read() or b""
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        if error.errno in MISSING:
            raise ImageRejected("missing", error.strerror or "") from None
        if error.errno in UNREADABLE:
            raise ImageRejected("unreadable", error.strerror or "") from None
        raise
    except ValueError as error:  # the name contains a zero byte
        raise ImageRejected("missing", str(error)) from None


def to_tar_members(key: str, face: FaceSample, numbers: dict[str, int]) -> dict[str, bytes]:
    """Return the members of a sample: jpg, cls if it has a label, json with all metadata."""
    known: dict[str, Any] = {"key": key} | entry_to_json(face.entry)
    known.pop("recipe", None)
    known |= {"width": face.image.width, "height": face.image.height} | face.extra
    members = {"jpg": face.image.jpeg}
    if face.entry.label is not None:
        members["cls"] = str(numbers[face.entry.label]).encode()
    members["json"] = json.dumps(known).encode()
    return members
