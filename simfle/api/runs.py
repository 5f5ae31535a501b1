"""Pretraining and evaluation as functions: what the commands do, with the same configurations."""

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
from shards.files import at_home
from shards.manifest import NAME
from shards.opened import Shards
from shards.remote import is_url
from simfle import told
from simfle.config import CONFIGS, PretrainConfig, load
from simfle.errors import RunStopped

if TYPE_CHECKING:
    from simfle.eval.summary import Summary

log = logging.getLogger(__name__)


def pretrain(
    data: "str | Path | Shards | Sequence[str | Path | Shards]",
    out: str | Path,
    *,
    config: str | Path | None = None,
    processes: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Pretrain on `data` in the run folder `out`; the file of the backbone, which `load_backbone` and `embed` take.

    data: shards (a folder, a URL or what `shards.open` gave, or several), or a folder of images, of which shards are
    made in OUT/shards first.
    config: a YAML file; default: configs/pretrain/simfle_resnet50.yaml, the paper's recipe. processes: 1 runs in this
    process, more are started on this machine, one per GPU or sharing its cores. settings: what a configuration may
    say, by dotted name: {"train.steps": 1000, "model.backbone": "resnet18"}.

    Called again with the same arguments it goes on where the run stands; a finished one only exports again.

    Raises:
        UserError: what is wrong with a setting, the data or the folder; a process failed; this one is one of several.
        RunStopped: a signal or train.stop_after ended it early; all is saved.
        KeyboardInterrupt: Ctrl-C before there was anything to save, or twice.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            "simfle.pretrain: a launcher started this script as one of several processes; start it once, with "
            "processes=N, or give the launcher -m simfle pretrain"
        )
    _refuse(settings, {"train.run": "out", "data.shards": "data"})
    run = at_home(out)
    names = ("shards" if number == 0 else f"shards{number}" for number in itertools.count())
    shards = [_as_shards(place, run / name) for place, name in zip(_several(data), names, strict=False)]
    words = [f"data.shards={_written(shards)}", f"train.run={_written(str(run))}"]
    words += [f"{name}={_written(value)}" for name, value in (settings or {}).items()]
    file = Path(config) if config is not None else CONFIGS / "pretrain" / "simfle_resnet50.yaml"
    resolved = load(PretrainConfig, file, words)  # refused here rather than by each process
    from simfle.runtime import put_back

    with put_back():
        return _train_and_export(resolved, processes)


def _train_and_export(config: PretrainConfig, processes: int) -> Path:
    from simfle.eval.export import export_backbones, newest_checkpoint
    from simfle.train.trainer import pretrain as train

    if processes == 1:
        try:
            train(config)
        finally:
            gc.collect()  # DeepSpeed's engine with its memory, and sockets, are cycles
    else:
        _launch(config, processes)
    run = Path(config.train.run)
    step, steps = told.step_of(newest_checkpoint(run)) or 0, told.steps_of(run)
    if step < steps:  # several processes end alike when they are done and when they were stopped
        why = f"{run} was stopped after step {step} of {steps}; saved, the same call goes on"
        raise RunStopped(why, by_signal=step != config.train.stop_after)
    return export_backbones(run)["online"]


