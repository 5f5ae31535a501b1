"""remove_samples: nothing of the removed samples stays, and a kill anywhere loses nothing else."""

import hashlib
import json
import os
import shutil
import signal
import sys
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
from helpers.corpus_fixtures import BUILD, VERIFY, contents, encoded, picture, run, tool

from shards.edit.remove import read_removal_log, remove_samples
from shards.errors import UserError
from shards.format.manifest import index_name, read_manifest, write_manifest
from shards.format.samples import StoredSample, read_samples, write_shard
from shards.io.locks import lock_dir
from simfle.data.dataset import ShardCorpus

pytestmark = pytest.mark.slow

REMOVE = tool("remove_samples")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 images of eight people in eight shards of two splits, and rejects that name two of the people."""
    folder = tmp_path_factory.mktemp("remove")
    (folder / "faces").mkdir()
    for number in range(26):
        (folder / "faces" / f"Jane_{number % 8}_{number:03d}.jpg").write_bytes(encoded(picture(number), quality=90))
    (folder / "faces" / "Jane_2_999.jpg").write_bytes(b"")
    (folder / "faces" / "Jane_3_998.jpg").write_bytes(b"<html>")
    options = ["--group-pattern", r"^(Jane_\d)_", "--shard-samples", 4, "--val-fraction", 0.3]
    assert run(*BUILD, "folder", folder / "faces", folder / "out", *options).returncode == 0
    return folder / "out"


@pytest.fixture
def shards(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "shards"))


def samples(folder: Path) -> dict[str, tuple[str, dict[str, bytes]]]:
    """Key -> split and members."""
    return {
        sample.key: (info.split, sample.members)
        for info in read_manifest(folder).shards
        for sample in read_samples(folder, info)
    }


def check_no_trace(folder: Path, gone: dict[str, tuple[str, dict[str, bytes]]], names: list[str]) -> None:
    """Not a stretch of an image's bytes, not a key, not a name in any file, hidden ones too, nor in a file's name."""
    pieces = [name.encode() for name in (*gone, *names)]
    for _, members in gone.values():
        jpeg = members["jpg"]
        pieces += [jpeg[start : start + 24] for start in range(len(jpeg) // 2, len(jpeg) - 24, 97)]
        pieces += [members["json"][:-2]]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        content = path.read_bytes()
        assert not [piece for piece in pieces if piece in content or piece in os.fsencode(path.name)], path


def check_sound(folder: Path) -> None:
    verified = run(*VERIFY, folder, "--workers", 1)
    assert verified.returncode == 0, verified.stdout
    names = {"manifest.json", "rejected.jsonl", "removed.jsonl"}
    names |= {name for info in read_manifest(folder).shards for name in (info.file, index_name(info.file))}
    assert {path.name for path in folder.iterdir()} == names


def test_a_person_goes_without_a_trace(shards: Path) -> None:
    before = samples(shards)
    gone = {key: value for key, value in before.items() if key.startswith("Jane_2_")}
    tars = {info.file: info for info in read_manifest(shards).shards}
    done = run(*REMOVE, shards, "--person", "Jane_2", "--reason", "asked for it")
    assert done.returncode == 0, done.stderr
    assert "3 samples removed" in done.stdout
    assert "sample ids have shifted" in done.stdout
    after = samples(shards)
    assert after == {key: value for key, value in before.items() if key not in gone}
    assert list(after) == [key for key in before if key not in gone]  # the order stays
    check_no_trace(shards, gone, ["Jane_2"])
    check_sound(shards)
    manifest = read_manifest(shards)
    assert manifest.entries == 28
    assert manifest.rejected == {"empty": 1, "not_an_image": 1, "removed": 3}
    assert "Jane_3_998.jpg" in (shards / "rejected.jsonl").read_text()
    kept = [info for info in manifest.shards if info.file in tars]
    assert kept
    assert all(info == tars[info.file] for info in kept)
    (record,) = read_removal_log(shards)
    assert (record["samples"], record["reason"], len(record["keys"])) == (3, "asked for it", 3)


def test_keys_and_lists(shards: Path, tmp_path: Path) -> None:
    before = samples(shards)
    keys = list(before)[::5]
    (tmp_path / "list").write_text(f"{keys[0]}\n\n{json.dumps({'key': keys[1], 'of': 'x'})}\n")
    rest = [word for key in keys[2:] for word in ("--key", key)]
    done = run(*REMOVE, shards, "--list", tmp_path / "list", *rest)
    assert done.returncode == 0, done.stderr
    assert samples(shards) == {key: value for key, value in before.items() if key not in keys}
    check_no_trace(shards, {key: before[key] for key in keys}, [])
    check_sound(shards)
    again = run(*REMOVE, shards, "--list", tmp_path / "list")
    assert (again.returncode, again.stderr) == (0, "")
    assert "2 of these samples were already removed" in again.stdout


def test_twice_from_the_same_shard_and_all_of_one(shards: Path) -> None:
    first = [sample.key for sample in read_samples(shards, read_manifest(shards).shards[0])]
    number = len(read_manifest(shards).shards)
    for key in first:
        remove_samples(shards, [key])
    manifest = read_manifest(shards)
    assert len(manifest.shards) == number - 1
    assert manifest.rejected["removed"] == manifest.build["removed"] == len(first)
    assert len(read_removal_log(shards)) == len(first)
    check_sound(shards)


def test_what_other_tools_made_of_the_shards_is_named(shards: Path) -> None:
    made = [
        shards / "train.beton",
        shards.with_name("shards.png"),
        shards.with_name("shards.duplicates.jsonl"),
    ]
    done = run(*REMOVE, shards, "--person", "Jane_1")
    assert "delete " not in done.stdout
    for path in made:
        path.write_bytes(b"")
    shards.with_name("others.png").write_bytes(b"")
    done = run(*REMOVE, shards, "--person", "Jane_2")
    told = [line.partition(": ")[0] for line in done.stdout.splitlines() if line.startswith("delete ")]
    assert told == [f"delete {path}" for path in made]
    (shards / ".removal").mkdir()
    (shards / ".removal" / "half").write_bytes(b"")
    again = run(*REMOVE, shards, "--person", "Jane_2")
    assert (again.returncode, again.stdout.count("delete ")) == (0, 3), "the interrupted one may not have said it"


def test_leftovers_that_may_hold_the_person_are_named(shards: Path) -> None:
    names = ["stray.tar", "stray.idx", ".train-000009.tar.123.tmp", "00000.parquet"]
    left = sorted(shards / name for name in names)
    for path in left:
        path.write_bytes(b"")
    unfinished = shards.with_name("shards.partial")
    unfinished.mkdir()
    done = run(*REMOVE, shards, "--person", "Jane_2")
    told = [line.partition(": ")[0] for line in done.stdout.splitlines() if line.startswith("delete ")]
    assert told == [f"delete {path}" for path in (*left, unfinished)]


PATTERN = r"photos/p(\d+)[a-z]"  # the person is between letters, not a separate word


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Shards of people who are numbers inside of names, with rejects of two of them and one only rejected."""
    photos = tmp_path / "faces" / "photos"
    photos.mkdir(parents=True)
    for number in range(8):
        (photos / f"p{number % 4}x{number}.jpg").write_bytes(encoded(picture(number), quality=90))
    for name in ("p1y.jpg", "p2y.jpg", "p9z.jpg"):
        (photos / name).write_bytes(b"")
    command = [*BUILD, "folder", tmp_path / "faces", tmp_path / "shards", "--group-pattern", PATTERN]
    assert run(*command).returncode == 0
    return tmp_path / "shards"


