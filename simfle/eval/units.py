"""Units of work: one for each backbone, benchmark, protocol and seed, each on its own, in a fixed order.

Whoever deals them out (processes of one machine, an array job) calls `units(config)`, takes its share by position and
hands each to `run_unit`; what is done is skipped there.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.files import open_regular
from simfle.errors import UserError
from simfle.eval.backbones import CARD, Backbone, Card, find_weights, read_card
from simfle.eval.benchmarks import Benchmark, open_benchmark, own_benchmark
from simfle.eval.config import EvalConfig, check
from simfle.eval.foreign import OPTIONS, open_backbone
from simfle.eval.protocols import PROTOCOLS, parse
from simfle.eval.results import digest, result_path


@dataclass(frozen=True)
class Unit:
    """source: as in config.backbones, of a random one the backbone whose shape it takes; id: its folder below OUT."""

    source: str
    random: bool
    id: str
    benchmark: Benchmark
    protocol: str
    seed: int

    def path(self, config: EvalConfig) -> Path:
        """The file of its result."""
        return result_path(Path(config.out), self.id, self.benchmark.name, self.protocol, self.seed)

    def __str__(self) -> str:
        return f"{self.id} / {self.benchmark.name} / {self.protocol} / seed {self.seed}"


@dataclass(frozen=True)
class Known:
    """What is known of a backbone before it is evaluated. sha256: of its file, or of its tensors if it has none."""

    card: Card
    sha256: str
    file: Path | None


def units(config: EvalConfig) -> list[Unit]:
    """All units, in a fixed order: benchmark by benchmark, backbone by backbone.

    Raises:
        UserError: a field out of its range, an unknown benchmark, protocol or backbone.
    """
    check(config)
    words = [word for word in config.benchmarks if word]
    benchmarks = [open_benchmark(word, config) for word in words] or [own_benchmark(config)]
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) != len(names):
        raise UserError(f"benchmarks: a name is given twice in {', '.join(names)}")
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
        raise UserError("protocols: nothing is to be done; scratch and random=true evaluate random backbones")
    return found


def _protocols(config: EvalConfig, benchmark: Benchmark) -> list[str]:
    """The protocols that are wanted of a benchmark; a set without expressions serves landmarks only."""
    wanted = list(dict.fromkeys(config.protocols or benchmark.protocols))
    fitting = [word for word in wanted if benchmark.labelled or parse(word)[0] == "landmarks"]
    if not fitting:
        raise UserError(f"protocols: {benchmark.name} has no expressions; its protocol is landmarks")
    return fitting


def _of(
    source: str, random: bool, name: str, benchmark: Benchmark, protocols: list[str], config: EvalConfig
) -> list[Unit]:
    found = []
    for word in protocols:
        protocol, share = parse(word)
        if protocol == "scratch" and not random:
            continue
        if random and protocol != "scratch" and (not config.random or protocol == "finetune"):
            continue  # fine-tuning of a random backbone is what scratch is
        seeded = random or share < 1 or PROTOCOLS[protocol].seeded
        found += [Unit(source, random, name, benchmark, word, seed) for seed in config.seeds[: None if seeded else 1]]
    return found


def identify(source: str) -> Known:
    """What a source of a backbone is; of ours without reading its weights into memory.

    Raises:
        UserError: it is not there, damaged or unknown.
    """
    if source.split(":", 1)[0] in OPTIONS and ":" in source:
        backbone = open_backbone(source)
        return Known(backbone.card, tensors_digest(backbone), backbone.file)
    file = find_weights(Path(source))
    card = read_card(file.with_name(CARD))
    with open_regular(file, "rb") as content:
        return Known(card, _sha256(content), file)


def _sha256(content: Any) -> str:
    found = hashlib.sha256()
    while part := content.read(1 << 20):
        found.update(part)
    return found.hexdigest()


def tensors_digest(backbone: Backbone) -> str:
    """sha256 of names, shapes and values of a backbone's tensors, normalisation included."""
    found = hashlib.sha256()
    for name, tensor in sorted(backbone.module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        found.update(f"{name} {list(value.shape)} {value.dtype} ".encode())
        found.update(value.flatten().numpy().tobytes())
    return found.hexdigest()


def backbone_id(source: str, known: Known) -> str:
    """A folder name: where it comes from, which network, and 8 digits of its hash."""
    run = known.card.run.get("folder") or known.card.name
    return f"{_plain(f'{run}-{known.card.network}')}-{known.sha256[:8]}"


def random_id(card: Card) -> str:
    """A folder name for random backbones of a card's shape; its seeds are different initialisations."""
    shape = digest([card.name, card.size, card.mean, card.std])
    return f"{_plain(f'random-{card.name}-{card.size}px')}-{shape[:4]}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip(".-") or "backbone"