def evaluate(
    backbones: Any,
    *,
    shards: "str | Path | Shards | Sequence[str | Path | Shards]" = (),
    benchmarks: Mapping[str, str | Path] | None = None,
    out: str | Path = "eval",
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> "Summary":
    """Measure backbones beside randomly initialised ones of the same shape; what is done in `out` is skipped.

    backbones: one or several of what `load_backbone` takes by name. shards: your own labelled ones, with splits train
    and test; or benchmarks: name in configs/benchmarks -> folder of its shards. config: a YAML file; default:
    configs/eval/quick.yaml. settings: by dotted name, such as {"protocols": ["knn"], "seeds": [0, 1, 2]}.

    Returns the summary: a table of results with 95 % intervals, and paired comparisons.

    Raises:
        UserError: what is wrong with a setting, a backbone or the shards.
    """
    from simfle.eval.config import EvalConfig
    from simfle.eval.evaluate import evaluate as run_evaluation
    from simfle.runtime import put_back

    _refuse(settings, {name: name for name in ("backbones", "shards", "benchmarks", "out")})
    folder = at_home(out)
    files = [str(_file(place)) for place in _several(backbones)]
    words = [f"backbones={_written(files)}", f"out={_written(str(folder))}"]
    if shards:
        words.append(f"shards={_written([_place(place) for place in _several(shards)])}")
    if benchmarks:
        words.append(f"benchmarks={_written([f'{name}={place}' for name, place in benchmarks.items()])}")
    words += [f"{name}={_written(value)}" for name, value in (settings or {}).items()]
    file = Path(config) if config is not None else CONFIGS / "eval" / "quick.yaml"
    with put_back():
        return run_evaluation(load(EvalConfig, file, words), ["simfle.evaluate", *words])


def build_folder(images: Path, out: Path) -> None:
    """Shards of a folder of images, class folders told by nothing: without labels. Stands already: nothing is done.

    Raises:
        UserError: no such folder, no image in it; the output cannot be written.
    """
    from shards.build import build
    from shards.request import Build
    from shards.sources.folder import Folder

    if out.resolve().is_relative_to(images.resolve()):
        raise UserError(f"out: {out.parent} lies inside the images {images}; choose a folder outside of them")
    # Said as the command `simfle shards build folder` says it, so that both make the same bytes.
    source = {"kind": "folder", "name": images.resolve().name, "class_folders": False, "split_folders": False}
    workers = len(os.sched_getaffinity(0))
    request = Build(out, images.resolve().name, source, workers=workers)
    report = build(request, Folder(images), lambda *_: None)
    if not report.already:
        log.info("%s: %d images as shards in %s", images, report.manifest.samples, out)


def _as_shards(place: str | Path | Shards, out: Path) -> str:
    """A place of shards as it is; of a folder of images, shards made of it."""
    if is_url(place := _place(place)):
        return place
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(f"data: {folder} is not a folder; name shards, or a folder of images")
    if (folder / NAME).is_file() or any(folder.glob("*.tar")):
        return str(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    build_folder(folder, out)
    return str(out)


def _launch(config: PretrainConfig, processes: int) -> None:
    import dataclasses

    import yaml

    from simfle.api.launch import launch

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:  # its owner's alone, since URLs may carry signatures
        yaml.safe_dump(dataclasses.asdict(config), file)
        file.flush()
        if code := launch([file.name], processes, relay=True):
            raise UserError(f"pretraining on {processes} processes ended with code {code}; its words are above")


def _refuse(settings: Mapping[str, Any] | None, named: Mapping[str, str]) -> None:
    for name in named.keys() & (settings or {}).keys():
        raise UserError(f"settings: {name} is what {named[name]}= says; leave it out of the settings")


def _several(values: Any) -> list[Any]:
    return [values] if isinstance(values, str | Shards) or not isinstance(values, Iterable) else list(values)


def _place(place: str | Path | Shards) -> str:
    """A folder or URL in words; of what `shards.open` gave, where it lies."""
    if isinstance(place, Shards):
        place = place.folder
    return str(place if is_url(place) else at_home(place))


def _file(place: str | Path) -> str | Path:
    """The exported backbone of a run's folder; anything else as it is."""
    if not isinstance(place, str | Path):
        kind = type(place).__name__
        raise UserError(f"backbones: a {kind} has no name to note in the results; give what it was loaded from")
    here = at_home(place)
    exported = here / "export" / "online"
    return exported if exported.is_dir() else here if here.exists() else place


def _written(value: Any) -> str:
    """A value as the command line would have it.

    Raises:
        UserError: bytes of a file's name that are no UTF-8.
    """
    if value is None:
        return ""
    text = json.dumps(value, default=_plain, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{value!r}: a name that is not UTF-8 cannot stand in a configuration; rename it") from None
    # What YAML does not take as it is, or takes for the end of a line.
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _plain(value: Any) -> Any:
    """What JSON does not know: numbers and arrays of NumPy and torch, ranges, sets; paths and all else as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, range | Set):
        return sorted(value)
    return str(value)
