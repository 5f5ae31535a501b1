"""Readers of corpora that come as folders: short lists, and names that tell label, person or film: `READERS`."""

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from fuzz.list_readers import fer2013
from fuzz.reader import Reader
from fuzz.shard_readers import list_of, photo

from shards.sources.corpora.celeba import CelebA
from shards.sources.corpora.ckplus import CKPlus
from shards.sources.corpora.digiface import DigiFace, expected
from shards.sources.corpora.facesynthetics import FaceSynthetics
from shards.sources.corpora.ferplus import VOTES, FERPlus
from shards.sources.corpora.lfw import LFW
from shards.sources.corpora.rafdb import RAFDB
from shards.sources.corpora.sfew import SFEW
from shards.sources.corpora.vggface2 import VGGFace2

MOST_NAMES = 30


def _lists(make: Callable[[Path], Any], **others: bytes) -> Callable[[Path], None]:
    """Write a corpus with a corrupt list; its other files are valid."""

    def read(file: Path) -> None:
        root = next(folder for folder in file.parents if folder.name == "corpus")
        for name, content in others.items():
            other = root / name
            if other != file and not other.exists():
                other.parent.mkdir(parents=True, exist_ok=True)
                other.write_bytes(content)
        list_of(make(root))

    return read


def _clear(root: Path) -> None:
    """An empty folder. By whole paths, as the guard wants them: shutil.rmtree goes by handles."""
    for folder, below, files in os.walk(root, topdown=False):
        for name in files:
            Path(folder, name).unlink()
        for name in below:
            Path(folder, name).rmdir()
    root.mkdir(exist_ok=True)


def _names(make: Callable[[Path], Any], *also: Callable[[Any], object]) -> Callable[[Path], None]:
    """A corpus whose files have the names in the lines of `file`, as far as a disk can hold them."""

    def read(file: Path) -> None:
        root = file.parent / "corpus"
        _clear(root)
        for line in file.read_bytes().split(b"\n")[:MOST_NAMES]:
            path = PurePosixPath(line.decode(errors="surrogateescape"))
            parts = [part for part in path.parts if part.strip("/") and part != ".."]
            if (
                not parts
                or "\0" in str(path)
                or any(len(part.encode(errors="surrogateescape")) > 255 for part in parts)
            ):
                continue
            made = root.joinpath(*parts[:8])
            try:
                made.parent.mkdir(parents=True, exist_ok=True)
                made.write_bytes(PHOTO)
            except OSError:  # a folder has that name, or a file that of a folder
                continue
        source = make(root)
        list_of(source)
        for each in also:
            each(source)

    return read


PHOTO = photo()
CK = "S005/001/S005_001_00000002"
CK_FILES = {
    "Emotion/S005/001/S005_001_00000002_emotion.txt": b"   3.0000000e+00\n",
    "Landmarks/S005/001/S005_001_00000002_landmarks.txt": b"".join(
        b"  2.5e+01   %d.0e+01\n" % (n % 9) for n in range(68)
    ),
    **{f"cohn-kanade-images/S005/001/S005_001_0000000{n}.png": PHOTO for n in (1, 2)},
}
FER = {
    "fer2013.csv": fer2013()[0],
    "fer2013new.csv": (
        f"Usage,Image name,{','.join(VOTES)}\n".encode()
        + b"Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0\nPrivateTest,,0,0,0,0,0,0,0,0,0,10\n"
    ),
}
VGG = {
    "train/n000002/0001_01.jpg": PHOTO,
    "train/n000003/0002_01.jpg": PHOTO,
    "bb_landmark/loose_bb_train.csv": b'NAME_ID,X,Y,W,H\n"n000002/0001_01",1,2,8,9\n"n000003/0002_01",1,2,8,9\n',
    "bb_landmark/loose_landmark_train.csv": b"NAME_ID,P1X,P1Y,P2X,P2Y,P3X,P3Y,P4X,P4Y,P5X,P5Y\n"
    b'"n000002/0001_01",1.5,2,3,4,5,6,7,8,9,10\n"n000003/0002_01",1,2,3,4,5,6,7,8,9,10\n',
    "bb_landmark/identity_meta.csv": b"Class_ID, Name, Sample_Num, Flag, Gender\n"
    b'n000002, "A, B", 2, 1, f\nn000003, C, 1, 1, m\n',
}
RAF = {
    "EmoLabel/list_patition_label.txt": b"train_00001.jpg 5\n",
    "Annotation/manual/train_00001_manu_attri.txt": b"1.5\t2\n3\t4\n5\t6\n7\t8\n9\t10\n1\n0\n2\n",
    "Annotation/boundingbox/train_00001_boundingbox.txt": b"1.0 2.0 15.0 18.0\n",
    "Image/original/train_00001.jpg": PHOTO,
}
CELEBA = {
    "list_eval_partition.txt": b"000001.jpg 0\n000002.jpg 2\n",
    "identity_CelebA.txt": b"000001.jpg 2880\n000002.jpg 2937\n",
    "list_bbox_celeba.txt": b"2\nimage_id x_1 y_1 width height\n000001.jpg 1 2 10 12\n000002.jpg 0 0 0 0\n",
    "list_landmarks_celeba.txt": b"2\nlefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y "
    b"rightmouth_x rightmouth_y\n000001.jpg 1 2 3 4 5 6 7 8 9 10\n000002.jpg 1 2 3 4 5 6 7 8 9 10\n",
    "img_celeba/000001.jpg": PHOTO,
    "img_celeba/000002.jpg": PHOTO,
}
SYNTHETICS = {"000000_ldmks.txt": b"".join(b"%d.5 %d\n" % (n, n % 9) for n in range(70)), "000000.png": PHOTO}


