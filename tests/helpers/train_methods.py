"""Train every method, one after the other, as launchers/pretrain.py does; MoCo also in two halves.

Each run in a fork of this process: importing torch once is enough, but DeepSpeed starts once per process only.
"""

import multiprocessing
import sys
from contextlib import suppress
from pathlib import Path

from simfle.config.schema import PretrainConfig, load
from simfle.errors import RunStopped
from simfle.train.pretrain import pretrain

# Mild views and little else to learn than one small network, so that thirty steps show whether it learns.
SETTINGS = """
    views.size=32 views.face_size=32 views.scale=[0.9,1.0] views.sigma=[0.1,0.5] views.jitter=0.2 views.greyscale=0
    model.backbone=test_resnet model.hidden=64 model.projection=32 model.bottleneck=16 model.groups=4 model.beta=1e-4
    model.facemae.patch=8 model.facemae.width=48 model.facemae.depth=1 model.facemae.heads=3
    model.facemae.decoder_width=32 model.facemae.decoder_depth=1 model.facemae.decoder_heads=2
    model.contrast.queue=40 model.contrast.splits=2 model.contrast.prototypes=12
    optim.name=adamw optim.lr=0.1 optim.weight_decay=0.01
    train.global_batch=16 train.precision=fp32 train.zero_stage=0 train.device=cpu train.log_every=1
    train.images_every=30 train.checkpoint_every=100 train.steps=30
    data.streams=8 data.threads=1 data.backend=opencv
""".split()  # noqa: SIM905
METHODS = ("simfle", "byol", "simsiam", "simclr", "moco", "swav", "vicreg", "mae")
# MAE learns first what all faces have in common: strong colours help.
OTHERS = {
    "mae": [
        "model.backbone=test_vit",
        "optim.lr=0.03",
        "views.scale=[0.5,1.0]",
        "views.jitter=0.8",
        "views.greyscale=0.2",
    ]
}


def train(faces: str, run: Path, *settings: str) -> None:
    places = [f"data.shards=[{faces}]", f"train.run={run}"]
    child = multiprocessing.get_context("fork").Process(target=work, args=([*SETTINGS, *places, *settings],))
    child.start()
    child.join()
    if child.exitcode != 0:
        sys.exit(f"{run.name} ended with {child.exitcode}")


def work(settings: list[str]) -> None:
    with suppress(RunStopped):
        pretrain(load(PretrainConfig, None, settings))


def main() -> None:
    faces, out = sys.argv[1], Path(sys.argv[2])
    for method in METHODS:
        train(faces, out / method, f"model.method={method}", *OTHERS.get(method, []))
    for part in ("train.stop_after=13", "train.stop_after=0"):
        train(faces, out / "halves", "model.method=moco", part)


if __name__ == "__main__":
    main()
