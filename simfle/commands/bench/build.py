"""`simfle bench build`: speed of building shards, compared with webdataset's ShardWriter on the same images."""

import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shards.redact import to_json
from simfle.commands.app import Figures, command, echo
from simfle.errors import UserError

if TYPE_CHECKING:
    from shards.build.spec import BuildSpec
    from shards.entry import Entry

VARIANTS = {
    "decode": "only read and decode strictly",
    "ours": "shards with every check: strict decode, conversion to RGB, sha256, fsync, resumable",
    "ours unchecked": "the same plan and tars with sha256, from the files' bytes, without decoding the image",
    "webdataset": "webdataset's ShardWriter copying the files' bytes: no check, no hash, no fsync",
    "again": "ours on finished shards: only listing and digest, because a rerun skips complete shards",
}


@dataclass(frozen=True)
class BuildTask:
    """Images and output folder. The folder is deleted before each round; within a round, `again` reuses it."""

    files: tuple[Path, ...]
    folder: Path
    shard_samples: int
    workers: int

    def entries(self) -> "list[Entry]":
        """List the images as a source does."""
        from shards.entry import Entry

        return [Entry(f"{number:06d}", file.name, file) for number, file in enumerate(self.files)]

    def request(self) -> "BuildSpec":
        """Return the build specification."""
        from shards.build.spec import BuildSpec

        return BuildSpec(self.folder / "ours", "bench", {}, shard_samples=self.shard_samples, workers=self.workers)


def bench_build(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="folder of images (default: synthetic faces)")
    ] = None,
    images: Annotated[int, typer.Option(help="maximum number of images, spread evenly over DIR")] = 2000,
    rounds: Annotated[int, typer.Option(help="number of rounds; each variant runs once per round")] = 5,
    workers: Annotated[int, typer.Option(help="number of processes for `ours`; the other variants use one")] = 1,
    rgb: Annotated[
        bool, typer.Option("--rgb", help="convert the images to RGB JPEGs first, so that `ours` keeps them as is")
    ] = False,
    shard_samples: Annotated[int, typer.Option(help="images per shard")] = 1024,
    scratch: Annotated[
        Path | None, typer.Option(help="folder for temporary files (default: the system's temporary folder)")
    ] = None,
    out: Figures = None,
) -> None:
    """Measure images per second and per CPU second: medians over rounds, all variants alternating on the same
    images."""
    if images < 1 or rounds < 1 or workers < 1:
        raise UserError("--images, --rounds and --workers must be at least 1. Fix: raise them.")
    with tempfile.TemporaryDirectory(prefix="bench_build-", dir=scratch) as made:
        folder = Path(made)
        files = _pick(directory, images) if directory else _draw(folder / "drawn", images)
        if rgb:
            files = _rgb(folder / "rgb", files)
        task = BuildTask(tuple(files), folder / "out", shard_samples, workers)
        figures = measure(task, rounds)
    _show(figures)
    if out is not None:
        out.write_text(to_json(figures, indent=1) + "\n")
        echo(f"results: {out}")


