"""The subcommands for tables, archives, WebDatasets and Hugging Face's Parquet, by the command line."""

import base64
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.cli_runner import ROOT, run, tool
from helpers.source_kit import photo, write
from pyarrow import parquet

from shards.format.manifest import read_manifest

pytestmark = pytest.mark.slow


def build(*command: object) -> subprocess.CompletedProcess[str]:
    return run(*tool("build_shards"), *command)


def write_sources(folder: Path) -> dict[str, list[object]]:
    """One small source for each subcommand: four images with labels, two in train, two in test, of two people."""
    for number in range(4):
        part, mood = ("train", "test")[number // 2], ("happy", "sad")[number % 2]
        write(folder / "faces" / part / mood / f"{number}.jpg", photo(number))
    files = sorted((folder / "faces").rglob("*.jpg"))
    rows = [
        {
            "path": str(file.relative_to(folder / "faces")),
            "label": file.parent.name,
            "part": file.parent.parent.name,
            "who": index % 2,
            "data": base64.b64encode(file.read_bytes()).decode(),
        }
        for index, file in enumerate(files)
    ]
    write(folder / "list.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    shutil.make_archive(str(folder / "faces"), "zip", folder / "faces")
    (folder / "wds").mkdir()
    for part in ("train", "test"):
        with tarfile.open(folder / "wds" / f"{part}-0.tar", "w") as archive:
            for row in (row for row in rows if row["part"] == part):
                stem = folder / "wds" / Path(row["path"]).stem
                write(stem.with_suffix(".json"), json.dumps(row))
                archive.add(folder / "faces" / row["path"], f"{stem.name}.jpg")
                archive.add(stem.with_suffix(".json"), f"{stem.name}.json")
    names = {
        "info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["Sad", "Happy"]}}}
    }
    for part in ("train", "test"):
        chosen = [row for row in rows if row["part"] == part]
        images = [{"bytes": base64.b64decode(row["data"]), "path": None} for row in chosen]
        labels = [int(row["label"] == "happy") for row in chosen]
        found = pa.table({"image": images, "label": labels, "who": [row["who"] for row in chosen]})
        (folder / "hf").mkdir(exist_ok=True)
        parquet.write_table(
            found.replace_schema_metadata({"huggingface": json.dumps(names)}),
            folder / "hf" / f"{part}-00000-of-00001.parquet",
        )
    columns = ["--label-column", "label", "--split-column", "part", "--group-column", "who"]
    return {
        "table": [folder / "list.jsonl", "--images", folder / "faces", *columns],
        "bytes": [folder / "list.jsonl", "--bytes-column", "data", *columns],
        "archive": [folder / "faces.zip", "--class-folders", "--split-folders"],
        "webdataset": [
            folder / "wds",
            "--label-field",
            "label",
            "--group-field",
            "who",
            "--split-pattern",
            "^(train|test)-",
        ],
        "huggingface": [folder / "hf", "--group-column", "who"],
    }


@pytest.mark.parametrize("name", ["table", "bytes", "archive", "webdataset", "huggingface"])
def test_each_builds_shards(tmp_path: Path, name: str) -> None:
    source, *options = write_sources(tmp_path)[name]
    command = ["table" if name == "bytes" else name, source, tmp_path / "out", *options, "--workers", 1]
    done = build(*command, "--terms", "drawn")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.samples, manifest.splits, manifest.rejected) == (4, ("train", "test"), {})
    assert manifest.labels == (("sad", "happy") if name == "huggingface" else ("happy", "sad"))
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    if name == "archive":
        assert "is already complete" in build(*command, "--terms", "drawn").stdout


def test_the_same_images_elsewhere_make_the_same_bytes(tmp_path: Path) -> None:
    """Also those that workers read out of containers: where these lie is no part of the shards."""
    for place in ("here", "there"):
        source, *options = write_sources(tmp_path / place)["archive"]
        assert build("archive", source, tmp_path / place / "out", *options).returncode == 0
    here, there = (
        {file.name: file.read_bytes() for file in (tmp_path / place / "out").iterdir()} for place in ("here", "there")
    )
    assert here == there


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("table", "absent.jsonl", "out"), "FILE=absent.jsonl: does not exist"),
        (("archive", "absent.zip", "out"), "PATH=absent.zip: does not exist"),
        (("webdataset", "absent", "out"), "PATH=absent: does not exist"),
        (("huggingface", "absent", "out"), "PATH=absent: does not exist"),
        (("webdataset", "empty", "out"), "no .tar in"),
        (("archive", "empty", "out"), "no archive"),
        (("webdataset", "empty", "out", "--group-field", "who", "--group-pattern", "(.)"), "both define the person"),
    ],
)
def test_bad_input_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    done = build(*command)
    assert done.returncode != 0
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_no_source_is_slow_to_list() -> None:
    """The help of every subcommand imports all of them."""
    code = (
        "import sys; from simfle.commands.shards import build_corpus, build_generic; build_generic.add_generic(); "
        "build_corpus.add_known(); print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"numpy", "h5py", "scipy", "pyarrow", "PIL", "simplejpeg", "torch"} & set(eval(done.stdout))
