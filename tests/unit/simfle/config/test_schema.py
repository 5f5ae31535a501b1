"""Configuration: strict, layered, and sure of what makes a run this run."""

from pathlib import Path

import pytest

from shards.errors import UserError
from simfle.config import schema
from simfle.config.parsing import keys
from simfle.config.schema import DataConfig, OptimConfig, PretrainConfig, TrainConfig, load
from simfle.eval.config import EvalConfig
from simfle.optim import lr_at_step
from simfle.runtime.distributed import compute_batch_layout
from simfle.slurm.config import ClusterConfig
from simfle.slurm.snapshot import absolute

ROOT = Path(__file__).parents[4]


def test_yaml_then_command_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: {seed: 3, epochs: 5}\nmodel: {facemae: {depth: 2}}\n")
    made = load(PretrainConfig, file, ["train.seed=4", "data.shards=[a,b]"])
    assert (made.train.seed, made.train.epochs, made.model.facemae.depth, made.data.shards) == (4, 5, 2, ["a", "b"])
    assert made.model.facemae.embed_dim == 768


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("train: {sed: 3}", [], "unknown key 'train.sed' in .*c.yaml; did you mean train.seed?"),
        ("", ["model.bakcbone=x"], "unknown key 'model.bakcbone' in command line; did you mean model.backbone?"),
        ("train: {seed: x}", [], r"c.yaml: train.seed=x: must be a whole number"),
        ("", ["train.steps=3.0"], r"command line: train.steps=3.0: must be a whole number"),
        ("", ["optim.lr=fast"], "optim.lr=fast: must be a number"),
        ("", ["train.profile=perhaps"], "train.profile=perhaps: must be true or false"),
        ("", ["data.shards="], r"data.shards=: must be a list, such as \[a,b\]"),
        ("", ["train.profile_steps=[3,x]"], r"train.profile_steps=\[3, 'x'\]: must be a list, each a whole number"),
        (
            "train: [1, 2]",
            [],
            r"train=\[1, 2\] in .*c.yaml: train is a group. Fix: .* such as train.run_dir",
        ),
        ("- 1", [], "a list or a single value"),
        ("a: [", [], "cannot read"),
        ("", ["train.seed"], "is not key=value"),
    ],
)
def test_mistakes_are_named(text: str, overrides: list[str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load(PretrainConfig, file, overrides)


@pytest.mark.parametrize("word", ["extra_sbatch=[exclude=n[1-2]]", "setup=['a: b]", "time=${nodes", "[=1", "time=\0"])
def test_a_word_that_cannot_be_read_is_named_in_one_line(word: str) -> None:
    file = ROOT / "configs/cluster/cpu.yaml"
    with pytest.raises(UserError) as found:
        load(ClusterConfig, file, ["nodes=2", word])
    assert f"config: cannot read {word!r} on the command line" in str(found.value)
    assert "cpu.yaml" not in str(found.value)
    assert "\n" not in str(found.value)
    advised = str(found.value).split('"')[-2].removeprefix("cluster.")
    assert load(ClusterConfig, file, [advised]).extra_sbatch == ["exclude=n[1-2]"]


def test_one_value_of_a_list_needs_no_brackets(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: {shards: a, splits: '${data.shards}'}\ntrain:\n  # seed: 3\n")
    made = load(PretrainConfig, file, ["train.profile_ranks=1"])
    assert (made.data.shards, made.data.splits, made.train.profile_ranks) == (["a"], ["a"], [1])
    assert made.train == TrainConfig(profile_ranks=[1])
    assert load(PretrainConfig, file, ["data.shards=b"]).data.shards == ["b"]


def test_no_text_is_empty_text() -> None:
    assert load(PretrainConfig, None, ["data.cache_dir="]).data.cache_dir == ""
    assert load(EvalConfig, None, ["val_split=", "cache_dir=here"]).val_split == ""


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell does not expand ~ after train.run_dir=, and no program expands it in a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "c.yaml"
    file.write_text("data: {shards: '~/faces'}\ntrain: {run_dir: '~/runs/${train.seed}'}\n")
    made = load(PretrainConfig, file, ["data.cache_dir=~/cache"])
    assert made.data == DataConfig(shards=[f"{tmp_path}/faces"], cache_dir=f"{tmp_path}/cache")
    assert made.train.run_dir == f"{tmp_path}/runs/0"
    assert absolute(made) == made
    words = ["https://host/~me/faces?sign=~/a", "here/~/b", "~no-such-user/c", "~/d"]
    assert load(PretrainConfig, None, [f"data.shards={words}"]).data.shards == [*words[:3], f"{tmp_path}/d"]
    assert schema.config_digest(made) == schema.config_digest(PretrainConfig())


def test_paths_of_evaluations_and_clusters_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [
        "out=~/eval",
        "benchmarks=[rafdb=~/rafdb,~/mine.yaml=mine]",
        "backbones=[~/b,'reference:resnet50@~/r.pth']",
    ]
    made = load(EvalConfig, None, [*words, "shards=~/faces", "ffcv_files=[~/betons]", "cache_dir=~/features"])
    assert made.benchmarks == [f"rafdb={tmp_path}/rafdb", f"{tmp_path}/mine.yaml=mine"]
    assert made.backbones == [f"{tmp_path}/b", f"reference:resnet50@{tmp_path}/r.pth"]
    assert [made.out, *made.shards, *made.ffcv_files] == [f"{tmp_path}/{name}" for name in ("eval", "faces", "betons")]
    assert made.cache_dir == f"{tmp_path}/features"
    cluster = load(
        ClusterConfig, None, ["local_scratch=~/$USER", "container=~/image.sif", "mounts=[~/a]", "setup=[. ~/env]"]
    )
    assert (cluster.local_scratch, cluster.container) == (f"{tmp_path}/$USER", f"{tmp_path}/image.sif")
    assert (cluster.mounts, cluster.setup) == ([f"{tmp_path}/a"], [". ~/env"])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(PretrainConfig, tmp_path / "no.yaml")


def test_identity_knows_what_may_change() -> None:
    base = load(PretrainConfig, None)
    for free in (
        "train.run_dir=x",
        "train.zero_stage=3",
        "train.micro_batch=8",
        "data.decode_threads=4",
        "train.stop_after_step=7",
    ):
        assert schema.config_digest(load(PretrainConfig, None, [free])) == schema.config_digest(base), free
    for other in ("train.seed=1", "optim.lr=0.1", "views.hue=0.1", "train.global_batch=512", "data.shuffle_window=5"):
        assert schema.config_digest(load(PretrainConfig, None, [other])) != schema.config_digest(base), other


def test_every_field_says_what_it_is() -> None:
    names = list(keys(PretrainConfig))
    assert len(names) > 50
    assert all(text for text in schema.field_help(PretrainConfig).values())
    assert set(schema.field_help(PretrainConfig)) == set(names)


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/pretrain/*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_load(file: Path) -> None:
    assert load(PretrainConfig, file).model.method == "simfle"


def test_learning_rate_warms_up_then_follows_half_a_cosine() -> None:
    optim = OptimConfig(lr=0.1, warmup_steps=4)
    rates = [lr_at_step(step, 12, 512, optim) for step in range(13)]
    assert rates[:5] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2])
    assert rates[8] == pytest.approx(0.1)
    assert rates[12] == pytest.approx(0, abs=1e-12)


def test_batch_is_shared_equally_or_refused() -> None:
    plan = compute_batch_layout(TrainConfig(global_batch=96, micro_batch=8), 3)
    assert (plan.micro_batch, plan.grad_accum_steps) == (8, 4)
    assert compute_batch_layout(TrainConfig(global_batch=96), 3).micro_batch == 32
    for settings, processes, message in (
        ({"global_batch": 10}, 4, "global_batch=10: not divisible by 4 processes"),
        ({"global_batch": 32, "micro_batch": 5}, 2, "micro_batch=5: does not divide the 16 samples"),
        ({"global_batch": 4}, 4, "at least 2 samples"),
    ):
        with pytest.raises(UserError, match=message):
            compute_batch_layout(TrainConfig(**settings), processes)


def test_a_time_is_no_number_to_the_base_of_60(tmp_path: Path) -> None:
    assert load(ClusterConfig, None, ["time=12:00:00"]).time == "12:00:00"
    file = tmp_path / "mine.yaml"
    file.write_text('time: "12:00:00"\n')
    assert load(ClusterConfig, file).time == "12:00:00"
    file.write_text("time: 0:15:00\n")  # which YAML leaves as it is, and writers of YAML write so
    assert load(ClusterConfig, file).time == "0:15:00"
    file.write_text("time: 12:00:00\n")
    with pytest.raises(UserError, match=r"mine\.yaml: YAML reads 12:00:00 as a number. Fix: write '12:00:00'"):
        load(ClusterConfig, file)
