"""Readers of the files that runs, jobs, evaluations and builds write about themselves: `READERS`."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fuzz.reader import Reader
from fuzz.shard_readers import manifests
from helpers.report_fixtures import add_result, make_run

from shards.edit.remove import read_list, read_rejects, read_removal_log
from shards.edit.verify import _rejects
from shards.format.manifest import read_manifest
from simfle.commands.watch import facts, sparkline, time_left
from simfle.config.schema import CONFIGS, load
from simfle.eval.analysis.summary import read_summary
from simfle.eval.config import EvalConfig
from simfle.eval.data.benchmarks import open_benchmark
from simfle.eval.features.ffcv_format import _read_metadata
from simfle.export.huggingface import _last
from simfle.export.timm import _config
from simfle.plan.hardware import load_constants
from simfle.report.load_runs import read_runs, results_of
from simfle.report.report import Content, Extras, _told
from simfle.report.tables import confusions, csv_text, json_text, markdown, tables
from simfle.slurm import config as cluster
from simfle.slurm import events, requeue, status
from simfle.train.watchdog import Watchdog

FEW = 5  # resamples of an interval: how many does not matter here


def _in_a_run(file: Path) -> Path:
    """The run that `file` is one of the files of; the others are as they should be."""
    if not (file.parent / "images").exists():
        content = file.read_bytes()
        make_run(file.parent)
        file.write_bytes(content)
    return file.parent


def _run_file(name: str) -> Callable[[], list[bytes]]:
    def make() -> list[bytes]:
        with TemporaryDirectory() as folder:
            return [(make_run(Path(folder) / "run") / name).read_bytes()]

    return make


def _page(found: list[Any], places: list[Path]) -> None:
    """Compute a page without its charts, which draw the same numbers and take most of the time."""
    shown = tables(results_of(found, places), FEW)
    told = _told(Content(found, shown, [], Extras()))
    markdown(found, shown, str(told), [])
    json_text(found, shown, [])
    csv_text(shown)
    confusions(shown)


def _report(file: Path) -> None:
    _page(read_runs([_in_a_run(file)]), [])


def _export(file: Path) -> None:
    _config(_in_a_run(file))
    _last(file.parent / "metrics.jsonl")


def _watch(file: Path) -> None:
    """As `simfle watch` does, of a run that no job was submitted for."""
    run = _in_a_run(file)
    now = status.status(run)
    json.dumps([facts(now), time_left(now), asdict(now)], default=str)
    sparkline([line["losses"]["total"] for line in status.tail(run) if "total" in line["losses"]], 32)


def _results() -> list[bytes]:
    with TemporaryDirectory() as folder:
        add_result(Path(folder), "online-a", 0.5, names=("a", "b"))
        add_result(Path(folder), "online-a", 0.5, kind="landmarks", protocol="landmarks")
        found = [json.loads(file.read_bytes()) for file in sorted(Path(folder).rglob("seed-0.json"))]
    for result in found:
        del result["checksum"]  # else no damage would get beyond it
    return [json.dumps(result).encode() for result in found]


def _compared(file: Path) -> None:
    """A result beside another seed and another backbone."""
    if not (file.parent / "others").exists():
        for backbone, seed in (("online-a", 1), ("random-a", 0)):
            add_result(file.parent / "others", backbone, 0.5, names=("a", "b"), seed=seed)
    _page([], [file.parent])


def _summaries() -> list[bytes]:
    return [json.dumps({"command": [], "config": {}, "versions": {}, "table": [], "format": 2}).encode()]


def _events() -> list[bytes]:
    facts = {"job": "12", "start": 0, "failure": True, "step": 4, "requeue": True, "reason": "rank 1 ended"}
    lines = [("submitted", {"job": "12", "nodes": 2}), ("started", {"job": "12", "start": 0}), ("ended", facts)]
    return ["".join(json.dumps({"time": 1.5, "event": name, **about}) + "\n" for name, about in lines * 2).encode()]


def _happened(file: Path) -> None:
    found = events.events(file.parents[1])
    for event in found:
        requeue.consecutive_failures(found, event["job"])


def _ended(file: Path) -> None:
    """A corrupt record counts as missing: the job's end is decided for any content of the files."""
    events.write_task_exit(file.parents[1], 0, events.TaskExit(1, "n2", events.DONE, "finished"))
    assert requeue.decide(events.task_exits(file.parents[1], 0), 2, 1).words


