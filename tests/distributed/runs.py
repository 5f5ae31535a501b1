"""Start real pretraining runs, inject faults, and read their files."""

import json
import subprocess
import sys
import time
from pathlib import Path

from distributed.launch import ROOT, environment

from simfle.runtime.ports import free_port

# Takes seconds on a core. Four groups with a small loss weight: the gradient of that loss is so steep that rounding
# errors would change the loss curve within three steps.
SETTINGS = """
    views.size=64 views.face_size=64 model.backbone=resnet10t model.head_hidden_dim=64 model.head_out_dim=32
    model.mask_groups=4
    model.facemae.patch_size=8 model.facemae.embed_dim=48 model.facemae.depth=1 model.facemae.num_heads=3
    model.facemae.decoder_embed_dim=32 model.facemae.decoder_depth=1 model.facemae.decoder_num_heads=2
    train.global_batch=16 train.precision=fp32 train.device=cpu train.log_every=1 train.log_images_every=0
    data.canonical_streams=8 data.decode_threads=1 data.backend=opencv
""".split()  # noqa: SIM905 - one line per config section is more readable than twenty quoted words


def command(processes: int, faces: Path, run: Path, *settings: str) -> list[str]:
    """Return the command that a user types: accelerate launch for several processes, plain python for one."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "accelerate.commands.launch", "--use_deepspeed", "--num_processes", str(processes)]
        start += ["--main_process_port", str(free_port())]
    places = [f"data.shards=[{faces}]", f"train.run_dir={run}"]
    return [*start, "launchers/pretrain.py", *SETTINGS, *places, *settings]


def start(processes: int, faces: Path, run: Path, *settings: str) -> "subprocess.Popen[str]":
    own = environment(DS_ACCELERATOR="cpu")
    pipe = subprocess.PIPE
    words = command(processes, faces, run, *settings)
    return subprocess.Popen(
        words, cwd=ROOT, env=own, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(processes: int, faces: Path, run: Path, *settings: str, code: int = 0) -> str:
    """Run to the end and return the printed output."""
    process = start(processes, faces, run, *settings)
    output, _ = process.communicate(timeout=800)
    assert process.returncode == code, f"exit code {process.returncode}\n{output[-4000:]}"
    return output


def metrics(run: Path) -> list[dict]:
    """Return the lines of metrics.jsonl so far."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def losses(run: Path) -> list[dict[str, float]]:
    return [line["losses"] for line in metrics(run)]


def wait_for_step(process: "subprocess.Popen[str]", run: Path, step: int, seconds: float = 120) -> None:
    """Wait until the run has logged `step`."""
    end = time.monotonic() + seconds
    while not any(line["step"] >= step for line in metrics(run)):
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < end, f"step {step} not reached"
        time.sleep(0.05)


def samples(run: Path) -> dict[int, list[tuple[int, int]]]:
    """Return per step (sample id, checksum of its pixels and draws) in the order of the global batch's slots.

    A step done twice, before and after a kill, must be identical.
    """
    parts: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for file in sorted((run / "samples").glob("rank-*.jsonl")):
        rank = int(file.stem.split("-")[1])
        for text in file.read_text().splitlines():
            if not text.endswith("}"):
                continue  # truncated by a kill
            line = json.loads(text)
            place = (line["step"], rank, line["micro"])
            pairs = list(zip(line["ids"], line["crcs"], strict=True))
            assert parts.setdefault(place, pairs) == pairs, f"{place} was not the same when done again"
    steps: dict[int, list[tuple[int, int]]] = {}
    for (step, _, _), pairs in sorted(parts.items()):
        steps.setdefault(step, []).extend(pairs)
    return steps
