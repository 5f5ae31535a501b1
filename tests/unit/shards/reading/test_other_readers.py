"""Other programs read our shards: tar, webdataset, DALI."""

import io
from pathlib import Path

import pytest
from helpers.corpus_fixtures import BUILD, run, samples, write_faces

from shards.format.index import index_tar, read_index
from shards.format.tar_writer import TarShardWriter

pytestmark = pytest.mark.slow


def test_the_tar_is_what_webdatasets_writer_makes(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    content = [(f"k{n}" + "x" * 4 * n, {"jpg": bytes([n]) * (n**3 * 100), "cls": b"1", "json": b""}) for n in range(20)]
    ours = TarShardWriter(tmp_path / "ours.tar")
    theirs = io.BytesIO()
    with webdataset.TarWriter(theirs, user="shards", group="shards", mode=0o444, mtime=0, encoder=False) as writer:
        for key, members in content:
            ours.add(key, members)
            for extension, data in members.items():  # one at a time: it sorts the members of a sample
                writer.write({"__key__": key, extension: data})
    written = ours.finish()
    assert (tmp_path / "ours.tar").read_bytes() == theirs.getvalue()
    assert written.bytes == len(theirs.getvalue())
    assert written.index.keys == index_tar(tmp_path / "ours.tar").keys


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_faces(folder / "faces", 30, ("a", "b"))
    assert run(*BUILD, "folder", folder / "faces", folder / "out", "--class-folders").returncode == 0
    return folder / "out"


def test_tar_reads_our_shards(shards: Path) -> None:
    listed = run("tar", "tf", shards / "train-000000.tar")
    assert listed.returncode == 0, listed.stderr
    index = read_index(shards / "train-000000.idx")
    names = [member.name for sample in range(len(index)) for member in index.members(sample).values()]
    assert listed.stdout.splitlines() == names
    assert names[0].endswith(".jpg")
    assert names[1].endswith(".cls")
    assert names[2].endswith(".json")


def test_webdataset_reads_our_shards(shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    data = webdataset.WebDataset(str(shards / "train-000000.tar"), shardshuffle=False).decode("rgb8")
    read = list(data)
    assert [item["__key__"] for item in read] == [sample["key"] for sample in samples(shards)]
    for item in read:
        assert item["jpg"].shape == (item["json"]["height"], item["json"]["width"], 3)
        assert item["cls"] == ("a", "b").index(item["json"]["label"])


def test_dali_reads_our_shards_by_our_index(shards: Path) -> None:
    dali = pytest.importorskip("nvidia.dali")
    readers = dali.fn.readers

    @dali.pipeline_def(batch_size=30, num_threads=1, device_id=None)
    def pipeline() -> tuple:
        tar, index = str(shards / "train-000000.tar"), str(shards / "train-000000.idx")
        jpg, cls = readers.webdataset(
            paths=tar, index_paths=index, ext=["jpg", "cls"], missing_component_behavior="error"
        )
        return dali.fn.peek_image_shape(jpg), cls

    shapes, labels = (output.as_array() if output.is_dense_tensor() else output for output in pipeline().run())
    expected = samples(shards)
    assert [list(shape[:2]) for shape in shapes] == [[sample["height"], sample["width"]] for sample in expected]
    assert [int(bytes(label)) for label in labels] == [sample["cls"] for sample in expected]
