"""Start a run from the weights that `model.init` names, and record in RUN/init.json what was loaded.

A run of the same method provides all tensors of equal name and shape. Every other source
provides its backbone, which is also copied to an EMA target. A resumed run does not read the source again.
"""

# L patches, D width, T prefix tokens (class and register tokens) with positions
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from shards.io.atomic import read_bytes, replace_text
from shards.io.jsonl import loads_object
from shards.redact import to_json
from simfle.config.schema import ModelConfig
from simfle.errors import CollectiveError, UserError
from simfle.eval.backbones import external
from simfle.models.backbone import position_prefix
from simfle.runtime import run_files
from simfle.runtime.collective import main_process_tries
from simfle.runtime.distributed import World
from simfle.train.checkpointing.state_dict import State, persistent_buffers
from simfle.train.init_source import InitialWeights, first_names, read

FILE = run_files.INITIAL_WEIGHTS
BACKBONES = ("online.backbone.", "target.backbone.")
SCHEDULE = ("progress",)  # DINO's fraction of the run, which starts from 0
COUNTER = "num_batches_tracked"  # a buffer of BatchNorm, which older files lack
TRAINED, AVERAGED = ("online", "student"), ("momentum", "target", "teacher", "ema")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """Counts and names of the tensors that a model received.

    wanted: number of tensors that the model could take. networks: description of the filled networks. prefix: prefix
    of the backbone in the source.
    """

    networks: str
    prefix: str
    loaded: int
    wanted: int
    missing: list[str]
    mismatched: list[str]
    unexpected: list[str]

    @property
    def text(self) -> str:
        """Return one line that describes the counts."""
        place = f" from {self.prefix}" if self.prefix else ""
        words = [f"loaded {self.loaded} of {self.wanted} tensors of {self.networks}{place}"]
        for what, names in (
            ("missing in the file", self.missing),
            ("of another shape", self.mismatched),
            ("not used from the file", self.unexpected),
        ):
            words += [f"{what}: {len(names)} ({first_names(names)})"] if names else []
        return "; ".join(words)


def initialize(model: nn.Module, settings: ModelConfig, run: Path, world: World, report: Callable[[str], None]) -> str:
    """Fill a model from `model.init` before DeepSpeed wraps it; write RUN/init.json; return the SHA-256. Collective.

    The main process reads first, so that a download is then in the cache. All processes must read the same weights.
    `report` is called with lines to print, on the main process.

    Raises:
        CollectiveError: If the source cannot be read by a process, differs between processes, or fits nowhere.
    """
    text, file = settings.init, run / FILE
    if not text:
        if world.is_main:
            file.unlink(missing_ok=True)  # remains of a start with another configuration and no checkpoint
        return ""
    weights, failure = main_process_tries(world, lambda: read(text)), ""
    if weights is None:
        try:
            weights = read(text)
        except UserError as error:
            failure = str(error)
    _compare(text, weights.sha256 if weights else "", failure, world)
    assert weights is not None
    try:
        loaded = fill(model, weights, settings)
    except UserError as error:  # all processes raise the same error
        raise CollectiveError(str(error), is_reporter=world.is_main) from None
    if world.is_main:
        report(f"model.init={text}: {loaded.text}")
        _warn_of_normalization(weights, settings)
        facts: dict[str, Any] = {
            "source": text,
            "sha256": weights.sha256,
            "method": weights.method,
            "backbone": weights.backbone,
        }
        counts = {name: len(getattr(loaded, name)) for name in ("missing", "mismatched", "unexpected")}
        names = {f"{name}_names": getattr(loaded, name) for name in counts}
        facts |= {"networks": loaded.networks, "prefix": loaded.prefix}
        facts |= {"loaded": loaded.loaded, "wanted": loaded.wanted, **counts, **names}
        replace_text(file, to_json(facts, indent=1))
    return weights.sha256


