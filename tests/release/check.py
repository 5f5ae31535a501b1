"""`make release-check`: what would be published, used as its users will: outside of the checkout, from the wheel alone.

Builds sdist and wheel of what git holds, installs the wheel into a fresh environment that sees this one's libraries (so
nothing is downloaded) but not the checkout, and goes from drawn faces to a report there.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = ["train.steps=3", "train.global_batch=16", "train.log_images_every=0", "train.device=cpu"]
DRAWN = ["--people", "8", "--images-per-person", "7", "--size", "64"]
QUICK = "configs/pretrain/quickstart.yaml"
LINES = [
    ["simfle", "--version"],
    ["simfle", "--help"],
    ["simfle", "doctor"],
    ["simfle", "shards", "build", "procedural", "shards/faces", *DRAWN],
    ["simfle", "shards", "verify", "shards/faces"],
    ["simfle", "pretrain", QUICK, "data.shards=[shards/faces]", "train.run_dir=runs/first", *SMALL],
    ["simfle", "export", "runs/first"],
    ["simfle", "embed", "shards/faces", "runs/first", "features.npz"],
    ["simfle", "evaluate", "configs/eval/quick.yaml", "--run", "runs/first", "shards=[shards/faces]", "protocols=[knn]",
     "seeds=[0]", "bootstrap_samples=20"],
    ["simfle", "report", "runs/first"],
    ["simfle", "watch", "runs/first", "--once"],
]  # fmt: skip
MADE = (
    "shards/faces/manifest.json",
    "runs/first/export/online/backbone.safetensors",
    "features.npz",
    "runs/first/report.html",
)


def build(folder: Path) -> tuple[Path, Path]:
    """Sdist and wheel of HEAD; the wheel is made from the sdist."""
    tree = folder / "tree"
    tree.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "x", "-C", tree], input=archive, check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", tree]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tree)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


def install(wheel: Path, place: Path) -> Path:
    """A fresh environment with the wheel and, behind it, the libraries of this one; its folder of programs."""
    venv.create(place, with_pip=True)
    python = place / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    # Its .pth files are not read from here, so the checkout that is installed there is not seen.
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


def main() -> None:
    """All of it; an error ends it."""
    with tempfile.TemporaryDirectory(prefix="simfle-release-") as name:
        folder = Path(name)
        sdist, wheel = build(folder)
        for file in (sdist, wheel):
            print(f"{file.name}: {file.stat().st_size / 1e3:.0f} kB")
        version = wheel.name.split("-")[1]
        assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(), f"CHANGELOG.md says nothing of {version}"
        with tarfile.open(sdist) as archive:
            assert any(member.endswith("configs/eval/quick.yaml") for member in archive.getnames())
        programs = install(wheel, folder / "environment")
        here = folder / "elsewhere"
        here.mkdir()
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        own["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
        where = "import simfle, shards; print(simfle.__file__); print(shards.__file__)"
        found = subprocess.run(
            [programs / "python", "-c", where], cwd=here, env=own, check=True, capture_output=True, text=True
        ).stdout
        assert all(line.startswith(str(folder / "environment")) for line in found.splitlines()), found
        for line in LINES:
            print("\n$ " + " ".join(line), flush=True)
            done = subprocess.run(
                [programs / line[0], *line[1:]], cwd=here, env=own, check=True, stdout=subprocess.PIPE, text=True
            )
            print(done.stdout, flush=True)
            assert "\x1b" not in done.stdout, "colors in a pipe"
        for made in MADE:
            assert (here / made).stat().st_size, made
        print(f"\n{wheel.name} works by itself")


if __name__ == "__main__":
    main()
