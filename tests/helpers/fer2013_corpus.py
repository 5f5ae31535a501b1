"""Tiny FER2013 and FERPlus of drawn faces, in all forms of their lists."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.source_kit import write

USAGES = ("Training",) * 6 + ("PublicTest",) * 3 + ("PrivateTest",) * 3
EMOTIONS = (0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4)
# neutral happiness surprise sadness anger disgust fear contempt unknown NF; row 2 shows no face and so has no name.
VOTES = (
    (6, 0, 1, 1, 0, 0, 0, 0, 2, 0),  # majority neutral: 6 of 8, single votes left out
    (5, 0, 0, 5, 0, 0, 0, 0, 0, 0),  # exactly half: unknown; argmax takes the first
    (0, 0, 0, 0, 0, 0, 0, 0, 0, 10),
    (0, 4, 2, 0, 0, 0, 0, 0, 2, 2),  # 4 of 10, not more than half
    (0, 0, 0, 4, 1, 1, 1, 1, 1, 1),  # 4 of 4 after the single votes are gone
    (0, 0, 0, 0, 0, 3, 0, 0, 7, 0),  # unknown by both rules
    (0, 0, 0, 0, 0, 0, 9, 1, 0, 0),
    (0, 0, 0, 0, 0, 0, 1, 9, 0, 0),
    (1, 1, 1, 1, 1, 1, 1, 1, 1, 1),  # nothing left: unknown; argmax takes the first
    (0, 0, 10, 0, 0, 0, 0, 0, 0, 0),
    (0, 0, 0, 0, 10, 0, 0, 0, 0, 0),
    (0, 0, 0, 0, 0, 0, 0, 0, 1, 9),
)


def gray(row: int) -> np.ndarray:
    """The pixels [48, 48] of a row."""
    y, x = np.mgrid[0:48, 0:48]
    return ((x * (row + 1) + y * 3) % 256).astype(np.uint8)


def text(row: int) -> str:
    """They as the lists hold them."""
    return " ".join(map(str, gray(row).reshape(-1)))


def write_fer2013(root: Path, name: str = "fer2013.csv") -> Path:
    """One of the lists of all rows."""
    order = "emotion, Usage, pixels" if name.startswith("icml") else "emotion,pixels,Usage"
    lines = [order]
    for row, (emotion, usage) in enumerate(zip(EMOTIONS, USAGES, strict=True)):
        cells = (emotion, usage, text(row)) if name.startswith("icml") else (emotion, text(row), usage)
        lines.append(",".join(map(str, cells)))
    write(root / name, "\n".join(lines) + "\n")
    return root


def write_contest(root: Path) -> Path:
    """train.csv, whose texts are quoted, and test.csv without labels."""
    write(root / "train.csv", "emotion,pixels\n" + "".join(f'{EMOTIONS[n]},"{text(n)}"\n' for n in range(6)))
    write(root / "test.csv", "pixels\n" + "".join(f"{text(n)}\n" for n in range(6, 12)))
    return root


def write_ferplus(root: Path) -> Path:
    """fer2013new.csv: the numbers in its names count the rows with a face only, so they drift."""
    header = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    lines, number = [header], 0
    for usage, votes in zip(USAGES, VOTES, strict=True):
        named = votes[-1] < 10
        lines.append(",".join([usage, f"fer{number:07d}.png" if named else "", *map(str, votes)]))
        number += named
    write(root / "fer2013new.csv", "\n".join(lines) + "\n")
    return root


def write_images(root: Path) -> Path:
    """As Microsoft's script writes them: fer2013new.csv and the faces as PNGs in a folder for each split.

    Row 3 has the name of row 1 with the same votes; row 11 that of row 10 with others. The images of rows 6 (val) and
    9 (test) are that of row 0 (train), that of row 7 (val) is that of row 10 (test).
    """
    write_ferplus(root)
    header, *lines = (root / "fer2013new.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    cells[3] = cells[1]
    cells[11][1] = cells[10][1]
    write(root / "fer2013new.csv", "\n".join([header, *(",".join(row) for row in cells)]) + "\n")
    folders = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
    same = {3: 1, 6: 0, 9: 0, 7: 10, 11: 10}
    for row, (usage, name, *_) in enumerate(cells):
        if name:
            file = io.BytesIO()
            Image.fromarray(gray(same.get(row, row))).save(file, "PNG")
            write(root / folders[usage] / name, file.getvalue())
    return root
