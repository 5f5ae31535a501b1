"""CK+: frame sequences of 123 people from a neutral face (first) to an expression (last)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.io.atomic import read_text, read_text_if_exists
from shards.sources.corpus_files import first_existing, list_dir, numbers, points, require_path
from shards.sources.generic.folder import EXTENSIONS
from shards.sources.registry import CorpusSpec, option

LABELS = ("neutral", "anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")
PEAKS = (45, 18, 59, 25, 69, 28, 83)  # labeled sequences from anger on: 327 in total
SEQUENCES = 593
IMAGES = ("cohn-kanade-images", "extended-cohn-kanade-images/cohn-kanade-images", "CK+/cohn-kanade-images")
EMOTIONS = ("Emotion", "Emotion_labels/Emotion", "CK+/Emotion", "CK+/Emotion_labels/Emotion")
LANDMARKS = ("Landmarks", "Landmarks/Landmarks", "CK+/Landmarks")


@dataclass(frozen=True)
class CKPlus:
    """Source: all frames in split train, to be split by person with --val-fraction and --test-fraction. Group: person.

    Frames of a sequence without a label are rejected unless unlabeled entries are kept.
    """

    root: Path
    last: int = option(1, "number of frames at the end of a sequence that show its expression (often 3)")
    neutral: bool = option(True, "use the first frame of each sequence as neutral")
    all_frames: bool = option(False, "also read the frames in between, without a label; needs --keep-unlabeled")

    def __post_init__(self) -> None:
        """Raise UserError unless at least one frame shows the expression."""
        if self.last < 1:
            raise UserError(f"--last={self.last}: no frame would show the expression. Fix: pass at least 1.")

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield frames by person, sequence and number.

        Raises:
            UserError: If the root contains no sequences or no labels.
        """
        images = require_path("ckplus", self.root, "folder of sequences", *IMAGES)
        emotions = require_path("ckplus", self.root, "folder of labels", *EMOTIONS)
        landmarks = first_existing(
            self.root, *reversed(LANDMARKS)
        )  # the deeper folder first: one may contain the other
        for person in filter(lambda name: (images / name).is_dir(), list_dir(images)):
            for sequence in filter(lambda name: (images / person / name).is_dir(), list_dir(images / person)):
                below = f"{person}/{sequence}"
                frames = [n for n in list_dir(images / below) if PurePosixPath(n).suffix.lower() in EXTENSIONS]
                marks = landmarks / below if landmarks else None
                yield from self._sequence(images / below, frames, _emotion(emotions / below), marks)

    def _sequence(
        self, folder: Path, frames: list[str], emotion: str | None, marks: Path | None
    ) -> Iterator[Entry | Rejected]:
        """Yield the frames of a sequence; emotion: a number as text, None without a label."""
        peak = max(len(frames) - self.last, 1 if self.neutral else 0)
        for place, name in enumerate(frames):
            source = (folder / name).relative_to(self.root).as_posix()
            label = None
            if place >= peak:
                if emotion is not None and emotion not in map(str, range(len(LABELS))):
                    yield Rejected(source, "bad_row", f"emotion {emotion!r}")
                    continue
                label = LABELS[int(emotion)] if emotion is not None else None
            elif place == 0 and self.neutral:
                label = LABELS[0]
            elif not self.all_frames:
                continue
            person, sequence = folder.parts[-2:]
            yield Entry(
                key=f"{person}/{sequence}/{name}",
                source=source,
                read=folder / name,
                label=label,
                group=person,
                landmarks=_landmarks(marks / f"{PurePosixPath(name).stem}_landmarks.txt") if marks else None,
                extras={"sequence": sequence, "frame": place, "frames": len(frames)},
            )


def _emotion(folder: Path) -> str | None:
    """Return the number in S005_001_00000011_emotion.txt, written as a float; many sequences have no such file."""
    found = [name for name in list_dir(folder) if name.endswith("_emotion.txt")] if folder.is_dir() else []
    if not found:
        return None
    text = read_text(folder / found[-1], "utf-8", "replace").strip()
    value = numbers(text, 1)
    return str(int(value[0])) if value and value[0].is_integer() else text


def _landmarks(file: Path) -> tuple[tuple[float, float], ...] | None:
    values = numbers(read_text_if_exists(file) or "", 2 * 68)
    return points(values) if values else None


def expected(source: CKPlus) -> dict[str, dict[str, int]]:
    """Return the published number of sequences; nothing is published for several frames per sequence."""
    if source.last != 1 or source.all_frames:
        return {}
    neutral = {"neutral": SEQUENCES} if source.neutral else {}
    return {"train": neutral | dict(zip(LABELS[1:], PEAKS, strict=True))}


CORPUS = CorpusSpec(
    name="ckplus",
    title="CK+: the last frames of each sequence, and the first as neutral.",
    source=CKPlus,
    labels=LABELS,
    terms="non-commercial research only, by those who signed its agreement; only some people may be shown in print",
    published_counts=expected,
)
