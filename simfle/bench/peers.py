"""Compare with lightly and LightlyTrain: the same faces, method, network, image size, batch and threads."""

# n images, b of a batch, S side of a view, D projection
import copy
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from shards.errors import UserError
from shards.redact import to_json
from simfle.batch import Batch
from simfle.bench import step
from simfle.bench.runs import Measurement, run_once
from simfle.bench.timing import Timing, Variant
from simfle.config.overrides import format_override
from simfle.config.schema import ModelConfig, PretrainConfig
from simfle.data.backends.base import ViewBackend
from simfle.data.backends.dali import Dali
from simfle.data.backends.opencv import OpenCV
from simfle.data.loader import choose_backend
from simfle.data.views import sample_view_params
from simfle.runtime.distributed import World

Pixels = NDArray[np.uint8]
OURS, OURS_FP32 = "ours", "ours fp32"
LIGHTLY, LIGHTLY_BF16, LIGHTLY_TRAIN = "lightly", "lightly bf16", "lightly-train"
WAYS = (OURS, OURS_FP32, LIGHTLY, LIGHTLY_BF16, LIGHTLY_TRAIN)
METHODS = ("simclr", "byol")  # LightlyTrain only has simclr of them
VIEWS = ("view1", "view2")
BLUR = 1.0  # probability: our views are always blurred
# Their requests to servers at import and at start are not part of the work.
OFFLINE = {
    "LIGHTLY_DID_VERSION_CHECK": "True",
    "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
    "HF_HUB_OFFLINE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}


def is_installed(peer: str) -> bool:
    """Return whether a peer (lightly, lightly-train) can be imported, without importing it."""
    return importlib.util.find_spec(peer.replace("-", "_")) is not None


def check(config: PretrainConfig) -> None:
    """Refuse a comparison without peers, or of another method.

    Raises:
        UserError: If no peer is installed, or the peers lack the method.
    """
    if config.model.method not in METHODS:
        raise UserError(f"model.method={config.model.method}: peers have other settings. Fix: use simclr or byol.")
    if not any(is_installed(peer) for peer in (LIGHTLY, LIGHTLY_TRAIN)):
        raise UserError("lightly and lightly-train are not installed. Fix: pip install 'simfle[peers]'.")
    os.environ.update(OFFLINE)


def loader_variants(
    images: Sequence[Pixels], folder: Path, config: PretrainConfig, batch: int, threads: int, device: torch.device
) -> dict[str, Variant]:
    """Return variants that make two views of all images, in batches.

    images: JPEGs [bytes] uint8, also the files of `folder`. Our batches are uint8 (the step normalizes them), those of
    the peers normalized floats.
    """
    ours = _our_loader(images, config, batch, threads, device)
    found = {OURS: Variant("two views, uint8; the step normalizes them", len(images), ours)}
    if is_installed(LIGHTLY):
        theirs = _lightly_loader(images, config, batch)
        found[LIGHTLY] = Variant("lightly's SimCLRTransform on PIL images, a DataLoader", len(images), theirs)
    if is_installed(LIGHTLY_TRAIN):
        theirs = _lightly_train_loader(folder, config, batch)
        found[LIGHTLY_TRAIN] = Variant("LightlyTrain's dataset, a DataLoader", len(images), theirs)
    return found


def _our_loader(
    images: Sequence[Pixels], config: PretrainConfig, batch: int, threads: int, device: torch.device
) -> Callable[[], None]:
    backend: ViewBackend = OpenCV(config.views, threads, images=VIEWS)
    if choose_backend(config.data.backend, device) == "dali":
        backend = Dali(config.views, threads, batch, device, images=VIEWS)

    def run() -> None:
        for start in range(0, len(images), batch):
            chosen = images[start : start + batch]
            backend.render(chosen, sample_view_params(0, 0, range(start, start + len(chosen)), config.views))

    return run


class JpegDataset(torch.utils.data.Dataset[Any]):
    """JPEGs in memory, decoded by PIL and passed through a transform."""

    def __init__(self, images: Sequence[Pixels], transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Any:
        return self.transform(Image.open(io.BytesIO(self.images[number].tobytes())).convert("RGB"))


def _lightly_loader(images: Sequence[Pixels], config: PretrainConfig, batch: int) -> Callable[[], None]:
    from lightly.transforms import SimCLRTransform

    views = config.views
    transform = SimCLRTransform(
        input_size=views.size,
        cj_prob=views.color_jitter_prob,
        cj_bright=views.brightness,
        cj_contrast=views.contrast,
        cj_sat=views.saturation,
        cj_hue=views.hue,
        min_scale=views.scale[0],
        random_gray_scale=views.grayscale_prob,
        gaussian_blur=BLUR,
        sigmas=(views.blur_sigma[0], views.blur_sigma[1]),
        hf_prob=views.flip_prob,
        normalize={"mean": config.model.mean, "std": config.model.std},
    )
    return _exhaust(torch.utils.data.DataLoader(JpegDataset(images, transform), batch))


def _lightly_train_loader(folder: Path, config: PretrainConfig, batch: int) -> Callable[[], None]:
    from lightly_train._data.image_dataset import ImageDataset
    from lightly_train._methods.simclr.simclr_transform import SimCLRTransform, SimCLRTransformArgs

    transform = SimCLRTransform(SimCLRTransformArgs(**lightly_train_transform(config)))
    names = sorted(file.name for file in folder.iterdir())
    return _exhaust(torch.utils.data.DataLoader(ImageDataset(folder, names, transform, num_channels=3), batch))


def lightly_train_transform(config: PretrainConfig) -> dict[str, Any]:
    """Return LightlyTrain's arguments for our views."""
    views, model = config.views, config.model
    jitter = {name: getattr(views, name) for name in ("brightness", "contrast", "saturation", "hue")}
    return {
        "image_size": (views.size, views.size),
        "random_resize": {"min_scale": views.scale[0], "max_scale": views.scale[1]},
        "random_flip": {"horizontal_prob": views.flip_prob, "vertical_prob": 0.0},
        "color_jitter": {"prob": views.color_jitter_prob, "strength": 1.0, **jitter},
        "random_gray_scale": views.grayscale_prob,
        "normalize": {"mean": tuple(model.mean), "std": tuple(model.std)},
        "gaussian_blur": {"prob": BLUR, "sigmas": tuple(views.blur_sigma), "blur_limit": 0},
    }


def _exhaust(loader: Any) -> Callable[[], None]:
    def run() -> None:
        for _ in loader:
            pass

    return run


def step_variants(config: PretrainConfig, count: int, world: World) -> dict[str, Variant]:
    """Return variants of a training step of `count` images that are already on the device."""
    batch = step.images(config.views, count, world.device)
    fp32 = replace(config, train=replace(config.train, precision="fp32"))
    found = {OURS: Variant(f"as in the trainer, {config.train.precision}", count, step.ours(config, batch, world))}
    if config.train.precision != "fp32":
        found[OURS_FP32] = Variant("as in the trainer, fp32", count, step.ours(fp32, batch, world))
    if is_installed(LIGHTLY):
        found[LIGHTLY] = Variant("lightly's modules, fp32", count, lightly_step(config, batch, bf16=False))
        found[LIGHTLY_BF16] = Variant(
            "the same under bf16 autocast, channels_last", count, lightly_step(config, batch, bf16=True)
        )
    return found


def lightly_step(config: PretrainConfig, batch: Batch, *, bf16: bool) -> Callable[[], None]:
    """Build a step with lightly's heads and loss on torchvision's network, as lightly's documentation does."""
    device = batch.view1.device
    views = [images.float() / 255 for images in (batch.view1, batch.view2)]
    if not bf16:
        views = [images.contiguous() for images in views]
    kinds: dict[str, Any] = {"simclr": LightlySimCLR, "byol": LightlyBYOL}
    method = kinds[config.model.method](config.model).to(device).train()
    if bf16:
        method.to(memory_format=torch.channels_last)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def run() -> None:
        method.begin_step()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = method(*views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _torchvision_backbone(name: str) -> tuple[nn.Module, int]:
    """Return a network of torchvision without its classifier, [b, 3, S, S] -> [b, C], and C."""
    import torchvision

    network = torchvision.models.get_model(name, weights=None)
    channels = int(network.fc.in_features)
    return nn.Sequential(*list(network.children())[:-1], nn.Flatten()), channels


class LightlySimCLR(nn.Module):
    """SimCLR of lightly's parts; its head has no BatchNorm, as ours."""

    def __init__(self, model: ModelConfig) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead

        super().__init__()
        self.backbone, channels = _torchvision_backbone(model.backbone)
        self.head = SimCLRProjectionHead(channels, model.head_hidden_dim, model.head_out_dim, batch_norm=False)
        self.criterion = NTXentLoss(temperature=model.contrastive.temperature)

    def begin_step(self) -> None:
        """Do nothing."""

    def forward(self, view1: Tensor, view2: Tensor) -> Tensor:
        return self.criterion(self.head(self.backbone(view1)), self.head(self.backbone(view2)))


class LightlyBYOL(nn.Module):
    """BYOL of lightly's parts."""

    def __init__(self, model: ModelConfig) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead

        super().__init__()
        self.momentum = model.ema_momentum
        self.backbone, channels = _torchvision_backbone(model.backbone)
        self.head = BYOLProjectionHead(channels, model.head_hidden_dim, model.head_out_dim)
        self.predictor = BYOLPredictionHead(model.head_out_dim, model.head_hidden_dim, model.head_out_dim)
        self.target = copy.deepcopy(nn.ModuleList([self.backbone, self.head])).requires_grad_(False)
        self.criterion = NegativeCosineSimilarity()

    def begin_step(self) -> None:
        """Update the target network."""
        from lightly.models.utils import update_momentum

        for online, target in zip((self.backbone, self.head), self.target, strict=True):
            update_momentum(online, target, m=self.momentum)

    def forward(self, view1: Tensor, view2: Tensor) -> Tensor:
        prediction1, prediction2 = (self.predictor(self.head(self.backbone(view))) for view in (view1, view2))
        with torch.no_grad():
            target1, target2 = (self.target[1](self.target[0](view)) for view in (view1, view2))
        return (self.criterion(prediction1, target2) + self.criterion(prediction2, target1)) / 2


@dataclass
class CommandUse(Measurement):
    """Seconds of a command from a folder of images to an exported backbone. peak: resident bytes of each repetition."""

    peak: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {"peak_bytes": self.peak}


def measure_commands(
    folder: Path, config: PretrainConfig, words: Sequence[str], batch: int, rounds: int, scratch: Path
) -> dict[str, CommandUse]:
    """Run each whole command `rounds` times, in turn.

    folder: JPEGs, at least one batch; words: key=value of our command; scratch: empty folder for results.
    """
    found: dict[str, CommandUse] = {}
    for number in range(rounds):
        for name, lines in command_lines(folder, config, words, batch, scratch / f"{number}").items():
            each = found.setdefault(name, CommandUse(" && ".join(" ".join(line[1:4]) for line in lines)))
            uses = [run_once(line, [0], environment=OFFLINE) for line in lines]
            each.seconds.append(sum(use.seconds for use in uses))
            each.cpu.append(sum(use.cpu for use in uses))
            each.peak.append(max(use.peak for use in uses))
    return found


def command_lines(
    folder: Path, config: PretrainConfig, words: Sequence[str], batch: int, out: Path
) -> dict[str, list[list[str]]]:
    """Return the commands of each variant, from `folder` to a backbone of one epoch, as lists of words."""
    simfle, steps = [sys.executable, "-m", "simfle"], len(list(folder.iterdir())) // batch
    found = {}
    for name, precision in ((OURS, config.train.precision), (OURS_FP32, "fp32")):
        if name == OURS_FP32 and config.train.precision == "fp32":
            continue
        shards, run = f"{out / name}-shards", f"{out / name}-run"
        settings = [*words, format_override("data.shards", [shards]), format_override("train.run_dir", run)]
        settings += [f"train.global_batch={batch}", f"train.steps={steps}", f"train.precision={precision}"]
        found[name] = [
            [*simfle, "shards", "build", "folder", str(folder), shards, "--workers", "1"],
            [*simfle, "pretrain", *settings],
            [*simfle, "export", run],
        ]
    if is_installed(LIGHTLY_TRAIN) and config.model.method == "simclr":
        program = "import json, sys, lightly_train; lightly_train.pretrain(**json.loads(sys.argv[1]))"
        arguments = lightly_train_arguments(folder, config, batch, out / LIGHTLY_TRAIN)
        found[LIGHTLY_TRAIN] = [[sys.executable, "-c", program, to_json(arguments)]]
    return found


def lightly_train_arguments(folder: Path, config: PretrainConfig, batch: int, out: Path) -> dict[str, Any]:
    """Return the arguments of `lightly_train.pretrain` for the same work; its precision is its own default."""
    model = config.model
    return {
        "out": str(out),
        "data": str(folder),
        "model": f"torchvision/{model.backbone}",
        "method": model.method,
        "method_args": {
            "hidden_dim": model.head_hidden_dim,
            "output_dim": model.head_out_dim,
            "batch_norm": False,
            "temperature": model.contrastive.temperature,
        },
        "epochs": 1,
        "batch_size": batch,
        "num_workers": 0,
        "devices": 1,
        "accelerator": "cpu" if config.train.device == "cpu" else "auto",
        "transform_args": lightly_train_transform(config),
    }


def rows(
    loader: dict[str, Timing], steps: dict[str, Timing], commands: dict[str, CommandUse], device: torch.device
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each row of the table: its name with the unit, and the value of each variant."""
    on_cpu = device.type == "cpu"
    unit = "images per CPU second" if on_cpu else "images/s"
    for name, timings in (("loader, two views", loader), ("step", steps)):
        yield f"{name}, {unit}", {way: (each.cpu_rate or 0.0) if on_cpu else each.rate for way, each in timings.items()}
    yield "whole command, CPU s", {way: each.cpu_median for way, each in commands.items()}
    yield "whole command, wall-clock s", {way: each.median for way, each in commands.items()}
    yield "whole command, peak resident MB", {way: max(each.peak) / 1e6 for way, each in commands.items()}


def markdown(found: Sequence[tuple[str, dict[str, float]]]) -> str:
    """Return the table in Markdown; a variant without a figure has a dash."""
    ways = [way for way in WAYS if any(way in values for _, values in found)]
    lines = [f"| | {' | '.join(ways)} |", f"|---|{'---:|' * len(ways)}"]
    for name, values in found:
        cells = [f"{values[way]:,.4g}" if way in values else "-" for way in ways]
        if values:
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_images(images: Sequence[Pixels], folder: Path) -> None:
    """Write JPEGs [bytes] uint8 as files of a new folder."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        (folder / f"{number:06d}.jpg").write_bytes(image.tobytes())
