"""The benchmark runs, on drawn faces, and its figures hang together."""

import json
from pathlib import Path

import pytest
from helpers.corpus_fixtures import encoded, picture, run, tool

pytestmark = pytest.mark.slow

BENCH = tool("bench_build")


def test_every_way_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    (tmp_path / "faces").mkdir()
    for number in range(12):
        mode = "L" if number % 4 == 0 else "RGB"
        (tmp_path / "faces" / f"{number}.jpg").write_bytes(encoded(picture(number, mode=mode)))
    (tmp_path / "scratch").mkdir()
    options = ["--rounds", 2, "--images", 8, "--shard-samples", 3, "--scratch", tmp_path / "scratch"]
    done = run(*BENCH, tmp_path / "faces", *options, "--out", tmp_path / "figures.json", timeout=800)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["images"], figures["rounds"], figures["bytes_kept"]) == (8, 2, 5)
    assert set(figures["ways"]) == {"decode", "ours", "ours unchecked", "webdataset", "again"}
    for name, way in figures["ways"].items():
        assert len(way["turns"]) == 2
        assert 0 < way["cpu"]["lowest"] <= way["cpu"]["median"] <= way["cpu"]["highest"]
        assert name in done.stdout
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(("arguments", "words"), [(["absent"], "not a folder"), (["--rounds", 0], "at least 1")])
def test_bad_input_is_one_line(tmp_path: Path, arguments: list, words: str) -> None:
    done = run(*BENCH, *arguments, "--scratch", tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
