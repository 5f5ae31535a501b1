"""Parts of training that need no run: advice on speed, tensors written at a pace, values refused early."""

import hashlib
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.autograd import DeviceType

from simfle.config.schema import DataConfig, OptimConfig, PretrainConfig, TrainConfig, config_digest, load, run_identity
from simfle.errors import UserError
from simfle.runtime.distributed import intra_op_threads
from simfle.train.checkpointing.checkpoint import TrainState, write
from simfle.train.checkpointing.safetensors_writer import DTYPES, RateLimiter, write_tensors
from simfle.train.preflight import check
from simfle.train.run_dir import check_same_config, run_dir_lock
from simfle.train.telemetry.bottleneck import WAITING, ThroughputFacts, diagnose
from simfle.train.telemetry.profiler import tables

pytestmark = pytest.mark.slow

CPU = ThroughputFacts(device="cpu", backend="opencv", threads=2, cores=8, precision="bf16")
GPU = replace(CPU, device="cuda", backend="dali", threads=8)
FINE = PretrainConfig(data=DataConfig(shards=["faces"]))


@pytest.mark.parametrize(
    ("wait", "facts", "wanted", "unwanted"),
    [
        (
            0.35,
            CPU,
            ["data wait 35%: data-bound", "more data.decode_threads (2 of 8 cores now)", "--shorter-side"],
            ["dali"],
        ),
        (0.35, replace(CPU, threads=8), ["--shorter-side"], ["data.decode_threads"]),
        (0.2, replace(CPU, device="cuda", dali=True), ["data.decode_threads", "data.backend=dali"], ["install"]),
        (0.2, replace(CPU, device="cuda"), ["pip install 'simfle[dali]'"], ["data.backend=dali"]),
        (0.2, replace(GPU, remote=True), ["data-bound", "local disk"], ["data.backend", "data.decode_threads"]),
        (0.01, CPU, ["data wait 1%: compute-bound", "more processes", "train.profile=true"], ["bf16", "auto"]),
        (0.01, replace(CPU, precision="fp32"), ["train.precision=bf16 or more processes"], ["auto"]),
        (0.0, GPU, ["compute-bound", "train.micro_batch=auto"], ["data.decode_threads", "dali"]),
    ],
)
def test_advice_names_what_can_be_changed(
    wait: float, facts: ThroughputFacts, wanted: list[str], unwanted: list[str]
) -> None:
    line = diagnose(wait, facts)
    assert all(each in line for each in wanted), line
    assert not any(each in line for each in unwanted), line


@given(st.floats(0, 1), st.sampled_from([CPU, GPU]), st.booleans(), st.integers(1, 8))
def test_advice_is_one_line_of_either_kind(wait: float, facts: ThroughputFacts, remote: bool, threads: int) -> None:
    line = diagnose(wait, replace(facts, remote=remote, threads=threads))
    assert ("data-bound" in line) == (wait >= WAITING)
    assert ("compute-bound" in line) == (wait < WAITING)
    assert "\n" not in line


SHAPES = st.lists(st.integers(0, 5), max_size=3)


