"""Pretraining and evaluation as functions, with the commands' configurations."""

import gc
import itertools
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import UserError
from shards.format.manifest import NAME, REJECTED
from shards.io.atomic import expand_home
from shards.io.urls import is_url
from shards.reading.dataset import ShardDataset
from simfle.config.schema import CONFIGS, PretrainConfig, load
from simfle.errors import RunStopped
from simfle.runtime import run_files

if TYPE_CHECKING:
    from simfle.eval.analysis.summary import Summary

log = logging.getLogger(__name__)


def pretrain(
    data: "str | Path | ShardDataset | Sequence[str | Path | ShardDataset]",
    out: str | Path,
    *,
    config: str | Path | None = None,
    processes: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Pretrain on `data` in the run folder `out`; return the backbone's file for `load_backbone` and `embed`.

    Args:
        data: shards (a folder, a URL or a result of `shards.open`, or several), or a folder of images, from which
            shards are built in OUT/shards first.
        out: run folder.
        config: YAML file (default: configs/pretrain/simfle_resnet50.yaml, the paper's recipe).
        processes: 1 trains in this process; larger numbers start processes on this machine, one per GPU or sharing its
            cores.
        settings: configuration values by dotted name: {"train.steps": 1000, "model.backbone": "resnet18"}.

    Call again with the same arguments to resume; for a finished run, only the export is repeated.

    Raises:
        UserError: an invalid setting, invalid data or folder; a failed process; or this process is one of several.
        RunStopped: a signal or train.stop_after_step stopped the run early; a checkpoint is saved.
        KeyboardInterrupt: Ctrl-C before there was a state to save, or a second Ctrl-C.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            "simfle.pretrain: a launcher started this script as one of several processes. Fix: start it once with "
            "processes=N, or launch -m simfle pretrain."
        )
    _refuse(settings, {"train.run_dir": "out", "data.shards": "data"})
    run = expand_home(out)
    names = ("shards" if number == 0 else f"shards{number}" for number in itertools.count())
    shards = [_as_shards(place, run / name) for place, name in zip(_several(data), names, strict=False)]
    words = [f"data.shards={_written(shards)}", f"train.run_dir={_written(str(run))}"]
    words += [f"{name}={_written(value)}" for name, value in (settings or {}).items()]
    file = Path(config) if config is not None else CONFIGS / "pretrain" / "simfle_resnet50.yaml"
    resolved = load(PretrainConfig, file, words)  # refused here instead of in each process
    from simfle.runtime.distributed import preserve_process_state

    with preserve_process_state():
        return _train_and_export(resolved, processes)


def _train_and_export(config: PretrainConfig, processes: int) -> Path:
    from simfle.export.timm import export_backbones, newest_checkpoint
    from simfle.train.pretrain import pretrain as train

    if processes == 1:
        try:
            train(config)
        finally:
            gc.collect()  # cycles hold DeepSpeed's engine with its memory and sockets
    else:
        _launch(config, processes)
    run = Path(config.train.run_dir)
    step, steps = run_files.step_from_name(newest_checkpoint(run)) or 0, run_files.planned_steps(run)
    if step < steps:  # several processes exit alike when finished and when stopped
        why = f"{run} was stopped after step {step} of {steps} with a checkpoint; call again to resume"
        raise RunStopped(why, by_signal=step != config.train.stop_after_step)
    return export_backbones(run)["online"]


def evaluate(
    backbones: Any,
    *,
    shards: "str | Path | ShardDataset | Sequence[str | Path | ShardDataset]" = (),
    benchmarks: Mapping[str, str | Path] | None = None,
    out: str | Path = "eval",
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> "Summary":
    """Evaluate backbones, with randomly initialized baselines of the same shape. Existing results in `out` are skipped.

    Args:
        backbones: one or several inputs of `load_backbone`, by name.
        shards: labeled shards with splits train and test.
        benchmarks: instead of shards: name in configs/benchmarks -> folder of its shards.
        out: output folder.
        config: YAML file (default: configs/eval/quick.yaml).
        settings: values by dotted name, such as {"protocols": ["knn"], "seeds": [0, 1, 2]}.

    Returns:
        A summary: a table of results with 95 % intervals, and paired comparisons.

    Raises:
        UserError: an invalid setting, backbone or shards.
    """
    from simfle.eval.config import EvalConfig
    from simfle.eval.evaluator import evaluate as run_evaluation
    from simfle.runtime.distributed import preserve_process_state

    _refuse(settings, {name: name for name in ("backbones", "shards", "benchmarks", "out")})
    folder = expand_home(out)
    files = [str(_file(place)) for place in _several(backbones)]
    words = [f"backbones={_written(files)}", f"out={_written(str(folder))}"]
    if shards:
        words.append(f"shards={_written([_place(place) for place in _several(shards)])}")
    if benchmarks:
        words.append(f"benchmarks={_written([f'{name}={place}' for name, place in benchmarks.items()])}")
    words += [f"{name}={_written(value)}" for name, value in (settings or {}).items()]
    file = Path(config) if config is not None else CONFIGS / "eval" / "quick.yaml"
    with preserve_process_state():
        return run_evaluation(load(EvalConfig, file, words), ["simfle.evaluate", *words])


def build_folder(images: Path, out: Path) -> None:
    """Build unlabeled shards from a folder of images, ignoring class folders. Complete shards are kept.

    Raises:
        UserError: no such folder, no image in it, or the output cannot be written.
    """
    from shards.build.builder import build
    from shards.build.spec import BuildSpec
    from shards.sources.generic.folder import Folder

    if out.resolve().is_relative_to(images.resolve()):
        raise UserError(f"out: {out.parent} is inside the images {images}. Fix: choose a folder outside of them.")
    # Same options as `simfle shards build folder`, so that both write the same bytes.
    source = {"kind": "folder", "name": images.resolve().name, "class_folders": False, "split_folders": False}
    workers = len(os.sched_getaffinity(0))
    request = BuildSpec(out, images.resolve().name, source, workers=workers)
    report = build(request, Folder(images), lambda *_: None)
    if not report.up_to_date:
        log.info("%s: built shards of %d images in %s", images, report.manifest.samples, out)
    rejected = report.manifest.rejected
    if count := sum(rejected.values()):
        reasons = ", ".join(f"{number} {reason}" for reason, number in rejected.items())
        log.warning("%s: %d images are not used (%s): see %s", images, count, reasons, out / REJECTED)
    for note in report.notes:
        log.info("%s: %s", images, note)


def _as_shards(place: str | Path | ShardDataset, out: Path) -> str:
    """Return a location of shards unchanged; for a folder of images, build shards."""
    if is_url(place := _place(place)):
        return place
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(f"data: {folder} is not a folder. Fix: name shards or a folder of images.")
    if (folder / NAME).is_file() or any(folder.glob("*.tar")):
        return str(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    build_folder(folder, out)
    return str(out)


def _launch(config: PretrainConfig, processes: int) -> None:
    import dataclasses

    import yaml

    from simfle.api.local_launcher import launch

    with tempfile.NamedTemporaryFile(
        "w", suffix=".yaml"
    ) as file:  # readable only by its owner, since URLs may contain signatures
        yaml.safe_dump(dataclasses.asdict(config), file)
        file.flush()
        if code := launch([file.name], processes, relay=True):
            raise UserError(
                f"pretraining on {processes} processes failed with exit code {code}. Fix: see its messages above."
            )


def _refuse(settings: Mapping[str, Any] | None, named: Mapping[str, str]) -> None:
    for name in named.keys() & (settings or {}).keys():
        raise UserError(f"settings: {name} is set by {named[name]}=. Fix: remove it from settings.")


def _several(values: Any) -> list[Any]:
    return [values] if isinstance(values, str | ShardDataset) or not isinstance(values, Iterable) else list(values)


def _place(place: str | Path | ShardDataset) -> str:
    """Return a folder or URL as text; for a result of `shards.open`, its location."""
    if isinstance(place, ShardDataset):
        place = place.folder
    return str(place if is_url(place) else expand_home(place))


def _file(place: str | Path) -> str | Path:
    """Return the backbone of a run folder, exported if needed; anything else unchanged."""
    if not isinstance(place, str | Path):
        kind = type(place).__name__
        raise UserError(f"backbones: a {kind} has no name for the results. Fix: give its file or name instead.")
    here = expand_home(place)
    from simfle.export.timm import exported_backbone, is_run

    if is_run(here):
        return exported_backbone(here)
    return here if here.exists() else place


def _written(value: Any) -> str:
    """Format a value for the command line.

    Raises:
        UserError: a file name that is not UTF-8.
    """
    if value is None:
        return ""
    text = json.dumps(value, default=_plain, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{value!r}: a configuration cannot contain a name that is not UTF-8. Fix: rename it."
        ) from None
    # Characters that YAML does not accept, or treats as a line break.
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _plain(value: Any) -> Any:
    """Convert values that JSON lacks: NumPy and torch numbers and arrays, ranges, sets; other values become text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, range | Set):
        return sorted(value)
    return str(value)
