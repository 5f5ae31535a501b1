"""Pictures of what models do with faces of given shards: masks, reconstructions, class activation maps, neighbours.

Computed from a run's newest complete checkpoint, on the CPU, on a few hundred images.
"""

# N faces, n faces searched, C channels, h x h feature map, G groups, K maps, S positions of a map
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from shards.files import regular_path
from simfle.batch import Batch
from simfle.config import PretrainConfig, load
from simfle.errors import UserError
from simfle.eval.backbones import Backbone, Card, frozen
from simfle.eval.export import read_newest
from simfle.models.mae import MAE
from simfle.models.method import Method
from simfle.models.methods import build_method
from simfle.models.simfle import SimFLE
from simfle.report.album import TILE, Album, Faces, Image, Sheet, Tile, beside, enlarge, grid, jpeg, pick, png, resize
from simfle.train.pictures import draw

NEIGHBOURS, MASKED = 5, 3  # shown of each face; faces whose masks are shown
CHUNK = 64  # images per forward pass


def sheets(run: Path, album: Album) -> list[Sheet]:
    """All pictures of one run's newest checkpoint.

    Raises:
        UserError: no complete checkpoint; one of another configuration, or damaged.
    """
    method, config = _load(run)
    backbone = _backbone(method, config)
    found = [masks(method, album, config), reconstructions(method, album, config)]
    found += [activation(backbone, album), neighbours(backbone, album)]
    return [sheet for sheet in found if sheet is not None]


def _load(run: Path) -> tuple[Method, PretrainConfig]:
    config = load(PretrainConfig, run / "config.yaml")
    method = build_method(config.model, config.views).eval()
    read_newest(run, lambda checkpoint: _fill(method, checkpoint / "model.safetensors"))
    return method, config


def _fill(method: Method, path: Path) -> None:
    """Give the method the weights of a checkpoint. Raises UserError: damaged, or of another method."""
    try:
        with regular_path(path) as same:
            unknown = method.load_state_dict(load_file(same), strict=False)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"report: {path} cannot be loaded ({str(error).splitlines()[0]})") from None
    lacking = set(unknown.missing_keys) & {name for name, _ in method.named_parameters()}
    if lacking:
        raise UserError(f"report: {path} lacks {min(lacking)}; the run's config.yaml is another run's")


def _backbone(method: Method, config: PretrainConfig) -> Backbone:
    """The online backbone, as evaluations see it."""
    network = method.online.backbone  # type: ignore[union-attr]
    model, side = config.model, config.views.size
    if isinstance(method, MAE):
        side = int(network.patch_embed.img_size[0])  # type: ignore[union-attr, index]
    channels = int(network.num_features)  # type: ignore[arg-type, union-attr]
    card = Card(
        model.backbone,
        "online",
        channels,
        tuple(model.mean),
        tuple(model.std),
        side,
        {},
        output_stride=model.output_stride,
    )
    return Backbone(frozen(network, card), card)  # type: ignore[arg-type]


@torch.no_grad()
def masks(method: Method, album: Album, config: PretrainConfig) -> Sheet | None:
    """Of each face, what each group would leave visible."""
    if not isinstance(method, SimFLE):
        return None
    face = album.queries.tensor(config.views.face_size)[:MASKED]
    masking, patch = method.masking, config.model.facemae.patch
    maps = masking.grouping(method.online.backbone(method.normalise(face))).flatten(2)  # [N, K, S]
    tiles = []
    for place, image in enumerate(face):
        whole = image.permute(1, 2, 0).numpy()
        shown = []
        for group in range(masking.groups):
            scores = masking.patch_scores(maps[place : place + 1].float(), torch.tensor([group]))
            shown.append(_keep(whole, masking.most_active(scores)[0].numpy(), patch))
        caption = (
            f"Face {place + 1} ({album.queries.named(place)}), then what groups 1 to {masking.groups} leave visible"
        )
        tiles.append(Tile(png(beside(whole, grid(shown))), caption, wide=True))
    about = (
        f"Left the face, then one picture for each of the {masking.groups} channel groups, row by row: the "
        f"{masking.visible} patches where the group answers most stay. Groups that have parted show different parts "
        "of a face, the same group the same part of different faces. Where all pictures are alike, the groups are one."
    )
    if masking.choice == "random":
        about += " In this run masks were drawn at random; these groups were learnt, but chose nothing."
    return Sheet("Semantic masks of every group", about, tiles)


def _keep(image: Image, visible: NDArray[np.int64], patch: int) -> Image:
    """The image with all patches but the visible ones in grey."""
    side = image.shape[0] // patch
    kept = np.zeros(side * side, bool)
    kept[visible] = True
    mask = np.kron(kept.reshape(side, side), np.ones((patch, patch), bool))[:, :, None]
    return np.where(mask, image, np.uint8(150)).astype(np.uint8)


