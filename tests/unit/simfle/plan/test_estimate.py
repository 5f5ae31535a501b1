"""The planner: what it counts and refuses, and that its page is what it prints. Real bytes: tests/distributed."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from distributed.runs import SETTINGS
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from simfle.config.schema import PretrainConfig, load
from simfle.errors import UserError
from simfle.models.registry import build_method
from simfle.plan import model_cost
from simfle.plan.estimate import ClusterSpec, DatasetSpec, estimate, memory, traffic
from simfle.plan.hardware import load_constants, network_rate
from simfle.plan.model_cost import CONVOLUTIONS, GRADIENTS, PRODUCTS, REST, LinearCost, ModelCost, measure_cost
from simfle.plan.roofline import roofline
from simfle.runtime import zero_stage
from simfle.runtime.distributed import compute_batch_layout
from simfle.runtime.zero_stage import choose_zero_stage
from simfle.train.checkpointing import state_dict

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
PAGES = (ROOT / "docs/scale.md", ROOT / "docs/cost.md")
CONSTANTS = load_constants([])
RESNET50 = 2 * 4.09e9  # operations of a forward of one image of 224 px (He et al. 2016: multiply-adds)
# A made-up network, so that the pure functions are tested without counting.
WORK = ModelCost(190_000_000, 160_000_000, 189_000_000, 159_000_000, 600_000, 1, 270, 4000, LinearCost(0, 67e9),
    LinearCost(0, 15e9),
            LinearCost(3e8, 1e8))  # fmt: skip


def run(*arguments: str) -> str:
    """Return the output of the command, run in this process."""
    import typer

    from simfle.commands.plan import plan_run

    app = typer.Typer()
    app.command()(plan_run)
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def config_of(*overrides: str) -> PretrainConfig:
    return load(PretrainConfig, None, overrides)


def test_pages_are_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, ModelCost] = {}  # the commands differ in machines only: count the network once

    def count(config: PretrainConfig) -> ModelCost:
        if repr(config) not in known:
            known[repr(config)] = measure_cost(config)
        return known[repr(config)]

    monkeypatch.setattr(model_cost, "measure_cost", count)
    seen = 0
    for page in PAGES:
        lines = page.read_text().splitlines()
        for number, line in enumerate(lines):
            if line.startswith("    simfle plan configs") and "-table" in line:
                expected = "\n".join(lines[number + 2 :]).split("\n\n")[0]
                assert run(*line.split()[2:]).strip() == expected.strip(), f"put into {page.name}: {line}"
                seen += 1
    assert seen == 4
    assert len(known) == 1


def test_rows_are_of_the_gpus_that_they_are_planned_for() -> None:
    """Nodes of six GPUs: 8 of them are two whole nodes."""
    words = ["--images", "10000", "--gpus-per-node", "6", "--batch-per-gpu", "4", "--scaling-table"]
    rows = [line.split("|") for line in run(*SETTINGS, *words).splitlines() if line.startswith("| ")]
    numbers = [(int(row[1]), int(row[2].replace(",", ""))) for row in rows[1:]]
    assert [gpus for gpus, _ in numbers] == [1, 2, 4, 12, 18, 36, 66, 132, 258, 516]
    assert all(batch == 4 * gpus for gpus, batch in numbers)


def test_counts_the_real_network() -> None:
    work = measure_cost(config_of("train.precision=fp32"))
    # Two views forward and backward, two target passes and the face (a quarter of the pixels) forward only.
    assert work.conv.each == pytest.approx((2 * 3 + 2 + 0.25) * RESNET50, rel=0.02)
    assert work.conv(32) == pytest.approx(32 * work.conv.each)
    assert work.norms > 5 * 53
    assert work.narrow == 0
    assert work.parameters - work.trained == pytest.approx(33e6, rel=0.05)  # the target: see the method's page


# Multiply-adds of a forward pass of one image of 224 px, as published with each network (timm's results), and tokens.
FORWARD = {
    "convnext_atto": 0.55e9,
    "efficientnet_lite0": 0.40e9,
    "mobilenetv4_conv_small": 0.19e9 + 48 * 960 * 1280,  # its last convolution on 7 x 7 positions instead of one
    "regnetx_002": 0.20e9,
    "vit_tiny_patch16_224": 1.08e9 + 12 * 2 * 197 * 197 * 192,  # the published number leaves out the attention products
    "vit_tiny_patch16_dinov3_qkvb": 1.08e9 * 201 / 197 + 12 * 2 * 201 * 201 * 192,
}


@pytest.mark.parametrize("name", FORWARD)
def test_each_family_has_a_cost(name: str) -> None:
    """SimCLR: two views forward and backward, which is three forward passes each; heads add little."""
    settings = (f"model.backbone={name}", "model.method=simclr", "model.head_hidden_dim=64", "model.head_out_dim=64")
    work = measure_cost(config_of("train.precision=fp32", *settings))
    assert work.conv.each + work.matmul.each == pytest.approx(2 * 3 * 2 * FORWARD[name], rel=0.08)
    assert work.activations.each > 0
    transformer = name.startswith("vit")
    assert (work.matmul.each > work.conv.each) == transformer
    assert (work.norms > 0) == (not transformer and name != "convnext_atto")


def test_gradients_of_a_grouped_convolution_cost_one_forward_pass_each() -> None:
    images = torch.randn(2, 8, 9, 9, requires_grad=True)
    for groups, transposed in ((1, False), (4, False), (8, False), (4, True)):
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        layer = kind(8, 16, 3, stride=2, padding=1, groups=groups)
        with FlopCounterMode(display=False, custom_mapping=GRADIENTS) as forward:
            output = layer(images)
        with FlopCounterMode(display=False, custom_mapping=GRADIENTS) as backward:
            output.sum().backward()
        assert forward.get_total_flops() == 2 * 2 * (81 if transposed else 25) * 9 * 8 * 16 // groups
        assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_counts_the_checkpoint(tmp_path: Path) -> None:
    config = config_of(*SETTINGS)
    work = measure_cost(config)
    model = build_method(config.model, config.views)
    whole = {name: parameter.detach() for name, parameter in model.named_parameters()} | state_dict.persistent_buffers(
        model
    )
    save_file({name: tensor.clone() for name, tensor in whole.items()}, tmp_path / "model")
    save_file(
        {name: parameter.detach().clone() for name, parameter in state_dict.trainable_parameters(model)},
        tmp_path / "optim",
    )
    written = sum((tmp_path / name).stat().st_size for name in ("model", "optim"))
    found = estimate(config, work, ClusterSpec(1, 2, "cpu", 1e9, 1), DatasetSpec(100, 1e4), CONSTANTS)
    assert found.checkpoint["bytes"] == pytest.approx(written, rel=0.005)  # names and shapes take the rest


@settings(max_examples=30, deadline=None)
@given(stage=st.integers(0, 3), power=st.integers(0, 9), accumulation=st.sampled_from([1, 2, 4]))
def test_model_is_sane(stage: int, power: int, accumulation: int) -> None:
    processes = 2**power
    config = config_of(
        f"train.zero_stage={stage}", f"train.global_batch={8 * processes * accumulation}", "train.micro_batch=8"
    )
    batch = compute_batch_layout(config.train, processes)
    held, sent = memory(WORK, config, batch, processes), traffic(WORK, config.train, batch, processes)
    least = 4 * (2 * WORK.trained + WORK.parameters) / processes  # every parameter, gradient and momentum somewhere
    assert held.total >= least
    if processes == 1:
        assert sent.total < 100
    else:
        # At least each gradient goes out and comes back in bf16, at most everything in fp32 each time.
        assert sent.total >= 2 * WORK.trained * (processes - 1) / processes
        assert sent.total <= 4 * (2 * WORK.trained + WORK.parameters) * accumulation + 1e6
    found = estimate(config, WORK, ClusterSpec(1, processes, "a100", 1e10, 8), DatasetSpec(10**6, 2e4), CONSTANTS)
    assert 0 < found.efficiency <= 1
    assert found.images_per_second == pytest.approx(batch.global_batch / found.step)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 64), st.sampled_from([0, 1, 2, 3]))
def test_a_faster_network_never_hurts(nodes: int, stage: int) -> None:
    config = config_of(f"train.global_batch={nodes * 8 * 16}", f"train.zero_stage={stage}")
    slow, fast = (
        estimate(config, WORK, ClusterSpec(nodes, 8, "h100", rate, 8), DatasetSpec(10**6, 2e4), CONSTANTS)
        for rate in (network_rate("100gb"), network_rate("8x400gb"))
    )
    assert fast.step <= slow.step


def test_bottlenecks_are_found_and_named() -> None:
    def bottleneck(
        *overrides: str, nodes: int = 1, cores: float = 12, network: str = "400gb", images: int = 10**6
    ) -> str:
        machines = ClusterSpec(nodes, 8, "h100", network_rate(network), cores)
        return estimate(config_of(*overrides), WORK, machines, DatasetSpec(images, 2e4), CONSTANTS).bottleneck

    assert bottleneck("train.global_batch=1024") == "compute"
    assert bottleneck("train.global_batch=1024", nodes=8, network="ethernet10") == "network"
    assert bottleneck("train.global_batch=16") == "launches"
    assert bottleneck("train.global_batch=1024", "data.backend=opencv", cores=1) == "loading"
    assert bottleneck("train.global_batch=8192") == "memory"
    assert bottleneck("train.global_batch=65536", nodes=64, images=10**9, network="8x400gb") == "storage"


def test_a_better_stage_is_offered_only_where_it_is_better() -> None:
    config = config_of("train.global_batch=1024", "train.micro_batch=16", "train.zero_stage=2")
    machines = ClusterSpec(4, 4, "h100", network_rate("100gb"), 8)
    hints = estimate(config, WORK, machines, DatasetSpec(10**6, 2e4), CONSTANTS).advice
    better = [hint for hint in hints if "zero_stage" in hint]
    assert len(better) == 1
    stage = int(re.match(r"train\.zero_stage=([01]):", better[0])[1])  # type: ignore[index]
    best = dataclasses.replace(config, train=dataclasses.replace(config.train, zero_stage=stage))
    assert not any(
        "zero_stage" in hint for hint in estimate(best, WORK, machines, DatasetSpec(10**6, 2e4), CONSTANTS).advice
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nodes", "3"], "train.global_batch=256: not divisible by 24 processes (planned for --nodes 3 --gpus-per"),
        (["--nodes", "32"], "BatchNorm needs at least 2 samples"),
        (["train.zero_stage=5"], "train.zero_stage=5"),
        (["views.scale=[0.5,0.1]"], "views.scale"),
        (["--gpu", "abacus"], "use one of a100, cpu, h100, h200"),
        (["--network", "fast"], "8x400gb"),
        (["--nodes", "0"], "--nodes=0"),
        (["--pue", "0.9"], "--pue=0.9: must be at least 1"),
        (["--watts", "-1"], "--watts=-1.0: must be at least 0"),
        (["--grid-intensity", "inf"], "--grid-intensity=inf"),
        (["--images", "100"], "larger than the corpus of 100 images"),
        (["data.backend=pil"], "data.backend"),
    ],
)
def test_refused_as_the_trainer_does(arguments: list[str], words: str) -> None:
    overrides = [word for word in arguments if "=" in word]
    options = [word for word in arguments if "=" not in word]
    images = [] if "--images" in options else ["--images", "1000000"]
    with pytest.raises(UserError, match=re.escape(words)):
        run(*options, *images, *(overrides or ["train.seed=1"]))


def test_energy_is_that_of_the_given_machines() -> None:
    words = ["--gpus-per-node", "2", "--images", "1000", "--json", *SETTINGS]
    given = ["--watts", "500", "--pue", "1.2", "--grid-intensity", "100", "--price", "3"]
    plain = json.loads(run(*words, *given))
    hours, cost = plain["plan"]["hours"], plain["cost"]
    assert cost["gpu_hours"] == pytest.approx(2 * hours)
    assert cost["kwh"] == pytest.approx(2 * hours * 0.5 * 1.2)
    assert cost["co2e"] == pytest.approx(2 * hours * 0.5 * 1.2 * 0.1)
    assert cost["price"] == pytest.approx(2 * hours * 3)
    assert plain["constants"]["power.pue"] == {"value": 1.2, "kind": "assumed", "source": "command line"}
    assert plain["constants"]["h100.watts"]["value"] == 500
    text = run(*words[:4], *SETTINGS, *given)
    assert "x 500 W x PUE 1.2" in text
    assert "at 100 g/kWh" in text


def test_needs_a_corpus() -> None:
    with pytest.raises(UserError, match="--images N"):
        run("train.seed=1")


def test_constants_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"constants": {"h100.conv": 1e14}}))
    arguments = ["--gpus-per-node", "2", "--images", "1000", "--json", "--constants", str(file), *SETTINGS]
    plain = json.loads(run(*arguments))
    assert plain["constants"]["h100.conv"] == {"value": 1e14, "kind": "measured here", "source": "bench.json"}
    assert plain["plan"]["memory"]["total"] > plain["plan"]["memory"]["activations"] > 0
    for content, words in (
        ("{", "JSON"),
        ('{"h100.conf": 1}', "unknown"),
        ('{"fp32": 0}', "positive"),
        ("[]", "object"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=words):
            load_constants([file])


@pytest.mark.parametrize(("name", "rate"), [("100gb", 12.5e9), ("ethernet25", 3.125e9), ("8x400gb", 400e9)])
def test_networks(name: str, rate: float) -> None:
    assert network_rate(name) == rate


def test_the_stage_is_zero_where_memory_is_no_matter_and_the_plan_says_why() -> None:
    held = zero_stage.held_bytes(4 * WORK.trained, 4 * (WORK.parameters - WORK.trained), WORK.optimizer_tensors)
    auto, lars = config_of(), config_of("optim.name=lars")
    assert choose_zero_stage(auto.train, auto.optim, 8, held, 80e9).number == 0
    tight = choose_zero_stage(auto.train, auto.optim, 8, held, 8 * held - 1)
    assert tight.number == 2
    assert "2.0 GB, fit 8.0 times" in tight.reason
    assert choose_zero_stage(lars.train, lars.optim, 8, held, held).number == 0
    assert choose_zero_stage(config_of("train.zero_stage=3").train, auto.optim, 8, held, 80e9).number == 3
    assert choose_zero_stage(config_of("train.zero_stage=3").train, auto.optim, 1, held, 80e9).number == 0
    found = estimate(auto, WORK, ClusterSpec(1, 8, "h100", 50e9, 12), DatasetSpec(100_000, 2e4), CONSTANTS)
    assert (found.stage.number, found.as_dict()["stage"]["number"]) == (0, 0)


def test_the_roofline_takes_the_longer_of_arithmetic_and_bytes() -> None:
    moved = {CONVOLUTIONS: LinearCost(0, 1e9), PRODUCTS: LinearCost(0, 1e7), REST: LinearCost(0, 2e9)}
    work, config = dataclasses.replace(WORK, moved=moved), config_of("train.global_batch=64")
    parts = roofline(config.train, work, compute_batch_layout(config.train, 1), "h100", CONSTANTS)
    conv, product, rest, update = parts
    assert (conv.flops, conv.bytes, conv.bound) == (64 * 67e9, 64 * 1e9, "memory")
    assert conv.seconds == pytest.approx(64e9 / 3.35e12)
    assert (product.bound, product.seconds) == ("arithmetic", pytest.approx(64 * 15e9 / 989e12))
    assert (rest.flops, rest.bound) == (0, "memory")
    assert update.bytes == pytest.approx(4 * 160e6 * 5 + 12 * 30e6)


def test_bytes_of_a_network_are_counted() -> None:
    work = measure_cost(config_of(*SETTINGS))
    assert work.moved.keys() == {CONVOLUTIONS, PRODUCTS, REST}
    # Each image's maps are read and written by convolutions and norms at least once in forward and backward.
    assert all(line.each > 0 for line in work.moved.values())
    assert work.moved[REST].each > work.activations.each