def recorded(run: Path, digest: str) -> str:
    """Return the SHA-256 of the initial weights that a checkpoint records; the weights are not read again.

    Raises:
        UserError: If RUN/init.json records other weights.
    """
    try:
        found = loads_object(read_bytes(run / FILE)).get("sha256", "")
    except (OSError, ValueError):
        return digest
    if digest and found != digest:
        raise UserError(
            f"train.run_dir={run}: {FILE} records other weights (sha256 {str(found)[:12]}) than those that the "
            f"checkpoint started from ({digest[:12]}). Fix: restore the {FILE} of this run, or delete it"
        )
    return digest


@torch.no_grad()
def fill(model: nn.Module, weights: InitialWeights, settings: ModelConfig) -> Loaded:
    """Copy the weights into a model: all of a run of the same method, otherwise the backbone.

    Raises:
        UserError: If the weights are of another backbone, or less than half of the backbone's values fit.
    """
    text, backbone = settings.init, settings.backbone
    if weights.backbone and weights.backbone.split(".")[0] != backbone.split(".")[0]:
        raise UserError(
            f"model.init={text}: weights of {weights.backbone}, but model.backbone={backbone}. "
            f"Fix: set model.backbone={weights.backbone}, or use other weights."
        )
    tensors = dict(model.named_parameters()) | persistent_buffers(model)
    if weights.method and weights.method == settings.method:
        return _fill_all(tensors, weights, settings)
    network: Any = model.online.backbone  # type: ignore[union-attr]
    weights = replace(weights, tensors=external.timm_names(backbone, network, weights.tensors))
    below = BACKBONES[0]
    wanted = {name.removeprefix(below): value for name, value in tensors.items() if name.startswith(below)}
    head, pairs = _find(wanted, weights, text)
    found = {name: _resized(value, wanted[name], name, position_prefix(network)) for name, value in pairs.items()}
    fitting = {name: value for name, value in found.items() if value.shape == wanted[name].shape}
    missing = [name for name in wanted if name not in found and not name.endswith(COUNTER)]
    mismatched = [name for name in found if name not in fitting]
    if _values(wanted, fitting) < 0.5 * _values(wanted, wanted):
        raise UserError(
            f"model.init={text}: only {len(fitting)} of {len(wanted)} tensors of model.backbone={backbone} fit, less "
            f"than half of its values (not: {first_names([*missing, *mismatched])}). "
            f"Fix: use weights of {backbone}, or set model.backbone to the network of these weights."
        )
    targets = [prefix for prefix in BACKBONES if any(name.startswith(prefix) for name in tensors)]
    for name, value in fitting.items():
        for prefix in targets:
            tensors[prefix + name].copy_(value)
    used = {id(pairs[name]) for name in fitting}
    unused = [name for name, value in weights.tensors.items() if id(value) not in used]
    networks = " and ".join(prefix.removesuffix(".") for prefix in targets)
    return Loaded(networks, head.rstrip("."), len(fitting), len(wanted), missing, mismatched, unused)


def _fill_all(tensors: State, weights: InitialWeights, settings: ModelConfig) -> Loaded:
    """Copy all tensors of equal name and shape. Raises UserError if there is none."""
    given = {name: value for name, value in weights.tensors.items() if name not in SCHEDULE}
    tensors = {name: value for name, value in tensors.items() if name not in SCHEDULE}
    fitting = [name for name in tensors if name in given and given[name].shape == tensors[name].shape]
    if not fitting:
        raise UserError(f"model.init={settings.init}: no tensor fits. Fix: use a run with this model.backbone.")
    for name in fitting:
        tensors[name].copy_(given[name])
    return Loaded(
        f"{settings.method} (all networks)",
        "",
        *(len(fitting), len(tensors)),
        [name for name in tensors if name not in given],
        [name for name in tensors if name in given and given[name].shape != tensors[name].shape],
        [name for name in given if name not in tensors],
    )