@torch.no_grad()
def reconstructions(method: Method, album: Album, config: PretrainConfig) -> Sheet | None:
    """Face, what the autoencoder sees, what it makes of the rest; None for methods without one."""
    if not isinstance(method, SimFLE | MAE):
        return None
    queries, count = album.queries, len(album.queries.images)
    view = queries.tensor(config.views.size)
    face = queries.tensor(config.views.face_size)
    places = torch.arange(count)
    method.keep_picture = True
    method(Batch(view, view, face, places, (places + 0.5).double() / count))
    if method.picture is None:
        return None
    image, patches = draw(method.picture, method.mean, method.std, count), method.picture.prediction.shape[1]
    visible = method.picture.visible.shape[1]
    rows = np.split(image, count)
    tiles = [Tile(png(enlarge(row)), queries.named(place)) for place, row in enumerate(rows)]
    about = (
        f"Left the face, in the middle the {visible} of {patches} patches that the autoencoder sees, right what it "
        "makes of the others (brightness and contrast of a patch are the face's own, as they are not predicted). "
        "Good ones continue mouth, eyes and outline across the gaps."
    )
    return Sheet("Reconstructions", about, tiles)


@torch.no_grad()
def activation(backbone: Backbone, album: Album) -> Sheet | None:
    """Class activation maps (Zhou et al. 2016) of a linear classifier fitted on the gallery; None without labels."""
    gallery, queries = album.gallery, album.queries
    asked = [_same(queries, place, gallery) for place in range(len(queries.images))]
    apart = [not any(same) for same in zip(*asked, strict=True)]  # [n]
    known = [place for place, label in enumerate(gallery.labels) if label is not None and apart[place]]
    labels = np.array([gallery.labels[place] for place in known])
    if len(set(labels.tolist())) < 2:
        return None
    features = _features(backbone, pick(gallery, known)).numpy()  # [n, C]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(features, labels)
    maps = backbone.module.maps(queries.tensor(backbone.card.size))  # [N, C, h, h]
    chosen = model.predict(maps.mean((2, 3)).numpy())
    weights = torch.from_numpy(_weights_of(model[-1], chosen) / model[0].scale_).float()  # [N, C], of raw features
    evidence = torch.einsum("nchw,nc->nhw", maps, weights).clamp_min(0)
    tiles = []
    for place, image in enumerate(queries.images):
        face = resize(image, 2 * TILE)
        said = f"{queries.named(place)}, taken for {gallery.classes[int(chosen[place])]}"
        tiles.append(Tile(jpeg(grid([face, _heated(face, evidence[place].numpy())])), said))
    about = (
        f"Where the evidence for the class lies that a linear classifier predicts from the frozen features (fitted for "
        f"these pictures on {len(known)} {_others(album)}): yellow much, blue none. A backbone that sees facial "
        "landmarks is yellow on mouth, eyes and brows, not on hair or background."
    )
    return Sheet("Class activation maps", about, tiles)


def _weights_of(model: LogisticRegression, chosen: NDArray[Any]) -> NDArray[np.float64]:
    """The weights [N, C] that speak for each chosen class; of two classes the model keeps those of the second."""
    rows = np.searchsorted(model.classes_, chosen)
    if len(model.classes_) == 2:
        return model.coef_ * np.where(rows == 0, -1, 1)[:, None]
    return model.coef_[rows]


def _heated(face: Image, evidence: NDArray[np.float32]) -> Image:
    """The face under its map [h, h], blue (none) to yellow (most): cividis, which colour-blind eyes read alike."""
    side = face.shape[0]
    heat = cv2.resize(evidence, (side, side), interpolation=cv2.INTER_LINEAR)
    heat = (255 * heat / max(float(heat.max()), 1e-12)).astype(np.uint8)
    coloured = cv2.cvtColor(cv2.applyColorMap(heat, cv2.COLORMAP_CIVIDIS), cv2.COLOR_BGR2RGB)
    return (0.45 * face + 0.55 * coloured).astype(np.uint8)


@torch.no_grad()
def neighbours(backbone: Backbone, album: Album) -> Sheet | None:
    """The most similar other faces (of other people, where people are known), by cosine of the features."""
    asked, gallery = album.queries, album.gallery
    similar = _unit(_features(backbone, asked)) @ _unit(_features(backbone, gallery)).T  # [N, n]
    tiles = []
    for place, image in enumerate(asked.images):
        scores = similar[place].masked_fill(torch.tensor(_same(asked, place, gallery)), -2)
        nearest = scores.topk(min(NEIGHBOURS, len(scores))).indices.tolist()
        shown = [resize(image, TILE), *(resize(gallery.images[other], TILE) for other in nearest)]
        said = ", ".join(gallery.named(other) for other in nearest)
        tiles.append(Tile(jpeg(grid(shown)), f"{asked.named(place)}: {said}"))
    about = (
        f"Left a face, then the {NEIGHBOURS} {_others(album)} with the most similar features among "
        f"{len(gallery.images)}. Features that see expression bring faces of the same one; features that see light, "
        "pose or hair bring those."
    )
    return Sheet("Nearest neighbours", about, tiles)


def _same(asked: Faces, place: int, gallery: Faces) -> list[bool]:
    """Which of a gallery are the asked image itself, or of the same person as far as people are known."""
    image, person = asked.images[place], asked.groups[place]
    return [
        np.array_equal(image, other) or (person != "" and group == person)
        for other, group in zip(gallery.images, gallery.groups, strict=True)
    ]


def _others(album: Album) -> str:
    """What is left without these, in words."""
    return "images of other people" if all([*album.queries.groups, *album.gallery.groups]) else "other images"


def _features(backbone: Backbone, faces: Faces) -> Tensor:
    """[N, C]."""
    pixels = faces.tensor(backbone.card.size)
    return torch.cat([backbone.module(part) for part in pixels.split(CHUNK)])


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, dim=1)
