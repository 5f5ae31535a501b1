"""Export a folder that timm and transformers read: config.json, model.safetensors, README.md (the model card)."""

import logging
from pathlib import Path
from typing import Any

import timm
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor, nn

from shards.format.manifest import Manifest, read_manifest
from shards.io.atomic import read_bytes, read_text, write_atomic
from shards.io.jsonl import loads_object
from shards.redact import to_json
from simfle.config.parsing import flatten
from simfle.config.schema import load_yaml
from simfle.errors import UserError
from simfle.eval.analysis.results import Result, read_results
from simfle.eval.backbones.load import LoadedBackbone
from simfle.eval.tasks import identify, tensors_digest
from simfle.runtime import run_files

log = logging.getLogger(__name__)

NAME = "huggingface"
# Facts that timm has about its own weights of this architecture do not apply. The model card states the license.
SOURCES = ("url", "file", "hf_hub_id", "hf_hub_filename", "tag", "origin_url", "paper_name", "paper_ids")
ABOUT: dict[str, Any] = dict.fromkeys((*SOURCES, "description", "notes")) | {"license": "other"}
RECIPE = (
    ("method", "model.method"),
    ("backbone", "model.backbone"),
    ("grouping", "model.grouping_init"),
    ("views, px", "views.size"),
    ("face, px", "views.face_size"),
    ("optimizer", "optim.name"),
    ("learning rate for a batch of 256", "optim.lr"),
    ("weight decay", "optim.weight_decay"),
    ("global batch", "train.global_batch"),
    ("precision", "train.precision"),
    ("seed", "train.seed"),
)
INIT = ("source", "sha256", "loaded", "wanted")  # of RUN/init.json
EXAMPLE = """import timm, torch
from PIL import Image, ImageOps

model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True, num_classes=0).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = ImageOps.exif_transpose(Image.open("face.jpg")).convert("RGB")
with torch.no_grad():
    features = model(transform(image)[None]){pooling}  # [1, C]
"""
TOLERANCE = 1e-3  # maximum difference of a feature, relative to the largest feature


def export_huggingface(run: Path, backbone: LoadedBackbone, folder: Path) -> Path:
    """Write the folder for a backbone exported from `run`, with a model card filled from the run. Return `folder`.

    Raises:
        UserError: If the run's configuration is missing or corrupt, or one of its evaluation results is corrupt.
    """
    card = backbone.card
    network, pooled = timm_network(backbone)
    data: dict[str, Any] = {"input_size": (3, card.size, card.size), "mean": card.mean, "std": card.std}
    data |= {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}  # the whole image, as in evaluations
    folder.mkdir(parents=True, exist_ok=True)
    timm.models.save_for_hf(network, str(folder), safe_serialization=True, data_config=data)
    _keep_for_transformers(folder / "config.json")
    write_atomic(folder / "README.md", _model_card(run, backbone, pooled=pooled).encode())
    return folder


def timm_network(backbone: LoadedBackbone) -> tuple[nn.Module, bool]:
    """Build timm's network with the backbone's weights; return it, and whether its outputs are the features [B, C].

    ConvNeXt normalizes before the pooling, as the backbone does. If timm applies another layer between pooling and
    classifier that the backbone applies to the feature map (MobileNetV4), the output is the feature map [B, C, h, w].

    Raises:
        UserError: If timm's network computes other features with these weights.
    """
    card, own = backbone.card, backbone.module.network
    tensors = dict(own.state_dict())
    options: dict[str, Any] = {}
    if hasattr(own, "num_prefix_tokens"):  # our pooling: the mean of the patch tokens
        norm = "use_fc_norm" if timm.models.is_model_in_modules(card.name, ["eva"]) else "fc_norm"
        options = {"img_size": card.size, "dynamic_img_size": True, "global_pool": "avg", norm: False}
    elif card.output_stride:
        options = {"output_stride": card.output_stride}
    if timm.models.is_model_in_modules(card.name, ["convnext"]) and "head.norm.weight" in tensors:
        options["head_norm_first"] = True
        tensors = {name.replace("head.norm.", "norm_pre."): value for name, value in tensors.items()}
    images = torch.rand(1, 3, card.size, card.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = backbone.module.cpu().feature_map(images).mean(dim=(2, 3))  # [1, C]
        for pooling in ({}, {"global_pool": ""}):
            chosen = {**options, **pooling}
            network = timm.create_model(card.name, num_classes=0, pretrained_cfg_overlay=ABOUT, **chosen)
            network.load_state_dict(tensors)
            found = network.eval()(images)
            pooled = found.ndim == 2
            if _close(found if pooled else found.mean(dim=(2, 3)), wanted):
                return network, pooled
    raise UserError(f"export: timm's {card.name} computes other features. Fix: use another format.")


def _close(found: Tensor, wanted: Tensor) -> bool:
    """Compare features [B, C]; equal up to rounding."""
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= TOLERANCE * wanted.abs().max())


