"""Guard the folders that commands create and delete: they may only contain files that simfle's commands write."""

import re
import shutil
from contextlib import suppress
from pathlib import Path

from shards.errors import UserError

_FILE = r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*-\d{6}\.(?:tar|idx)|rejected\.jsonl|manifest\.json)"
_COPIED = re.compile(rf"{_FILE}|\.{_FILE}\.\d+\.tmp")
LOCK = "lock"  # the first file in the work folder of a build


def refuse_foreign_files(folder: Path, *, build: bool) -> None:
    """Raise UserError if `folder` is a link or contains files that simfle's commands did not write.

    build: whether the folder is the OUT.partial of a build; otherwise it belongs to a command that derives shards.
    """
    if folder.is_symlink():
        raise UserError(
            f"{folder}: is a link, but the command creates and deletes this folder. Fix: choose another output."
        )
    try:
        found = sorted(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}). Fix: choose another output.") from None
    is_ours = _is_build_entry if build else _is_shard_file
    other = next((path.name for path in found if not is_ours(path)), None)
    if other is not None:
        raise UserError(
            f"{folder}: the command creates and deletes this folder, but {other!r} in it does not belong to an "
            "unfinished build. Fix: move the folder away, or choose another output."
        )


def is_build_staging(folder: Path) -> bool:
    """Return whether `folder` exists and is the OUT.partial of a build, so that it may be deleted."""
    try:
        refuse_foreign_files(folder, build=True)
    except UserError:
        return False
    return folder.is_dir()


def delete_build(folder: Path) -> None:
    """Delete the OUT.partial of a build, the lock file last: a partially deleted folder is still recognized."""
    shutil.rmtree(folder / "shards", ignore_errors=True)  # another process may delete it at the same time
    for path in folder.glob("work/*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            with suppress(OSError):
                path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _is_shard_file(path: Path) -> bool:
    return _COPIED.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


def _is_build_entry(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    if path.name == "work":
        return (path / LOCK).exists() or not any(path.iterdir())
    return path.name == "shards"
