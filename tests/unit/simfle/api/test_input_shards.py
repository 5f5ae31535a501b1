"""Data that a user names: folders, classes, splits, archives, Parquet, shards; and words that name no data."""

import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.corpus_fixtures import contents, encoded, picture
from pyarrow import parquet

from shards.format.manifest import read_manifest
from simfle.api.input_shards import is_data, shards_of
from simfle.errors import UserError


def images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture(number)))
    return folder


def test_words_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images(tmp_path, "faces/a.jpg", "date=2026/a.jpg"))
    (tmp_path / "own.yaml").write_text("train: {steps: 1}")
    (tmp_path / "config").write_text("train: {steps: 1}")
    (tmp_path / "faces.zip").write_bytes(b"")
    data = ["faces", "date=2026", "faces.zip", "no/such/faces", "none.tar.gz", "https://host/shards?key=a", "s3://b/s"]
    assert [word for word in data if not is_data(word)] == []
    others = ["own.yaml", "config", "none.yaml", "train.steps=5", "data.shards=[https://host/s]", "a=" + "b" * 5000]
    assert [word for word in others if is_data(word)] == []


@pytest.mark.parametrize(
    ("names", "labels", "splits"),
    [
        (["a.jpg", "b.jpg"], (), ("train",)),
        (["happy/a.jpg", "sad/b.jpg"], ("happy", "sad"), ("train",)),
        (["happy/a.jpg", "sad/b.jpg", "c.jpg"], (), ("train",)),
        (["train/happy/a.jpg", "train/sad/b.jpg", "test/sad/c.jpg"], ("happy", "sad"), ("test", "train")),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_folders_name_classes_and_splits(
    names: list[str], labels: tuple[str, ...], splits: tuple[str, ...], packed: bool, tmp_path: Path
) -> None:
    place = images(tmp_path / "faces", *names)
    if packed:
        with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
            for name in names:
                archive.write(place / name, name)
        place = tmp_path / "faces.zip"
    (made,) = shards_of([str(place)], tmp_path / "run")
    assert made == str(tmp_path / "run" / "shards")
    manifest = read_manifest(Path(made))
    assert manifest.corpus == "faces"
    assert (manifest.samples, manifest.labels, tuple(sorted(manifest.splits))) == (len(names), labels, splits)
    before = contents(Path(made))
    assert shards_of([str(place)], tmp_path / "run") == [made]
    assert contents(Path(made)) == before
    # Shards are taken as they are.
    assert shards_of([made], tmp_path / "other") == [made]
    assert not (tmp_path / "other").exists()


def test_parquet_and_several_places(tmp_path: Path) -> None:
    place = images(tmp_path / "faces", "a.jpg")
    rows = [{"bytes": encoded(picture(number)), "path": f"{number}.jpg"} for number in range(3)]
    parquet.write_table(pa.table({"image": rows}), tmp_path / "part.parquet")
    found = shards_of([str(place), str(tmp_path / "part.parquet")], tmp_path / "run")
    assert found == [str(tmp_path / "run" / "shards"), str(tmp_path / "run" / "shards1")]
    assert [read_manifest(Path(made)).samples for made in found] == [1, 3]


def test_other_images_are_refused(tmp_path: Path) -> None:
    place = images(tmp_path / "faces", "a.jpg")
    shards_of([str(place)], tmp_path / "run")
    images(place, "b.jpg")
    with pytest.raises(UserError, match="holds shards of other images or options"):
        shards_of([str(place)], tmp_path / "run")
    with pytest.raises(UserError, match="is inside the images"):
        shards_of([str(place)], place / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in"):
        shards_of([str(tmp_path / "empty")], tmp_path / "run2")
    assert not (tmp_path / "run2" / "shards").exists()
