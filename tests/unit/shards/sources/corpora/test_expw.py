"""ExpW: several faces per photo, each given by its box, in a list with its own field order."""

from pathlib import Path

import pytest
from helpers.expw_corpus import LINES, write_expw
from helpers.source_kit import built, entries, photo, rejects, write

from shards.errors import UserError
from shards.sources.corpora.expw import CORPUS, ExpW


@pytest.mark.parametrize("below", [("label.lst", "origin"), ("label/label.lst", "image/origin")])
def test_faces(tmp_path: Path, below: tuple[str, str]) -> None:
    source = ExpW(write_expw(tmp_path / "expw", below))
    found = entries(source)
    assert {key: (face.label, face.box, face.group) for key, face in found.items()} == {
        "angry_actor_104.jpg/0": ("angry", (113, 28, 113, 113), "angry_actor_104.jpg"),
        "angry_actor_104.jpg/1": ("neutral", (20, 10, 40, 40), "angry_actor_104.jpg"),
        "happy face_12.jpg/0": ("happy", (4, 5, 21, 29), "happy face_12.jpg"),
        "sad_man_1.jpg/2": ("sad", (2, 1, 38, 40), "sad_man_1.jpg"),
    }
    assert found["sad_man_1.jpg/2"].extras == {"face": 2, "confidence": 5.25}
    manifest, samples = built(source, tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (4, {})
    assert samples[f"{below[1]}/angry_actor_104.jpg#1"]["box"] == [20, 10, 40, 40]


def test_damaged_lines(tmp_path: Path) -> None:
    root = write_expw(tmp_path / "expw")
    more = (
        "a.jpg 0 1 2 3 4 5.0 7", "a.jpg 0 1 2 3 4 5.0", "a.jpg x 1 2 3 4 5.0 1", "", "../a.jpg 0 1 2 30 40 5.0 1",
        "sad_man_1.jpg 3 10 20 20 20 5.0 1", "gone.jpg 0 1 2 30 40 5.0 1", "sad_man_1.jpg 2 1 2 40 41 5.25 4",
        "angry_actor_104.jpg 1 10 20 60 50 9.5 2",
    )  # fmt: skip
    write(root / "label.lst", "\n".join((*LINES, *more)))
    assert rejects(ExpW(root)) == {
        "label.lst line 5": "bad_row",
        "label.lst line 6": "bad_row",
        "label.lst line 7": "bad_row",
        "label.lst line 9": "outside",
        "origin/sad_man_1.jpg#3": "bad_row",
    }
    manifest, _ = built(ExpW(root), tmp_path / "out")
    assert manifest.rejected == {"bad_row": 4, "conflicting_label": 2, "missing": 1, "outside": 1, "repeated": 1}
    assert manifest.samples == 3


def test_what_is_not_expw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no list of faces"):
        list(ExpW(tmp_path))
    write(tmp_path / "label.lst", "a.jpg 3\n")
    with pytest.raises(UserError, match="no folder of photos"):
        list(ExpW(tmp_path))
    write(tmp_path / "origin" / "a.jpg", photo())
    with pytest.raises(UserError, match=r"no line of .* has the 8 fields"):
        list(ExpW(tmp_path))


def test_published_counts(tmp_path: Path) -> None:
    assert sum(CORPUS.published_counts(ExpW(tmp_path))["train"].values()) == 91_793
