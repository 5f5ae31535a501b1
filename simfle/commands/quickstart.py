"""`simfle quickstart`: the full pipeline on one machine in minutes, in resumable stages."""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from shards.io.atomic import read_text
from shards.redact import to_json
from simfle.commands.app import command, echo
from simfle.config.overrides import format_override, shell_line
from simfle.config.schema import CONFIGS
from simfle.errors import UserError

ROOT = Path(__file__).parents[2]
# Subcommands of `python -m simfle ...`, used if there is no checkout (after pip install).
COMMANDS = {
    "tools/build_shards.py": ["shards", "build"],
    "launchers/pretrain.py": ["pretrain"],
    "tools/export_backbone.py": ["export"],
    "launchers/evaluate.py": ["evaluate"],
}
PEOPLE, IMAGES = 100, 21  # synthetic people and images per person
LEAST = 32  # minimum number of images for training
SAMPLE, SAMPLE_SIDE = 24, 96  # training images on the page, and their side in pixels
TEST_SHARE = 0.25
RARE = 20  # classes with fewer images are excluded from the probe


@dataclass(frozen=True)
class QuickstartStage:
    """One stage: its description, its commands, and the file or folder that exists when it is complete."""

    name: str
    does: str
    commands: list[list[str]]
    result: Path
    next: str


@dataclass
class QuickstartState:
    """OUT/quickstart.json: source of the data and completed stages. stages: name -> command lines and seconds."""

    file: Path
    data: str
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def is_done(self, stage: QuickstartStage) -> bool:
        """Return whether the same commands completed and their result still exists."""
        return self.stages.get(stage.name, {}).get("commands") == stage.commands and stage.result.exists()

    def finish(self, stage: QuickstartStage, seconds: float) -> None:
        """Record a stage as complete and the stages after it as incomplete."""
        from shards.io.atomic import write_atomic

        later = list(STAGES)[STAGES.index(stage.name) + 1 :]
        self.stages = {name: value for name, value in self.stages.items() if name not in later}
        self.stages[stage.name] = {"commands": stage.commands, "seconds": seconds}
        content = {"data": self.data, "stages": self.stages}
        write_atomic(self.file, (to_json(content, indent=1) + "\n").encode())


STAGES = ("shards", "pretrain", "export", "evaluate", "report")


def quickstart(
    out: Annotated[Path, typer.Option(help="output folder")] = Path("quickstart"),
    data: Annotated[
        Path | None,
        typer.Option(help="your own face images: a folder, or one folder per class (default: synthetic faces)"),
    ] = None,
    group_pattern: Annotated[
        str,
        typer.Option(
            help=r"regular expression that extracts the person from a path of --data, such as '^(.*)_\d+\.jpg$'"
        ),
    ] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="overrides for pretraining, e.g. train.steps=2000"),
    ] = None,
) -> None:
    """Run faces -> shards -> short pretraining -> backbone -> probe against random initialization -> HTML report.

    Takes a few minutes on two cores. A rerun skips completed stages.
    """
    record = _open(out, data)
    began = time.monotonic()
    layout = _layout(data, group_pattern) if data else Layout(labeled=True)
    stages = _stages(out, data, layout, group_pattern, overrides or [])
    for number, stage in enumerate(stages, 1):
        _run(stage, record, f"[{number}/{len(stages) + 1}]")
        if stage.name == "shards":
            _check_shards(out / "shards", data)
    _say(f"\n[{len(stages) + 1}/{len(stages) + 1}] report: losses, masks, reconstructions and results on one page")
    page = _report(out, data, layout, stages, record)
    _say(f"      result: {page}\n\nAll done in {time.monotonic() - began:.0f} s. Open {page} in a browser. Next:")
    for line in _next(out, data, group_pattern):
        _say(f"  {line}")


