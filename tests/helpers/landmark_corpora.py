"""300-W, WFLW, COFW and AFLW-19 in small, as they are delivered."""

from pathlib import Path

import h5py
import numpy as np
from scipy.io import savemat

from helpers.source_kit import photo, write


def pts(shift: float = 0.0, count: int = 68, end: str = "}") -> str:
    """A .pts file; two spaces behind the colon, as iBUG writes it."""
    points = "".join(f"{10.5 + n + shift:.6f} {20 + n % 7:.6f}\n" for n in range(count))
    return f"version: 1\nn_points:  {count}\n{{\n{points}{end}\n"


def write_300w(root: Path) -> Path:
    """One face in each part, two of one photo in afw, .png in lfpw."""
    faces = (
        ("afw/134212_1.jpg", 0),
        ("afw/134212_2.jpg", 5),
        ("helen/trainset/232194_1.jpg", 1),
        ("helen/testset/296814969_3.jpg", 2),
        ("lfpw/trainset/image_0001.png", 3),
        ("lfpw/testset/image_0001.png", 4),
        ("ibug/image_003_1.jpg", 6),
    )
    for name, shift in faces:
        write(root / name, photo(shift, 90, 40, "PNG" if name.endswith("png") else "JPEG"))
        write((root / name).with_suffix(".pts"), pts(shift))
    write(root / "helen" / "trainset" / "README.txt", "")
    return root


def wflw_line(path: str, shift: int = 0, flags: str = "0 1 0 0 1 0") -> str:
    points = " ".join(f"{30.25 + n + shift} {40.5 + n % 9}" for n in range(98))
    return f"{points} {20 + shift} 30 {140 + shift} 90 {flags} {path}"


def write_wflw(root: Path) -> Path:
    """Two faces in one photo of the list for training."""
    parade, party = "0--Parade/0_Parade_1_116.jpg", "50--Party/50_Party_2_9.jpg"
    for number, name in enumerate((parade, party)):
        write(root / "WFLW_images" / name, photo(number, 160, 100))
    folder = root / "WFLW_annotations" / "list_98pt_rect_attr_train_test"
    rows = [wflw_line(parade), wflw_line(parade, 7)]
    write(folder / "list_98pt_rect_attr_train.txt", "\n".join(rows) + "\n")
    write(folder / "list_98pt_rect_attr_test.txt", wflw_line(party, 0, "0 0 0 0 0 0") + "\n")
    return root


def cofw_pixels(number: int) -> np.ndarray:
    """Color [20, 28, 3], but every third image gray [20, 28]."""
    pixels = np.random.default_rng(number).integers(0, 255, (20, 28, 3), np.uint8)
    return pixels[:, :, 0] if number % 3 == 2 else pixels


def write_cofw(root: Path) -> Path:
    """MATLAB's cells in HDF5: references to arrays with their axes reversed."""
    for name, mark, count in (("train", "Tr", 4), ("test", "T", 3)):
        with h5py.File(root / f"COFW_{name}_color.mat", "w") as data:
            cells = data.create_dataset(f"Is{mark}", (1, count), h5py.ref_dtype)
            for number in range(count):
                held = data.create_dataset(f"#refs#/{number}", data=cofw_pixels(number).T)
                cells[0, number] = held.ref
            x = np.arange(29)[:, None] + np.arange(count) / 4
            occluded = (np.arange(29)[:, None] + np.arange(count)) % 2
            data[f"phis{mark}"] = np.concatenate([x, x + 100, occluded])
            data[f"bboxes{mark}"] = np.array([[1.0, 2, 20, 15]] * count).T
    return root


AFLW_FACES = 24_386


def write_aflw(root: Path, **changes: np.ndarray) -> Path:
    """All rows of the list, and the photos of the first three and the last one; two rows are about one photo."""
    names = [f"{(0, 2, 3)[n % 3]}/image{n:05d}.jpg" for n in range(AFLW_FACES)]
    names[1] = names[0]
    cells = np.empty((AFLW_FACES, 1), object)
    for number, name in enumerate(names):
        cells[number, 0] = name
    points = np.arange(38.0) + np.zeros((AFLW_FACES, 1))
    points[:, 19:] += 100
    fields = {
        "nameList": cells,
        "data": points,
        "mask_new": np.tile((np.arange(19) % 2).astype(np.uint8), (AFLW_FACES, 1)),
        "bbox": np.tile(np.array([3.0, 23.0, 5.0, 15.0]), (AFLW_FACES, 1)),
        "ra": np.arange(AFLW_FACES, 0, -1)[None],  # backwards: the first rows are test
    }
    savemat(root / "AFLWinfo_release.mat", fields | changes)
    for name in (*names[:3], names[-1]):
        write(root / "data" / "flickr" / name, photo(len(name), 40, 30))
    return root
