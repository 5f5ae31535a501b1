"""From a run's newest complete checkpoint to backbone files: timm's key names, safetensors and a small JSON."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shards.files import regular_path, write_atomic
from shards.redact import to_json
from simfle import told
from simfle.config import read_plain
from simfle.errors import UserError
from simfle.eval.backbones import CARD, WEIGHTS, Card, build_network

T = TypeVar("T")
NETWORKS = ("online", "target")  # a method without a target network exports the online one alone
TRIES = 5  # checkpoints that a run may delete while one of them is read


def newest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint folder of a run.

    Raises:
        UserError: no such run, no complete checkpoint in it.
    """
    if not run.is_dir():
        raise UserError(f"export: {run} is not a run folder; name one that simfle pretrain wrote")
    if found := told.checkpoints(run):
        return found[0]
    incomplete = len(list((run / "checkpoints").glob("step-*")))
    raise UserError(f"export: {run} has no complete checkpoint yet ({incomplete} incomplete); let the run go on")


def read_newest(run: Path, read: Callable[[Path], T]) -> tuple[Path, T]:
    """The newest complete checkpoint folder of a run, and what `read` makes of it.

    A run that trains deletes old checkpoints once a new one stands: where the one chosen is gone meanwhile, it is the
    new one's turn.

    Raises:
        UserError: see `newest_checkpoint`; `read` cannot read one that is still there, or they go too fast.
    """
    for _ in range(TRIES):
        newest = newest_checkpoint(run)
        try:
            return newest, read(newest)
        except UserError:
            if (newest / told.MARKER).exists():  # of one that is deleted the marker goes first
                raise
    raise UserError(f"export: {run} deletes its checkpoints before they are read; wait for its end, and try again")


def export_backbones(run: Path, out: Path | None = None) -> dict[str, Path]:
    """Write online and target backbone of a run's newest checkpoint to `out`/{online,target} (default RUN/export).

    Returns network -> its backbone.safetensors.

    Raises:
        UserError: no run, no complete checkpoint, a checkpoint of something else.
    """
    newest, found = read_newest(run, read_backbones)
    model, views = _config(run)
    _refuse_edited(run, newest, model, views)
    name = model["backbone"]
    written = {}
    for network, tensors in found.items():
        if not tensors and network != NETWORKS[0]:
            continue
        size = _side(tensors) or int(views["size"])
        stride = int(model.get("output_stride", 0))  # a run of an older version has none
        wanted = build_network(name, size, stride)
        if tensors.keys() != wanted.state_dict().keys():
            raise UserError(
                f"export: {newest} holds no {network} {name} ({len(tensors)} tensors under {network}.backbone., "
                f"{len(wanted.state_dict())} expected); the run's config.yaml is another run's"
            )
        weights = save(tensors)
        card = Card(
            name=name,
            network=network,
            features=int(wanted.num_features),  # type: ignore[arg-type]
            mean=tuple(model["mean"]),
            std=tuple(model["std"]),
            size=size,
            run={"folder": run.name, "checkpoint": newest.name, "step": told.step_of(newest)},
            sha256=hashlib.sha256(weights).hexdigest(),
            output_stride=stride,
        )
        folder = (out or run / "export") / network
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / WEIGHTS, weights)
        write_atomic(folder / CARD, (to_json(asdict(card), indent=1) + "\n").encode())
        written[network] = folder / WEIGHTS
    return written


def _side(tensors: dict[str, Tensor]) -> int | None:
    """Side in pixels of the images that a vision transformer's position embeddings are for; None for a CNN."""
    if "pos_embed" not in tensors:
        return None
    places = tensors["pos_embed"].shape[1] - ("cls_token" in tensors)
    return math.isqrt(places) * tensors["patch_embed.proj.weight"].shape[-1]


def _refuse_edited(run: Path, newest: Path, model: dict, views: dict) -> None:
    """Raise a UserError where config.yaml says otherwise of the backbone than the checkpoint, which a card must not."""
    trained = told.state(newest).get("identity")
    trained = trained if isinstance(trained, dict) else {}
    now = {f"model.{name}": model[name] for name in ("backbone", "mean", "std")} | {"views.size": views["size"]}
    for key, value in now.items():
        if trained.get(key, value) != value:
            raise UserError(
                f"export: {run}/config.yaml: {key} is {value}, but {newest.name} was trained with {trained[key]}. "
                f"Fix: write {trained[key]} back, or start the run's own command again, which does"
            )


def read_backbones(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Of each network its backbone's tensors, under timm's names; none of a network that the method does not have."""
    path = folder / "model.safetensors"
    try:
        with regular_path(path) as same, safe_open(same, "pt") as file:
            return {network: _below(f"{network}.backbone.", file) for network in NETWORKS}
    except (SafetensorError, OSError) as error:
        raise UserError(f"export: cannot read {path}: {error}") from None


def _below(prefix: str, file: Any) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is no mapping
    return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def _config(run: Path) -> tuple[dict, dict]:
    """The model and views parts of the run's resolved configuration."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"export: {path} does not exist; {run} is not a run folder")
    content = read_plain(path)
    try:
        model, views = content["model"], content["views"]
        sizes = int(views["size"]), int(model.get("output_stride", 0))
        plain = [model["backbone"], *sizes, *map(float, (*model["mean"], *model["std"]))]
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"export: {path} is damaged ({error!r})") from None
    if not isinstance(plain[0], str) or len(plain) != 9:
        raise UserError(f"export: {path} is damaged (model.backbone, or not three of model.mean and model.std)")
    return model, views