def _keep_for_transformers(path: Path) -> None:
    """Remove `num_classes` from the model's arguments: transformers passes it, and timm reads it at the root."""
    config = loads_object(read_bytes(path))
    if config.get("model_args", {}).pop("num_classes", None) is not None:
        write_atomic(path, (to_json(config, indent=2) + "\n").encode())


def _model_card(run: Path, backbone: LoadedBackbone, *, pooled: bool) -> str:
    text, config = _config(run)
    weights = tensors_digest(backbone) if backbone.file is None else identify(str(backbone.file)).sha256
    environment = Environment(
        loader=PackageLoader("simfle.export", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shards = [str(folder) for folder in config["data"]["shards"]]
    init = run_files.read_initial_weights(run)
    return environment.get_template("card.md").render(
        title=f"{config['model']['method']} {backbone.card.name}, {run.name}",
        card=backbone.card,
        method=config["model"]["method"],
        example=EXAMPLE.format(pooling="" if pooled else ".mean((2, 3))"),
        pooled=pooled,
        shards=shards,
        corpora=_corpora(shards),
        splits=config["data"]["splits"],
        recipe=[(name, flatten(config).get(key, "-")) for name, key in RECIPE],
        init={name: str(init.get(name, "")) for name in INIT},
        config_text=text,
        versions=_versions(run / "versions.json"),
        rows=_rows(read_results([run]), weights),
        last=_last(run / "metrics.jsonl"),
    )


def _config(run: Path) -> tuple[str, dict[str, Any]]:
    path = run / "config.yaml"
    config = load_yaml(path)
    try:
        config["model"]["method"], config["data"]["shards"], config["data"]["splits"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"export: {path} is corrupt ({error!r}). Fix: rerun the run's command, which restores it."
        ) from None
    return read_text(path, encoding="utf-8"), config


def _versions(path: Path) -> dict[str, Any]:
    try:
        return loads_object(read_bytes(path))
    except (OSError, ValueError):
        return {"versions": "unknown"}


def _corpora(shards: list[str]) -> list[Manifest]:
    """Return the manifests of the run's shards that can still be read."""
    found = []
    for folder in shards:
        try:
            found.append(read_manifest(folder))
        except UserError as error:
            log.warning("the model card lacks the terms of %s: %s", folder, error)
    return found


def _rows(results: list[Result], sha256: str) -> list[dict[str, Any]]:
    """Return one row per benchmark and protocol with the mean over seeds, for these weights only."""
    scores: dict[tuple[str, str, str], list[float]] = {}
    for result in results:
        if result.backbone.get("sha256") == sha256:
            scores.setdefault((result.benchmark, result.protocol, result.metric), []).append(result.score)
    names = ("benchmark", "protocol", "metric")
    return [
        {**dict(zip(names, key, strict=True)), "score": f"{sum(found) / len(found):.4f}", "seeds": len(found)}
        for key, found in scores.items()
    ]


def _last(path: Path) -> dict[str, Any] | None:
    """Return the newest line of metrics with the number of images seen."""
    lines = run_files.parse_metrics(read_bytes(path)) if path.is_file() else []
    return next((line for line in reversed(lines) if "samples" in line), None)
