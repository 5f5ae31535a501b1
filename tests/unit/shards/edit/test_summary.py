"""inspect_shards: what it tells and shows, on drawn faces."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.corpus_fixtures import BUILD, encoded, run, tool, write_faces
from PIL import Image

from shards.edit.summary import GAP, LINE, draw_contact_sheet, summarize
from shards.format.samples import read_samples

INSPECT = tool("inspect_shards")


def color(number: int) -> tuple[int, int, int]:
    return (40 + 30 * (number % 7), 60 + 25 * (number // 7), 200 - 5 * number)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of one color each, 40 x 20 to 69 x 20, of five people; two labels, one of them rare."""
    folder = tmp_path_factory.mktemp("inspect")
    for number in range(30):
        place = folder / "faces" / ("rare" if number % 10 == 0 else "usual") / f"p{number % 5}_{number:02d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(Image.new("RGB", (40 + number, 20), color(number)), quality=95))
    options = ["--class-folders", "--group-pattern", r"(p\d)_", "--shard-samples", 7, "--terms", "for tests"]
    assert run(*BUILD, "folder", folder / "faces", folder / "out", *options).returncode == 0
    return folder / "out"


def quiet(*_: object) -> None:
    pass


def test_the_numbers_are_those_of_the_images(shards: Path) -> None:
    looked = summarize(shards, (), 0, 0, quiet)
    assert looked.counts == Counter({("train", "usual"): 27, ("train", "rare"): 3})
    assert sorted(looked.sides[:, 0]) == list(range(40, 70))
    assert set(looked.sides[:, 1]) == {20}
    assert looked.people == {"train": 5}
    files = sorted(path.stat().st_size for path in (shards.parent / "faces").rglob("*.jpg"))
    assert sorted(looked.bytes) == files


def test_the_sheet_shows_each_chosen_image_above_its_label(shards: Path) -> None:
    """The color in the middle of each cell is its image's; something is written under it."""
    looked = summarize(shards, (), 11, 3, quiet)
    sheet = np.asarray(draw_contact_sheet(shards, looked, 64))
    assert len(looked.sheet) == 11
    for number, (info, position) in enumerate(looked.sheet):
        row, column = divmod(number, 8)
        left, top = GAP + column * (64 + GAP), GAP + row * (64 + GAP + 2 * LINE)
        key = next(read_samples(shards, info, [position])).key
        wanted = color(int(key.rsplit("_", 1)[1]))
        np.testing.assert_allclose(sheet[top + 32, left + 32], wanted, atol=4)
        for line in (0, 1):
            text = sheet[top + 64 + line * LINE : top + 64 + (line + 1) * LINE, left : left + 64]
            assert text.min() < 200


def test_a_sheet_without_keys_shows_no_name(shards: Path) -> None:
    looked = summarize(shards, (), 3, 3, quiet)
    with_keys, without = (np.asarray(draw_contact_sheet(shards, looked, 64, keys=keys)) for keys in (True, False))
    row = GAP + 64 + LINE  # images, with the label below
    np.testing.assert_array_equal(without[:row], with_keys[:row])
    assert len(without) == len(with_keys) - LINE
    assert without[row:].min() > 240  # only background


def test_the_choice_is_seeded(shards: Path) -> None:
    first, again, other = (summarize(shards, (), 9, seed, quiet).sheet for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 9
    more = summarize(shards, (), 12, 1, quiet).sheet
    assert set(first) < set(more)
    assert len(summarize(shards, (), 64, 1, quiet).sheet) == 30


def test_the_command(shards: Path, tmp_path: Path) -> None:
    done = run(*INSPECT, shards, "--contact-sheet", tmp_path / "sheet.png", "--samples", 10, "--side", 32)
    assert done.returncode == 0, done.stderr
    assert "terms of use: for tests" in done.stdout
    assert "width: 40 to 69, median" in done.stdout
    assert re.search(r"usual \W+ 27 ", done.stdout)
    assert re.search(r"rare \W+ 3 ", done.stdout)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.format == "PNG"
        assert image.size == (8 * 38 + GAP, 2 * (32 + GAP + 2 * LINE) + GAP)


def test_duplicates_are_counted(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 6)
    (faces / "copy.jpg").write_bytes((faces / "p_0001.jpg").read_bytes())
    assert run(*BUILD, "folder", faces, tmp_path / "out").returncode == 0
    done = run(*INSPECT, tmp_path / "out", "--duplicates", "--workers", 1)
    assert "duplicates: 1 exact, 0 near" in done.stdout
    assert (tmp_path / "out.png").is_file()


def test_brackets_in_names_are_names(tmp_path: Path) -> None:
    """To rich they are markup: [/happy] ends what never began, and [sad] vanishes."""
    faces = write_faces(tmp_path / "faces", 4)
    (faces / "copy.jpg").write_bytes((faces / "p_0001.jpg").read_bytes())
    labels = ["[sad]", "[/happy]"]
    rows = [f"{path.name},{labels[number % 2]}" for number, path in enumerate(sorted(faces.iterdir()))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    out = tmp_path / "[/out]" / "x"
    options = ["--images", faces, "--label-column", "label", "--corpus", "[/faces]"]
    built = run(*BUILD, "csv", tmp_path / "list.csv", out, *options)
    assert built.returncode == 0, built.stderr
    again = run(*BUILD, "csv", tmp_path / "list.csv", out, *options)
    assert again.returncode == 0, again.stderr
    inspected = run(*INSPECT, out)
    assert inspected.returncode == 0, inspected.stderr
    assert all(name in done.stdout for name in ("[/happy]", "[sad]") for done in (built, inspected))
    assert "[/faces]: samples written" in built.stdout
    assert "/[/out]/x is already complete" in again.stdout
    found = run(*tool("find_duplicates"), out)
    assert found.returncode == 0, found.stderr
    assert "/[/out]/x with a duplicate" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split", "no"], "no split 'no'"),
        (["--side", "3"], "--side=3"),
        (["--contact-sheet", "/absent/x.png"], "cannot be written"),
    ],
)
def test_bad_arguments_get_one_line(shards: Path, arguments: list[str], words: str) -> None:
    done = run(*INSPECT, shards, *arguments)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
