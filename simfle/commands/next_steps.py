"""Commands to run next, printed after each step: they fit the data's size, splits and labels, and this machine."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simfle.commands.app import echo
from simfle.config.overrides import format_override, shell_line
from simfle.errors import UserError

if TYPE_CHECKING:
    from shards.format.manifest import Manifest

TRAIN, VAL, TEST = "train", "val", "test"
# Configurations in configs/pretrain, with the number of images from which they are suggested.
TINY, TINY_BATCH = "quickstart", 64
SMALL, SMALL_IMAGES = "faces_cpu", 1_000
PAPER, PAPER_IMAGES = "simfle_resnet50", 2_560  # ten steps of 256 per epoch; only with a GPU
MOST_ON_CPU, CPU_STEPS = 20_000, 2_000  # images from which SMALL's epochs take many hours on a CPU; steps instead
QUICK = "configs/eval/quick.yaml"
FEWEST = 2  # images of a batch: BatchNorm needs several


def show_next(commands: Sequence[str]) -> None:
    """Print commands, one per line."""
    for number, line in enumerate(commands):
        echo(f"{'      ' if number else 'next: '}{line}")


def show_pretraining(shards: Path | str, manifest: "Manifest", *before: str) -> None:
    """Print the commands `before` and the one that pretrains on shards."""
    show_next([*before, *pretrain_commands(shards, manifest, has_gpu())])
    if not has_gpu() and sizes(manifest)[TRAIN] >= PAPER_IMAGES:
        echo(f"note: a small network, since this machine has no GPU; with GPUs, use {_config(PAPER)}")


def has_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU that is not hidden from this process; without importing torch."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1") and any(Path("/dev").glob("nvidia[0-9]*"))


def sizes(manifest: "Manifest") -> Counter[str]:
    """Return split -> number of samples."""
    counts: Counter[str] = Counter()
    for shard in manifest.shards:
        counts[shard.split] += shard.samples
    return counts


def pretrain_commands(shards: Path | str, manifest: "Manifest", gpu: bool) -> list[str]:
    """Return the command that pretrains on shards; none for too few images. gpu: whether there is one to train on."""
    counts = sizes(manifest)
    split = TRAIN if counts[TRAIN] else max(counts, key=lambda name: counts[name], default=TRAIN)
    images = counts[split]
    if images < FEWEST:
        return []
    words = [format_override("data.shards", [shards]), format_override("train.run_dir", _free_run(str(shards)))]
    if split != TRAIN:
        words.append(format_override("data.splits", [split]))
    if gpu and images >= PAPER_IMAGES:
        return [_pretrain(PAPER, words)]
    if images < SMALL_IMAGES:
        batch = min(TINY_BATCH, 1 << (images.bit_length() - 1))  # the largest power of two: processes can share it
        return [_pretrain(TINY, words + [f"train.global_batch={batch}"] * (batch < TINY_BATCH))]
    steps = [f"train.steps={CPU_STEPS}"] * (images > MOST_ON_CPU and not gpu)
    return [_pretrain(SMALL, words + steps)]


def refuse_folder(place: Path, command: str) -> None:
    """Raise UserError with the right command if a folder stands in the place of a configuration file."""
    from shards.format.manifest import NAME, read_manifest

    if not place.is_dir():
        return
    build = shell_line("simfle", "shards", "build", "folder", place, Path("data") / place.resolve().name)
    if (place / "checkpoints").is_dir():
        lines = [shell_line("simfle", command, place / "config.yaml")] if command == "pretrain" else []
        lines = lines or [shell_line("simfle", "evaluate", QUICK, "--run", place, "shards=[SHARDS]")]
    elif not (place / NAME).is_file():
        lines = [build]
    elif command == "pretrain":
        lines = pretrain_commands(place, read_manifest(place), has_gpu())
    else:
        lines = [shell_line("simfle", "evaluate", QUICK, "--run", "RUN", format_override("shards", [place]))]
    raise UserError(f"config={place}: a folder, not a YAML file. Fix: run {' or '.join(lines or [build])}.")


def after_pretraining(run: Path, places: Sequence[str]) -> list[str]:
    """Return the commands for a run on shards: embed them and, if they have labels, evaluate.

    places: data.shards of the run; nothing is suggested for URLs and for tars without a manifest.
    """
    from shards.format.manifest import NAME, read_manifest

    folders = [Path(place) for place in places]
    if not folders or not all((folder / NAME).is_file() for folder in folders):
        return []
    manifests = [read_manifest(folder) for folder in folders]
    embed = shell_line("simfle", "embed", folders[0], run, run / "features.npz")
    if len({manifest.labels for manifest in manifests}) > 1 or not manifests[0].labels:
        return [embed]
    return [embed, *_evaluate(run, folders, sum(map(sizes, manifests), Counter()))]


def _evaluate(run: Path, folders: list[Path], counts: Counter[str]) -> list[str]:
    """Return the command that evaluates a run on labeled shards; before it the one that splits them, if needed."""
    first, words = [], []
    if counts[TRAIN] and counts[TEST]:
        words = [f"val_split={VAL}"] * bool(counts[VAL])
    elif counts[TRAIN] and counts[VAL]:
        words = [f"test_split={VAL}"]
    elif len(folders) > 1:
        return []
    else:
        shards = folders[0] if folders[0].name else folders[0].resolve()  # "." has no name
        folders = [shards.with_name(f"{shards.name}-split")]
        if not folders[0].exists():
            splits = f"{TRAIN}=0.8,{TEST}=0.2"
            first = [shell_line("simfle", "shards", "split", shards, folders[0], "--splits", splits)]
    command = ["simfle", "evaluate", QUICK, "--run", run, format_override("shards", folders)]
    return [*first, shell_line(*command, *words)]


def _pretrain(name: str, words: list[str]) -> str:
    return shell_line("simfle", "pretrain", _config(name), *words)


def _config(name: str) -> str:
    return f"configs/pretrain/{name}.yaml"


def _free_run(shards: str) -> Path:
    """Return a run folder named after the shards that does not exist yet: another run's folder would be refused."""
    name = Path(shards).name or "simfle"
    found = (Path("runs") / (f"{name}-{number}" if number > 1 else name) for number in range(1, 1000))
    return next((run for run in found if not run.exists()), Path("runs") / name)
