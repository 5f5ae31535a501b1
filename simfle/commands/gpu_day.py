"""`simfle bench gpu`: all measurements of a GPU on its first day, in twenty minutes."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.errors import UserError

ROOT = Path(__file__).parents[2]


def bench_gpu(
    out: Annotated[
        Path, typer.Option(help="folder for logs, figures and the page; rerun with the same folder to resume")
    ],
    minutes: Annotated[float, typer.Option(help="maximum minutes of all parts; each has at most 8", min=0.1)] = 20,
    only: Annotated[str, typer.Option(help="names of the parts to run, comma-separated (default: all)")] = "",
    rehearse: Annotated[bool, typer.Option("--rehearse", help="run on the CPU with a small network")] = False,
) -> None:
    """Tests, loader, step by batch, stage and compilation, training, checkpoint, profile, peers: gpu.md, gpu.json."""
    from simfle.runtime.entrypoint import gc_frozen_imports

    with gc_frozen_imports():
        import torch

        from simfle.bench import gpu_day, timing
        from simfle.plan.hardware import device_kind
    if not (ROOT / "tests" / "gpu").is_dir():
        raise UserError(f"{ROOT} has no tests/gpu. Fix: run python tools/gpu_day.py in a checkout.")
    if not rehearse and not torch.cuda.is_available():
        raise UserError("torch sees no GPU. Fix: repair the driver (simfle doctor), or add --rehearse.")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    gpu = "cpu" if rehearse else device_kind(torch.cuda.get_device_name()) or "h100"
    chosen = gpu_day.parts(out / "faces", rehearsal=rehearse, gpu=gpu)
    names = [part.name for part in chosen]
    wanted = [word for word in only.split(",") if word]
    if unknown := [word for word in wanted if word not in names]:
        raise UserError(f"--only={unknown[0]}: unknown part. Fix: choose from {', '.join(names)}.")
    chosen = [part for part in chosen if not wanted or part.name in wanted]
    found = gpu_day.run(chosen, out, minutes * 60, ROOT)
    device = "CPU, a rehearsal" if rehearse else torch.cuda.get_device_name()
    (out / "gpu.md").write_text(gpu_day.page(device, found, out, chosen))
    ways = {part.name: gpu_day.figures(out, part).get("ways", {}) for part in chosen if part.figures}
    parts = {done.name: {"code": done.code, "seconds": done.seconds} for done in found}
    about = timing.machine(torch.device("cpu" if rehearse else "cuda"))
    known = gpu_day.constants(out, chosen)
    timing.save(
        {"device": device, "parts": parts, "ways": ways, "constants": known, "machine": about}, out / "gpu.json"
    )
    for done in found:
        if done.code:
            echo(f"{done.name}: exit code {done.code}: {done.words.splitlines()[-1] if done.words else 'no output'}")
    echo(f"{sum(done.code == 0 for done in found)} of {len(chosen)} parts succeeded; see {out / 'gpu.md'}")


main = command(bench_gpu)
