"""Read the weights that `model.init` names.

A source is a run folder or one of its checkpoints, a backbone.safetensors, any file of tensors (.pth, .ckpt,
.safetensors), or KIND:... as in an evaluation (`simfle.eval.backbones.external`): timm:NAME, torchvision:NAME@FILE,
weights:NAME@FILE+prefix=NAME.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from shards.io.atomic import read_text
from shards.io.hashing import hash_file
from shards.io.jsonl import loads
from simfle.errors import UserError
from simfle.eval.backbones import external
from simfle.eval.backbones.load import METADATA, find_weights, read_metadata
from simfle.train.checkpointing import checkpoint
from simfle.train.checkpointing.state_dict import State

SHOWN = 3  # maximum number of reported names


@dataclass(frozen=True)
class InitialWeights:
    """Tensors by name, and their origin.

    sha256: SHA-256 of the file, or of names and values for timm's weights. method: method of a run, otherwise empty.
    backbone: timm's name, empty if unknown. prefix: prefix of the network in the file (None = search for it). mean,
    std: normalization in training, empty if unknown.
    """

    tensors: State
    sha256: str
    method: str = ""
    backbone: str = ""
    prefix: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def read(text: str) -> InitialWeights:
    """Read the weights of a source, see the module docstring.

    Raises:
        UserError: If the source is unknown, the file is missing, corrupt or refused, or a value is not finite.
    """
    try:
        found = _read(text)
    except UserError as error:
        reason = str(error).removeprefix("backbone: ").removeprefix(f"train.run_dir={text}: ").removeprefix(f"{text}: ")
        raise UserError(f"model.init={text}: {reason}") from None
    bad = [name for name, value in found.tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(
            f"model.init={text}: {len(bad)} tensors have values that are not finite ({first_names(bad)}). "
            "Fix: use weights of an earlier step, or other weights."
        )
    return found


def _read(text: str) -> InitialWeights:
    kind, colon, _ = text.partition(":")
    if colon and kind == "random":
        raise UserError("random weights are the default. Fix: leave model.init empty and set train.seed.")
    if colon and kind == "timm":
        loaded = external.open_backbone(text)
        tensors = {name: value.clone() for name, value in loaded.module.network.state_dict().items()}
        card = loaded.card
        return InitialWeights(tensors, _digest(tensors), backbone=card.name, mean=card.mean, std=card.std)
    if colon and kind in external.OPTIONS:
        source = external.parse(text)
        file = source.file
        assert file is not None
        tensors, name = external.read_tensors(file), source.name.split(".")[0]
        return InitialWeights(tensors, hash_file(file), backbone=name, prefix=source.options.get("prefix"))
    path = Path(text)
    if (path / checkpoint.MARKER).is_file() or (path / "checkpoints").is_dir():
        return _of_run(path)
    if path.is_dir():
        path = find_weights(path)
    tensors = external.read_tensors(path)
    sha256 = hash_file(path)
    if path.suffix == ".safetensors" and path.with_name(METADATA).is_file():
        card = read_metadata(path.with_name(METADATA))
        if card.sha256 and card.sha256 != sha256:
            raise UserError(
                f"{path} is corrupt, or does not match its {METADATA} (sha256). Fix: export it again from its run."
            )
        return InitialWeights(tensors, sha256, backbone=card.name, mean=card.mean, std=card.std)
    return InitialWeights(tensors, sha256)


def _of_run(path: Path) -> InitialWeights:
    """Read the newest valid checkpoint of a run, or the checkpoint at `path`."""
    found = checkpoint.read(path) if (path / checkpoint.MARKER).is_file() else checkpoint.read_newest(path)
    if found is None:
        raise UserError("a run without a complete checkpoint. Fix: wait for its first checkpoint, or pass another run.")
    sha256 = loads(read_text(found.folder / checkpoint.MARKER))["model.safetensors"]["sha256"]
    identity = found.progress.identity
    return InitialWeights(
        *(found.model, sha256, str(identity.get("model.method", "")), str(identity.get("model.backbone", ""))),
        mean=tuple(identity.get("model.mean", ())),
        std=tuple(identity.get("model.std", ())),
    )


def check_place(text: str) -> None:
    """Raise a UserError if a source has an unknown form or does not exist; read no weights."""
    kind, colon, _ = text.partition(":")
    if colon and kind in external.OPTIONS:
        try:
            file = external.parse(text).file
        except UserError as error:
            raise UserError(f"model.init={text}: {str(error).removeprefix('backbone: ')}") from None
    else:
        file = Path(text)
    if file is not None and not file.exists():
        raise UserError(f"model.init={text}: {file} does not exist. Fix: check the path.")


def _digest(tensors: State) -> str:
    """Return the SHA-256 of names, types, shapes and values."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous().reshape(-1).view(torch.uint8)
        found.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}\n".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()


def first_names(names: list[str]) -> str:
    """Return the first names, for a message."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
