"""MTFL in small, with the habits of its lists: a space before each line, backslashes, CR LF."""

import zipfile
from pathlib import Path

from helpers.source_kit import photo, write

POINTS = (42.2, 68.8, 58.44, 45.0, 65.72, 41.08, 41.36, 54.24, 66.28, 65.72)  # x1 to x5, y1 to y5
TRAIN = ("net_7876\\0_0_0.jpg", "net_7876\\_60_980_0.jpg", "net_7876\\a b.jpg")
TEST = ("AFLW/0001-image20056.jpg", "AFLW/0002-image04733.jpg")


def line(path: str, attributes: str = "1 1 2 3", shift: float = 0.0) -> str:
    return f" {path} {' '.join(f'{value + shift:.3f}' for value in POINTS)} {attributes}\r\n"


def write_mtfl(root: Path) -> Path:
    """Three faces of the web for training, two of AFLW for testing."""
    rows = [line(TRAIN[0]), line(TRAIN[1], "2 2 1 5", 1), line(TRAIN[2], "2 1 2 1", 2)]
    write(root / "training.txt", "".join(rows))
    write(root / "testing.txt", "".join(line(path, "1 2 2 2", 3) for path in TEST))
    for number, path in enumerate((*TRAIN, *TEST)):
        write(root / path.replace("\\", "/"), photo(number, 120, 112))
    return root


def packed(root: Path, archive: Path, top: str = "") -> Path:
    """A zip of all files below a folder, their names below `top`."""
    with zipfile.ZipFile(archive, "w") as made:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                made.write(path, f"{top}{path.relative_to(root)}")
    return archive