def rejects(folder: Path) -> list[str]:
    return sorted(json.loads(line)["source"] for line in (folder / "rejected.jsonl").read_text().splitlines())


def test_rejects_that_the_pattern_of_the_build_gives_to_a_person_are_blanked(numbered: Path) -> None:
    assert rejects(numbered) == ["photos/p1y.jpg", "photos/p2y.jpg", "photos/p9z.jpg"]
    done = run(*REMOVE, numbered, "--person", "1")
    assert done.returncode == 0, done.stderr
    assert "1 lines of" in done.stdout
    assert rejects(numbered) == ["", "", "", "photos/p2y.jpg", "photos/p9z.jpg"]
    assert "p1" not in (numbered / "rejected.jsonl").read_text()
    check_sound(numbered)


def test_a_person_who_is_among_the_rejects_alone_is_blanked(numbered: Path) -> None:
    removal = remove_samples(numbered, person="9")
    assert (removal.samples, removal.anonymized_rejects) == (0, 1)
    assert rejects(numbered) == ["", "photos/p1y.jpg", "photos/p2y.jpg"]
    assert remove_samples(numbered, person="9").already == 1
    check_sound(numbered)


def test_a_removal_by_an_earlier_version_is_finished_by_the_same_command(numbered: Path) -> None:
    told = (numbered / "rejected.jsonl").read_text().splitlines()
    remove_samples(numbered, person="1")
    rest = [line for line in (numbered / "rejected.jsonl").read_text().splitlines() if '"removed"' in line]
    (numbered / "rejected.jsonl").write_text("".join(line + "\n" for line in [*told, *rest]))  # as it left them
    assert remove_samples(numbered, person="1").anonymized_rejects == 1
    assert "p1" not in (numbered / "rejected.jsonl").read_text()
    check_sound(numbered)


