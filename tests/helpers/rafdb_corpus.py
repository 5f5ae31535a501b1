"""A small corpus in the layout of RAF-DB."""

from pathlib import Path

from helpers.source_kit import photo, write

ROWS = (
    ("train_00001", 5),
    ("train_00002", 1),
    ("train_00003", 7),
    ("test_0001", 4),
    ("test_0002", 2),
    ("test_0003", 6),
)


def write_rafdb(root: Path, spelling: str = "patition") -> Path:
    """The official layout: photos, aligned faces of 100 px, a list, a file of attributes and of the box for each."""
    for number, (stem, _) in enumerate(ROWS):
        write(root / "Image" / "original" / f"{stem}.jpg", photo(number, 160, 120))
        write(root / "Image" / "aligned" / f"{stem}_aligned.jpg", photo(number, 100, 100))
        marks = "".join(f"{10.5 + n}\t{20 + n}\n" for n in range(5))
        write(root / "Annotation" / "manual" / f"{stem}_manu_attri.txt", f"{marks}1\n2\n{number % 5}\n")
        write(root / "Annotation" / "boundingbox" / f"{stem}_boundingbox.txt", "12 30 92 118 \n")
    write(root / "EmoLabel" / f"list_{spelling}_label.txt", "".join(f"{stem}.jpg {label}\n" for stem, label in ROWS))
    return root
