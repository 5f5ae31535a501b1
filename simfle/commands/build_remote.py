"""build_shards with URLs: sources are downloaded, shards are built here and uploaded, both into and from --work."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.files import read_text
from shards.locks import try_lock
from simfle.commands.app import echo
from simfle.commands.build_here import build_here, make_request
from simfle.commands.build_options import Common, Corpus
from simfle.errors import UserError

CONTAINERS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip", ".parquet")  # what is fetched of a folder


class Url(str):
    """A URL where a path may stand."""

    __slots__ = ()


def place(text: str) -> Path | Url:
    """What an argument of the command line names."""
    return Url(text) if "://" in text else Path(text)


def work_folder(asked: Path | None, url: str) -> Path:
    """The folder for what belongs to one URL; the same one at each start."""
    base = asked or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simfle" / "build"
    return base / hashlib.sha256(url.encode()).hexdigest()[:16]


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """One process at a time works in `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise UserError(f"--work: cannot use {folder}: {error.strerror}; choose another folder") from None
    with file:
        if not try_lock(file, folder):
            raise UserError(f"{folder} is in use by another process; wait for it or stop it")
        yield


def fetch(url: str, work: Path | None) -> Path:
    """A source, downloaded: a file, or a folder's archives and Parquet files. What is there is not fetched again.

    Raises:
        UserError: not readable, nothing there.
    """
    from shards.redact import shown
    from shards.remote import check_url, is_folder, join, names_in, size_of

    check_url(url)
    base = work_folder(work, url)
    name = Path(shown(url).rstrip("/")).name
    with claimed(base):
        if not is_folder(url):
            _fetch_file(url, base / name, size_of(url))
            return base / name
        names = [each for each in names_in(url) or () if each.lower().endswith(CONTAINERS)]
        if not names:
            raise UserError(f"{shown(url)} is a folder without archives or Parquet files; download it first")
        (base / name).mkdir(exist_ok=True)
        for each in names:
            _fetch_file(join(url, each), base / name / each, size_of(join(url, each)))
    return base / name


def _fetch_file(url: str, path: Path, size: int | None) -> None:
    """size: bytes as they are there, None where they cannot be asked for: then those that came are remembered."""
    from shards.redact import shown
    from shards.remote import download

    told = path.with_name(path.name + ".size")
    if path.exists() and path.stat().st_size == (size or _number(told) or path.stat().st_size):
        echo(f"{shown(url)}: {path} was downloaded before; delete it to have it fetched again")
        return
    part = path.with_name(path.name + ".part")
    echo(f"downloading {shown(url)} to {path}")
    try:
        download(url, part)
        found = part.stat().st_size
        if size not in (None, found):
            raise UserError(f"{shown(url)}: {found} bytes came instead of {size}; run the same command again")
        told.write_text(f"{found}\n")
        part.rename(path)
    except FileNotFoundError:
        raise UserError(f"there is no {shown(url)}") from None
    finally:
        part.unlink(missing_ok=True)


def _number(file: Path) -> int | None:
    """The number that a file holds; None where there is none."""
    try:
        return int(read_text(file))
    except (OSError, ValueError):
        return None


def check_output(url: str) -> None:
    """Raise a UserError if shards cannot be uploaded to a URL."""
    from shards.remote import check_url

    check_url(url, write=True)


def execute_remote(url: str, corpus: Corpus, common: Common) -> None:
    """Build in --work, upload the shards, clean up. Interrupted, it goes on with the shard or upload that it was at."""
    from shards.build import Report, is_same
    from shards.redact import shown
    from shards.upload import Upload, manifest_at
    from simfle.commands.build_report import Meter, show

    there = manifest_at(url)
    base = work_folder(common.work, url)
    request = make_request(base / "shards", corpus, common)
    if there is not None:
        if not is_same(request, there, corpus.entries):
            raise UserError(f"{shown(url)} holds shards of other images or options; choose another output")
        shutil.rmtree(base, ignore_errors=True)  # left by a start that was killed between its end and this
        show(shown(url), Report(there, already=True), 0.0)
        return
    with claimed(base):
        echo(f"building in {base}; the upload to {shown(url)} follows")
        report, rate = build_here(request, corpus)
        upload = Upload(base / "shards", url, base / "uploaded.json")
        with Meter() as meter:
            upload.run(lambda done, total: meter("uploading", done, total))
        if upload.skipped:
            report.notes.append(f"{upload.skipped} files had been uploaded by an earlier start")
        shutil.rmtree(base)
    show(shown(url), report, rate)
