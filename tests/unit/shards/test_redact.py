"""One rule for what is shown and written of URLs, and all writers under it."""

import ast
import json
import logging
import stat
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.format.manifest import FORMAT, Manifest, read_manifest, write_manifest
from shards.redact import redact_secrets, to_json, to_yaml
from simfle.config.schema import DataConfig, PretrainConfig, TrainConfig
from simfle.runtime.logs import Plain
from simfle.slurm.config import ClusterConfig
from simfle.slurm.events import TaskExit, append_event, events, task_exits, write_task_exit
from simfle.slurm.submit import prepare, sbatch_script
from simfle.train.watchdog import Watchdog

ROOT = Path(__file__).parents[3]
URL = "https://al:hunter2@h/faces?sig=deadbeef"
# JSON and YAML that is not redacted: function -> why not. Everything else goes through shards.redact.
REASONS = {
    "it is hashed": """
        shards.build.plan.Digest.__init__ shards.build.plan._row shards.io.hashing.digest
    """,
    "it is quoted for a command line": "simfle.config.overrides._double",
    "it is compared, or only tried": "simfle.config.schema.load_yaml simfle.eval.analysis.summary._different",
    "samples: keys and metadata as the corpus has them, by which results are paired": """
        shards.build.shard_task.to_tar_members shards.edit.merge._renamed shards.edit.subset.renamed_split
        simfle.eval.analysis.results.write_result
        simfle.train.telemetry.metrics.SampleLog.add
    """,
    "names of the corpus's own files, which other commands read back": """
        shards.build.builder._manifest shards.format.external_tars.index_folder shards.edit.remove._stage
        shards.edit.remove._append_removal_log
        shards.edit.remove._write_rejected simfle.commands.shards.duplicates.find_duplicates
    """,
    "the workshop of a build, deleted at its end": """
        shards.build.builder._plan shards.build.plan.apply_rules shards.build.shard_task._write_shard
        shards.build.exclusion.build_exclusion_index shards.edit.upload.Upload._put
    """,
    "only the build record of a manifest is ours, and redacted": "shards.format.manifest.write_manifest",
    "words for a configuration, not written": """
        simfle.api.functions._written simfle.commands.doctor._cluster simfle.commands.slurm.evaluate._cluster
        simfle.commands.slurm.pretrain._yaml
    """,
    "for its owner alone, mode 0600: the program that it is for needs all of it": """
        simfle.slurm.snapshot.write simfle.api.functions._launch
    """,
    "numbers and hashes": """
        simfle.train.checkpointing.checkpoint.write simfle.train.checkpointing.safetensors_writer.write_tensors
        simfle.train.telemetry.probe_monitor.Monitor.begin
        simfle.train.telemetry.collapse_monitor.FeatureTelemetry.measure simfle.eval.features.feature_cache._write
        simfle.eval.analysis.results._checksum
    """,
    "arguments of a process, not written": "simfle.api.local_launcher.launch",
    "they are the rule": "shards.redact.to_json shards.redact.to_yaml",
}


def dumps(file: Path) -> list[str]:
    """Functions of a file that make JSON or YAML themselves."""
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    found = []

    def look(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = isinstance(child, ast.FunctionDef | ast.ClassDef)
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute):
                owner = child.func.value
                if isinstance(owner, ast.Name) and owner.id in ("json", "yaml") and "dump" in child.func.attr:
                    found.append(name)
            look(child, f"{name}.{child.name}" if inner else name)  # type: ignore[attr-defined]

    look(ast.parse(file.read_text()), module)
    return found


def test_whatever_writes_is_redacted() -> None:
    files = [*ROOT.glob("simfle/**/*.py"), *ROOT.glob("shards/**/*.py")]
    known = {name for names in REASONS.values() for name in names.split()}
    assert {name for file in files for name in dumps(file)} == known, "take to_json or to_yaml of shards.redact"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (URL, "https://h/faces"),
        ("https://h/x?policy=a,b]c", "https://h/x"),  # a URL alone: commas and brackets are its own
        ("https://h/x#token=deadbeef", "https://h/x"),
        (f"a=[{URL},shards/b]", "a=[https://h/faces,shards/b]"),
        (f"'{URL}', {URL}: gone", "'https://h/faces', https://h/faces: gone"),
        ("shards=['https://h/x?sig=a,b', \"https://h/y?sig=a,b]\"]", "shards=['https://h/x', \"https://h/y\"]"),
        ("at https://al:pw@[::1]:80/x?sig=1 now", "at https://[::1]:80/x now"),
        ("file:///a?b and memory://c?d", "file:///a?b and memory://c?d"),
        ("no URL? yes: a//b?c", "no URL? yes: a//b?c"),
    ],
)
def test_urls_in_texts(text: str, expected: str) -> None:
    assert redact_secrets(text) == expected
    assert redact_secrets(redact_secrets(text)) == expected
    assert redact_secrets({text: [text, (text,)]}) == {expected: [expected, (expected,)]}
    assert json.loads(to_json([text])) == [expected]
    assert "deadbeef" not in to_yaml({"a": text})
    assert str(UserError(text)) == expected


def test_logs_are_redacted() -> None:
    record = logging.LogRecord("simfle", logging.INFO, "", 0, "cannot read %s: %d", (URL, 3), None)
    assert Plain("%(message)s").format(record) == "cannot read https://h/faces: 3"


def test_records_of_a_job_and_of_a_build_are_redacted(tmp_path: Path) -> None:
    append_event(tmp_path, "ended", job="1", start=0, failure=True, step=1, reason=f"{URL} is away", requeue=False)
    assert events(tmp_path)[0]["reason"] == "https://h/faces is away"
    write_task_exit(tmp_path, 0, TaskExit(0, "h", "user_error", f"{URL} is away"))
    assert task_exits(tmp_path, 0)[0].words == "https://h/faces is away"
    write_manifest(tmp_path, Manifest(FORMAT, "c", "https://t/?x", ("a?b",), 0, {}, (), {"source": {"url": URL}}))
    manifest = read_manifest(tmp_path)
    assert manifest.build == {"source": {"url": "https://h/faces"}}
    assert manifest.terms == "https://t/?x"
    with Watchdog(tmp_path, 0, 1, 0) as watchdog:
        watchdog.mark_progress(1, URL)
        watchdog._beat()
        assert "deadbeef" not in (tmp_path / "heartbeats" / "rank-00000.json").read_text()


def test_of_a_submission_only_the_owners_configuration_has_it(tmp_path: Path) -> None:
    config = PretrainConfig(data=DataConfig(shards=[URL]), train=TrainConfig(run_dir=str(tmp_path / "run")))
    job = prepare(config, ClusterConfig(gpus_per_node=0))
    assert "deadbeef" not in sbatch_script(job, ClusterConfig(gpus_per_node=0))
    has = [file for file in (tmp_path / "run").rglob("*") if file.is_file() and b"deadbeef" in file.read_bytes()]
    assert has == [job / "config.yaml"]
    assert stat.S_IMODE(has[0].stat().st_mode) == 0o600