def test_patterns_of_the_shards_that_others_were_made_from_count(numbered: Path) -> None:
    manifest = read_manifest(numbered)
    builds = {"from": [{"build": manifest.build}, {"build": {"rules": {"group_pattern": "("}}}, 7, {"build": 7}]}
    write_manifest(numbered, replace(manifest, build={"merge": {}} | builds))
    assert remove_samples(numbered, person="2").anonymized_rejects == 1
    assert "p2" not in (numbered / "rejected.jsonl").read_text()


def spell_by_turns(folder: Path, group: str, spellings: list[str]) -> None:
    """Write the shards again with these names in turn for the group."""
    manifest, turns = read_manifest(folder), cycle(spellings)

    def spelt(sample: StoredSample) -> StoredSample:
        if sample.metadata["group"] != group:
            return sample
        return StoredSample(
            sample.key, sample.members | {"json": json.dumps(sample.metadata | {"group": next(turns)}).encode()}
        )

    infos = []
    for info in manifest.shards:
        again = list(map(spelt, read_samples(folder, info)))
        infos.append(write_shard(folder / info.file, info.split, again))
    write_manifest(folder, replace(manifest, shards=tuple(infos)))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_in_two_spellings_is_one_person(shards: Path, form: str) -> None:
    """Shards of earlier versions contain a name in the file system's form, on a Mac with decomposed accents."""
    spellings = [unicodedata.normalize(name, "José") for name in ("NFC", "NFD")]
    spell_by_turns(shards, "Jane_2", spellings)
    before = samples(shards)
    people = {sample: json.loads(members["json"])["group"] for sample, (_, members) in before.items()}
    gone = {key for key, person in people.items() if person in spellings}
    assert set(people.values()) >= set(spellings)
    lines = [{"source": f"{name}_9.jpg", "reason": "empty", "detail": ""} for name in spellings]
    (shards / "rejected.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert remove_samples(shards, person=unicodedata.normalize(form, "José")).samples == len(gone) == 3
    assert samples(shards) == {key: value for key, value in before.items() if key not in gone}
    assert "Jos" not in (shards / "rejected.jsonl").read_text()
    assert [remove_samples(shards, person=name).already for name in spellings] == [1, 1]


def test_runs_see_that_the_data_have_changed(shards: Path) -> None:
    before = ShardCorpus([shards]).digest()
    remove_samples(shards, ["Jane_1_009"])
    assert ShardCorpus([shards]).digest() != before


def test_building_again_brings_nothing_back(built: Path, shards: Path) -> None:
    remove_samples(shards, ["Jane_1_009"])
    options = ["--group-pattern", r"^(Jane_\d)_", "--shard-samples", 4, "--val-fraction", 0.3]
    done = run(*BUILD, "folder", built.parent / "faces", shards, *options)
    assert (done.returncode, "already complete: 25 samples" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--key", "absent"], "no sample 'absent'"),
        (["--key", "Jane_1_009", "--key", "absent"], "no sample 'absent'"),
        (["--person", "Jane"], "no sample of the person (group) 'Jane'"),
        ([], "pass --key, --person or --list"),
        (["--list", "absent"], "--list=absent"),
    ],
)
def test_what_is_not_there_changes_nothing(shards: Path, arguments: list[str], words: str) -> None:
    before = contents(shards)
    done = run(*REMOVE, shards, *arguments)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert contents(shards) == before


