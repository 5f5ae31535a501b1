"""The command `simfle`: every tool under one name, light help, the screens of watch and doctor, several processes."""

import json
import re
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from distributed.launch import environment
from distributed.runs import SETTINGS, metrics
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from simfle.commands import main as table
from simfle.commands.watch import BARS, sparkline
from simfle.config.schema import CONFIGS, PretrainConfig, load
from simfle.doctor import checks
from simfle.doctor.nodes import differing, judge, summary
from simfle.errors import UserError
from simfle.models.registry import build_method
from simfle.plan.hardware import load_constants
from simfle.train.auto_batch import largest_fitting_divisor, previous_micro_batch, trial_step
from simfle.train.telemetry.progress import ProgressReporter

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]


def entries(group: dict[str, table.CommandEntry | table.CommandGroup]) -> list[table.CommandEntry]:
    found = []
    for entry in group.values():
        found += entries(entry.entries) if isinstance(entry, table.CommandGroup) else [entry]
    return found


def simfle(*words: str, columns: int = 80) -> tuple[int, str]:
    """Exit code and all that is printed."""
    done = CliRunner().invoke(table.app(), list(words), env={"COLUMNS": str(columns)})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_every_script_of_the_checkout_is_a_subcommand() -> None:
    scripts = {file.stem for room in ("tools", "launchers") for file in (ROOT / room).glob("*.py")}
    # check_system runs before anything is installed.
    texts = [file.read_text() for room in ("tools", "launchers") for file in (ROOT / room).glob("*.py")]
    modules = {found for text in texts for found in re.findall(r"^from simfle\.commands\.([\w.]+) import", text, re.M)}
    assert len(scripts) == len(texts)
    assert modules <= {entry.module for entry in entries(table.COMMANDS)}


@pytest.mark.parametrize("entry", entries(table.COMMANDS), ids=lambda entry: entry.module)
def test_every_subcommand_is_there(entry: table.CommandEntry) -> None:
    module = import_module(f"simfle.commands.{entry.module}")
    assert callable(module.main)
    assert table.load("it", entry).get_short_help_str()


