"""Submissions and refusals before them: scripts, frozen code, checks. These tests need no Slurm."""

import json
import os
import re
import shlex
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from distributed.runs import SETTINGS
from helpers.data_fixtures import jpeg, picture, write_shards
from typer.testing import CliRunner

from simfle.commands.main import app
from simfle.commands.plan import efficiency_note
from simfle.config.schema import CONFIGS, PretrainConfig, load
from simfle.doctor.nodes import RESULT, summary
from simfle.errors import UserError
from simfle.eval.backbones.load import BackboneMetadata
from simfle.slurm import submit
from simfle.slurm.config import ClusterConfig, check
from simfle.train.run_dir import record_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nodes=0"], "cluster.nodes=0: must be at least 1"),
        (["nodes=2", "min_nodes=3"], "--min-nodes=3: more than --nodes=2"),
        (["time='tomorrow'"], "--time 'tomorrow'"),
        (["partition='gpu; rm -rf /'"], "must not contain spaces, quotes or shell characters"),
        (["extra_sbatch=['--exclusive']"], "without dashes"),
        (["env=['=x']"], "NAME=VALUE"),
        (["gpu_per_node=8"], "unknown key 'gpu_per_node'.*did you mean gpus_per_node"),
    ],
)
def test_wrong_cluster_files_are_told(words: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        check(load(ClusterConfig, None, words))


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("1", 60), ("10:30", 630), ("2:00:30", 7230), ("1-12", 129600), ("1-12:30", 131400), ("0-00:01:01", 61)],
)
def test_a_job_that_would_be_told_to_stop_at_its_start_is_refused(time: str, seconds: int) -> None:
    """It would come back without end, and do nothing."""
    check(ClusterConfig(time=time, signal_seconds=seconds - 1))
    with pytest.raises(UserError, match=f"--time {time}: not longer than signal_seconds={seconds}, so"):
        check(ClusterConfig(time=time, signal_seconds=seconds))
    check(ClusterConfig(time="0", signal_seconds=seconds))  # no limit


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("model.method=simfel", "model.method='simfel': must be simfle, byol, .* Fix: set model.method=simfle"),
        ("model.backbone=resnet5O", "model.backbone: timm has no 'resnet5O'; did you mean resnet50"),
        ("model.mask_groups=5", "model.mask_groups=5: does not divide"),
        ("data.backend=dalli", "data.backend='dalli': must be auto, opencv or dali. Fix: set data.backend=dali"),
        ("views.size=-3", "views.size=-3: must be at least 1"),
        ("train.device=gpu", "train.device='gpu': must be auto, cpu or cuda"),
        ("train.seed=7", "a run with another configuration .train.seed: 0 -> 7"),
    ],
)
def test_what_would_fail_in_the_queue_is_refused_before_it(
    word: str, expected: str, faces: Path, tmp_path: Path
) -> None:
    """train.device=cuda is none of it: machines that jobs are submitted from have no GPU."""
    words = [*SETTINGS, f"data.shards=[{faces}]", f"train.run_dir={tmp_path}", "train.device=cuda"]
    cluster = ClusterConfig(nodes=2, gpus_per_node=1)
    config = load(PretrainConfig, None, words)
    record_config(tmp_path, config)
    (tmp_path / "checkpoints/step-00000002").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000002/COMPLETE").touch()
    before = (tmp_path / "config.yaml").read_bytes()
    submit.check_run(config, cluster)
    with pytest.raises(UserError, match=expected):
        submit.check_run(load(PretrainConfig, None, [*words, word]), cluster)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_every_number_of_nodes_that_a_job_may_run_on_is_tried_before_it_is_submitted(
    faces: Path, tmp_path: Path
) -> None:
    words = [*SETTINGS, f"data.shards=[{faces}]", f"train.run_dir={tmp_path}", "train.micro_batch=2"]
    config = load(PretrainConfig, None, [*words, "train.global_batch=30"])
    submit.check_run(config, ClusterConfig(nodes=3, gpus_per_node=1))
    cluster = ClusterConfig(nodes=3, min_nodes=2, gpus_per_node=1, local_scratch="$ONLY_ON_NODES/scratch")
    with pytest.raises(UserError, match=r"on 2 nodes \(--min-nodes 2\): .* divides the 15 samples"):
        submit.check_run(config, cluster)
    submit.check_run(load(PretrainConfig, None, [*words, "train.global_batch=36"]), cluster)


