"""Specification of a build: all options that determine its bytes."""

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shards.build.exclusion import ExclusionOptions
from shards.format.manifest import FORMAT
from shards.imaging.align import find_model, model_digest
from shards.imaging.codec import EncodeOptions
from shards.io.atomic import resolve_output_dir
from shards.rules import EntryRules

BYTE_AFFECTING_PACKAGES = ("pillow", "simplejpeg")  # packages whose version can change the bytes
RESIZE_PACKAGE = "opencv-python-headless"  # its version can change the bytes of builds that resize or align


@dataclass(frozen=True)
class BuildSpec:
    """Specification of a build.

    source: kind of source and its options as plain JSON, without absolute paths.
    face_model: the detector's file for encode.align (None = the installed one); max_missing: fraction of listed files
    that may be missing.
    """

    out: Path
    corpus: str
    source: dict[str, Any]
    rules: EntryRules = field(default_factory=EntryRules)
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    shard_samples: int = 2048
    terms: str = ""
    workers: int = 1
    face_model: Path | None = None
    max_missing: float = 1.0
    exclude: ExclusionOptions = field(default_factory=ExclusionOptions)

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", resolve_output_dir(self.out))

    @property
    def staging_dir(self) -> Path:
        """Staging folder of the build."""
        return self.out.with_name(self.out.name + ".partial")

    @property
    def plan_marker(self) -> Path:
        """File that marks the plan as complete and holds its digest."""
        return self.staging_dir / "work" / "plan.json"

    @property
    def model(self) -> Path | None:
        """Model of the face detector, or None without encode.align. Raises UserError if the file is missing."""
        return find_model(self.face_model) if self.encode.align else None

    def digest_options(self) -> dict[str, Any]:
        """Options and versions that, together with the entries, determine the shards: part of the digest."""
        moving = (RESIZE_PACKAGE,) if self.encode.align or self.encode.shorter_side else ()
        model = {"face_model": model_digest(self.model)} if self.model else {}
        return {
            "corpus": self.corpus,
            "terms": self.terms,
            "source": self.source,
            "rules": asdict(self.rules),
            "encode": asdict(self.encode),
            "shard_samples": self.shard_samples,
            "versions": {"format": FORMAT} | {name: version(name) for name in BYTE_AFFECTING_PACKAGES + moving} | model,
        } | self.exclude.digest_options()
