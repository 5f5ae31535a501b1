"""`simfle bench wheels`: wheels to install simfle on a GPU machine without a network."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.errors import UserError

ROOT = Path(__file__).parents[2]


def collect_wheels(
    out: Annotated[Path, typer.Option(help="folder for the wheels")],
    extras: Annotated[str, typer.Option(help="extras of simfle to install on the machine")] = "dali,dev",
    present: Annotated[str, typer.Option(help="packages that the machine already has, comma-separated")] = "",
) -> None:
    """Download simfle's requirements at the tested versions, and build simfle's wheel."""
    constraints = ROOT / "constraints.txt"
    if not constraints.is_file():
        raise UserError(f"{constraints} does not exist. Fix: run this command from a checkout.")
    pip = [sys.executable, "-m", "pip"]
    place = ["--constraint", str(constraints), f"{ROOT}[{extras}]" if extras else str(ROOT)]
    done = subprocess.run([*pip, "wheel", "--wheel-dir", str(out), *place], check=False)
    if done.returncode:
        raise UserError(f"pip exited with code {done.returncode}. Fix: see its output above.")
    left_out = {name.strip().lower().replace("-", "_") for name in present.split(",") if name.strip()}
    wheels = sorted(out.glob("*.whl"))
    for wheel in wheels:
        if wheel.name.split("-")[0].lower() in left_out:
            wheel.unlink()
    kept = sorted(out.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in kept)
    echo(f"{len(kept)} wheels, {size / 1e9:.2f} GB, in {out}")
    echo(f"on the machine: pip install --no-index --find-links {out.name} 'simfle{f'[{extras}]' if extras else ''}'")


main = command(collect_wheels)
