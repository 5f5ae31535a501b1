"""Startup time of commands, and of a run to its first step."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shards.io.atomic import read_bytes
from simfle.bench.runs import Measurement, run_once
from simfle.config.overrides import format_override
from simfle.runtime.run_files import parse_metrics

# A small model with all parts.
SMALL = """
    views.size=64 views.face_size=64 model.backbone=resnet10t model.head_hidden_dim=64 model.head_out_dim=32
    model.mask_groups=4
    model.facemae.patch_size=8 model.facemae.embed_dim=48 model.facemae.depth=1 model.facemae.num_heads=3
    model.facemae.decoder_embed_dim=32 model.facemae.decoder_depth=1 model.facemae.decoder_num_heads=2
    train.global_batch=16 train.steps=1 train.log_every=1 train.log_images_every=0
""".split()  # noqa: SIM905 - one line per room of the config reads better than twenty quoted words
HELP, CHECK, DRY, FIRST = 0.5, 2.0, 2.0, 15.0  # targets, seconds


def measure(names: Sequence[Sequence[str]], faces: Path, folder: Path, rounds: int) -> dict[str, Measurement]:
    """Time one warm-up repetition of each command, then rounds with one repetition of each command.

    names: subcommands, as words; faces: shards; folder: empty folder for runs.
    """
    ours = [sys.executable, "-m", "simfle"]
    data = format_override("data.shards", [faces])
    commands = {f"{' '.join(name)} --help": ([*name, "--help"], HELP, 0) for name in names}
    commands["an invalid value, refused"] = (["pretrain", data, "train.zero_stage=7"], CHECK, 1)
    commands["checks, and printing a job's script"] = (
        [
            "slurm",
            "pretrain",
            "--dry-run",
            data,
            format_override("train.run_dir", f"{folder}/dry"),
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
            seconds, cpu, _ = run_once([*ours, *words], [code])
            if number:
                found[name].seconds.append(seconds)
                found[name].cpu.append(cpu)
        run = folder / f"run{number}"
        began = time.time()
        _, cpu, _ = run_once(
            [*ours, "pretrain", *SMALL, data, format_override("train.run_dir", run), "train.device=cpu"], [0]
        )
        if number:
            line = parse_metrics(read_bytes(run / "metrics.jsonl"))[0]
            found["first step"].seconds.append(line["time"] - began)
            found["first step"].cpu.append(cpu)
    return found
