"""Run the GPU benchmarks one after another, each within a time limit; results are saved to allow a resume."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.io.atomic import read_bytes, replace_text
from shards.io.jsonl import loads_object
from shards.redact import to_json
from simfle.bench import peers
from simfle.bench.startup import SMALL

BATCHES = (32, 64, 128, 256)
LONGEST = 480.0  # maximum seconds of one part: a typical limit in queues for short jobs
CONFIG = "configs/pretrain/simfle_resnet50.yaml"
SIMFLE = (sys.executable, "-m", "simfle")


@dataclass(frozen=True)
class GpuDayPart:
    """Part of the GPU benchmark. name: prefix of its files; command: list of words; figures: whether the command
    writes NAME.figures.json through --out."""

    name: str
    command: tuple[str, ...]
    figures: bool = True


@dataclass(frozen=True)
class Done:
    """Outcome of a part. code: exit code of its process, or None if it was stopped at the time limit; words: last lines
    of its output."""

    name: str
    code: int | None
    seconds: float
    words: str


def parts(faces: Path, *, rehearsal: bool, gpu: str = "h100") -> list[GpuDayPart]:
    """Return the parts, most informative first.

    rehearsal: a variant for the CPU with a tiny network. gpu: the planner's name of the device. One process measures
    the host's cost of ZeRO stages; their communication needs several GPUs. Peers are measured if they are installed.
    """
    given = (*SMALL, "train.device=cpu", "train.precision=fp32") if rehearsal else (CONFIG, "train.device=cuda")
    data = (f"data.shards=[{faces}]", f"train.global_batch={16 if rehearsal else 128}")
    short = ("--rounds", "1") if rehearsal else ()
    steps = ("--steps", "2", *short) if rehearsal else ()
    step = (*SIMFLE, "bench", "step", *given, *short, *(("--matmul-size", "256") if rehearsal else ()), "--batch")
    device, most = ("train.device=cpu", "16") if rehearsal else ("train.device=cuda", "256")
    people = "16" if rehearsal else "512"
    pytest = (sys.executable, "-m", "pytest", "-n", "0", "-q")
    traced = (f"train.run_dir={faces.parent / 'profile'}", "train.steps=6", "train.profile=true")
    machine = ("--gpus-per-node", "1", "--gpu", "cpu" if rehearsal else gpu, "--images", "4096")
    drawn = ("shards", "build", "procedural", str(faces), "--people", people, "--images-per-person", "8")
    batches = (4,) if rehearsal else BATCHES
    found = [
        GpuDayPart("doctor", (*SIMFLE, "doctor"), figures=False),
        GpuDayPart("shards", (*SIMFLE, *drawn), figures=False),
        GpuDayPart("tests", (*pytest, "tests/gpu"), figures=False),
        GpuDayPart("loader", (*SIMFLE, "bench", "loader", "--images", most, *short, device)),
        *(GpuDayPart(f"step-{batch}", (*step, str(batch))) for batch in batches),
        GpuDayPart("train", (*SIMFLE, "bench", "train", *given, *data, *steps)),
        GpuDayPart("checkpoint", (*SIMFLE, "bench", "checkpoint", *given, *data, *steps)),
        GpuDayPart("plan", (*SIMFLE, "plan", *given, *data, *machine), figures=False),
        GpuDayPart("stages", (*step, "4" if rehearsal else "128", "--stages", "0,1,2,3")),
        GpuDayPart("profile", (*SIMFLE, "pretrain", *given, *data, *traced), figures=False),
        *(
            [peers_part(rehearsal=rehearsal)]
            if any(map(peers.is_installed, (peers.LIGHTLY, peers.LIGHTLY_TRAIN)))
            else []
        ),
    ]
    if rehearsal:
        return found
    return [
        *found,
        GpuDayPart("golden", (*pytest, "tests/golden"), figures=False),
        *(
            GpuDayPart(f"{mode}-{batch}", (*step, str(batch), "--ours-only", f"model.compile={value}"))
            for batch in (BATCHES[0], BATCHES[-1])  # the first is limited by launches, the last by memory traffic
            for mode, value in (("compile", "true"), ("graphs", "graphs"))
        ),
    ]


def peers_part(*, rehearsal: bool) -> GpuDayPart:
    """Return the comparison with lightly and LightlyTrain: BYOL with ResNet-50, or a tiny network on the CPU."""
    small = ("views.size=32", "model.head_hidden_dim=16", "train.device=cpu", "--images", "4", "--batch", "2")
    large = ("model.method=byol", "model.backbone=resnet50", "train.device=cuda", "--images", "256", "--batch", "128")
    words = (*small, "--rounds", "1") if rehearsal else large
    return GpuDayPart("peers", (*SIMFLE, "bench", "peers", *words, "--parts", "loader,step"))


def run(chosen: Sequence[GpuDayPart], out: Path, seconds: float, root: Path) -> list[Done]:
    """Run the parts that have not yet succeeded until `seconds` are over; return all finished parts, in order."""
    end, found = time.monotonic() + seconds, []
    for part in chosen:
        done = ended(out, part)
        left = end - time.monotonic()
        if (done is None or done.code != 0) and left > 0:
            done = run_part(part, out, min(LONGEST, left), root)
            file = out / f"{part.name}.json"
            replace_text(file, to_json(asdict(done), indent=1))
        if done is not None:
            found.append(done)
    return found


def run_part(part: GpuDayPart, out: Path, limit: float, root: Path) -> Done:
    """Run one command with its output in NAME.log; stop it after `limit` seconds."""
    words = [*part.command, *(("--out", str(out / f"{part.name}.figures.json")) if part.figures else ())]
    began, log = time.monotonic(), out / f"{part.name}.log"
    with log.open("w") as stream:
        try:
            code: int | None = subprocess.run(
                words, cwd=root, stdout=stream, stderr=subprocess.STDOUT, timeout=limit, check=False, env=_environment()
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    said = read_bytes(log).decode(errors="replace").strip().splitlines()
    return Done(part.name, code, round(time.monotonic() - began, 1), "\n".join(said[-12:]))


def _environment() -> dict[str, str]:
    """Return the environment of the commands, with network access to model hubs disabled."""
    return os.environ | {"HF_HUB_OFFLINE": "1"}


def ended(out: Path, part: GpuDayPart) -> Done | None:
    """Return the outcome of a part in an earlier run."""
    try:
        return Done(**loads_object(read_bytes(out / f"{part.name}.json")))
    except (OSError, ValueError, TypeError):
        return None


def figures(out: Path, part: GpuDayPart) -> dict[str, Any]:
    """Return the result of a benchmark, or nothing if it did not finish."""
    try:
        return json.loads(read_bytes(out / f"{part.name}.figures.json"))
    except (OSError, ValueError):
        return {}


def constants(out: Path, chosen: Sequence[GpuDayPart]) -> dict[str, float]:
    """Merge the results of all benchmarks for `simfle plan --constants`; keep the best rate over several batches."""
    found: dict[str, float] = {}
    for part in chosen:
        for name, value in figures(out, part).get("constants", {}).items():
            found[name] = max(value, found.get(name, 0.0))
    return found


def page(device: str, found: Sequence[Done], out: Path, chosen: Sequence[GpuDayPart]) -> str:
    """Return a Markdown page: the outcome of each part, the rates of each variant, and steps against the plan."""
    lines = [f"# On a {device}", "", "| part | ended | seconds |", "|---|---|---:|"]
    for done in found:
        code = {0: "well", None: "at its limit"}.get(done.code, f"with code {done.code}")
        lines.append(f"| {done.name} | {code} | {done.seconds:.1f} |")
    lines += ["", "| part | way | median |", "|---|---|---:|"]
    for part in chosen:
        for way, measured in figures(out, part).get("ways", {}).items():
            if "median" in measured:  # a rate of units, or the time of a repetition
                unit = "/s" if "items" in measured else " s"
                lines.append(f"| {part.name} | {way} | {measured['median']:.4g}{unit} |")
    rows = []
    for part in chosen:
        measured = figures(out, part)
        if "planned_memory_bytes" in measured:
            peak = f"{measured['memory_bytes'] / 1e9:.2f} GB" if "memory_bytes" in measured else "-"
            share = f"{measured['of_roofline']:.0%}" if "of_roofline" in measured else "-"
            rows.append(f"| {part.name} | {peak} | {measured['planned_memory_bytes'] / 1e9:.2f} GB | {share} |")
    if rows:
        lines += ["", "| part | peak memory | planned | share of the roofline |", "|---|---:|---:|---:|", *rows]
    return "\n".join(lines) + "\n"
