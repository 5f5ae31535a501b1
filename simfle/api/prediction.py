"""Predict expressions with a backbone and a probe that `evaluate` fitted on it."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shards.io.atomic import expand_home
from simfle.api.backbone import Backbone, load_backbone
from simfle.api.embedding import check_format, embed, write
from simfle.errors import UserError
from simfle.eval.backbones.external import OPTIONS
from simfle.eval.features.resize import RULE
from simfle.eval.probe import read_probe, read_probe_metadata
from simfle.eval.tasks import identify

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)
LIMITS = (
    "limits: the classes are annotators' impressions of photos, not feelings; any image, also one without a face, gets "
    "one of them; other cameras, ages or groups of people may have another accuracy. Not for decisions about persons "
    "(docs/data-protection.md)"
)


def predict(
    data: Any,
    backbone: str | Path,
    out: str | Path | None = None,
    *,
    probe: str | Path | None = None,
    splits: str | Sequence[str] | None = None,
    batch: int = 64,
    device: str | torch.device = "auto",
) -> "dict[str, NDArray[Any]]":
    """Predict the expression of every image in `data`, with probabilities.

    The classes are annotators' impressions of photos, not feelings. Do not use predictions for decisions about persons.
    `describe_probe` returns what the probe was fitted on and its accuracy.

    Args:
        data: as in `embed`: a folder of images or shards, an image (a path, a PIL image, an array), or several.
        backbone: run folder, backbone.safetensors, or a name such as timm:NAME.
        out: .csv, .parquet or .npz file to write the results to.
        probe: file that `evaluate` stored beside the result of the protocol linear_fast, or a benchmark's name
            in RUN/eval (default: the only benchmark there); see `find_probe`.
        splits: one or several splits of shards (default: all).
        batch: images per forward pass.
        device: see `load_backbone`.

    Returns:
        Columns [n]: path, key, split, label and person as in `embed`; expression: the most probable class;
        probability: its probability; p_CLASS for each class: probabilities float64, which sum to 1.

    Raises:
        UserError: If the probe is missing, corrupt or was fitted on another backbone; see also `embed`.
    """
    target = expand_home(out) if out is not None else None
    if target is not None:
        check_format(target)
    file = find_probe(backbone, probe)
    linear, about = read_probe(file)
    model = load_backbone(backbone, device)
    if about.resize != RULE or about.features != model.features:
        raise UserError(f"probe: {file} was fitted on images resized otherwise. Fix: evaluate again.")
    model.card = replace(model.card, size=about.size)
    found = embed(data, model, splits=splits, batch=batch)
    chances = linear.probabilities(torch.from_numpy(found.pop("features"))).numpy()  # [n, K]
    best = chances.argmax(1)
    found["expression"] = np.array(about.classes)[best]
    found["probability"] = chances.max(1)
    found |= {f"p_{name}": chances[:, place] for place, name in enumerate(about.classes)}
    if target is not None:
        write(target, found)
    return found


def describe_probe(backbone: str | Path, probe: str | Path | None = None) -> tuple[str, str]:
    """Return two lines about the probe that `predict` uses: its data and accuracy, and its limits.

    Raises:
        UserError: See `predict`.
    """
    return read_probe_metadata(find_probe(backbone, probe).with_suffix(".json")).describe(), LIMITS


def find_probe(backbone: str | Path, probe: str | Path | None = None) -> Path:
    """Return the metadata file of the probe that fits a backbone.

    Args:
        backbone: run folder, backbone.safetensors, or a name such as timm:NAME.
        probe: either file of a probe, or a benchmark's name in RUN/eval; None: the only benchmark there. Of several
            protocols, the one with all labels; of several seeds, the lowest.

    Raises:
        UserError: If there is no probe, several benchmarks have one, or it was fitted on another backbone.
    """
    if isinstance(backbone, Backbone):
        raise UserError("predict: a loaded backbone has no file to compare with the probe. Fix: pass its file or name.")
    place = _weights(backbone)
    sha256 = identify(str(place)).sha256
    if probe is not None and Path(probe).suffix in (".json", ".safetensors"):
        file = expand_home(probe).with_suffix(".json")
        other = read_probe_metadata(file).backbone
        if other["sha256"] != sha256:
            raise UserError(
                f"probe: {probe} was fitted on another backbone ({other['source']}, sha256 {other['sha256'][:8]}) than "
                f"{backbone} ({sha256[:8]}). Fix: name that one, or evaluate this one."
            )
        return file
    folder = _run(place) / "eval" if isinstance(place, Path) else None
    known: dict[str, list[tuple[str, int, Path]]] = {}
    for file in sorted(folder.rglob("probe-*.json")) if folder else ():
        about = read_probe_metadata(file)
        if about.backbone["sha256"] == sha256 and str(probe or about.benchmark) == about.benchmark:
            known.setdefault(about.benchmark, []).append((about.protocol, about.seed, file))
    if not known:
        words = f"{backbone}{f' in {folder}' if folder else ''}{f' for {probe}' if probe else ''}"
        raise UserError(
            f"probe: none of {words}. Fix: run simfle evaluate configs/eval/quick.yaml --run RUN shards=[SHARDS] on "
            "labeled shards, or name a file with --probe."
        )
    if len(known) > 1:
        raise UserError(
            f"probe: {folder} has those of {', '.join(sorted(known))}. Fix: name one, as in --probe {min(known)}."
        )
    return min(next(iter(known.values())))[2]


def _weights(backbone: str | Path) -> str | Path:
    """Return the exported weights of a run; another file or folder as a path; a name such as timm:NAME unchanged."""
    if str(backbone).split(":", 1)[0] in OPTIONS:
        return str(backbone)
    place = expand_home(backbone)
    exported = place / "export" / "online"
    return exported if exported.is_dir() else place


def _run(weights: Path) -> Path:
    """Return the run folder of exported weights; of others, their own folder."""
    folder = weights if weights.is_dir() else weights.parent
    return folder.parents[1] if folder.absolute().parent.name == "export" else folder
