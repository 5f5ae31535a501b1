"""The specification of a build: all options that determine its bytes."""

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

DECIDING = ("pillow", "simplejpeg")  # packages whose version can change the bytes
RESIZING = "opencv-python-headless"  # the same, for builds that resize or align


@dataclass(frozen=True)
class Build:
    """Specification of a build.

    source: kind of source and its options as plain JSON, without absolute paths.
    face_model: the detector's file for encode.align (None = the installed one); max_missing: fraction of listed files
    that may be missing.
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
        """Staging folder of the build."""
        return self.out.with_name(self.out.name + ".partial")

    @property
    def mark(self) -> Path:
        """File that marks the plan as complete and holds its digest."""
        return self.partial / "work" / "plan.json"

    @property
    def model(self) -> Path | None:
        """Model of the face detector, None without encode.align. Raises UserError if the file is missing."""
        return find_model(self.face_model) if self.encode.align else None

    def decides(self) -> dict[str, Any]:
        """Options and versions that, together with the entries, determine the shards: part of the digest."""
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
