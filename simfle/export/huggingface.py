"""Export a folder that timm and transformers read: config.json, model.safetensors, README.md (the model card)."""

import logging
from pathlib import Path
from typing import Any

import timm
from jinja2 import Environment, PackageLoader, StrictUndefined

from shards.format.manifest import Manifest, read_manifest
from shards.io.atomic import read_bytes, read_text, write_atomic
from shards.io.jsonl import loads_object
from shards.redact import to_json
from simfle.config.parsing import flatten
from simfle.config.schema import load_yaml
from simfle.errors import UserError
from simfle.eval.analysis.results import Result, read_results
from simfle.eval.backbones.load import TRANSFORMERS, LoadedBackbone
from simfle.eval.tasks import identify, tensors_digest
from simfle.runtime import run_files

log = logging.getLogger(__name__)

NAME = "huggingface"
# timm's facts about its own weights of this architecture do not apply. The license is given on the model card.
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
    features = model(transform(image)[None])  # [1, C]
"""


def export_huggingface(run: Path, backbone: LoadedBackbone, folder: Path) -> Path:
    """Write the folder for a backbone exported from `run`, with a model card filled from the run. Return `folder`.

    Raises:
        UserError: the run's configuration is missing or corrupt; an evaluation result in it is corrupt.
    """
    card = backbone.card
    options: dict[str, Any] = {}
    if timm.models.is_model_in_modules(card.name, TRANSFORMERS):  # our pooling: the mean of the patch tokens
        options = {"img_size": card.size, "dynamic_img_size": True, "global_pool": "avg", "fc_norm": False}
    elif card.output_stride:
        options = {"output_stride": card.output_stride}
    network = timm.create_model(card.name, num_classes=0, pretrained_cfg_overlay=ABOUT, **options)
    network.load_state_dict(backbone.module.network.state_dict())
    data: dict[str, Any] = {"input_size": (3, card.size, card.size), "mean": card.mean, "std": card.std}
    data |= {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}  # the whole image, as in evaluations
    folder.mkdir(parents=True, exist_ok=True)
    timm.models.save_for_hf(network, str(folder), safe_serialization=True, data_config=data)
    _keep_for_transformers(folder / "config.json")
    write_atomic(folder / "README.md", _model_card(run, backbone).encode())
    return folder


def _keep_for_transformers(path: Path) -> None:
    """Remove `num_classes` from the model's arguments: transformers passes it itself, timm reads it at the root."""
    config = loads_object(read_bytes(path))
    if config.get("model_args", {}).pop("num_classes", None) is not None:
        write_atomic(path, (to_json(config, indent=2) + "\n").encode())


def _model_card(run: Path, backbone: LoadedBackbone) -> str:
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
        example=EXAMPLE,
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
    """Return one row per benchmark and protocol: the mean over seeds, for these weights only."""
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
