"""Train every method, one after the other, as launchers/pretrain.py does; some also in two halves.

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
    views.size=32 views.face_size=32 views.scale=[0.9,1.0] views.blur_sigma=[0.1,0.5] views.color_jitter_prob=0.2
    views.grayscale_prob=0
    model.backbone=test_resnet model.head_hidden_dim=64 model.head_out_dim=32 model.predictor_hidden_dim=16
    model.mask_groups=4 model.grouping_weight=1e-4
    model.facemae.patch_size=8 model.facemae.embed_dim=48 model.facemae.depth=1 model.facemae.num_heads=3
    model.facemae.decoder_embed_dim=32 model.facemae.decoder_depth=1 model.facemae.decoder_num_heads=2
    model.contrastive.queue_size=40 model.contrastive.shuffle_bn_splits=2 model.contrastive.prototypes=12
    optim.name=adamw optim.lr=0.1 optim.weight_decay=0.01
    train.global_batch=16 train.precision=fp32 train.zero_stage=0 train.device=cpu train.log_every=1
    train.log_images_every=30 train.checkpoint_every=100 train.steps=30
    data.canonical_streams=8 data.decode_threads=1 data.backend=opencv
""".split()  # noqa: SIM905
METHODS = ("simfle", "byol", "simsiam", "simclr", "moco", "mocov3", "swav", "vicreg", "mae", "dino", "care", "fra")
HALVES = ("moco", "dino")  # methods with state other than parameters and BatchNorm statistics
# MAE learns first what all faces have in common: strong colors help.
OTHERS = {
    "mae": [
        "model.backbone=test_vit",
        "optim.lr=0.03",
        "views.scale=[0.5,1.0]",
        "views.color_jitter_prob=0.8",
        "views.grayscale_prob=0.2",
    ],
    # The cross-entropy is small before the center has followed the outputs: a center that follows fast.
    "dino": [
        "optim.lr=0.03",
        "model.dino.prototypes=12",
        "model.dino.center_momentum=0.5",
        "model.dino.warmup_fraction=0.5",
        "model.dino.teacher_temperature=0.045",
    ],
    "mocov3": ["model.backbone=test_vit", "model.freeze_patch_embed=true", "optim.lr=0.03"],
    "care": ["model.output_stride=8", "model.care.embed_dim=32", "model.care.depth=1", "model.care.num_heads=2"],
    "fra": ["model.output_stride=8", "model.fra.regions=3", "model.fra.embed_dim=16", "model.fra.num_heads=2"],
}


def train(faces: str, run: Path, *settings: str) -> None:
    places = [f"data.shards=[{faces}]", f"train.run_dir={run}"]
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
    for method in HALVES:
        for part in ("train.stop_after_step=13", "train.stop_after_step=0"):
            train(faces, out / f"{method}-halves", f"model.method={method}", *OTHERS.get(method, []), part)


if __name__ == "__main__":
    main()
