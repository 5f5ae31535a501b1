"""What a build is asked for, and all that decides its bytes."""

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shards.align import find_model, model_digest
from shards.encode import EncodeOptions
from shards.exclude import Exclude
from shards.files import named
from shards.manifest import FORMAT
from shards.rules import Rules

DECIDING = ("pillow", "simplejpeg")  # packages whose version may change the bytes
RESIZING = "opencv-python-headless"  # likewise, where pixels move


@dataclass(frozen=True)
class Build:
    """What is asked for. source: the kind of source and its options as plain JSON, without absolute paths.

    face_model: the detector's file for encode.align; None: the one that is installed. max_missing: the share of listed
    files that may be missing.
    """

    out: Path
    corpus: str
    source: dict[str, Any]
    rules: Rules = field(default_factory=Rules)
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    shard_samples: int = 2048
    terms: str = ""
    workers: int = 1
    face_model: Path | None = None
    max_missing: float = 1.0
    exclude: Exclude = field(default_factory=Exclude)

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", named(self.out))

    @property
    def partial(self) -> Path:
        """Where it is made."""
        return self.out.with_name(self.out.name + ".partial")

    @property
    def mark(self) -> Path:
        """The file that says that the plan stands, with its digest."""
        return self.partial / "work" / "plan.json"

    @property
    def model(self) -> Path | None:
        """What finds faces, if that is asked for. Raises UserError if it is not there."""
        return find_model(self.face_model) if self.encode.align else None

    def decides(self) -> dict[str, Any]:
        """Everything but the entries that decides the shards: part of the digest."""
        moving = (RESIZING,) if self.encode.align or self.encode.shorter_side else ()
        model = {"face_model": model_digest(self.model)} if self.model else {}
        return {
            "corpus": self.corpus,
            "terms": self.terms,
            "source": self.source,
            "rules": asdict(self.rules),
            "encode": asdict(self.encode),
            "shard_samples": self.shard_samples,
            "versions": {"format": FORMAT} | {name: version(name) for name in DECIDING + moving} | model,
        } | self.exclude.decides()
