"""Startup time of commands, and of a run to its first step."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from simfle.bench.runs import Measurement, run_once
from simfle.config.overrides import format_override

# A small model with all parts.
SMALL = """
    views.size=64 views.face_size=64 model.backbone=resnet10t model.hidden=64 model.projection=32 model.groups=4
    model.facemae.patch=8 model.facemae.width=48 model.facemae.depth=1 model.facemae.heads=3
    model.facemae.decoder_width=32 model.facemae.decoder_depth=1 model.facemae.decoder_heads=2
    train.global_batch=16 train.steps=1 train.log_every=1 train.images_every=0
""".split()  # noqa: SIM905 - one line per room of the config reads better than twenty quoted words
HELP, CHECK, DRY, FIRST = 0.5, 2.0, 2.0, 15.0  # targets, seconds


def measure(names: Sequence[Sequence[str]], faces: Path, folder: Path, rounds: int) -> dict[str, Measurement]:
    """Time one warm-up turn of each command, then rounds with one turn of each.

    names: subcommands, as words; faces: shards; folder: for runs, must be empty.
    """
    ours = [sys.executable, "-m", "simfle"]
    data = format_override("data.shards", [faces])
    commands = {f"{' '.join(name)} --help": ([*name, "--help"], HELP, 0) for name in names}
    commands["a wrong value refused"] = (["pretrain", data, "train.zero_stage=7"], CHECK, 1)
    commands["checked, script of a job printed"] = (
        [
            "slurm",
            "pretrain",
            "--dry-run",
            data,
            format_override("train.run", f"{folder}/dry"),
            "train.global_batch=16",
        ],
        DRY,
        0,
    )
    found = {name: Measurement(" ".join(words), aim) for name, (words, aim, _) in commands.items()}
    found["first step"] = Measurement(
        "from the start of pretrain to the end of step 1; CPU to the end of the process", FIRST
    )
    for number in range(rounds + 1):
        for name, (words, _, code) in commands.items():
            seconds, cpu = run_once([*ours, *words], [code])
            if number:
                found[name].seconds.append(seconds)
                found[name].cpu.append(cpu)
        run = folder / f"run{number}"
        began = time.time()
        _, cpu = run_once([*ours, "pretrain", *SMALL, data, format_override("train.run", run), "train.device=cpu"], [0])
        if number:
            line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
            found["first step"].seconds.append(line["time"] - began)
            found["first step"].cpu.append(cpu)
    return found
