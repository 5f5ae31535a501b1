"""Tiny AffectNets of drawn images, in the layouts of all three releases, with their traps."""

import json
from pathlib import Path

import numpy as np

from helpers.source_kit import photo, write

HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
MARKS = ";".join(f"{n / 2};{n + 0.25}" for n in range(68))
KINDS = {"bmp": "BMP", "png": "PNG", "tif": "TIFF"}
# Extensions as they occur; the file is what its extension says.
NAMES = ("1/a0.jpg", "1/b1.JPG", "2/c2.jpeg", "2/d3.png", "2/e4.bmp", "3/f5.BMP", "3/g6.tif", "3/h7.TIF")
EMPTY, MISSING = "4/empty.jpg", "4/missing.jpg"


def row(name: str, label: object, box: str = "2,3,10,9", marks: str = MARKS, affect: str = "0.5,-0.25") -> str:
    """One line of a list."""
    return f"{name},{box},{marks},{label},{affect}"


def write_lists(root: Path, header: bool = True) -> Path:
    """The release of 2017: eight labeled faces in the validation list, which has no header if so asked."""
    images = root / "Manually_Annotated_Images"
    for number, name in enumerate(NAMES):
        write(images / name, photo(number, kind=KINDS.get(name[-3:].lower(), "JPEG")))
        write(images / f"9/v{number}.jpg", photo(50 + number))
    for name in ("5/none.jpg", "5/uncertain.jpg", "5/noface.jpg", "5/edge.jpg", "5/flat.jpg", "5/null.jpg"):
        write(images / name, photo(len(name)))
    write(images / EMPTY, b"")
    rows = [row(name, number) for number, name in enumerate(NAMES)]
    rows += [
        row(EMPTY, 1),
        row(MISSING, 1),
        row("5/none.jpg", 8),
        row("5/uncertain.jpg", 9, affect="-2,-2"),
        row("5/noface.jpg", 10, box="NULL,NULL,NULL,NULL", marks="NULL", affect="-2,-2"),
        row("5/edge.jpg", 0, box="-4,-1,30,40"),
        row("5/flat.jpg", 0, box="4,1,-3,0"),
        row("5/null.jpg", 11),
        "5/short.jpg,1,2,3",
        row("../1/a0.jpg", 2),
    ]
    write(root / "training.csv", "\r\n".join([HEADER, *rows, ""]))
    rows = [row(f"9/v{number}.jpg", number) for number in range(8)]
    write(root / "validation.csv", "\n".join([HEADER, *rows] if header else rows) + "\n")
    return root


def add_automatic(root: Path) -> Path:
    """The images that only a network has labeled; one has the name of a manually labeled one."""
    for name in ("1/a0.jpg", "1/auto.jpg"):
        write(root / "Automatically_Annotated_Images" / name, photo(90))
    write(root / "automatically_annotated.csv", "\n".join([HEADER, row("1/a0.jpg", 6), row("1/auto.jpg", 6), ""]))
    return root


def write_array(file: Path, value: object) -> None:
    """A .npy file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, np.asarray(value), allow_pickle=True)


def write_arrays(root: Path) -> Path:
    """The release of 2021: values are texts, numbers have gaps and occur in both splits."""
    for split, idents in (("train_set", (0, 1, 5, 12)), ("val_set", (0, 5))):
        for ident in idents:
            write(root / split / "images" / f"{ident}.jpg", photo(ident + len(split), 224, 224))
            notes = root / split / "annotations"
            write_array(notes / f"{ident}_exp.npy", str((ident + (split == "val_set")) % 8))
            write_array(notes / f"{ident}_val.npy", "-0.125")
            write_array(notes / f"{ident}_aro.npy", "0.5")
            write_array(notes / f"{ident}_lnd.npy", np.arange(136) / 2)
    return root


def write_plus(root: Path) -> Path:
    """AffectNet+: one JSON file a face."""
    for part, count in (("human_annotated/train_set", 3), ("human_annotated/validation_set", 2)):
        for ident in range(count):
            write(root / part / "images" / f"{ident}.jpg", photo(ident + count))
            write(root / part / "annotations" / f"{ident}.json", json.dumps(note(ident)))
    for ident in range(2):
        write(root / "no_human_annotated" / "images" / f"{ident}.jpg", photo(ident + 9))
        write(root / "no_human_annotated" / "annotations" / f"{ident}.json", json.dumps(note(-1)))
    return root


def note(label: object) -> dict:
    """Return the content of a file of AffectNet+."""
    meta = {
        "age": 31.5, "valence": -0.5, "arousal": float("nan"), "gender": {"male": 0.25, "female": 0.75},
        "landmark-68": list(range(136)),
    }  # fmt: skip
    return {"human-label": label, "soft-label": [0.125] * 8, "subset": 2, "meta-data": meta}