def _hung(file: Path) -> None:
    dog = Watchdog(file.parents[1], 1, 2, 60)
    dog._beat()
    dog._period = 0
    assert "no progress" in dog._diagnose()


def _beton(file: Path) -> None:
    file.with_suffix("").write_bytes(bytes(9))
    _read_metadata(file.with_suffix(""))


def _shipped(folder: str) -> Callable[[], list[bytes]]:
    return lambda: [file.read_bytes() for file in sorted((CONFIGS / folder).glob("*.yaml"))]


def _rejected(file: Path) -> None:
    (file.parent / "manifest.json").write_bytes(manifests()[0])
    list(_rejects(file.parent, read_manifest(file.parent)))
    read_rejects(file.parent)


def _lines(*values: object) -> Callable[[], list[bytes]]:
    return lambda: ["".join(json.dumps(value) + "\n" for value in values).encode()]


BEAT = {"rank": 0, "host": "n1", "pid": 7, "beats": 3, "step": 4, "phase": "data"}
END = {"rank": 0, "host": "n1", "kind": "bug", "words": "ValueError: x"}
BETON = {
    "format": 1,
    "source": "0",
    "corpus": "c",
    "terms": "",
    "split": "a",
    "classes": ["a"],
    "samples": 3,
    "bytes": 9,
}
REMOVED = {"date": "2026-01-01", "samples": 1, "reason": "asked", "keys": ["0" * 16], "person": "0" * 16}
READERS = (
    Reader("report: config.yaml", "r1/config.yaml", _run_file("config.yaml"), _report),
    Reader("report: metrics", "r2/metrics.jsonl", _run_file("metrics.jsonl"), _report),
    Reader("report: versions.json", "r3/versions.json", _run_file("versions.json"), _report),
    Reader("report: results", "r4/seed-0.json", _results, _compared),
    Reader("export: config.yaml", "r5/config.yaml", _run_file("config.yaml"), _export),
    Reader("watch: metrics", "r6/metrics.jsonl", _run_file("metrics.jsonl"), _watch),
    Reader("watch: run.json", "r7/run.json", _lines({"steps": 30, "samples": 240}), _watch),
    Reader("summary", "summary.json", _summaries, read_summary),
    Reader("slurm: events", "s1/slurm/events.jsonl", _events, _happened),
    Reader("slurm: ends", "s2/ends/0-00000.json", _lines(END), _ended),
    Reader("heartbeat", "s3/heartbeats/rank-00000.json", _lines(BEAT), _hung),
    Reader("beton's description", "a.beton.json", _lines(BETON), _beton),
    Reader("benchmark yaml", "b.yaml", _shipped("benchmarks"), lambda file: open_benchmark(f"{file}=x", EvalConfig())),
    Reader(
        "cluster yaml", "c.yaml", _shipped("cluster"), lambda file: cluster.check(load(cluster.ClusterConfig, file))
    ),
    Reader(
        "planner's constants",
        "p.json",
        _lines({"host.copy": 2e9, "cpu.peak": 1e11}),
        lambda file: load_constants([file]),
    ),
    Reader("list of removals", "list.txt", lambda: [b'a/1\na/2\n{"key": "a/3", "of": "a/1"}\n'], read_list),
    Reader("record of removals", "m/removed.jsonl", _lines(REMOVED), lambda file: read_removal_log(file.parent)),
    Reader("rejected.jsonl", "n/rejected.jsonl", _lines({"source": "a", "reason": "empty", "detail": ""}), _rejected),
)