@pytest.mark.parametrize("name", ["plain", "two words", "it's", 'a"quote', "$(touch x)", "`touch x`", "a;b&c"])
def test_no_name_of_a_run_becomes_shell_code(tmp_path: Path, name: str) -> None:
    config = PretrainConfig()
    config = replace(config, train=replace(config.train, run_dir=str(tmp_path / name)))
    cluster = ClusterConfig(env=["GREETING=it's $HOME"], setup=["true"])
    job = submit.prepare(config, cluster)
    script = submit.sbatch_script(job, cluster).replace("srun ", "echo ")
    done = subprocess.run(["bash", "-c", f'{script.split("# teardown")[0]}\necho "$GREETING"'], cwd=tmp_path,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert str(job) in done.stdout
    assert "it's $HOME" in done.stdout
    assert not (tmp_path / "x").exists()
    (job_name,) = [line for line in script.splitlines() if "--job-name" in line]
    assert shlex.split(job_name)[-1] == f"--job-name={name}"


@pytest.mark.parametrize("before", ["", "/modules/torch"])
def test_a_job_looks_for_its_own_code_first(tmp_path: Path, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python does with -m: in the current folder, which is that of the submission, then on PYTHONPATH."""
    monkeypatch.setenv("PYTHONPATH", before)
    config = replace(PretrainConfig(), train=replace(PretrainConfig().train, run_dir=str(tmp_path / "a run")))
    job = submit.prepare(config, ClusterConfig(setup=["cd /"]))
    setup = submit.sbatch_script(job, ClusterConfig(setup=["cd /"])).split("# command")[0]
    words = ["bash", "-c", f"{setup}\npwd; echo $PYTHONPATH"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    code = str(job / "code")
    assert done.stdout.splitlines() == [code, f"{code}:{before}" if before else code]


def test_a_job_learns_nothing_of_the_one_it_is_submitted_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS", "SLURM_RESTART_COUNT", "SLURM_MEM_PER_CPU", "SLURMD_NODENAME", "SLURM_CONF"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SBATCH_ACCOUNT", "ours")
    before = dict(os.environ)
    with submit.outside_of_jobs():
        left = {name for name in os.environ if name.startswith(("SLURM", "SBATCH"))}
        assert left == {"SLURM_CONF", "SBATCH_ACCOUNT"}
    assert dict(os.environ) == before


def test_names_that_slurm_would_read_as_its_own_are_refused(tmp_path: Path) -> None:
    for name in ("100%j", "a\nb"):
        config = PretrainConfig()
        config = replace(config, train=replace(config.train, run_dir=str(tmp_path / name)))
        with pytest.raises(UserError, match="are special to Slurm"):
            submit.prepare(config, ClusterConfig())


def test_a_submission_is_frozen_whole_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(PretrainConfig, None, ["train.run_dir=runs/one", "data.shards=[shards/a,'s3://bucket/b']"])
    job = submit.prepare(config, ClusterConfig())
    frozen = load(PretrainConfig, job / "config.yaml")
    assert frozen.data.shards == [str(tmp_path / "shards/a"), "s3://bucket/b"]
    assert frozen.train.run_dir == str(tmp_path / "runs/one")
    program = "import sys; sys.path.insert(0, sys.argv[1]); import shards.errors; print(shards.__path__[0])"
    words = ["python3", "-c", program, str(job / "code")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(job / "code" / "shards")
    second = submit.prepare(config, ClusterConfig())
    assert second != job


def test_paths_of_an_evaluation_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simfle.eval.config import EvalConfig
    from simfle.slurm.eval_array import absolute

    monkeypatch.chdir(tmp_path)
    config = EvalConfig(
        benchmarks=["rafdb=shards/raf", "mine.yaml=shards/mine", "sfew"],
        backbones=["b", "timm:resnet18"],
        ffcv_files=["b"],
    )
    found = absolute(config)
    assert found.benchmarks == [f"rafdb={tmp_path}/shards/raf", f"{tmp_path}/mine.yaml={tmp_path}/shards/mine", "sfew"]
    assert found.backbones == [f"{tmp_path}/b", "timm:resnet18"]
    assert found.ffcv_files == [f"{tmp_path}/b"]


def slurm_eval(*words: str) -> str:
    """Return the output of `simfle slurm eval` for a cluster of nodes without GPUs."""
    words = ("slurm", "eval", "--cluster", str(CONFIGS / "cluster/cpu.yaml"), "device=cpu", *words)
    return CliRunner().invoke(app(), list(words), catch_exceptions=False).output


def test_printed_commands_can_be_typed_whatever_the_folders_are_called(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's programs are scripts here; that of submission puts beside the job what its nodes would have measured."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    node = {"rank": 0, "node": "n0", "versions": {}, "gpu": "", "write": 4e8, "read": 1e9, "skew": 0.1}
    node |= {"all_reduce": 0.02, "latency": 1e-4}
    (tmp_path / "figures").write_text(json.dumps(summary([node], 16 << 20, 0.0)))
    for name in ("sbatch", "srun"):
        copied = f'cp {tmp_path}/figures "$(dirname "$1")/{RESULT}"'
        (tmp_path / name).write_text(f"#!/bin/sh\n{copied} && echo Submitted batch job 17\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "cluster.yaml").write_text("gpus_per_node: 0\nsignal_seconds: 1200\n")
    cluster = ["--cluster", str(tmp_path / "cluster.yaml"), "--nodes", "1"]
    runs = tmp_path / "it's mine"

    def printed(*words: str) -> str:
        return CliRunner().invoke(app(), [*words, *cluster]).output

    told = printed("slurm", "pretrain", *SETTINGS, f"data.shards=[{faces}]", f"train.run_dir={runs}/one")
    (command,) = re.findall("progress: (.*); log", told)
    assert shlex.split(command) == ["simfle", "runs", f"{runs}/one"]
    (command,) = re.findall("use them with: (simfle plan .*)", printed("doctor", "--folder", str(runs)))
    *words, file = shlex.split(command)
    assert words == ["simfle", "plan", "--constants"]
    assert Path(file).name == RESULT
    assert Path(file).is_relative_to(runs)
    assert Path(file).is_file()


def test_no_one_else_can_read_what_may_hold_a_secret(
    faces: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the umask is: the script, what is frozen, and logs that are written later, whose folder is closed."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\numask > umask\necho Submitted batch job 17\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.yaml"
    mine.write_text("gpus_per_node: 0\nenv: [AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI]\n")
    before = os.umask(0o022)
    try:
        words = ["--cluster", str(mine), f"shards=[{faces}]", "device=cpu", "--backbone", str(backbone)]
        commands = (
            ["pretrain", "--cluster", str(mine), *SETTINGS, f"data.shards=[{faces}]", "train.run_dir=run"],
            ["eval", *words, "out=run"],
        )
        told = [CliRunner().invoke(app(), ["slurm", *command]) for command in commands]
        assert [done.exit_code for done in told] == [0, 0], [done.output for done in told]
    finally:
        os.umask(before)
    holding = [
        file
        for file in tmp_path.rglob("*")
        if file.is_file() and file != mine and b"wJalrXUtnFEMI" in file.read_bytes()
    ]
    assert {file.name for file in holding} >= {"cluster.yaml", "17_submission.sh"}
    assert len({file.parent for file in holding}) == 2
    assert {file.stat().st_mode & 0o777 for file in holding} == {0o600}
    assert {file.parent.stat().st_mode & 0o777 for file in holding} == {0o700}
    assert not any("wJalrXUtnFEMI" in done.output for done in told)
    assert (tmp_path / "umask").read_text().strip().endswith("22")  # which Slurm hands on to the job


def test_a_wrong_word_of_the_environment_is_not_printed() -> None:
    with pytest.raises(UserError) as caught:
        check(ClusterConfig(env=["AWS SECRET=wJalrXUtnFEMI"]))
    assert "wJalr" not in str(caught.value)


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """Write an exported backbone that matches its card; only the tasks read its weights."""
    card = BackboneMetadata("resnet18", "online", 512, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 32, {"step": 1})
    file = tmp_path / "backbone" / "backbone.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    file.with_name("backbone.json").write_text(json.dumps(asdict(card)))
    return file


@pytest.mark.parametrize("options", [["--dry-run"], []])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["shards=[nope]"], "nope is not a folder"),
        (["shards=[{faces}]", "test_split=exam"], "no split 'exam' in these shards. Fix: choose from test, train."),
        (["--benchmarks", "rafdb=nope"], "nope is not a folder"),
    ],
)
def test_an_evaluation_of_which_every_task_would_fail_is_not_submitted(
    words: list[str], expected: str, options: list[str], faces: Path, backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [word.format(faces=faces) for word in words]
    with pytest.raises(UserError, match=expected):
        slurm_eval("--backbone", str(backbone), f"out={out}", *words, *options)
    assert not out.exists()


def test_the_planned_efficiency_is_said(tmp_path: Path) -> None:
    """The paper's batch of 256 on 64 GPUs: four images each."""
    shards = write_shards(tmp_path / "faces", [("train", [jpeg(picture(0, 16, 16))] * 256)])
    config = load(PretrainConfig, CONFIGS / "pretrain/simfle_resnet50.yaml", [f"data.shards=[{shards}]"])
    many, one = efficiency_note(config, 8, 8), efficiency_note(config, 1, 1)
    assert re.fullmatch(r"planned efficiency on 64 H100: \d+% \(simfle plan\); .*Fix: use fewer nodes, or .*", many)
    assert re.fullmatch(r"planned efficiency on 1 H100: \d+% \(simfle plan\)", one)
