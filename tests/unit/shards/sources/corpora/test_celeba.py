"""CelebA as its authors and as Kaggle deliver it."""

from pathlib import Path

import pytest
from helpers.source_kit import built, entries, photo, rejects, write

from shards.errors import UserError
from shards.sources.corpora.celeba import CORPUS, CelebA

ATTRIBUTES = ("5_o_Clock_Shadow", "Male", "Smiling", "Young")
FACES = (  # name, split, person, attributes
    ("000001.jpg", 0, 2880, "-1  1  1 -1"),
    ("000002.jpg", 0, 2937, "-1 -1 -1  1"),
    ("000003.jpg", 1, 2880, " 1  1 -1 -1"),
    ("000004.jpg", 2, 7, "-1 -1  1  1"),
)
EYES = "69 109 106 113 77 142 73 152 108 154"


def write_celeba(root: Path) -> Path:
    """The authors' layout: count lines, headers and columns padded with spaces in Anno/, nothing of it in Eval/."""
    for number, (name, *_) in enumerate(FACES):
        write(root / "Img" / "img_align_celeba" / name, photo(number))
        write(root / "Img" / "img_celeba" / name, photo(number, 64, 48))
    write(root / "Eval" / "list_eval_partition.txt", "".join(f"{name} {split}\n" for name, split, *_ in FACES))
    write(root / "Anno" / "identity_CelebA.txt", "".join(f"{name} {person}\n" for name, _, person, _ in FACES))
    rows = "".join(f"{name} {values}\n" for name, _, _, values in FACES)
    write(root / "Anno" / "list_attr_celeba.txt", f"{len(FACES)}\n{' '.join(ATTRIBUTES)} \n{rows}")
    rows = "".join(f"{name}    95  71 226   {313 + n}\n" for n, (name, *_) in enumerate(FACES))
    write(root / "Anno" / "list_bbox_celeba.txt", f"{len(FACES)}\nimage_id x_1 y_1 width height\n{rows}")
    for kind, shift in (("align_celeba", ""), ("celeba", "1")):
        rows = "".join(f"{name}  {shift}{EYES}\n" for name, *_ in FACES)
        header = (
            "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
        )
        write(root / "Anno" / f"list_landmarks_{kind}.txt", f"{len(FACES)}\n{header}\n{rows}")
    return root


def write_kaggle(root: Path) -> Path:
    """Kaggle's layout: the images nested twice, lists with commas and headers, no identities."""
    for number, (name, *_) in enumerate(FACES):
        write(root / "img_align_celeba" / "img_align_celeba" / name, photo(number))
    rows = "".join(f"{name},{split}\n" for name, split, *_ in FACES)
    write(root / "list_eval_partition.csv", f"image_id,partition\n{rows}")
    rows = "".join(f"{name},{','.join(values.split())}\n" for name, _, _, values in FACES)
    write(root / "list_attr_celeba.csv", f"image_id,{','.join(ATTRIBUTES)}\n{rows}")
    rows = "".join(f"{name},95,71,226,313\n" for name, *_ in FACES)
    write(root / "list_bbox_celeba.csv", f"image_id,x_1,y_1,width,height\n{rows}")
    return root


def test_the_authors_release(tmp_path: Path) -> None:
    manifest, found = built(CelebA(write_celeba(tmp_path / "celeba")), tmp_path / "out")
    assert manifest.samples == 4
    first = found["img_align_celeba/000001.jpg"]
    assert first["jpeg"] == (tmp_path / "celeba" / "Img" / "img_align_celeba" / "000001.jpg").read_bytes()
    assert (first["group"], first["split"]) == ("2880", "train")
    assert first["extras"] == {"attributes": ["Male", "Smiling"]}
    assert first["landmarks"] == [[69, 109], [106, 113], [77, 142], [73, 152], [108, 154]]
    assert {sample["split"] for sample in found.values()} == {"train", "val", "test"}


