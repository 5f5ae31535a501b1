"""Readers of the inputs and outputs of runs and evaluations: `READERS`."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz.reader import Reader
from fuzz.shard_readers import tars
from safetensors.torch import save

from simfle.config.parsing import flatten
from simfle.config.schema import DataConfig, PretrainConfig, load
from simfle.data.storage.resampled import ResampledStream
from simfle.eval.analysis.results import read_result
from simfle.eval.backbones.external import read_tensors
from simfle.eval.backbones.load import load_backbone
from simfle.eval.config import EvalConfig
from simfle.train.checkpointing import checkpoint
from simfle.train.telemetry.corrupt_log import read_lines
from simfle.train.telemetry.metrics import MetricLogger

ROOT = Path(__file__).parents[2]
PROGRESS = {"step": 4, "samples": 64, "config": "c", "corpus": "d", "optimizer": "sgd", "format": 2}
TENSORS = {"online.conv.weight": torch.arange(24.0).reshape(2, 3, 4), "online.bn.bias": torch.zeros(2)}


def _configs(schema: Any) -> Callable[[Path], None]:
    def read(file: Path) -> None:
        config = load(schema, file)
        # What a configuration holds comes from its text alone.
        text = json.dumps(list(flatten(_plain(config)).values()))
        assert str(Path.home()) not in text or str(Path.home()).encode() in file.read_bytes()

    return read


def _plain(config: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(config)


def pretraining() -> list[bytes]:
    shipped = [file.read_bytes() for file in sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))]
    return [*shipped, yaml.safe_dump(_plain(PretrainConfig()), sort_keys=False).encode()]


def evaluations() -> list[bytes]:
    return [file.read_bytes() for file in sorted((ROOT / "configs" / "eval").glob("*.yaml"))]


def safetensors() -> list[bytes]:
    return [save(TENSORS), save({"a": torch.zeros(0)})]


def _checkpoint(part: str) -> Callable[[Path], None]:
    """Corrupt one file of a checkpoint and update its hash, so that the parsers read it."""

    def read(file: Path) -> None:
        folder = file.parent
        whole = {"model.safetensors": save(TENSORS), "optim.safetensors": save({}), "state.json": json.dumps(PROGRESS)}
        for name, content in whole.items():
            if name != part:
                (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        hashes = {
            name: {
                "bytes": (folder / name).stat().st_size,
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            }
            for name in checkpoint.FILES
        }
        if part != checkpoint.MARKER:
            (folder / checkpoint.MARKER).write_text(json.dumps(hashes))
        checkpoint.read(folder)

    return read


def markers() -> list[bytes]:
    whole = {
        "model.safetensors": save(TENSORS),
        "optim.safetensors": save({}),
        "state.json": json.dumps(PROGRESS).encode(),
    }
    about = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in whole.items()}
    return [json.dumps(about).encode()]


def cards() -> list[bytes]:
    card = {"name": "resnet10t", "network": "online", "features": 512, "mean": [0.5] * 3, "std": [0.2] * 3, "size": 64}
    return [json.dumps(card | {"run": {"folder": "r"}, "format": 1}).encode()]


_weights: list[bytes] = []


def _backbone(file: Path) -> None:
    from simfle.models.backbone import build_backbone

    if not _weights:
        torch.manual_seed(0)
        _weights.append(save(build_backbone("resnet10t").state_dict()))
    (file.parent / "backbone.safetensors").write_bytes(_weights[0])
    load_backbone(file.parent)


def torch_files() -> list[bytes]:
    import io
    import pickle

    made = []
    for state, new in ((TENSORS, True), ({"state_dict": TENSORS, "epoch": 3}, True), (TENSORS, False)):
        out = io.BytesIO()
        torch.save(state, out, _use_new_zipfile_serialization=new)
        made.append(out.getvalue())
    return [*made, pickle.dumps({"a": 1})][:3]


def results() -> list[bytes]:
    samples = {"keys": ["a", "b"], "groups": ["a", "b"], "labels": [0, 1], "predictions": [0, 0]}
    result = {
        "backbone": {"id": "b", "kind": "online", "model": "resnet18"},
        "benchmark": "m",
        "protocol": "linear",
        "seed": 0,
        "kind": "classes",
        "classes": ["x", "y"],
        "metric": "accuracy",
        "metrics": {"accuracy": 0.5},
        "chosen": [],
        "best_on_test": None,
        "data": {},
        "samples": samples,
        "settings": {},
        "identity": "0",
        "command": [],
        "config": {},
        "versions": {},
        "git": None,
        "format": 3,
    }
    return [json.dumps(result).encode()]


def metrics() -> list[bytes]:
    lines = [
        {"step": n, "epoch": n / 9, "losses": {"total": 1.0 / n, "similarity": 0.5}, "lr": 0.1} for n in range(1, 9)
    ]
    return ["".join(json.dumps(line) + "\n" for line in lines).encode()]


def _resumed(file: Path) -> None:
    MetricLogger(file.parent, 4).close()
    read_lines(file, 4)


def _stream(file: Path) -> None:
    stream = ResampledStream(DataConfig(shards=[str(file)], resampled=True, shuffle_window=4), 0, 2, 0)
    ids, _ = stream.slot_ids(0, 0, 4)
    for number in ids.tolist():
        stream.read_image(number)


UNSAFE = (
    *(b"!!python/name:os.system", b"!!python/object/new:os.system [touch pwned]", b"${oc.env:HOME}", b"${train.seed}"),
    *(b"${oc.decode:1}", b"${nope}", b"${${a}:b}", b"? [1, 2]\n: 3\n", b"1: 2\n", b"- 1\n", b"<<: *a", b".inf"),
)
READERS = (
    Reader("pretraining yaml", "c.yaml", pretraining, _configs(PretrainConfig), words=UNSAFE),
    Reader("evaluation yaml", "c.yaml", evaluations, _configs(EvalConfig), words=UNSAFE),
    Reader("checkpoint: model", "c/model.safetensors", safetensors, _checkpoint("model.safetensors")),
    Reader("checkpoint: state", "d/state.json", lambda: [json.dumps(PROGRESS).encode()], _checkpoint("state.json")),
    Reader("checkpoint: marker", "e/COMPLETE", markers, _checkpoint("COMPLETE")),
    Reader("backbone.json", "b/backbone.json", cards, _backbone),
    Reader("weights: safetensors", "w.safetensors", safetensors, read_tensors),
    Reader("weights: torch", "w.pth", torch_files, read_tensors),
    Reader("results", "seed-0.json", results, read_result),
    Reader("metrics", "s/metrics.jsonl", metrics, _resumed),
    Reader("streamed tar", "t.tar", lambda: [*tars()[:1]], _stream),
)