def _pick(directory: Path, images: int) -> list[Path]:
    """Select images evenly from the whole folder; the selection is deterministic."""
    from shards.sources.generic.folder import EXTENSIONS, walk

    if not directory.is_dir():
        raise UserError(f"DIR={directory}: not a folder. Fix: name a folder of images.")
    every = [directory / name for name in walk(directory) if Path(name).suffix.lower() in EXTENSIONS]
    if not every:
        raise UserError(f"DIR={directory}: no images found. Fix: name a folder of images.")
    count = min(images, len(every))
    return [every[number * len(every) // count] for number in range(count)]


def _draw(folder: Path, images: int) -> list[Path]:
    """Write at most 64 distinct synthetic faces, repeated as needed, because only the time per file matters."""
    from shards.sources.synthetic.procedural import draw

    folder.mkdir()
    drawn = [draw(0, person, 0, 224) for person in range(min(images, 64))]
    files = [folder / f"{number:06d}.jpg" for number in range(images)]
    for number, file in enumerate(files):
        file.write_bytes(drawn[number % len(drawn)])
    return files


def _rgb(folder: Path, files: Sequence[Path]) -> list[Path]:
    from shards.imaging.codec import EncodeOptions, encode

    folder.mkdir()
    made = [folder / f"{number:06d}.jpg" for number in range(len(files))]
    for file, target in zip(files, made, strict=True):
        target.write_bytes(encode(file.read_bytes(), EncodeOptions()).jpeg)
    return made


def measure(task: BuildTask, rounds: int) -> dict[str, Any]:
    """Run one warm-up round, then `rounds` measured ones, in a fixed order. Return the results as plain JSON."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    bytes_kept = 0
    for number in range(rounds + 1):
        shutil.rmtree(task.folder, ignore_errors=True)
        task.folder.mkdir(parents=True)
        for name in VARIANTS:
            run = _variants(task)[name]
            cpu, wall = _cpu(), time.perf_counter()
            result = run()
            spent = {"cpu": _cpu() - cpu, "wall": time.perf_counter() - wall}
            if name == "ours":
                bytes_kept = result
            if number:
                turns[name].append(spent)
    count = len(task.files)
    return {
        "images": count,
        "bytes": sum(file.stat().st_size for file in task.files),
        "bytes_kept": bytes_kept,
        "workers": task.workers,
        "rounds": rounds,
        "ways": {
            name: {"what": VARIANTS[name], "turns": turns[name]} | _rates(turns[name], count) for name in VARIANTS
        },
        "machine": _machine(),
    }


def _rates(turns: list[dict[str, float]], count: int) -> dict[str, dict[str, float]]:
    """Return the median, lowest and highest images per CPU second and per wall-clock second."""
    rates = {}
    for clock in ("cpu", "wall"):
        each = [count / turn[clock] for turn in turns]
        rates[clock] = {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}
    return rates


def _cpu() -> float:
    """Return the CPU seconds of this process and of its terminated children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


def _variants(task: BuildTask) -> dict[str, Callable[[], int]]:
    return {
        "decode": lambda: _decode(task),
        "ours": lambda: _ours(task),
        "ours unchecked": lambda: _unchecked(task),
        "webdataset": lambda: _webdataset(task),
        "again": lambda: _again(task),
    }


def _decode(task: BuildTask) -> int:
    from shards.imaging.codec import EncodeOptions, decode

    options = EncodeOptions()
    return sum(bool(decode(file.read_bytes(), options).pixels.size) for file in task.files)


def _ours(task: BuildTask) -> int:
    from shards.build.builder import build

    return build(task.request(), task.entries(), lambda *_: None).bytes_kept


def _again(task: BuildTask) -> int:
    from shards.build.builder import build

    report = build(task.request(), task.entries(), lambda *_: None)
    if not report.up_to_date:
        raise RuntimeError("the shards of the previous variant are missing")
    return report.manifest.samples


def _unchecked(task: BuildTask) -> int:
    """Do the work of `ours` without decoding; the difference in time is the cost of the checks."""
    from contextlib import closing

    from shards.build.plan import BuildPlan, make_plan
    from shards.build.shard_task import read_entry_bytes, to_tar_members
    from shards.format.index import write_index
    from shards.format.tar_writer import TarShardWriter
    from shards.imaging.codec import EncodedImage
    from shards.imaging.face_crops import FaceSample
    from shards.rules import EntryRules

    folder = task.folder / "unchecked"
    folder.mkdir()
    make_plan(folder / "plan.sqlite", task.entries(), EntryRules(), {}, task.shard_samples)
    written = 0
    with closing(BuildPlan(folder / "plan.sqlite")) as plan:
        for shard in plan.shards():
            tar = TarShardWriter(folder / f"{shard.name}.tar")
            for planned in plan.entries(shard):
                face = FaceSample(EncodedImage(read_entry_bytes(planned.entry), 0, 0, bytes_kept=True), planned.entry)
                tar.add(planned.key, to_tar_members(planned.key, face, {}))
                written += 1
            write_index(folder / f"{shard.name}.idx", tar.finish().index)
    return written


def _webdataset(task: BuildTask) -> int:
    import webdataset

    folder = task.folder / "webdataset"
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=task.shard_samples, verbose=0) as writer:
        for entry in task.entries():
            known = {"key": entry.key, "source": entry.source}
            writer.write({"__key__": entry.key, "jpg": Path(str(entry.read)).read_bytes(), "json": known})
    return len(task.files)


def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "cpu": next(_cpu_names(), platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    } | {name: version(name) for name in ("simplejpeg", "pillow", "webdataset")}


def _cpu_names() -> Iterator[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return
    yield from islice((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), 1)


def _show(figures: dict[str, Any]) -> None:
    from rich.table import Table

    from simfle.runtime.console import Console

    table = Table(title="images per CPU second and per second: median (lowest to highest)", title_justify="left")
    table.add_column("way")
    for clock in ("CPU", "clock"):
        table.add_column(clock, justify="right")
    for name, way in figures["ways"].items():
        cells = ("{median:,.0f} ({lowest:,.0f} to {highest:,.0f})".format(**way[clock]) for clock in ("cpu", "wall"))
        table.add_row(name, *cells)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for name, way in figures["ways"].items():
        console.print(f"{name}: {way['what']}")
    size = figures["bytes"] / figures["images"] / 1000
    console.print(
        f"{figures['images']} images of {size:.1f} kB, {figures['bytes_kept']} kept as is, the others re-encoded; "
        f"{figures['rounds']} rounds; load average {figures['machine']['load']:.1f} on "
        f"{figures['machine']['cores']} cores"
    )


main = command(bench_build)