@given(st.dictionaries(st.text(max_size=8), st.tuples(st.sampled_from(list(DTYPES)), SHAPES), max_size=6))
@settings(max_examples=60, deadline=None)
def test_tensors_come_back_by_the_library(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    wanted.pop("__metadata__", None)
    file = tmp_path_factory.getbasetemp() / "written.safetensors"
    tensors = {name: (torch.randn(shape) * 50).to(kind) for name, (kind, shape) in wanted.items()}
    written = write_tensors(file, tensors)
    content = file.read_bytes()
    assert written == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    found = load_file(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].flatten().view(torch.uint8).tolist() == tensor.flatten().view(torch.uint8).tolist()


def test_a_tensor_that_is_no_block_of_memory_is_written_as_it_reads(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    write_tensors(tmp_path / "t", {"turned": whole.T, "part": whole[1:3, ::2]})
    found = load_file(tmp_path / "t")
    assert torch.equal(found["turned"], whole.T)
    assert torch.equal(found["part"], whole[1:3, ::2])


def test_a_paced_writer_takes_its_time_until_it_is_told_to_hurry(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.ones(25_000) for number in range(10)}  # 1 MB
    hurry = threading.Event()
    began = time.monotonic()
    write_tensors(tmp_path / "slow", tensors, RateLimiter(5.0, hurry))  # MB/s
    assert time.monotonic() - began >= 0.19
    writing = threading.Thread(target=write_tensors, args=(tmp_path / "quick", tensors, RateLimiter(1e-6, hurry)))
    writing.start()
    writing.join(0.1)
    assert writing.is_alive()  # it would take eleven days
    hurry.set()
    writing.join(60)
    assert not writing.is_alive()
    assert (tmp_path / "quick").read_bytes() == (tmp_path / "slow").read_bytes()


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (TrainConfig(profile=True, profile_steps=[3]), "profile_steps"),
        (TrainConfig(profile=True, profile_steps=[5, 3]), "profile_steps"),
        (TrainConfig(profile=True, profile_steps=[0, 3]), "profile_steps"),
        (TrainConfig(profile=True, profile_steps=[1, 21]), "at most 20 steps"),
        (TrainConfig(profile=True, profile_ranks=[]), "profile_ranks"),
        (TrainConfig(profile=True, profile_ranks=[-1]), "profile_ranks"),
        (TrainConfig(checkpoint_write_mbps=-1), "checkpoint_write_mbps=-1: must be at least 0"),
    ],
)
def test_values_out_of_range_are_named(train: TrainConfig, said: str) -> None:
    check(FINE)
    with pytest.raises(UserError, match=said):
        check(replace(FINE, train=train))


@pytest.mark.parametrize(
    "word",
    ["train.device=gpu", "train.hang_timeout=-1", "optim.momentum=1", "optim.momentum=-0.1", "optim.momentum=.nan"]
    + ["optim.weight_decay=-1", "optim.betas=[0.9]", "optim.betas=[0.9,1]", "optim.betas=[-0.1,0.9]"]
    + [
        "model.head_hidden_dim=0",
        "model.head_out_dim=0",
        "model.predictor_hidden_dim=0",
        "model.distillation_temperature=0",
    ]
    + ["model.mean=[0.5]", "model.std=[0.2,0.2]", "model.std=[0.2,0,0.2]"]
    + [f"model.facemae.{name}=0" for name in ("patch_size", "embed_dim", "depth", "num_heads")]
    + [f"model.facemae.decoder_{name}=0" for name in ("embed_dim", "depth", "num_heads")],
)
def test_a_value_that_would_end_in_a_traceback_or_a_broken_run_is_named(word: str) -> None:
    with pytest.raises(UserError, match=word.partition("=")[0]):
        check(load(PretrainConfig, None, ["data.shards=[faces]", word]))


