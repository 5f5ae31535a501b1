"""tools/index_shards.py, and verification of what it wrote and of what lies behind a URL."""

import io
import json
import shutil
from pathlib import Path

import pytest
from helpers.corpus_fixtures import BUILD, VERIFY, encoded, picture, run, tool, write_faces
from helpers.http_server import served

from shards.edit.verify import verify
from shards.format.external_tars import infer_manifest, is_external_manifest
from shards.format.manifest import read_manifest
from shards.io import urls
from simfle.data.dataset import ShardCorpus

webdataset = pytest.importorskip("webdataset")
INDEX = tool("index_shards")


def quiet(_: int) -> None:
    """Ignore the progress."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "theirs"
    path.mkdir()
    with webdataset.ShardWriter(f"{path}/%05d.tar", maxcount=4, verbose=0) as writer:
        for number in range(10):
            kind = ("JPEG", "PNG", "WEBP")[number % 3]
            name = kind.lower() if number else "jpg"
            writer.write({"__key__": f"{number:09d}", name: encoded(picture(number), kind), "txt": "a face"})
        writer.write({"__key__": "nothing", "txt": "no image"})
    return path


def test_a_manifest_is_written_that_reads_like_none(folder: Path) -> None:
    before = ShardCorpus([folder])
    images = [before.read_image(*divmod(number, 4)).tobytes() for number in range(10)]
    done = run(*INDEX, folder, "--workers", "2", "--terms", "free")
    assert done.returncode == 0, done.stderr
    assert "3 tars, 11 samples = 10 usable + 1 skipped (1 no_image)" in done.stdout
    manifest = read_manifest(folder)
    assert is_external_manifest(manifest)
    assert manifest.terms == "free"
    assert manifest.rejected == infer_manifest(folder).rejected == {"no_image": 1}
    assert json.loads((folder / "rejected.jsonl").read_text())["source"] == "00002.tar: nothing"
    after = ShardCorpus([folder])
    assert [after.read_image(*divmod(number, 4)).tobytes() for number in range(10)] == images
    assert after.key(2, 1) == "000000009"
    assert after.metadata(0, 0) == {"text": "a face"}
    (folder / "00001.idx").unlink()
    (folder / "00002.idx").unlink()
    assert ShardCorpus([folder]).key(2, 1) == "000000009"


def test_dali_reads_them_by_our_index(folder: Path) -> None:
    dali = pytest.importorskip("nvidia.dali")
    assert run(*INDEX, folder).returncode == 0

    @dali.pipeline_def(batch_size=10, num_threads=1, device_id=None)
    def pipeline() -> tuple:
        tars, indexes = ([str(folder / f"{n:05d}.{end}") for n in range(3)] for end in ("tar", "idx"))
        image, text = dali.fn.readers.webdataset(
            paths=tars, index_paths=indexes, ext=["jpg;jpeg;png;webp", "txt"], missing_component_behavior="error"
        )
        return dali.fn.peek_image_shape(image), text

    shapes, texts = pipeline().run()
    assert [list(shapes.at(n)[:2]) for n in range(10)] == [[48, 56]] * 10
    assert {bytes(texts.at(n)) for n in range(10)} == {b"a face"}


def test_they_are_verified_as_what_they_are(folder: Path) -> None:
    assert run(*INDEX, folder).returncode == 0
    good = run(*VERIFY, folder)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "10 samples, 10 decoded" in good.stdout
    tar = folder / "00001.tar"
    content = bytearray(tar.read_bytes())
    at = content.index(b"IDAT") + 40
    content[at : at + 4] = bytes(4)
    tar.write_bytes(content)
    problems = verify(folder, 1.0, 1, quiet).problems
    assert any("sha256" in problem for problem in problems)
    assert any("is corrupt" in problem for problem in problems)


def test_nothing_is_overwritten_unasked(folder: Path) -> None:
    (folder / "00000.idx").write_text("v1.2 1\njpg 512 5 x.jpg\n")
    refused = run(*INDEX, folder)
    assert refused.returncode == 1
    assert "--overwrite" in refused.stderr
    assert not (folder / "manifest.json").exists()
    assert run(*INDEX, folder, "--overwrite").returncode == 0
    again = run(*INDEX, folder)
    assert again.returncode == 1
    assert "has a manifest.json. Fix:" in again.stderr
    nothing = run(*INDEX, folder.parent)
    assert (nothing.returncode, "no .tar" in nothing.stderr) == (1, True)


def test_a_key_that_no_index_can_hold(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        writer.write({"__key__": "a face", "jpg": encoded(picture(0))})
    assert ShardCorpus([tmp_path]).key(0, 0) == "a face"
    refused = run(*INDEX, tmp_path)
    assert refused.returncode == 1
    assert "'a face' has a space" in refused.stderr


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ours")
    write_faces(path / "faces", 20, ("a", "b"))
    (path / "faces" / "a" / "empty.jpg").write_bytes(b"")
    done = run(*BUILD, "folder", path / "faces", path / "out", "--class-folders", "--shard-samples", "8")
    assert done.returncode == 0, done.stderr
    return path / "out"


def test_shards_behind_a_url_are_verified(ours: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(ours, broken)
    with served(broken) as server:
        good = run(*VERIFY, server.url)
        assert good.returncode == 0, good.stdout + good.stderr
        assert f"{server.url}: no problems: 3 shards, 20 samples, 20 decoded" in good.stdout
        tar = broken / "train-000001.tar"
        content = bytearray(tar.read_bytes())
        content[3000] ^= 255
        tar.write_bytes(content)
        (broken / "train-000000.idx").unlink()
        bad = run(*VERIFY, server.url, "--workers", "1")
    assert bad.returncode == 1
    assert "train-000001.tar: its sha256 differs from the manifest's" in bad.stdout
    assert "shards: index " in bad.stdout
    fresh = tmp_path / "copy"
    shutil.copytree(ours, fresh)
    (fresh / "stray.tar").write_bytes(b"")
    (fresh / "rejected.jsonl").write_text("")
    problems = verify(fresh.as_uri(), 0.0, 1, quiet).problems
    assert any("stray.tar: not in the manifest" in problem for problem in problems)
    assert any("rejected.jsonl: counts" in problem for problem in problems)


def test_the_library_streams_our_shards_by_url(ours: Path) -> None:
    """webdataset's own reader of a tar stream, given the bytes that the server sends."""
    with served(ours) as server:
        content = urls.read_url(f"{server.url}/train-000002.tar")
    files = webdataset.tariterators.tar_file_iterator(io.BytesIO(content))
    names = [item["fname"] for item in files]
    assert len(names) == 3 * read_manifest(ours).shards[2].samples