def test_all_is_refused(shards: Path) -> None:
    before = contents(shards)
    with pytest.raises(UserError, match="would be left"):
        remove_samples(shards, samples(shards))
    assert contents(shards) == before


def test_one_at_a_time(shards: Path) -> None:
    with lock_dir(shards), pytest.raises(UserError, match="another process"):
        remove_samples(shards, ["Jane_1_009"])


EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


def removed_and_killed(folder: Path, keys: list[str], moment: int) -> bool:
    """Remove in a process that is killed before its `moment`-th file operation; return whether it was killed."""
    child = os.fork()
    if child == 0:
        left = moment

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            writes = event in EVENTS or (event == "open" and "w" in str(arguments[1]))
            if writes and str(folder) in str(arguments[0]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            remove_samples(folder, keys)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def moments(built: Path, tmp_path: Path, keys: list[str]) -> Iterator[Path]:
    """Copies of the shards, killed at every step in turn."""
    for moment in range(1000):
        folder = Path(shutil.copytree(built, tmp_path / f"killed{moment}"))
        if not removed_and_killed(folder, keys, moment):
            assert moment > 20
            return
        yield folder
        shutil.rmtree(folder)


def readable(folder: Path) -> list[str]:
    """The keys, from shards that are as the manifest says."""
    for info in read_manifest(folder).shards:
        assert hashlib.sha256((folder / info.file).read_bytes()).hexdigest() == info.sha256
    corpus = ShardCorpus([folder])
    return [corpus.key(shard, sample) for shard, count in enumerate(corpus.counts) for sample in range(count)]


def without_date(folder: Path) -> dict[str, bytes]:
    files = contents(folder)
    record = [json.loads(line) | {"date": ""} for line in files["removed.jsonl"].splitlines()]
    return files | {"removed.jsonl": json.dumps(record).encode()}


def test_killed_at_any_step(built: Path, tmp_path: Path) -> None:
    """Old or new samples are readable; a rerun ends with the bytes of an uninterrupted removal."""
    before = samples(built)
    keys = list(before)[1:9:3]
    whole = Path(shutil.copytree(built, tmp_path / "whole"))
    remove_samples(whole, keys)
    new = [key for key in before if key not in keys]
    resumed = set()
    for folder in moments(built, tmp_path, keys):
        assert readable(folder) in (list(before), new)
        done = remove_samples(folder, keys)
        assert done.samples + done.already == 3
        assert without_date(folder) == without_date(whole)
        resumed.add(done.resumed)
    assert resumed == {"", "undone", "finished"}


def test_removed_samples_are_gone_from_what_a_tar_reader_sees(shards: Path) -> None:
    remove_samples(shards, ["Jane_1_009"])
    names = []
    for info in read_manifest(shards).shards:
        with tarfile.open(shards / info.file) as tar:
            names += tar.getnames()
    assert len(names) == 2 * 25
    assert not [name for name in names if name.startswith("Jane_1_009.")]


def test_what_is_written_anew_stays_private(shards: Path) -> None:
    for path in shards.iterdir():
        path.chmod(0o600)
    remove_samples(shards, person="Jane_1")
    assert {path.stat().st_mode & 0o777 for path in shards.iterdir()} == {0o600}


def test_shards_that_are_links_keep_their_samples(shards: Path, tmp_path: Path) -> None:
    """The target of a link is not rewritten, so a removal must not report that the person is removed."""
    tar = next(shards.glob("train-*.tar"))
    tar.rename(tmp_path / "elsewhere.tar")
    tar.symlink_to(tmp_path / "elsewhere.tar")
    before = contents(shards)
    with pytest.raises(UserError, match=r"is a link, and .*elsewhere\.tar would keep"):
        remove_samples(shards, person="Jane_1")
    assert contents(shards) == before