@pytest.mark.parametrize(
    ("asked", "known", "local", "wanted"),
    [
        (None, 8, 4, 2),  # four processes that know of nothing would each take all cores
        (None, 2, 4, 1),
        ("2", 2, 4, 2),  # a launcher, or the user, has divided them already
        ("1", 1, 4, 1),
        ("2", 8, 4, 2),  # told after torch had counted
        ("4,2", 4, 2, 4),
        ("many", 8, 4, 2),
    ],
)
def test_cores_are_divided_once(
    asked: str | None, known: int, local: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(torch, "get_num_threads", lambda: known)
    assert intra_op_threads(local) == wanted


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(UserError, match=r"optim\.name='lion': must be sgd, adamw or lars"):
        check(replace(FINE, optim=OptimConfig(name="lion")))


def test_a_wrong_value_is_refused_before_torch_is_loaded() -> None:
    program = (
        "import sys\n"
        "from simfle.commands.pretrain import main\n"
        "sys.argv = ['pretrain', 'data.shards=[faces]', 'train.zero_stage=7']\n"
        "try:\n    main()\nfinally:\n    print(sorted({'torch', 'numpy', 'deepspeed'} & set(sys.modules)))\n"
    )
    root = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "train.zero_stage=7" in done.stderr
    assert done.stdout.strip() == "[]"


def test_a_profile_counts_a_gpus_work_once() -> None:
    """For a GPU, torch lists marks and kernels in addition to the host's rows, which already include their time."""

    def row(key: str, where: DeviceType, host: float, device: float) -> SimpleNamespace:
        return SimpleNamespace(key=key, count=2, device_type=where, cpu_time_total=host, self_device_time_total=device)

    events = [
        row("simfle.forward", DeviceType.CPU, 9000.0, 0.0),
        row("aten::mm", DeviceType.CPU, 50.0, 4000.0),
        row("simfle.forward", DeviceType.CUDA, 0.0, 4000.0),
        row("sm90_gemm", DeviceType.CUDA, 0.0, 4000.0),
    ]
    words = [line.split() for line in tables(events, cuda=True).splitlines() if line]
    assert ["forward", "2", "9.0"] in words
    assert words[-1] == ["aten::mm", "2", "4.0", "100.0%"]


def test_a_folder_of_shards_is_not_claimed_for_a_run(faces: Path) -> None:
    before = sorted(faces.iterdir())
    with pytest.raises(UserError, match="a shard folder"), run_dir_lock(faces):
        pass
    assert sorted(faces.iterdir()) == before  # not even a lock


@pytest.mark.parametrize("word", ["train.seed=5", "optim.lr=0.9", "optim.name=adamw", "train.global_batch=24"])
def test_checkpoints_without_their_configuration_go_on_only_as_the_same_run(word: str, tmp_path: Path) -> None:
    """As a restored backup, or a branch: their folder was copied, config.yaml was not."""
    write(tmp_path, TrainState(4, 32, config_digest(FINE), "corpus", "sgd"), {}, {})
    newest = write(tmp_path, TrainState(6, 48, config_digest(FINE), "corpus", "sgd"), {}, {})
    other = load(PretrainConfig, None, ["data.shards=[faces]", word])
    check_same_config(tmp_path, replace(FINE, train=TrainConfig(run_dir="elsewhere", micro_batch=2)))
    with pytest.raises(
        UserError, match=r"another configuration.*copy the config\.yaml of that run to .*, or use another"
    ):
        check_same_config(tmp_path, other)
    (newest / "state.json").write_text("{")  # then it would resume from the previous checkpoint
    with pytest.raises(UserError, match="another configuration"):
        check_same_config(tmp_path, other)


def test_a_checkpoint_tells_which_keys_differ_and_what_came_later_had_its_default(tmp_path: Path) -> None:
    values = run_identity(replace(FINE, train=TrainConfig(seed=3)))
    del values["optim.max_grad_norm"]  # as of a version that did not have it
    write(tmp_path, TrainState(4, 32, "digest of that version", "corpus", "sgd", identity=values), {}, {})
    with pytest.raises(UserError, match=r"another configuration \(train\.seed: 3 -> 0\)\. Fix: use the old values"):
        check_same_config(tmp_path, FINE)
    check_same_config(tmp_path, replace(FINE, train=TrainConfig(seed=3)))
    with pytest.raises(UserError, match=r"optim\.max_grad_norm: 0\.0 -> 1\.0"):
        check_same_config(tmp_path, load(PretrainConfig, None, ["train.seed=3", "optim.max_grad_norm=1"]))


def test_a_config_that_is_not_that_of_an_older_checkpoint_is_told(tmp_path: Path) -> None:
    """Those of earlier versions hold a digest only."""
    write(tmp_path, TrainState(4, 32, config_digest(FINE), "corpus", "sgd"), {}, {})
    edited = load(PretrainConfig, None, ["optim.lr=0.9"])
    (tmp_path / "config.yaml").write_text("optim: {lr: 0.9}\n")
    with pytest.raises(UserError, match=r"config\.yaml is not the configuration of the checkpoints beside it"):
        check_same_config(tmp_path, edited)
    check_same_config(tmp_path, FINE)
    (tmp_path / "config.yaml").write_text("optim: {lr: 0.05}\n")
    with pytest.raises(UserError, match=r"another configuration \(optim\.lr: 0\.05 -> 0\.9\)"):
        check_same_config(tmp_path, edited)
