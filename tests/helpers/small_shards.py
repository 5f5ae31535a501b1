"""Small folders of shards, and changes of their manifests."""

import json
from pathlib import Path
from typing import Any

from helpers.corpus_fixtures import encoded, picture
from shards.format.manifest import FORMAT, Manifest, write_manifest
from shards.format.samples import StoredSample, write_shard


def make(folder: Path, count: int = 4) -> Path:
    """Shards as a build makes them: `count` samples of split train."""
    folder.mkdir(parents=True)
    made = []
    for number in range(count):
        key = f"{folder.name}-{number}"
        known = {"key": key, "source": f"{key}.jpg", "label": "a", "group": f"p{number}", "split": "train"}
        image = picture(number)
        known |= {"width": image.width, "height": image.height}
        members = {"jpg": encoded(image), "cls": b"0", "json": json.dumps(known).encode()}
        made.append(StoredSample(key, members))
    info = write_shard(folder / "train-000000.tar", "train", made)
    (folder / "rejected.jsonl").write_bytes(b"")
    write_manifest(folder, Manifest(FORMAT, "drawn", "", ("a",), count, {}, (info,), {}))
    return folder


def change(folder: Path, **values: Any) -> None:
    """Write other values into the first shard of a manifest."""
    content = json.loads((folder / "manifest.json").read_text())
    content["shards"][0] |= values
    (folder / "manifest.json").write_text(json.dumps(content))
