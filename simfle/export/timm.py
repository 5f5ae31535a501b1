"""Export a run's newest complete checkpoint to backbone files: timm's parameter names, safetensors and JSON."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shards.io.atomic import regular_path, write_atomic
from shards.redact import to_json
from simfle.config.overrides import shell_line
from simfle.config.schema import load_yaml
from simfle.errors import UserError
from simfle.eval.backbones.load import METADATA, WEIGHTS, BackboneMetadata, build_network, read_metadata
from simfle.runtime import run_files

log = logging.getLogger(__name__)
T = TypeVar("T")
NETWORKS = ("online", "target")  # a method without a target network exports only the online one
TRIES = 5  # attempts, since a run may delete a checkpoint during reading


def newest_checkpoint(run: Path) -> Path:
    """Return the newest complete checkpoint folder of a run.

    Raises:
        UserError: If the run does not exist or has no complete checkpoint.
    """
    if not run.is_dir():
        raise UserError(f"export: {run} is not a run folder. Fix: pass a folder that simfle pretrain wrote.")
    if found := run_files.complete_checkpoint_dirs(run):
        return found[0]
    incomplete = len(list((run / "checkpoints").glob("step-*")))
    raise UserError(f"export: {run} has no complete checkpoint yet ({incomplete} incomplete). Fix: resume the run.")


def read_newest(run: Path, read: Callable[[Path], T]) -> tuple[Path, T]:
    """Return a run's newest complete checkpoint folder and the result of `read` on it.

    A training run deletes old checkpoints after each new one. If the chosen checkpoint is deleted in the meantime, the
    new one is read.

    Raises:
        UserError: If `read` fails on an existing checkpoint, or checkpoints are deleted too fast; see also
            `newest_checkpoint`.
    """
    for _ in range(TRIES):
        newest = newest_checkpoint(run)
        try:
            return newest, read(newest)
        except UserError:
            if (newest / run_files.MARKER).exists():  # deletion removes the marker first
                raise
    raise UserError(f"export: {run} deletes its checkpoints before they are read. Fix: rerun after the run's end.")


def export_backbones(run: Path, out: Path | None = None) -> dict[str, Path]:
    """Write online and target backbone of a run's newest checkpoint to `out`/{online,target} (default RUN/export).

    Returns network -> its backbone.safetensors.

    Raises:
        UserError: If the run does not exist, has no complete checkpoint, or its checkpoint is of another model.
    """
    newest, found = read_newest(run, read_backbones)
    model, views = _config(run)
    _refuse_edited(run, newest, model, views)
    name, init = model["backbone"], initial_weights(run)
    written = {}
    for network, tensors in found.items():
        if not tensors and network != NETWORKS[0]:
            continue
        size = int(views["size"])
        stride = int(model.get("output_stride", 0))  # missing in runs of older versions
        wanted = build_network(name, size, stride)
        if tensors.keys() != wanted.state_dict().keys():
            raise UserError(
                f"export: {newest} holds no {network} {name} ({len(tensors)} tensors under {network}.backbone., "
                f"{len(wanted.state_dict())} expected). Fix: restore the run's own config.yaml."
            )
        weights = save(tensors)
        card = BackboneMetadata(
            name=name,
            network=network,
            features=int(wanted.num_features),  # type: ignore[arg-type]
            mean=tuple(model["mean"]),
            std=tuple(model["std"]),
            size=size,
            run={"folder": run.name, "checkpoint": newest.name, "step": run_files.step_from_name(newest), **init},
            sha256=hashlib.sha256(weights).hexdigest(),
            output_stride=stride,
        )
        folder = (out or run / "export") / network
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / WEIGHTS, weights)
        write_atomic(folder / METADATA, (to_json(asdict(card), indent=1) + "\n").encode())
        written[network] = folder / WEIGHTS
    return written


def initial_weights(run: Path) -> dict[str, dict[str, Any]]:
    """Return the facts of RUN/init.json for a `backbone.json`, under `init`; empty for random initial weights."""
    found = run_files.read_initial_weights(run)
    facts: dict[str, Any] = {name: found[name] for name in ("source", "sha256", "loaded", "wanted") if name in found}
    return {"init": facts} if facts else {}


def is_run(place: Path) -> bool:
    """Return whether a folder is a run with checkpoints, complete or not, or with an exported backbone."""
    return (place / "checkpoints").is_dir() or (place / "export" / NETWORKS[0]).is_dir()


def exported_backbone(run: Path) -> Path:
    """Return the weights of a run's exported online backbone; export the newest checkpoint first if there is none.

    Warns if the run has newer checkpoints than its export.

    Raises:
        UserError: If the run folder cannot be written; see also `export_backbones`.
    """
    weights = run / "export" / NETWORKS[0] / WEIGHTS
    if not weights.is_file():
        log.info("exporting the backbone of %s", run)
        try:
            return export_backbones(run)[NETWORKS[0]]
        except OSError as error:
            command = shell_line("simfle", "export", run, "--out", "FOLDER")
            raise UserError(f"{run}: cannot be written ({error.strerror}). Fix: run {command}.") from None
    try:
        newest = newest_checkpoint(run).name
    except UserError:  # only the exported backbone was kept
        return weights
    if read_metadata(weights.with_name(METADATA)).run.get("checkpoint") != newest:
        update = shell_line("simfle", "export", run)
        log.warning("%s has reached %s since its backbone was exported; to update it: %s", run, newest, update)
    return weights


def _refuse_edited(run: Path, newest: Path, model: dict, views: dict) -> None:
    """Raise UserError if config.yaml and the checkpoint describe different backbones."""
    trained = run_files.read_state(newest).get("identity")
    trained = trained if isinstance(trained, dict) else {}
    now = {f"model.{name}": model[name] for name in ("backbone", "mean", "std")} | {"views.size": views["size"]}
    for key, value in now.items():
        if trained.get(key, value) != value:
            raise UserError(
                f"export: {run}/config.yaml: {key}={value}, but {newest.name} was trained with {trained[key]}. "
                f"Fix: set it to {trained[key]}, or rerun the run's command, which restores the file."
            )


def read_backbones(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return the backbone's tensors of each network, with timm's names, or none for a network that the method lacks."""
    path = folder / "model.safetensors"
    try:
        with regular_path(path) as same, safe_open(same, "pt") as file:
            return {network: _below(f"{network}.backbone.", file) for network in NETWORKS}
    except (SafetensorError, OSError) as error:
        raise UserError(f"export: cannot read {path}: {error}. Fix: check the file and its disk.") from None


def _below(prefix: str, file: Any) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without the prefix."""
    names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a mapping
    return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def _config(run: Path) -> tuple[dict, dict]:
    """Return the model and views sections of the run's resolved configuration."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"export: {path} does not exist. Fix: pass a run folder.")
    content = load_yaml(path)
    try:
        model, views = content["model"], content["views"]
        sizes = int(views["size"]), int(model.get("output_stride", 0))
        plain = [model["backbone"], *sizes, *map(float, (*model["mean"], *model["std"]))]
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"export: {path} is corrupt ({error!r}). Fix: rerun the run's command, which restores it."
        ) from None
    if not isinstance(plain[0], str) or len(plain) != 9:
        raise UserError(
            f"export: {path} is corrupt (model.backbone, model.mean or model.std). Fix: rerun the run's command."
        )
    return model, views
