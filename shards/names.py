"""Check names that come from elsewhere: from a manifest, an index, a tar. Who reads one checks it."""

import re

MOST = 200  # letters of a split's or file's name: with its number and a temporary ending it must fit into 255 bytes
SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# What no part of a plain file name may hold: separators of any system, and control characters.
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
    """Tell whether a file or folder of this name belongs to a system and not to its user."""
    return name.casefold() in SYSTEM


def is_plain(name: str) -> bool:
    """Tell whether a name is that of a file in a folder, and nothing else."""
    return (
        bool(name)
        and name not in (".", "..")
        and len(name.encode(errors="replace")) <= MOST
        and not SEPARATOR.search(name)
    )


def is_split(name: str) -> bool:
    """Tell whether a name can begin the file name of a shard: letters, digits, '_', '.', '-'."""
    return len(name) <= MOST and SPLIT.fullmatch(name) is not None


def leads_outside(name: str) -> bool:
    """Tell whether the name of a member of an archive leads out of the folder that the archive is unpacked to."""
    return OUTSIDE.search(name) is not None
