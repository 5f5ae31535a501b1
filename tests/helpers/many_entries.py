"""A build of as many entries as asked for, out of a few small images, and what it took: memory, time, as JSON.

By hand: PYTHONPATH=.:tests python tests/helpers/many_entries.py 1000000 2 /tmp/many
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.corpus_fixtures import encoded, picture
from shards.build.builder import build
from shards.build.spec import BuildSpec
from shards.edit.verify import verify
from shards.entry import Entry
from shards.rules import EntryRules

FILES = 16


@dataclass(frozen=True)
class Many:
    """Entries with labels, groups, boxes and landmarks; every fiftieth image is no image."""

    folder: Path
    count: int

    def __iter__(self) -> Iterator[Entry]:
        for number in range(self.count):
            name = f"person {number // 20:07d}/photo {number:09d}.jpg"
            yield Entry(
                key=name,
                source=name,
                read=self.folder / f"{number % FILES if number % 50 else 'none'}.jpg",
                label=("calm", "glad", "sad")[number % 3],
                group=f"person {number // 20}",
                box=(number % 7, 1.0, 20.0, 20.0),
                landmarks=((5.0, 6.0), (15.0, 6.0), (10.0, 12.0), (6.0, 18.0), (14.0, 18.0)),
            )


def peaks() -> dict[str, float]:
    """Most memory that was resident at once, MB: of this process, and of the largest of those that it started."""
    # VmHWM, for ru_maxrss also counts the process that started this one, up to its exec.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"parent": int(status["VmHWM"].split()[0]) / 1024, "worker": worker / 1024}


def main(count: int, workers: int, folder: Path) -> None:
    """Build, build again, verify."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(FILES):
        (folder / f"{number}.jpg").write_bytes(encoded(picture(number, 24)))
    (folder / "none.jpg").write_bytes(b"none")
    request = BuildSpec(folder / "out", "many", {}, rules=EntryRules(val_fraction=0.1), workers=workers)
    figures: dict[str, object] = {"entries": count, "workers": workers, "base MB": peaks()}
    for stage in ("build", "again"):
        cpu, wall = time.process_time(), time.perf_counter()
        report = build(request, Many(folder, count), lambda *_: None)
        figures[stage] = {"s": time.perf_counter() - wall, "parent's CPU s": time.process_time() - cpu, "MB": peaks()}
    manifest = report.manifest
    rejected = sum(manifest.rejected.values())
    if not report.up_to_date or manifest.entries != count or manifest.samples + rejected != count:
        raise RuntimeError(f"{manifest.entries} entries, {manifest.samples} samples, {rejected} rejected")
    figures |= {"samples": manifest.samples, "shards": len(manifest.shards)}
    figures |= {"problems": verify(request.out, 0.01, 1, lambda _: None).problems, "verified MB": peaks()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
