"""Check untrusted names from a manifest, an index or a tar. Each reader of such a name checks it."""

import re

MAX_LENGTH = (
    200  # maximum characters of a split or file name, which must fit into 255 bytes with number and temporary suffix
)
SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Characters that a plain file name must not contain: path separators of any system and control characters.
SEPARATOR = re.compile(r"[/\\\x00-\x1f\x7f]")
OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)|\x00")


# Folders and files of systems and network disks (Synology, QNAP, Windows, Mac, ext4), none of them a corpus's.
SYSTEM = frozenset(
    (
        "@eadir",
        "@recycle",
        "#recycle",
        "@recently-snapshot",
        "#snapshot",
        "~snapshot",
        "@sharebin",
        "@tmp",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "found.000",
        "__macosx",
        "network trash folder",
        "temporary items",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    )
)


def is_system(name: str) -> bool:
    """Return whether a file or folder of this name belongs to the operating system and not to the user."""
    return name.casefold() in SYSTEM


def is_plain(name: str) -> bool:
    """Return whether a name is a plain file name without any path."""
    return (
        bool(name)
        and name not in (".", "..")
        and len(name.encode(errors="replace")) <= MAX_LENGTH
        and not SEPARATOR.search(name)
    )


def is_split(name: str) -> bool:
    """Return whether a name can start a shard's file name: letters, digits, '_', '.', '-'."""
    return len(name) <= MAX_LENGTH and SPLIT.fullmatch(name) is not None


def leads_outside(name: str) -> bool:
    """Return whether an archive member's name leads outside the folder that the archive is extracted to."""
    return OUTSIDE.search(name) is not None
