"""A small corpus in the layout of ExpW."""

from pathlib import Path

from helpers.source_kit import photo, write

LINES = (
    "angry_actor_104.jpg 0 28 113 226 141 22.9362 0",
    "angry_actor_104.jpg 1 10 20 60 50 9.5 6",
    "happy face_12.jpg 0 5 4 25 34 77.0 3",
    "sad_man_1.jpg 2 1 2 40 41 5.25 4",
)


def write_expw(root: Path, below: tuple[str, str] = ("label.lst", "origin")) -> Path:
    """A list, and photos with faces that share one."""
    for number, name in enumerate(("angry_actor_104.jpg", "happy face_12.jpg", "sad_man_1.jpg")):
        write(root / below[1] / name, photo(number, 250, 260))
    write(root / below[0], "".join(f"{line}\n" for line in LINES))
    return root
