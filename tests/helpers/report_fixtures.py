"""A run's folder and results of evaluations, as pretraining and launchers/evaluate.py write them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from simfle.config.schema import PretrainConfig
from simfle.eval.analysis import metrics
from simfle.eval.analysis.results import CLASSES, LANDMARKS, Result, Samples, write_result

NAMES = ("anger", "joy", "fear")
PEOPLE, EACH = 12, 5


def metrics_line(step: int) -> dict[str, Any]:
    losses = {"similarity": 4 / step, "reconstruction": 1.0, "distillation": 0.1, "grouping": 1e6 / step**2}
    losses["total"] = 5 / step
    speed = {"images_per_second": 100.0 + step, "data_wait": 0.25}
    return {"step": step, "epoch": step / 10, "samples": 8 * step, "lr": 0.1, "losses": losses, **speed}


def make_run(folder: Path, config: PretrainConfig | None = None) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config or PretrainConfig())))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(metrics_line(step)) + "\n" for step in (10, 20, 30)))
    (folder / "versions.json").write_text('{"torch": "2.15"}')
    for step in (10, 20, 30, 40):
        cv2.imwrite(str(folder / "images" / f"step-{step:08d}.png"), np.full((8, 24, 3), step, np.uint8))
    return folder


def add_result(  # noqa: PLR0913 - what differs from test to test
    out: Path,
    backbone: str,
    skill: float,
    *,
    protocol: str = "linear",
    seed: int = 0,
    kind: str = CLASSES,
    names: tuple[str, ...] = NAMES,
    people: bool = True,
    benchmark: str = "faces",
    epochs: int = 7,
    run: dict[str, Any] | None = None,
) -> Result:
    """Write what a classifier would give that is right in a share `skill` of the samples (and guesses none).

    run: origin on the backbone's card, such as folder and step.
    """
    count = PEOPLE * EACH
    labels = np.arange(count) % len(names)
    wrong = np.random.default_rng(seed).permutation(count) >= round(skill * count)
    predictions: Any = np.where(wrong, (labels + 1) % len(names), labels)
    metric = "balanced_accuracy"
    if kind == LANDMARKS:
        labels, predictions, metric = np.full(count, 60.0), np.full(count, skill), "nme"
    measured: dict[str, Any] = {**metrics.measure(kind, labels, predictions, len(names))}
    if kind == CLASSES:
        table = metrics.confusion(labels, predictions, len(names))
        measured["confusion"] = table.astype(int).tolist()
    part = {"split": "x", "samples": count, "people": PEOPLE if people else None, "counts": [count // 3] * 3}
    data = {"left_out": {"contempt": 8}, "differs": [], "train": part, "val": part, "test": part, "folds": 1}
    data |= {"classes": list(names) if kind == CLASSES else [], "chance": 1 / len(names) if kind == CLASSES else None}
    groups = [f"p{place // EACH}" if people else f"k{place}" for place in range(count)]
    samples = Samples([f"k{place}" for place in range(count)], groups, labels.tolist(), predictions.tolist())
    kind_of = next((name for name in ("random", "online", "target") if name in backbone.split("-")), backbone)
    about = {"id": backbone, "kind": kind_of, "model": "resnet18", "card": {"run": run or {}}}
    command = ["python", "launchers/evaluate.py", "shards=[my faces]"]
    best = {metric: measured[metric] + 0.01} if protocol == "linear" else None
    result = Result(
        about, benchmark, protocol, seed, kind, data["classes"], metric, measured, [{"lr": 1}], best, data, samples,
        {protocol: {"epochs": epochs}}, f"{backbone}{benchmark}{protocol}{seed}", command, {}, {}, None,
    )  # fmt: skip
    write_result(out, result)
    return result