def test_boxes_belong_to_the_unaligned_photos(tmp_path: Path) -> None:
    root = write_celeba(tmp_path)
    assert {entry.box for entry in entries(CelebA(root)).values()} == {None}
    wild = entries(CelebA(root, unaligned=True))
    assert wild["000002.jpg"].box == (95, 71, 226, 314)
    assert wild["000002.jpg"].landmarks[0] == (169, 109)
    assert wild["000002.jpg"].read == root / "Img" / "img_celeba" / "000002.jpg"


def test_kaggles_release(tmp_path: Path) -> None:
    found = entries(CelebA(write_kaggle(tmp_path)))
    assert [entry.split for entry in found.values()] == ["train", "train", "val", "test"]
    assert found["000003.jpg"].extras == {"attributes": ["5_o_Clock_Shadow", "Male"]}
    assert all(entry.read.is_file() and entry.group is None and entry.box is None for entry in found.values())
    assert not rejects(CelebA(tmp_path))


def test_the_png_release_has_lists_of_jpgs(tmp_path: Path) -> None:
    root = write_celeba(tmp_path)
    (root / "Img" / "img_align_celeba").rename(root / "Img" / "img_align_celeba_png")
    for file in (root / "Img" / "img_align_celeba_png").iterdir():
        file.rename(file.with_suffix(".png"))
    found = entries(CelebA(root))
    assert all(entry.read.is_file() for entry in found.values())
    assert found["000001.jpg"].group == "2880"


def test_what_is_listed_and_absent_is_missing(tmp_path: Path) -> None:
    root = write_celeba(tmp_path / "celeba")
    (root / "Img" / "img_align_celeba" / "000002.jpg").unlink()
    assert built(CelebA(root), tmp_path / "out")[0].rejected == {"missing": 1}


def test_damaged_lines_cost_one_face_each(tmp_path: Path) -> None:
    root = write_celeba(tmp_path)
    attributes = root / "Anno" / "list_attr_celeba.txt"
    attributes.write_text(attributes.read_text().replace("-1 -1 -1  1", "-1 -1"))
    with (root / "Eval" / "list_eval_partition.txt").open("a") as partition:
        partition.write("000005.jpg 9\n../../000006.jpg 0\n/etc/000007.jpg 0\n")
    assert rejects(CelebA(root)) == {
        "000002.jpg": "bad_row",
        "list_eval_partition.txt line 5": "bad_row",
        "../../000006.jpg": "outside",
        "/etc/000007.jpg": "outside",
    }
    assert len(entries(CelebA(root))) == 3


def test_photos_alone(tmp_path: Path) -> None:
    write(tmp_path / "img_align_celeba" / "000001.jpg", photo())
    write(tmp_path / "img_align_celeba" / "readme.txt", "")
    source = CelebA(tmp_path)
    assert entries(source)["000001.jpg"].split is None
    assert len(entries(source)) == 1
    assert "list_eval_partition" in source.notes()[0]
    assert CORPUS.published_counts(source) == {"train": {"": 202_599}}


def test_what_it_holds_is_known(tmp_path: Path) -> None:
    counts = CORPUS.published_counts(CelebA(write_celeba(tmp_path)))
    assert sum(count for split in counts.values() for count in split.values()) == 202_599


def test_another_corpus_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "faces" / "a.jpg", photo())
    with pytest.raises(UserError, match=r"celeba: no images in .*img_align_celeba.*found: faces"):
        list(CelebA(tmp_path))


def test_a_list_without_its_header_is_refused(tmp_path: Path) -> None:
    root = write_celeba(tmp_path)
    attributes = root / "Anno" / "list_attr_celeba.txt"
    attributes.write_text("".join(f"{name} {values}\n" for name, _, _, values in FACES))
    with pytest.raises(UserError, match=r"list_attr_celeba.txt has no header"):
        list(CelebA(root))