def _of(corpus: str, make: Callable[[Path], Any], files: dict[str, bytes], **named: str) -> list[Reader]:
    """A reader for each of the named files of a corpus."""
    read = _lists(make, **files)
    return [
        Reader(
            f"{corpus} {what.replace('_', ' ')}",
            f"{corpus}-{what}/corpus/{name}",
            lambda name=name: [files[name]],
            read,
        )
        for what, name in named.items()
    ]


def _celeba(root: Path) -> CelebA:
    return CelebA(root, unaligned=True)


READERS = (
    *_of("ckplus", CKPlus, CK_FILES, label=f"Emotion/{CK}_emotion.txt", landmarks=f"Landmarks/{CK}_landmarks.txt"),
    *_of("ferplus", FERPlus, FER, votes="fer2013new.csv"),
    *_of(
        *("vggface2", VGGFace2, VGG),
        boxes="bb_landmark/loose_bb_train.csv",
        landmarks="bb_landmark/loose_landmark_train.csv",
        people="bb_landmark/identity_meta.csv",
    ),
    *_of(
        *("rafdb", lambda root: RAFDB(root, images="original"), RAF),
        attributes="Annotation/manual/train_00001_manu_attri.txt",
        box="Annotation/boundingbox/train_00001_boundingbox.txt",
    ),
    *_of(
        *("celeba", _celeba, CELEBA),
        splits="list_eval_partition.txt",
        people="identity_CelebA.txt",
        boxes="list_bbox_celeba.txt",
        landmarks="list_landmarks_celeba.txt",
    ),
    *_of("facesynthetics", FaceSynthetics, SYNTHETICS, landmarks="000000_ldmks.txt"),
    Reader(
        *(
            "digiface names",
            "digiface.txt",
            lambda: [b"0/0.png\n0/1.png\nsubjects_0-9_2_imgs/100000/0.png\n1/0_seg.png\n"],
        ),
        _names(DigiFace, expected),
    ),
    Reader(
        *(
            "lfw names",
            "lfw.txt",
            lambda: [b"A_B/A_B_0001.jpg\nC/C_0001.jpg\n", b"lfw/lfw/A_B/A_B_0001.jpg\nlfw/x.txt\n"],
        ),
        _names(LFW, lambda source: source.release),
    ),
    Reader(
        *("sfew names", "sfew.txt"),
        lambda: [
            b"Train_Aligned_Faces/Angry/A_B_000123480_00000001.png\n"
            b"Val/Val_Aligned_Faces_new/Val_Aligned_Faces/Sad/C_000123480_00000002.png\nTest_Aligned_Faces/x.png\n"
        ],
        _names(SFEW),
    ),
)
