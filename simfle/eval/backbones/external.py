"""Load third-party backbones, to evaluate other methods with the same code.

A source is text, as in `backbones=[...]` of an evaluation:

        RUN/export/online/backbone.safetensors   an export, with backbone.json beside it (or the folder with both)
    timm:resnet50                            timm's pretrained weights, from its cache or downloaded
        random:resnet50+seed=3                   a random initialization
        torchvision:resnet18@resnet18.pth        a state dict; any prefix, ImageNet normalization
        simfle:checkpoint.pth                    a checkpoint of the reference implementation (ResNet-50)
    weights:vit_base_patch16_224@mae.pth+mean=0.5:0.5:0.5+std=0.5:0.5:0.5+size=224

For the last three, +prefix=NAME selects one of several networks in a file. Files are safetensors or from torch.save,
with tensors only. Loading never runs code from a file.
"""

import argparse
import contextlib
import io
import pickle
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from shards.io.atomic import regular_path
from simfle.errors import UserError
from simfle.eval.backbones.load import (
    BackboneMetadata,
    LoadedBackbone,
    build_network,
    describe_difference,
    frozen,
    load_backbone,
)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
REFERENCE = ((0.5795, 0.4522, 0.3957), (0.2769, 0.2473, 0.2412))  # mean and deviation of the SimFLE reference
SIZE = 224
OPTIONS = {
    "timm": (),
    "random": ("seed", "mean", "std", "size"),
    "torchvision": ("prefix", "mean", "std", "size"),
    "simfle": ("prefix", "mean", "std", "size"),
    "weights": ("prefix", "mean", "std", "size"),
}
# A ResNet's children in order, numbered as by nn.Sequential: the reference stores its backbone this way.
NUMBERED = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
# Harmless objects that are often saved with tensors; everything else in a pickle is refused.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "bool")),
]


# timm module -> tensor that only the authors' files of DINOv2 and DINOv3 contain.
OFFICIAL = {"vision_transformer": "mask_token", "eva": "storage_tokens"}


@dataclass(frozen=True)
class BackboneSource:
    """Parsed source. kind: a key of OPTIONS; name: timm's name; file: None for timm and random."""

    kind: str
    name: str
    file: Path | None = None
    options: dict[str, str] = field(default_factory=dict)