def _open(out: Path, data: Path | None) -> QuickstartState:
    """Return the record of this folder, or a new one. Raises UserError if the folder holds other files."""
    file = out / "quickstart.json"
    asked = str(data.resolve()) if data else "drawn faces"
    if data is not None and not data.is_dir():
        raise UserError(f"--data={data}: not a folder. Fix: name a folder of face images.")
    if file.is_file():
        try:
            found = json.loads(read_text(file))
            record = QuickstartState(file, found["data"], found["stages"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"--out={out}: {file} is corrupt. Fix: delete {out} or name another folder.") from None
        if record.data != asked:
            raise UserError(f"--out={out}: holds a quickstart on {record.data}. Fix: name another folder for {asked}.")
        return record
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out={out}: not empty and not a quickstart. Fix: name another folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: cannot be created: {error.strerror}. Fix: name another folder.") from None
    return QuickstartState(file, asked)


@dataclass(frozen=True)
class Layout:
    """Folder layout of the user's images. `flags` are the matching options of `simfle shards build`."""

    labeled: bool
    splits: bool = False
    flags: tuple[str, ...] = ()
    people: bool = True  # whether people are known, so that training and test share none
    test: str = "test"  # the split that the probe is tested on
    val: str = ""  # the split for model selection; empty: held out from train


def _layout(data: Path, group_pattern: str) -> Layout:
    """Infer class folders, split folders with class folders, or no labels from the names of the first folders."""
    from shards.rules import TEST, VAL
    from shards.sources.generic.folder import EXTENSIONS, walk
    from shards.sources.generic.layout import infer_layout

    paths = [path for path in walk(data) if Path(path).suffix.lower() in EXTENSIONS]
    if len(paths) < LEAST:
        raise UserError(f"--data={data}: only {len(paths)} images. Fix: add images, at least {LEAST} are needed.")
    found = infer_layout(paths)
    flags = ["--class-folders"] * found.class_folders + ["--split-folders"] * found.split_folders
    people = bool(group_pattern) or found.split_folders
    layout = Layout(found.class_folders, found.split_folders, tuple(flags), people)
    if VAL not in found.splits:
        return layout
    return replace(layout, val=VAL) if TEST in found.splits else replace(layout, test=VAL)


def _stages(
    out: Path, data: Path | None, layout: Layout, group_pattern: str, overrides: list[str]
) -> list[QuickstartStage]:
    shards, run = out / "shards", out / "run"
    backbone = run / "export/online/backbone.safetensors"
    if data is None:
        source = ["procedural", str(shards), "--people", str(PEOPLE), "--images-per-person", str(IMAGES)]
        does = f"generate {PEOPLE * IMAGES} faces of {PEOPLE} people with seven expressions; no photos, no download"
    else:
        source = ["folder", str(data), str(shards), *layout.flags]
        source += [] if layout.splits else ["--test-fraction", str(TEST_SHARE)]
        source += ["--group-pattern", group_pattern] if group_pattern else []
        does = f"check the images of {data} and write them to shards"
    build = [*_tool("tools/build_shards.py"), *source]
    words = [format_override("data.shards", [shards]), format_override("train.run_dir", run), *overrides]
    train = [*_tool("launchers/pretrain.py"), str(_shown(CONFIGS / "pretrain/quickstart.yaml")), *words]
    stages = [
        QuickstartStage(
            "shards",
            does,
            [build],
            shards / "manifest.json",
            f"{shell_line('tar', 'tf', shards / 'train-000000.tar')} | head",
        ),
        QuickstartStage(
            "pretrain",
            "train SimFLE on split train, without labels, with a small network and few steps",
            [train],
            run / "checkpoints",
            shell_line("tensorboard", "--logdir", run / "tensorboard"),
        ),
        QuickstartStage(
            "export",
            "write the backbones as files that timm and torchvision load",
            [[*_tool("tools/export_backbone.py"), str(run)]],
            backbone,
            f"timm.create_model(...).load_state_dict(safetensors.torch.load_file({str(backbone)!r}))",
        ),
    ]
    if layout.labeled:
        words = [format_override("shards", [shards]), format_override("out", run / "eval")]
        words += [f"min_class_count={RARE}"] if data else []
        words += [f"test_split={layout.test}"] if layout.test != Layout.test else []
        words += [f"val_split={layout.val}"] if layout.val else []
        evaluate = [*_tool("launchers/evaluate.py"), str(_shown(CONFIGS / "eval/quick.yaml"))]
        stages.append(
            QuickstartStage(
                "evaluate",
                f"linear probe and kNN on split {layout.test}, with randomly initialized backbones as baselines",
                [[*evaluate, "--backbone", str(backbone), *words]],
                run / "eval/summary.json",
                shell_line("less", run / "eval/summary.json"),
            )
        )
    return stages


def _tool(name: str) -> list[str]:
    """Return the path of a script in a checkout; in an installed package, its subcommand."""
    path = ROOT / name
    return [str(_shown(path))] if path.is_file() else ["-m", "simfle", *COMMANDS[name]]


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _run(stage: QuickstartStage, record: QuickstartState, number: str) -> None:
    """Print and run a stage's commands, unless the stage is complete."""
    _say(f"\n{number} {stage.name}: {stage.does}")
    if record.is_done(stage):
        _say(f"      already complete, result: {stage.result}")
        return
    began = time.monotonic()
    for words in stage.commands:
        _say(f"      $ python {shlex.join(words)}")
        done = subprocess.run([sys.executable, *words], check=False)
        if done.returncode:
            raise UserError(
                f"stage {stage.name} failed with exit code {done.returncode}, see above. Fix: correct the error above "
                "and rerun; completed stages are skipped."
            )
    seconds = time.monotonic() - began
    record.finish(stage, seconds)
    _say(f"      done in {seconds:.0f} s, result: {stage.result}\n      to inspect it: {stage.next}")


def _check_shards(shards: Path, data: Path | None) -> None:
    from shards.format.manifest import read_manifest

    manifest = read_manifest(shards)
    count = sum(shard.samples for shard in manifest.shards if shard.split == "train")
    if count < LEAST:
        raise UserError(
            f"--data={data}: only {count} usable training images, {LEAST} are needed. Fix: add images; "
            f"{shards}/rejected.jsonl lists the rejected ones."
        )


def _report(
    out: Path, data: Path | None, layout: Layout, stages: list[QuickstartStage], record: QuickstartState
) -> Path:
    from shards.edit.summary import draw_contact_sheet, summarize
    from simfle.report.report import Extras, write_report
    from simfle.report.report import ReportStage as Told

    sheet = out / "faces.png"
    sample = summarize(out / "shards", ["train"], SAMPLE, 0, lambda *_: None)
    draw_contact_sheet(out / "shards", sample, SAMPLE_SIDE, keys=False).save(sheet, "PNG")
    caption = f"{len(sample.sheet)} training images, chosen at random, with their labels. "
    if data is None:
        caption += "All faces are synthetic: identity, pose, light and expression vary. Each person is in one split."
    else:
        caption += "This page contains images of faces: share it accordingly."
    note = "" if layout.labeled else "The images are not in class folders: there are no labels and no probe."
    if layout.labeled and not layout.people:
        caption += " People are not known, so one person may be in both training and test; set --group-pattern."
    extras = Extras(
        title="SimFLE quickstart",
        opening="From faces to a pretrained and evaluated backbone on one machine, in minutes. The small network was "
        "trained for a few steps. This page shows that the pipeline works; its numbers are not results to quote.",
        stages=[
            Told(stage.name, stage.does, str(stage.result), record.stages.get(stage.name, {}).get("seconds"))
            for stage in stages
        ],
        commands=[f"python {shlex.join(words)}" for stage in stages for words in stage.commands],
        sample=sheet,
        sample_caption=caption,
        note=note,
    )
    (page,) = write_report([out / "run"], out / "report.html", shards=[str(out / "shards")], extras=extras)
    return page


def _next(out: Path, data: Path | None, group_pattern: str) -> list[str]:
    """Return suggestions for next commands."""
    lines = [] if data else ["make quickstart DATA=path/to/faces OUT=mine    on your own images"]
    again = ["simfle", "quickstart", "--out", f"{out}2", *(["--data", str(data)] if data else [])]
    again += ["--group-pattern", group_pattern] if group_pattern else []
    embed = shell_line("simfle", "embed", out / "shards", out / "run", "features.npz")
    return [
        *lines,
        f"{shlex.join(again)} train.steps=2000    train longer",
        f"{embed}    write features and keys of every image",
        "simfle shards build --help    build shards of a corpus for full pretraining",
        "simfle pretrain --processes 2 CONFIG data.shards=[SHARDS]    train on several GPUs",
    ]


def _say(text: str) -> None:
    echo(text)
    sys.stdout.flush()


main = command(quickstart)
