"""`simfle shards build` with URLs: sources are downloaded to --work; shards are built there and uploaded."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.io.atomic import read_text, replacing
from shards.io.locks import try_lock
from simfle.commands.app import echo
from simfle.commands.shards.build_local import build_here, make_request, near_duplicate_notes
from simfle.commands.shards.build_options import BuildOptions, SourceInput
from simfle.errors import UserError

CONTAINERS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip", ".parquet")  # files to download from a folder


class Url(str):
    """A URL that was given instead of a path."""

    __slots__ = ()


def parse_path_or_url(text: str) -> Path | Url:
    """Parse a command-line argument as a path or a URL."""
    return Url(text) if "://" in text else Path(text)


def work_folder(asked: Path | None, url: str) -> Path:
    """Return the folder for the files of one URL; the same URL always gives the same folder."""
    base = asked or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simfle" / "build"
    return base / hashlib.sha256(url.encode()).hexdigest()[:16]


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the exclusive lock of `folder`. Raises UserError if another process holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise UserError(f"--work={folder}: cannot be used: {error.strerror}. Fix: choose another folder.") from None
    with file:
        if not try_lock(file, folder):
            raise UserError(f"{folder}: in use by another process. Fix: wait for it or stop it.")
        yield


def fetch(url: str, work: Path | None) -> Path:
    """Download a source: a file, or a folder's archives and Parquet files. Existing files are not downloaded again.

    Raises:
        UserError: If the source cannot be read or is empty.
    """
    from shards.io.urls import check_url, file_size, is_directory, join, list_names
    from shards.redact import redact_url

    check_url(url)
    base = work_folder(work, url)
    name = Path(redact_url(url).rstrip("/")).name
    with claimed(base):
        if not is_directory(url):
            _fetch_file(url, base / name, file_size(url))
            return base / name
        names = [each for each in list_names(url) or () if each.lower().endswith(CONTAINERS)]
        if not names:
            raise UserError(f"{redact_url(url)}: no archives or Parquet files in this folder. Fix: download it first.")
        (base / name).mkdir(exist_ok=True)
        for each in names:
            _fetch_file(join(url, each), base / name / each, file_size(join(url, each)))
    return base / name


def _fetch_file(url: str, path: Path, size: int | None) -> None:
    """Download one file of `size` bytes. If the size is unknown (None), the downloaded size is recorded."""
    from shards.io.urls import download
    from shards.redact import redact_url

    told = path.with_name(path.name + ".size")
    if path.exists() and path.stat().st_size == (size or _number(told) or path.stat().st_size):
        echo(f"{redact_url(url)}: already downloaded to {path}; delete that file to download it again")
        return
    echo(f"downloading {redact_url(url)} to {path}")
    try:
        with replacing(path) as file:
            download(url, Path(file.name))
            found = os.fstat(file.fileno()).st_size
            if size not in (None, found):
                raise UserError(f"{redact_url(url)}: downloaded {found} of {size} bytes. Fix: rerun the command.")
            told.write_text(f"{found}\n")
    except FileNotFoundError:
        raise UserError(f"{redact_url(url)}: does not exist. Fix: check the URL.") from None


def _number(file: Path) -> int | None:
    """Read an integer from a file, or return None if the file contains none."""
    try:
        return int(read_text(file))
    except (OSError, ValueError):
        return None


def check_output(url: str) -> None:
    """Raise UserError if shards cannot be uploaded to a URL."""
    from shards.io.urls import check_url

    check_url(url, write=True)


def execute_remote(url: str, corpus: SourceInput, common: BuildOptions) -> None:
    """Build in --work, upload the shards and clean up. After an interruption, resume at the same shard or upload."""
    from shards.build.builder import BuildReport, is_up_to_date
    from shards.edit.upload import Upload, manifest_at
    from shards.redact import redact_url
    from simfle.commands.shards.build_output import show
    from simfle.runtime.build_meter import ProgressMeter

    there = manifest_at(url)
    base = work_folder(common.work, url)
    request = make_request(base / "shards", corpus, common)
    if there is not None:
        if not is_up_to_date(request, there, corpus.entries):
            raise UserError(f"{redact_url(url)}: holds shards of other images or options. Fix: choose another output.")
        shutil.rmtree(base, ignore_errors=True)  # left by a process that was killed before its cleanup
        show(redact_url(url), BuildReport(there, up_to_date=True), 0.0)
        return
    with claimed(base):
        echo(f"building in {base}; the upload to {redact_url(url)} follows")
        report, rate = build_here(request, corpus)
        if common.near_duplicates:
            report.notes += near_duplicate_notes(request, None)
        upload = Upload(base / "shards", url, base / "uploaded.json")
        with ProgressMeter() as meter:
            upload.run(lambda done, total: meter("uploading", done, total))
        if upload.skipped:
            report.notes.append(f"{upload.skipped} files were already uploaded by an earlier run")
        shutil.rmtree(base)
    show(redact_url(url), report, rate)