def _find(wanted: State, weights: InitialWeights, text: str) -> tuple[str, State]:
    """Find the network in a file: return its prefix, and its tensors by the names in `wanted`, of any shape.

    The prefix with the most fitting values is used; of equal ones, a trained network precedes its moving average.

    Raises:
        UserError: If the file has no network below the prefix that was asked for.
    """
    own = {name: name for name in wanted}
    numbered = {external.numbered_name(name): name for name in wanted}  # nn.Sequential's numbers of a ResNet's children
    candidates: dict[tuple[str, int], State] = {}
    for key, value in weights.tensors.items():
        parts = key.split(".")
        for at in range(len(parts)):
            tail = ".".join(parts[at:])
            for way, names in enumerate((own, numbered)):
                if tail in names:
                    candidates.setdefault((key.removesuffix(tail), way), {})[names[tail]] = value
    asked = weights.prefix
    if asked is not None:
        candidates = {key: found for key, found in candidates.items() if key[0].rstrip(".") == asked.rstrip(".")}
    if not candidates:
        what = f"below the prefix {asked}" if asked is not None else "under any prefix"
        raise UserError(
            f"model.init={text}: none of its {len(weights.tensors)} tensors "
            f"({first_names(list(weights.tensors))}) belongs to the backbone {what}. "
            "Fix: set model.backbone to the network of these weights."
        )

    def rank(each: tuple[str, int]) -> tuple[int, int]:
        fits = {name: value for name, value in candidates[each].items() if value.shape == wanted[name].shape}
        words = each[0].lower()
        kind = any(word in words for word in TRAINED) - any(word in words for word in AVERAGED)
        return _values(wanted, fits), kind

    chosen = max(candidates, key=rank)  # if several are equal, the first
    return chosen[0], candidates[chosen]


def _resized(value: torch.Tensor, wanted: torch.Tensor, name: str, prefix: int) -> torch.Tensor:
    """Interpolate a ViT's position embeddings [1, T + L, D] to those of another image size; keep other tensors."""
    if name != "pos_embed" or value.shape == wanted.shape or value.ndim != 3 or value.shape[2] != wanted.shape[2]:
        return value
    from timm.layers import resample_abs_pos_embed

    places = [each.shape[1] - prefix for each in (wanted, value)]
    side, old = (math.isqrt(max(0, count)) for count in places)
    if [side * side, old * old] != places:
        return value
    return resample_abs_pos_embed(value.float(), [side, side], [old, old], num_prefix_tokens=prefix)


def _warn_of_normalization(weights: InitialWeights, settings: ModelConfig) -> None:
    """Warn if the weights were trained with another normalization."""
    ours, theirs = [*settings.mean, *settings.std], [*weights.mean, *weights.std]
    if theirs and any(abs(a - b) > 1e-3 for a, b in zip(ours, theirs, strict=False)):
        mean, std = (",".join(f"{value:g}" for value in values) for values in (weights.mean, weights.std))
        log.warning(
            "model.init=%s: these weights were trained with another normalization. Fix: set model.mean=[%s] "
            "model.std=[%s] to keep it",
            *(settings.init, mean, std),
        )


def _compare(text: str, digest: str, failure: str, world: World) -> None:
    """Raise a CollectiveError if a process could not read the weights, or has read others. Collective."""
    if world.world_size == 1:
        return
    told: list[Any] = [None] * world.world_size
    dist.all_gather_object(told, (digest, failure))
    for rank, (other, words) in enumerate(told):
        if words or other != told[0][0]:
            why = words or f"model.init={text}: reads other weights (sha256 {other[:12]}) than the main process"
            raise CollectiveError(
                f"process {rank}: {why}. Fix: use the same file on all machines", is_reporter=world.is_main
            )


def _values(wanted: State, names: Iterable[str]) -> int:
    return sum(wanted[name].numel() for name in names)
