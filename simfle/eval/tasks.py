"""Evaluation tasks: one per backbone, benchmark, protocol and seed, independent of each other and in a fixed order.

A dispatcher (processes of one machine, an array job) calls `eval_tasks(config)`, takes its part by position and passes
each task to `run_task`, which skips complete tasks.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from shards.io.hashing import digest, hash_file
from simfle.errors import UserError
from simfle.eval.analysis.results import result_path
from simfle.eval.backbones.external import OPTIONS, open_backbone
from simfle.eval.backbones.load import METADATA, BackboneMetadata, LoadedBackbone, find_weights, read_metadata
from simfle.eval.config import EvalConfig, check
from simfle.eval.data.benchmarks import Benchmark, custom_benchmark, open_benchmark
from simfle.eval.protocols.base import PROTOCOLS, parse


@dataclass(frozen=True)
class EvalTask:
    """Evaluation task. source: as in config.backbones; for a random backbone, the source of the backbone that has its
    architecture.

    id: folder of the backbone below OUT.
    """

    source: str
    random: bool
    id: str
    benchmark: Benchmark
    protocol: str
    seed: int

    def path(self, config: EvalConfig) -> Path:
        """Return the file of the result."""
        return result_path(Path(config.out), self.id, self.benchmark.name, self.protocol, self.seed)

    def __str__(self) -> str:
        return f"{self.id} / {self.benchmark.name} / {self.protocol} / seed {self.seed}"


@dataclass(frozen=True)
class BackboneIdentity:
    """Facts about a backbone before its evaluation. sha256: SHA-256 of its file, or of its tensors without a file."""

    card: BackboneMetadata
    sha256: str
    file: Path | None


def eval_tasks(config: EvalConfig) -> list[EvalTask]:
    """Return all tasks in a fixed order: by benchmark, then by backbone.

    Raises:
        UserError: If a field is out of range, or a benchmark, protocol or backbone is unknown.
    """
    check(config)
    words = [word for word in config.benchmarks if word]
    benchmarks = [open_benchmark(word, config) for word in words] or [custom_benchmark(config)]
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) != len(names):
        raise UserError(f"benchmarks=[{', '.join(names)}]: a name is repeated. Fix: list each name once.")
    known = {source: identify(source) for source in dict.fromkeys(config.backbones)}
    found = []
    for benchmark in benchmarks:
        shapes = set()
        wanted = _protocols(config, benchmark)
        for source, about in known.items():
            found += _of(source, False, backbone_id(source, about), benchmark, wanted, config)
            shape = random_id(about.card)
            if shape not in shapes:
                found += _of(source, True, shape, benchmark, wanted, config)
            shapes.add(shape)
    if not found:
        raise UserError(
            "protocols: no task to run. Fix: add backbones, or set random_baseline=true or the protocol scratch."
        )
    return found


def _protocols(config: EvalConfig, benchmark: Benchmark) -> list[str]:
    """Return the protocols for a benchmark; a set without expressions only supports landmarks."""
    wanted = list(dict.fromkeys(config.protocols or benchmark.protocols))
    fitting = [word for word in wanted if benchmark.labeled or parse(word)[0] == "landmarks"]
    if not fitting:
        raise UserError(f"protocols: {benchmark.name} has no expression labels. Fix: use landmarks.")
    return fitting


def _of(
    source: str, random: bool, name: str, benchmark: Benchmark, protocols: list[str], config: EvalConfig
) -> list[EvalTask]:
    found = []
    for word in protocols:
        protocol, share = parse(word)
        if protocol == "scratch" and not random:
            continue
        if random and protocol != "scratch" and (not config.random_baseline or protocol == "finetune"):
            continue  # equals scratch
        seeded = random or share < 1 or PROTOCOLS[protocol].seeded
        found += [
            EvalTask(source, random, name, benchmark, word, seed) for seed in config.seeds[: None if seeded else 1]
        ]
    return found


def identify(source: str) -> BackboneIdentity:
    """Identify a backbone source; for exported backbones, without reading the weights into memory.

    Raises:
        UserError: If the backbone is missing, corrupt or unknown.
    """
    if source.split(":", 1)[0] in OPTIONS and ":" in source:
        backbone = open_backbone(source)
        return BackboneIdentity(backbone.card, tensors_digest(backbone), backbone.file)
    file = find_weights(Path(source))
    card = read_metadata(file.with_name(METADATA))
    return BackboneIdentity(card, hash_file(file), file)


def tensors_digest(backbone: LoadedBackbone) -> str:
    """Return the sha256 of names, shapes and values of a backbone's tensors, including its normalization."""
    found = hashlib.sha256()
    for name, tensor in sorted(backbone.module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        found.update(f"{name} {list(value.shape)} {value.dtype} ".encode())
        found.update(value.flatten().numpy().tobytes())
    return found.hexdigest()


def backbone_id(source: str, known: BackboneIdentity) -> str:
    """Return a folder name: origin, network, and 8 digits of the hash."""
    run = known.card.run.get("folder") or known.card.name
    return f"{_plain(f'{run}-{known.card.network}')}-{known.sha256[:8]}"


def random_id(card: BackboneMetadata) -> str:
    """Return a folder name for random backbones of a card's shape; different seeds are different initializations."""
    shape = digest([card.name, card.size, card.mean, card.std])
    return f"{_plain(f'random-{card.name}-{card.size}px')}-{shape[:4]}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip(".-") or "backbone"