def test_help_is_light_and_lists_every_name() -> None:
    program = (
        "import sys, time\n"
        "from simfle.commands.main import main\n"
        "sys.argv = ['simfle', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "ours = sorted(name for name in sys.modules if name.startswith('simfle.commands.'))\n"
        "assert ours == ['simfle.commands.app', 'simfle.commands.main'], ours\n"
        "assert not {'torch', 'numpy', 'omegaconf', 'cv2'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, entry in table.COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert entry.help in done.stdout


@pytest.mark.parametrize("letters", ["ascii", "latin-1", "utf-8"])
def test_names_that_the_terminal_cannot_write_are_written_as_numbers(letters: str, faces: Path, tmp_path: Path) -> None:
    place = tmp_path / "Gesichter für \N{WINKING FACE}"
    shutil.copytree(faces, place)
    command = [sys.executable, "-m", "simfle", "shards", "inspect", str(place)]
    done = subprocess.run(command, capture_output=True, env=environment() | {"PYTHONIOENCODING": letters}, check=True)
    said = "Gesichter für \N{WINKING FACE}".encode(letters, "backslashreplace")
    assert said in done.stdout


@pytest.mark.parametrize("columns", [80, 140])
def test_help_fits_the_terminal(columns: int) -> None:
    for words in ([], ["shards"], ["slurm"], ["bench"], ["pretrain"], ["shards", "build"], ["doctor"]):
        code, printed = simfle(*words, "--help", columns=columns)
        assert code == 0
        assert max(map(len, printed.splitlines())) <= columns
        assert "\x1b" not in printed


def test_a_missing_configuration_comes_from_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    found = load(PretrainConfig, Path("configs/pretrain/faces_cpu.yaml"))
    assert found == load(PretrainConfig, CONFIGS / "pretrain/faces_cpu.yaml")
    assert "using the bundled config" in caplog.text
    own = tmp_path / "configs/pretrain/faces_cpu.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("train: {seed: 77}\n")
    assert load(PretrainConfig, Path("configs/pretrain/faces_cpu.yaml")).train.seed == 77
    with pytest.raises(UserError, match=r"did you mean configs/pretrain/simfle_resnet50\.yaml"):
        load(PretrainConfig, Path("configs/pretrain/simfle_resnet.yaml"))


def test_configurations_of_checkout_and_package_are_the_same_files() -> None:
    assert CONFIGS == ROOT / "configs"
    assert (CONFIGS / "cluster/default.yaml").is_file()


def test_pretraining_starts_several_processes_itself(faces: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*SETTINGS, f"data.shards=[{faces}]", f"train.run_dir={run}", "train.steps=2"]
    command = [sys.executable, "-m", "simfle", "pretrain", "--processes", "2", *words]
    own = environment(DS_ACCELERATOR="cpu")
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    assert [line["processes"] for line in metrics(run)] == [2, 2]
    assert done.stderr.count("global batch 16 = 2 processes x 1 accumulation steps x 8 samples") == 1
    # Refused once: all come to it together, the main process says it.
    done = subprocess.run(
        [*command, "train.seed=3"], cwd=ROOT, env=own, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert "train.seed: 0 -> 3" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Files of a running run and of a failed run."""
    now = time.time()
    for name, steps in (("going", 40), ("failed", 25)):
        run = tmp_path / name
        (run / "checkpoints/step-00000040").mkdir(parents=True)
        (run / "checkpoints/step-00000040/COMPLETE").write_text("")
        (run / "config.yaml").write_text("x: 1\n")
        (run / "run.json").write_text(json.dumps({"steps": 100}))
        lines = [
            {"step": 2 * step, "time": now - 3 * (steps - step), "losses": {"total": 5 - step / 20, "grouping": 0.25},
             "images_per_second": 812.3, "data_wait": 0.02, "gpu_memory": 31_200_000_000}
            for step in range(1, steps + 1)
        ]  # fmt: skip
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')
    (tmp_path / "going/heartbeats").mkdir()
    (tmp_path / "going/heartbeats/rank-0.json").write_text("{}")
    (tmp_path / "failed/slurm").mkdir()
    happened = [
        {"event": "submitted", "job": "4711"},
        {"event": "started", "start": 0, "job": "4711"},
        {"event": "started", "start": 1, "job": "4711"},
        {
            "event": "ended",
            "job": "4711",
            "start": 1,
            "step": 40,
            "failure": True,
            "requeue": False,
            "reason": "a loss is not finite",
        },
    ]
    (tmp_path / "failed/slurm/events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in happened))
    return tmp_path


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_watch_shows_each_run(runs: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    code, printed = simfle("watch", "going", "failed", "--once", columns=columns)
    assert code == 0
    assert max(map(len, printed.splitlines())) <= columns
    assert "\x1b" not in printed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for wanted in (
        "going running", "step 80 of 100 (80%)", "time left 30 s", "speed 812.3 images/s, data wait 2%",
        "GPU memory 31.2 GB at most", "failed job 4711 failed", "requeues 1", "reason a loss is not finite",
        "losses total 3, grouping 0.25",
    ):  # fmt: skip
        assert wanted in lines
    assert sum(line.startswith("checkpoint step 40, ") for line in lines) == 2


def test_watch_into_a_pipe_is_a_line_for_each_step_until_the_end(runs: Path) -> None:
    code, printed = simfle("watch", str(runs / "failed"))
    assert code == 0
    (line,) = printed.splitlines()
    assert "failed; step 50 of 100 (50%)" in line
    assert "requeues 1; reason a loss is not finite" in line


def test_brackets_in_reasons_and_paths_are_printed_as_they_are(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """gloo's own words; rich takes [/...] for the end of a style that was never begun."""
    reason = "RuntimeError: [/__w/pytorch/third_party/gloo/pair.cc:547] Connection closed by peer"
    run = runs / "failed[red]"
    (runs / "failed").rename(run)
    events = run / "slurm/events.jsonl"
    events.write_text(events.read_text().replace("a loss is not finite", reason))
    for words in (["runs"], ["watch", "--once"]):
        code, printed = simfle(*words, str(run), columns=300)
        assert code == 0
        assert reason in printed
        assert str(run) in printed
    ProgressReporter(1, 0, enabled=True)._say(f"run folder {run}: {reason}")
    assert capsys.readouterr().err == f"run folder {run}: {reason}\n"


@given(st.lists(st.floats(), max_size=80), st.integers(1, 40))
@example([1.7976931348623157e308, -9.9792015476736e291], 2)
@example([5e-324, 0.0], 2)
def test_a_curve_is_as_high_as_its_values(values: list[float], width: int) -> None:
    curve = sparkline(values, width)
    assert len(curve) <= width
    assert set(curve) <= set(BARS)
    assert sparkline([1.0, 2.0, float("nan"), 8.0], 3) == "▁▂█"


def test_doctor_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = simfle("doctor", "--folder", str(tmp_path), columns=200)
    assert "JPEG" in printed
    assert "MB/s" in printed
    assert list(tmp_path.iterdir()) == []
    assert code == int("\nbroken" in printed)
    file = tmp_path / "file"
    file.write_text("")
    code, printed = simfle("doctor", "--folder", str(file), "--json")
    assert code == 1
    found = {each["name"]: each for each in json.loads(printed)["findings"]}
    assert found["disk"]["state"] == "broken"
    assert "simfle doctor --folder" in found["disk"]["advice"]
    assert all(each["advice"] for each in found.values() if each["state"] != "ok")


def test_a_check_that_fails_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)  # as where it is not installed
    monkeypatch.setattr(checks, "TRIAL", 1 << 20)
    (found,) = [each for each in checks.run_checks(tmp_path) if each.name == "jpeg"]
    assert found.state == "broken"
    assert "simplejpeg" in found.found


def node(rank: int, **other: object) -> dict:
    usual = {"rank": rank, "node": f"n{rank}", "versions": {"torch": "2.15"}, "gpu": "", "write": 4e8, "read": 1e9,
             "skew": 0.1, "all_reduce": 0.02, "latency": 1e-4}  # fmt: skip
    return usual | other


def test_figures_of_nodes_feed_the_planner(tmp_path: Path) -> None:
    found = summary([node(0), node(1), node(2, read=2e9), node(3, all_reduce=0.03)], 16 << 20, 10e9)
    assert found["all_reduce_bytes_per_second"] == pytest.approx(1.5 * (16 << 20) / 0.03)
    file = tmp_path / "doctor.json"
    file.write_text(json.dumps(found))
    known = load_constants([file])
    assert known["storage.read"] == 5e9
    assert known["network.latency"] == 1e-4 / 2
    assert known["network.efficiency"] == pytest.approx(found["all_reduce_bytes_per_second"] / 10e9)
    assert {each.state for each in judge(found, 4)} == {"ok"}


@pytest.mark.parametrize(
    ("other", "name", "words"),
    [
        ({"versions": {"torch": "2.9"}}, "versions", "torch: 2.15 and 2.9"),
        ({"skew": 9.0}, "clocks", "8.9 s"),
        ({"read": 1e8}, "shared disk", "100 MB/s (n1)"),
        ({"node": "n0"}, "nodes", "1 of 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nodes_that_differ_are_named(other: dict, name: str, words: str) -> None:
    findings = judge(summary([node(0), node(1, **other)], 1 << 20, 0), 2)
    (bad,) = [each for each in findings if each.state != "ok"]
    assert bad.name == name
    assert words in bad.found
    assert bad.advice
    assert differing([{"a": "1"}, {}]) == {"a": ["1", "missing"]}


@given(st.integers(2, 600), st.integers(2, 700))
def test_the_largest_divisor_that_fits_is_found(share: int, room: int) -> None:
    tried: list[int] = []

    def fits(micro: int) -> bool:
        tried.append(micro)
        return micro <= room

    wanted = max((number for number in range(2, share + 1) if share % number == 0 and number <= room), default=None)
    if wanted is None:
        with pytest.raises(UserError, match="not even 2 samples"):
            largest_fitting_divisor(share, fits)
    else:
        assert largest_fitting_divisor(share, fits) == wanted
    assert len(set(tried)) == len(tried) <= 6


def test_a_trial_is_a_whole_step_that_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr("simfle.models.registry.compiled", lambda network, **_: compiled.append(network))
    config = load(PretrainConfig, None, [*SETTINGS, "train.precision=bf16", "model.compile=true"])
    build_method(config.model, config.views)
    assert len(compiled) == 3  # backbone, target backbone, FaceMAE
    compiled.clear()
    assert trial_step(config, 4, torch.device("cpu")) > 100_000
    assert not compiled


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ('{"processes": 4, "device": "H100", "micro_batch": 32}', 32),
        ('{"processes": 8, "device": "H100", "micro_batch": 32}', 0),
        ('{"processes": 4, "device": "A100", "micro_batch": 32}', 0),
        ('{"processes": 4, "device": "H100", "micro_batch": 48}', 0),  # divides no share of 64
        ('{"processes": 4, "device": "H100", "micro_batch": 1}', 0),
        ('{"processes": 4, "device": "H100"}', 0),
        ("{", 0),
    ],
)
def test_a_micro_batch_that_was_found_is_kept_on_the_same_gpus(facts: str, wanted: int, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(facts)
    assert previous_micro_batch(tmp_path, 4, "H100", 64) == 0  # there is no earlier start
    (tmp_path / "checkpoints/step-00000002").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000002/COMPLETE").touch()
    assert previous_micro_batch(tmp_path, 4, "H100", 64) == wanted