def open_backbone(text: str) -> LoadedBackbone:
    """Load the backbone of `text`; see the module docstring.

    Raises:
        UserError: If the kind, an option or the model is unknown, or the file is missing, is corrupt, contains code or
            holds another model.
    """
    kind = text.split(":", 1)[0]
    if kind not in OPTIONS or ":" not in text:
        return load_backbone(Path(text))
    source = parse(text)
    if kind == "timm":
        return _of_timm(source)
    size = _whole(source, "size", SIZE)
    mean, std = (
        _triple(source, key, default) for key, default in zip(("mean", "std"), _normalization(kind), strict=True)
    )
    if kind == "random":
        seed = _whole(source, "seed", 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build_network(source.name, size)
        run: dict[str, Any] = {"seed": seed}
    else:
        network, run = _of_file(source, size)
    card = BackboneMetadata(source.name, kind, int(network.num_features), mean, std, size, run)  # type: ignore[arg-type]
    return LoadedBackbone(frozen(network, card), card, source.file)


def parse(text: str) -> BackboneSource:
    """Parse KIND:[NAME@]FILE[+KEY=VALUE]... Raises UserError if a part is missing or unknown."""
    kind, rest = text.split(":", 1)
    options = {}
    while found := re.search(r"\+([a-z]+)=([^+]*)$", rest):
        key, value = found.groups()
        if key not in OPTIONS[kind]:
            raise UserError(
                f"backbone: {text}: unknown option +{key}=. "
                f"Fix: {kind}: takes {', '.join(OPTIONS[kind]) or 'no options'}."
            )
        options[key], rest = value, rest[: found.start()]
    if kind in ("timm", "random"):
        name, file = rest, None
    else:
        name, _, place = rest.partition("@") if "@" in rest else ("resnet50" if kind == "simfle" else "", "", rest)
        file = Path(place)
        if not place:
            raise UserError(f"backbone: {text}: no file is given. Fix: write {kind}:NAME@FILE.")
    if not name:
        raise UserError(
            f"backbone: {text}: no model is given. Fix: write {kind}:NAME{'@FILE' if file else ''} with timm's NAME."
        )
    return BackboneSource(kind, name, file, options)


def _of_timm(source: BackboneSource) -> LoadedBackbone:
    """Load timm's own weights, with the normalization and the image size of their training."""
    base = source.name.split(".")[0]
    if timm.is_model(base) and not timm.models.is_model_pretrained(source.name):
        raise UserError(f"backbone: timm has no weights of {source.name}. Fix: choose another model or random:{base}.")
    known = timm.get_pretrained_cfg(source.name)
    network = build_network(base, known.input_size[-1] if known else SIZE)
    if known is None:
        raise UserError(f"backbone: timm does not know {source.name}. Fix: write only {base}.")
    try:
        pretrained = timm.create_model(source.name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"backbone: the weights of timm:{source.name} are not cached and the download failed ({_line(error)}). "
            f"Fix: download them on a machine with network access, or use weights:{base}@FILE."
        ) from None
    network.load_state_dict(pretrained.state_dict())
    features = int(network.num_features)  # type: ignore[arg-type]
    card = BackboneMetadata(
        base, "timm", features, known.mean, known.std, known.input_size[-1], {"source": f"timm:{source.name}"}
    )
    return LoadedBackbone(frozen(network, card), card)


def _of_file(source: BackboneSource, size: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network with the weights of the source's file, and their origin for the card."""
    tensors = read_tensors(source.file)  # type: ignore[arg-type]
    network = build_network(source.name, size)
    tensors = timm_names(source.name, network, tensors)
    prefix, state = find_network(network.state_dict(), tensors, source.options.get("prefix"), str(source.file))
    network.load_state_dict(state)
    return network, {"source": f"{source.kind}:{source.file.name}", "prefix": prefix}  # type: ignore[union-attr]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors in a file by dotted name; reads safetensors, or torch.save's format without running code.

    Raises:
        UserError: If the file is missing, is corrupt, or is a pickle with content other than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"backbone: {path} does not exist. Fix: check the path.")
    if path.suffix == ".safetensors":
        try:
            with regular_path(path) as same:
                return load_file(same)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"backbone: {path} is not a readable safetensors file ({error}). Fix: download it again."
            ) from None
    try:
        with torch.serialization.safe_globals(HARMLESS), regular_path(path) as same:
            content = torch.load(same, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it needs {found.group(1)}" if found else "it is corrupt"
        raise UserError(
            f"backbone: {path} is refused, {what}: only tensors are loaded. Fix: save only its state_dict."
        ) from None
    except Exception as error:  # noqa: BLE001 - torch raises any error for a corrupt file
        raise UserError(
            f"backbone: {path} cannot be read as weights ({_line(error)}). Fix: save a state_dict."
        ) from None
    tensors = dict(_tensors(content, ""))
    if not tensors:
        raise UserError(f"backbone: {path} contains no named tensors. Fix: save a state_dict.")
    return tensors


def _tensors(content: Any, prefix: str) -> Any:
    """Yield (name, tensor) of nested dicts, with names joined by dots."""
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _tensors(value, f"{prefix}{key}.")


def timm_names(name: str, network: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the tensors of DINOv2's and DINOv3's own files to timm's, by timm's rules; keep others as they are.

    Args:
        name: timm's.
        network: ViT that gets the tensors; position embeddings are interpolated to its image size.
        tensors: of a file, by name.
    """
    module = timm.model_entrypoint(name).__module__
    if OFFICIAL.get(module.rpartition(".")[2]) not in tensors:
        return tensors
    with contextlib.redirect_stdout(io.StringIO()):  # timm prints the biases that it drops
        return sys.modules[module].checkpoint_filter_fn(dict(tensors), network)


def find_network(
    wanted: dict[str, Tensor], tensors: dict[str, Tensor], prefix: str | None, file: str
) -> tuple[str, dict[str, Tensor]]:
    """Find the tensors named in `wanted` under any prefix; return the prefix and the state dict.

    If several prefixes match, a prefix that contains "online" is preferred.

    Raises:
        UserError: If no prefix matches (the closest is reported), or several prefixes match.
    """
    first = next(iter(wanted))
    numbered = numbered_name(first)
    found: dict[str, dict[str, Tensor]] = {}
    misses = []
    for key in tensors:
        for tail, rename in ((first, str), (numbered, numbered_name)):
            if key != tail and not key.endswith("." + tail):
                continue
            head = key.removesuffix(tail)
            state = {name: tensors[head + rename(name)] for name in wanted if head + rename(name) in tensors}
            counters = {name: zero for name, zero in wanted.items() if name.endswith("num_batches_tracked")}
            state = {**counters, **state}  # files from before torch 0.4.1 lack the counters
            difference = describe_difference(wanted, state)
            if difference:
                misses.append(difference)
            else:
                found[head] = state
    if prefix is not None:
        found = {head: state for head, state in found.items() if head.rstrip(".") == prefix.rstrip(".")}
    chosen = [head for head in found if "online" in head] if len(found) > 1 else list(found)
    if len(chosen) == 1:
        return chosen[0].rstrip("."), found[chosen[0]]
    if len(found) > 1:
        names = ", ".join(head.rstrip(".") or "(none)" for head in found)
        raise UserError(f"backbone: {file} contains several such networks. Fix: add +prefix= with one of: {names}.")
    why = min(misses, key=len) if misses and prefix is None else f"no {prefix or ''}{first} matches"
    raise UserError(f"backbone: {file} does not contain that model: {why}. Fix: choose another model or file.")


def numbered_name(name: str) -> str:
    """layer1.0.conv1.weight -> 4.0.conv1.weight; other names are unchanged."""
    head, _, rest = name.partition(".")
    return f"{NUMBERED.get(head, head)}.{rest}"


def _normalization(kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return REFERENCE if kind == "simfle" else IMAGENET


def _triple(source: BackboneSource, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    text = source.options.get(key)
    if text is None:
        return default
    try:
        values = tuple(float(part) for part in text.split(":"))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(0 <= value <= 1 for value in values) or (key == "std" and 0 in values):
        raise UserError(f"backbone: +{key}={text} is not three numbers. Fix: write them as +{key}=0.5:0.5:0.5.")
    return values


def _whole(source: BackboneSource, key: str, default: int) -> int:
    text = source.options.get(key, str(default))
    if not text.isdecimal() or (key == "size" and int(text) < 16):
        raise UserError(
            f"backbone: +{key}={text} is not an integer. "
            f"Fix: use an integer{' of at least 16 pixels' * (key == 'size')}."
        )
    return int(text)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
