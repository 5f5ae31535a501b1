"""tools/bench_build.py: how fast shards are built, beside webdataset's ShardWriter on the same images."""

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
    from shards.entry import Entry
    from shards.request import Build

WAYS = {
    "decode": "read and decode strictly, nothing else",
    "ours": "shards with every check: strict decode, grey and others made RGB, sha256, fsync, resumable",
    "ours unchecked": "the same plan and tars with sha256, from the files' bytes, without looking at the picture",
    "webdataset": "webdataset's ShardWriter copying the files' bytes: no check, no hash, no fsync",
    "again": "ours on finished shards: listing and digest, as a restarted build skips what stands",
}


@dataclass(frozen=True)
class Task:
    """The images and where to write. folder: removed and made again before each turn, but for `again`."""

    files: tuple[Path, ...]
    folder: Path
    shard_samples: int
    workers: int

    def entries(self) -> "list[Entry]":
        """The images as a source lists them."""
        from shards.entry import Entry

        return [Entry(f"{number:06d}", file.name, file) for number, file in enumerate(self.files)]

    def request(self) -> "Build":
        """The build."""
        from shards.request import Build

        return Build(self.folder / "ours", "bench", {}, shard_samples=self.shard_samples, workers=self.workers)


def bench_build(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of images; none: drawn faces.")
    ] = None,
    images: Annotated[int, typer.Option(help="Most images to take, from all over DIR.")] = 2000,
    rounds: Annotated[int, typer.Option(help="Rounds; in each every way has one turn.")] = 5,
    workers: Annotated[int, typer.Option(help="Processes of ours; the others have one.")] = 1,
    rgb: Annotated[
        bool, typer.Option("--rgb", help="Make RGB JPEGs of the images first, so that ours can keep them.")
    ] = False,
    shard_samples: Annotated[int, typer.Option(help="Images in a shard.")] = 1024,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder to write in; default: the system's temporary one.")
    ] = None,
    out: Figures = None,
) -> None:
    """Images per CPU second and per second, medians of several rounds, every way in turn on the same images."""
    if images < 1 or rounds < 1 or workers < 1:
        raise UserError("--images, --rounds and --workers must be at least 1")
    with tempfile.TemporaryDirectory(prefix="bench_build-", dir=scratch) as made:
        folder = Path(made)
        files = _pick(directory, images) if directory else _draw(folder / "drawn", images)
        if rgb:
            files = _rgb(folder / "rgb", files)
        task = Task(tuple(files), folder / "out", shard_samples, workers)
        figures = measure(task, rounds)
    _show(figures)
    if out is not None:
        out.write_text(to_json(figures, indent=1) + "\n")
        echo(f"figures: {out}")


def _pick(directory: Path, images: int) -> list[Path]:
    """Evenly from all over the folder, the same ones each time."""
    from shards.sources.folder import EXTENSIONS, walk

    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder")
    every = [directory / name for name in walk(directory) if Path(name).suffix.lower() in EXTENSIONS]
    if not every:
        raise UserError(f"no images in {directory}")
    count = min(images, len(every))
    return [every[number * len(every) // count] for number in range(count)]


def _draw(folder: Path, images: int) -> list[Path]:
    """A few drawn faces, as often as needed: what counts is the time for a file."""
    from shards.sources.procedural import draw

    folder.mkdir()
    drawn = [draw(0, person, 0, 224) for person in range(min(images, 64))]
    files = [folder / f"{number:06d}.jpg" for number in range(images)]
    for number, file in enumerate(files):
        file.write_bytes(drawn[number % len(drawn)])
    return files


def _rgb(folder: Path, files: Sequence[Path]) -> list[Path]:
    from shards.encode import EncodeOptions, encode

    folder.mkdir()
    made = [folder / f"{number:06d}.jpg" for number in range(len(files))]
    for file, target in zip(files, made, strict=True):
        target.write_bytes(encode(file.read_bytes(), EncodeOptions()).jpeg)
    return made


def measure(task: Task, rounds: int) -> dict[str, Any]:
    """One turn of each way to warm up, then `rounds` of them, always in the same order. The figures as plain JSON."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    untouched = 0
    for number in range(rounds + 1):
        shutil.rmtree(task.folder, ignore_errors=True)
        task.folder.mkdir(parents=True)
        for name in WAYS:
            run = _ways(task)[name]
            cpu, wall = _cpu(), time.perf_counter()
            result = run()
            spent = {"cpu": _cpu() - cpu, "wall": time.perf_counter() - wall}
            if name == "ours":
                untouched = result
            if number:
                turns[name].append(spent)
    count = len(task.files)
    return {
        "images": count,
        "bytes": sum(file.stat().st_size for file in task.files),
        "untouched": untouched,
        "workers": task.workers,
        "rounds": rounds,
        "ways": {name: {"what": WAYS[name], "turns": turns[name]} | _rates(turns[name], count) for name in WAYS},
        "machine": _machine(),
    }


def _rates(turns: list[dict[str, float]], count: int) -> dict[str, dict[str, float]]:
    """Images per second of CPU and of the clock: median, lowest, highest."""
    rates = {}
    for clock in ("cpu", "wall"):
        each = [count / turn[clock] for turn in turns]
        rates[clock] = {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}
    return rates


def _cpu() -> float:
    """Seconds of CPU of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


def _ways(task: Task) -> dict[str, Callable[[], int]]:
    return {
        "decode": lambda: _decode(task),
        "ours": lambda: _ours(task),
        "ours unchecked": lambda: _unchecked(task),
        "webdataset": lambda: _webdataset(task),
        "again": lambda: _again(task),
    }


def _decode(task: Task) -> int:
    from shards.encode import EncodeOptions, decode

    options = EncodeOptions()
    return sum(bool(decode(file.read_bytes(), options).pixels.size) for file in task.files)


def _ours(task: Task) -> int:
    from shards.build import build

    return build(task.request(), task.entries(), lambda *_: None).untouched


def _again(task: Task) -> int:
    from shards.build import build

    report = build(task.request(), task.entries(), lambda *_: None)
    if not report.already:
        raise RuntimeError("the shards of the turn before are not there")
    return report.manifest.samples


def _unchecked(task: Task) -> int:
    """What `ours` does but for decoding: the difference is the price of the checks."""
    from contextlib import closing

    from shards.encode import Encoded
    from shards.faces import Face
    from shards.index import write_index
    from shards.plan import Plan, make_plan
    from shards.rules import Rules
    from shards.work import load, sample
    from shards.writer import TarShard

    folder = task.folder / "unchecked"
    folder.mkdir()
    make_plan(folder / "plan.sqlite", task.entries(), Rules(), {}, task.shard_samples)
    written = 0
    with closing(Plan(folder / "plan.sqlite")) as plan:
        for shard in plan.shards():
            tar = TarShard(folder / f"{shard.name}.tar")
            for planned in plan.entries(shard):
                face = Face(Encoded(load(planned.entry), 0, 0, untouched=True), planned.entry)
                tar.add(planned.key, sample(planned.key, face, {}))
                written += 1
            write_index(folder / f"{shard.name}.idx", tar.finish().index)
    return written


def _webdataset(task: Task) -> int:
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

    from simfle.console import Console

    table = Table(title="images per second of CPU and of the clock: median (lowest to highest)", title_justify="left")
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
        f"{figures['images']} images of {size:.1f} kB, {figures['untouched']} kept as they are, others written anew; "
        f"{figures['rounds']} rounds; load of the machine {figures['machine']['load']:.1f} on "
        f"{figures['machine']['cores']} cores"
    )


main = command(bench_build)
