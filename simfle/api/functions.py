"""Functions for pretraining and evaluation, with the same configurations as the commands."""

import gc
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import UserError
from shards.io.atomic import expand_home
from shards.io.urls import is_url
from shards.reading.dataset import ShardDataset
from simfle.api.input_shards import shards_of
from simfle.api.pretrain_defaults import choose_defaults, write_defaults
from simfle.config.schema import CONFIGS, PretrainConfig, load
from simfle.errors import RunStopped
from simfle.runtime import run_files
from simfle.runtime.build_meter import ProgressMeter
from simfle.runtime.logs import say
from simfle.train.preflight import check

if TYPE_CHECKING:
    from simfle.eval.analysis.summary import Summary


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
        data: shards (a folder, a URL or a result of `shards.open`), a folder of images, an archive, or several; of
            images, shards are built in OUT/shards first.
        out: run folder.
        config: YAML file (default: chosen for the number of images and the device, see
            `simfle.api.pretrain_defaults`; printed, and recorded in OUT/defaults.json).
        processes: 1 trains in this process; larger numbers start processes on this machine, one per GPU or sharing its
            cores.
        settings: configuration values by dotted name: {"train.steps": 1000, "model.backbone": "resnet18"}.

    Call this function again with the same arguments to resume. For a finished run, only the export is repeated.

    Raises:
        UserError: If a setting, the data or the folder is invalid, a process failed, or this process is one of several.
        RunStopped: If a signal or train.stop_after_step stopped the run early; a checkpoint is saved.
        KeyboardInterrupt: On Ctrl-C before there was a state to save, or on a second Ctrl-C.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            "simfle.pretrain: a launcher started this script as one of several processes. Fix: start it once with "
            "processes=N, or launch -m simfle pretrain."
        )
    _refuse(settings, {"train.run_dir": "out", "data.shards": "data"})
    places = [_place(place) for place in _several(data)]
    words = [f"{name}={_written(value)}" for name, value in (settings or {}).items()]
    resolved = prepare_run(places, expand_home(out), Path(config) if config is not None else None, words, processes)
    from simfle.runtime.distributed import preserve_process_state

    with preserve_process_state():
        return train_and_export(resolved, processes, relay=True)


def prepare_run(
    places: Sequence[str],
    run: Path,
    config: Path | None,
    words: Sequence[str],
    processes: int,
) -> PretrainConfig:
    """Build shards where `places` are images, choose defaults where there is no `config`, and return the configuration.

    Args:
        places: locations of the data, see `simfle.api.input_shards.shards_of`.
        run: run folder.
        config: YAML file; None: see `simfle.api.pretrain_defaults`.
        words: key=value.
        processes: number of local processes.

    Raises:
        UserError: If a value, the data or the folder is invalid.
    """
    if processes < 1:
        raise UserError(f"processes={processes}: must be at least 1. Fix: raise it.")
    own = [f"train.run_dir={_written(str(run))}"]
    # Invalid values are refused before a long build.
    check(load(PretrainConfig, config, [*own, f"data.shards={_written(list(places))}", *words]))
    with ProgressMeter() as meter:
        shards = shards_of(places, run, meter)
    own.append(f"data.shards={_written(shards)}")
    if config is not None:
        return load(PretrainConfig, config, [*own, *words])
    defaults = choose_defaults(run, shards, words, processes)
    resolved = load(PretrainConfig, defaults.file, [*own, *defaults.words(), *words])
    check(resolved)
    say(str(defaults))
    if not run_files.complete_checkpoint_dirs(run):
        run.mkdir(parents=True, exist_ok=True)
        write_defaults(run, defaults)
    return resolved


def train_and_export(config: PretrainConfig, processes: int, *, relay: bool) -> Path:
    """Train to the last step and return the file of the exported backbone. relay: see `local_launcher.launch`.

    Raises:
        UserError: If a process failed; see also `simfle.train.pretrain.pretrain`.
        RunStopped: the run was stopped early; a checkpoint is saved.
    """
    from simfle.export.timm import export_backbones, newest_checkpoint
    from simfle.train.pretrain import pretrain as train

    if processes == 1:
        try:
            train(config)
        finally:
            gc.collect()  # cycles hold DeepSpeed's engine with its memory and sockets
    else:
        _launch(config, processes, relay)
    run = Path(config.train.run_dir)
    step, steps = run_files.step_from_name(newest_checkpoint(run)) or 0, run_files.planned_steps(run)
    if step < steps:  # the exit code is the same for finished and stopped runs
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
    """Evaluate backbones and randomly initialized baselines of the same architecture. Existing results are skipped.

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
        UserError: If a setting, the backbone or the shards are invalid.
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


def _launch(config: PretrainConfig, processes: int, relay: bool) -> None:
    import dataclasses

    import yaml

    from simfle.api.local_launcher import launch

    with tempfile.NamedTemporaryFile(
        "w", suffix=".yaml"
    ) as file:  # readable only by its owner, because URLs may contain signatures
        yaml.safe_dump(dataclasses.asdict(config), file)
        file.flush()
        if code := launch([file.name], processes, relay=relay):
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
    """Return the backbone of a run folder, exported if needed; return other values unchanged."""
    if not isinstance(place, str | Path):
        kind = type(place).__name__
        raise UserError(f"backbones: a {kind} has no name for the results. Fix: pass its file or name instead.")
    here = expand_home(place)
    from simfle.export.timm import exported_backbone, is_run

    if is_run(here):
        return exported_backbone(here)
    return here if here.exists() else place


def _written(value: Any) -> str:
    """Format a value for the command line.

    Raises:
        UserError: If a file name is not UTF-8.
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
