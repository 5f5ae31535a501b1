"""A small corpus in the layout of CK+."""

from pathlib import Path

from helpers.source_kit import photo, write

SEQUENCES = {("S005", "001"): 3, ("S005", "002"): None, ("S010", "001"): 7, ("S999", "001"): 1}


LENGTH = 5


def write_ckplus(root: Path, emotion: str = "Emotion") -> Path:
    """Sequences of five frames; labels are floats in files named after the last frame, or the folder is empty."""
    for number, ((person, sequence), label) in enumerate(SEQUENCES.items()):
        for frame in range(1, LENGTH + 1):
            stem = f"{person}_{sequence}_{frame:08d}"
            write(root / "cohn-kanade-images" / person / sequence / f"{stem}.png", photo(number, 64, 49, "PNG", "L"))
            marks = "".join(f"   {x / 2:.7e}   {x + frame:.7e}\n" for x in range(68))
            write(root / "Landmarks" / person / sequence / f"{stem}_landmarks.txt", marks)
        write(root / "cohn-kanade-images" / person / sequence / f"._{stem}.png", b"of an archive made on a Mac")
        (root / emotion / person / sequence).mkdir(parents=True)
        if label is not None:
            write(root / emotion / person / sequence / f"{stem}_emotion.txt", f"   {label:.7e}\n")
    write(root / "cohn-kanade-images" / "ReadMe.txt", "x")
    return root
