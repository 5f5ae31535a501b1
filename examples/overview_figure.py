"""Draw docs/images/overview.png from a SimFLE run: masks and reconstructions of synthetic faces, and losses.

simfle shards build procedural shards/faces --people 100 --images-per-person 21 --val-fraction 0.2
simfle pretrain configs/pretrain/quickstart.yaml data.shards=[shards/faces] train.run_dir=runs/overview
python examples/overview_figure.py runs/overview docs/images/overview.png
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure, SubFigure

from simfle.report.face_samples import Tile, synthetic_faces
from simfle.report.load_runs import read_runs
from simfle.report.visualizations import figures

SHOWN = ("reconstruction", "similarity")  # losses
FACES = 3


def draw_tiles(part: SubFigure, tiles: list[Tile], names: list[str]) -> None:
    """Draw one row per tile; names: of the columns."""
    axes = part.subplots(len(tiles), len(names), squeeze=False)
    for row, tile in zip(axes, tiles, strict=True):
        for place, image in zip(row, tile.images, strict=True):
            pixels = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR_RGB)
            place.imshow(pixels)
            place.set_axis_off()
    for place, name in zip(axes[0], names, strict=True):
        place.set_title(name, fontsize=9)


def main(run: Path, out: Path) -> None:
    masks, reconstructions = figures(run, synthetic_faces())[:2]
    (record,) = read_runs([run])
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=(5, 3, 3))
    groups = len(masks.tiles[0].images) - 1
    draw_tiles(left, masks.tiles[:FACES], ["face", *(f"group {number + 1}" for number in range(groups))])
    left.suptitle("patches that each channel group keeps", fontsize=11)
    draw_tiles(middle, reconstructions.tiles[:FACES], ["face", "visible", "reconstruction"])
    middle.suptitle("masked autoencoder", fontsize=11)
    axes = right.subplots()
    for curve in record.curves:
        if curve.name in SHOWN:
            axes.plot(curve.steps, curve.values, label=f"{curve.name} loss")
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    right.suptitle("training without labels", fontsize=11)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
