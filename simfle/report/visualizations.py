"""Images of a model's behavior on given faces: masks, reconstructions, activation maps, neighbors, embeddings.

The images are computed from a run's newest complete checkpoint, on the CPU, for a few hundred faces.
"""

# N faces, n faces searched, m held-out faces, C channels, h x h feature map, G groups, K maps, S positions of a map
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from shards.io.atomic import regular_path
from simfle.batch import Batch
from simfle.config.schema import PretrainConfig, ViewsConfig, load
from simfle.errors import UserError
from simfle.eval.backbones.load import (
    BackboneMetadata,
    LoadedBackbone,
    frozen,
    random_backbone,
    recalibrate_batchnorm,
)
from simfle.export.timm import read_newest
from simfle.models.backbone import feature_map
from simfle.models.base import Method
from simfle.models.methods.mae import MAE
from simfle.models.methods.simfle import SimFLE
from simfle.models.registry import build_method
from simfle.report.charts import embedding as draw_embedding
from simfle.report.face_samples import (
    TILE,
    Chart,
    FaceBatch,
    FaceSet,
    Image,
    ReportFigure,
    Tile,
    enlarge,
    jpeg,
    pick_faces,
    png,
    resize,
)
from simfle.train.telemetry.reconstructions import draw_reconstruction

NARROW = 7  # images in a tile that is not wide
NEIGHBORS, MASKED, MAPS = 5, 3, 12  # neighbors per face; faces whose masks are shown; activation maps
FEWEST = 10  # faces for a map of the embedding
CHUNK = 64  # images per forward pass


def figures(run: Path, faces: FaceSet) -> list[ReportFigure]:
    """Make all images for one run's newest checkpoint; without a gallery only masks and reconstructions.

    Raises:
        UserError: If there is no complete checkpoint, or the checkpoint is corrupt or of another configuration.
    """
    method, config = _load(run)
    found = [masks(method, faces, config.views.face_size, config.model.facemae.patch_size)]
    found.append(reconstructions(method, faces, config.views))
    if faces.gallery.images:
        backbone = _backbone(method, config)
        found += [activation(backbone, faces), neighbors(backbone, faces), embeddings(backbone, faces)]
    return [sheet for sheet in found if sheet is not None]


def _load(run: Path) -> tuple[Method, PretrainConfig]:
    config = load(PretrainConfig, run / "config.yaml")
    method = build_method(config.model, config.views).eval()
    read_newest(run, lambda checkpoint: _fill(method, checkpoint / "model.safetensors"))
    return method, config


def _fill(method: Method, path: Path) -> None:
    """Load a checkpoint's weights into the method. Raises UserError if it is corrupt or of another method."""
    try:
        with regular_path(path) as same:
            unknown = method.load_state_dict(load_file(same), strict=False)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(
            f"report: {path} cannot be loaded ({str(error).splitlines()[0]}). Fix: delete this checkpoint."
        ) from None
    lacking = set(unknown.missing_keys) & {name for name, _ in method.named_parameters()}
    if lacking:
        raise UserError(f"report: {path} lacks {min(lacking)}. Fix: restore the run's config.yaml.")


def _backbone(method: Method, config: PretrainConfig) -> LoadedBackbone:
    """Return the online backbone as used in evaluations."""
    network = method.online.backbone  # type: ignore[union-attr]
    model, side = config.model, config.views.size
    channels = int(network.num_features)  # type: ignore[arg-type, union-attr]
    card = BackboneMetadata(
        model.backbone,
        "online",
        channels,
        tuple(model.mean),
        tuple(model.std),
        side,
        {},
        output_stride=model.output_stride,
    )
    return LoadedBackbone(frozen(network, card), card)  # type: ignore[arg-type]


@torch.no_grad()
def masks(method: Method, album: FaceSet, face_size: int, patch: int) -> ReportFigure | None:
    """Show for each face the patches that each group would keep visible. Sides of face and patch are in pixels."""
    if not isinstance(method, SimFLE):
        return None
    face = album.queries.tensor(face_size)[:MASKED]
    masking = method.masking
    maps = masking.grouping(feature_map(method.online.backbone, method.normalize(face))).flatten(2)  # [N, K, S]
    tiles = []
    for place, image in enumerate(face):
        whole = image.permute(1, 2, 0).numpy()
        shown = [png(enlarge(whole), f"face {place + 1}, {album.queries.named(place)}")]
        for group in range(masking.groups):
            scores = masking.patch_scores(maps[place : place + 1].float(), torch.tensor([group]))
            kept = _keep(whole, masking.most_active(scores)[0].numpy(), patch)
            shown.append(png(enlarge(kept), f"patches kept by group {group + 1}"))
        caption = (
            f"Face {place + 1} ({album.queries.named(place)}), then the patches kept by groups 1 to {masking.groups}"
        )
        tiles.append(Tile(shown, caption, wide=len(shown) > NARROW))
    about = (
        f"The face, then one image for each of the {masking.groups} channel groups with the "
        f"{masking.visible} patches of the group's strongest response kept. Separated groups show different parts of a "
        "face, and each group the same part of different faces. If all images are alike, the groups have collapsed."
    )
    if masking.choice == "random":
        about += " In this run masks were random; the learned groups did not select them."
    return ReportFigure("Semantic masks of every group", about, tiles)


def _keep(image: Image, visible: NDArray[np.int64], patch: int) -> Image:
    """Return the image with all patches except the visible ones in gray."""
    side = image.shape[0] // patch
    kept = np.zeros(side * side, bool)
    kept[visible] = True
    mask = np.kron(kept.reshape(side, side), np.ones((patch, patch), bool))[:, :, None]
    return np.where(mask, image, np.uint8(150)).astype(np.uint8)


@torch.no_grad()
def reconstructions(method: Method, album: FaceSet, views: ViewsConfig) -> ReportFigure | None:
    """Show face, visible patches and reconstruction, or return None for methods without an autoencoder."""
    if not isinstance(method, SimFLE | MAE):
        return None
    queries, count = album.queries, len(album.queries.images)
    view = queries.tensor(views.size)
    face = queries.tensor(views.face_size)
    places = torch.arange(count)
    method.capture_reconstruction = True
    method(Batch(view, view, face, places, (places + 0.5).double() / count))
    if method.reconstruction is None:
        return None
    image, patches = (
        draw_reconstruction(method.reconstruction, method.mean, method.std, count),
        method.reconstruction.prediction.shape[1],
    )
    visible = method.reconstruction.visible.shape[1]
    names = "face", "visible patches", "reconstruction"
    tiles = []
    for place, row in enumerate(np.split(image, count)):
        parts = zip(names, np.split(row, len(names), axis=1), strict=True)
        shown = [png(enlarge(part), f"{name}, {queries.named(place)}") for name, part in parts]
        tiles.append(Tile(shown, queries.named(place)))
    about = (
        f"Left: the face. Middle: the {visible} of {patches} patches that the autoencoder sees. Right: its "
        "reconstruction of the others (with the true brightness and contrast of each patch, which are not predicted). "
        "Good reconstructions continue mouth, eyes and outline across the gaps."
    )
    return ReportFigure("Reconstructions", about, tiles)


@torch.no_grad()
def activation(backbone: LoadedBackbone, album: FaceSet) -> ReportFigure | None:
    """Draw class activation maps (Zhou et al. 2016) of a linear classifier fitted on the gallery; None without
    labels.

    The maps are those of MAPS held-out faces, chosen at random before any prediction.
    """
    gallery, heldout = album.gallery, album.heldout
    asked = [place for place, label in enumerate(heldout.labels) if label is not None]
    used = [any(same) for same in zip(*(_same(heldout, place, gallery) for place in asked), strict=True)]  # [n]
    known = [place for place, label in enumerate(gallery.labels) if label is not None and asked and not used[place]]
    labels = np.array([gallery.labels[place] for place in known])
    if len(set(labels.tolist())) < 2:
        return None
    features = _features(backbone, pick_faces(gallery, known)).numpy()  # [n, C]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(features, labels)
    tested = pick_faces(heldout, asked)
    chosen = model.predict(_features(backbone, tested).numpy())  # [m]
    correct = chosen == np.array(tested.labels)
    places = np.random.Generator(np.random.Philox(key=0)).permutation(len(asked))[:MAPS]
    maps = backbone.module.maps(pick_faces(tested, places.tolist()).tensor(backbone.card.size))  # [N, C, h, h]
    weights = torch.from_numpy(
        _weights_of(model[-1], chosen[places]) / model[0].scale_
    ).float()  # [N, C], of raw features
    evidence = torch.einsum("nchw,nc->nhw", maps, weights).clamp_min(0)
    tiles = []
    for place, heat in zip(places.tolist(), evidence.numpy(), strict=True):
        face, label = resize(tested.images[place], 2 * TILE), tested.named(place)
        said = gallery.classes[int(chosen[place])]
        caption = f"\u2713 correct: {label}" if correct[place] else f"\u2717 wrong: {label}, predicted as {said}"
        tiles.append(Tile([jpeg(face, f"face, {label}"), jpeg(_heated(face, heat), f"evidence for {said}")], caption))
    about = (
        f"Evidence for the class that a linear classifier predicts from the frozen features (fitted for these images "
        f"on {len(known)} {_others(album)}), from blue (none) to yellow (most). The classifier is correct for "
        f"{correct.sum()} of {len(asked)} held-out faces ({correct.mean():.0%}). The {len(places)} faces here were "
        f"chosen at random before the prediction; {correct[places].sum()} of them are correct. A backbone that "
        "responds to facial landmarks is yellow on mouth, eyes and brows, not on hair or background."
    )
    return ReportFigure("Class activation maps, correct and wrong", about, tiles)


def _weights_of(model: LogisticRegression, chosen: NDArray[Any]) -> NDArray[np.float64]:
    """Return the weights [N, C] for each predicted class; with two classes, the model stores only those of the
    second."""
    rows = np.searchsorted(model.classes_, chosen)
    if len(model.classes_) == 2:
        return model.coef_ * np.where(rows == 0, -1, 1)[:, None]
    return model.coef_[rows]


def _heated(face: Image, evidence: NDArray[np.float32]) -> Image:
    """Overlay the map [h, h] on the face, blue (none) to yellow (most): cividis, which suits color-blind readers."""
    side = face.shape[0]
    heat = cv2.resize(evidence, (side, side), interpolation=cv2.INTER_LINEAR)
    heat = (255 * heat / max(float(heat.max()), 1e-12)).astype(np.uint8)
    colored = cv2.cvtColor(cv2.applyColorMap(heat, cv2.COLORMAP_CIVIDIS), cv2.COLOR_BGR2RGB)
    return (0.45 * face + 0.55 * colored).astype(np.uint8)


@torch.no_grad()
def neighbors(backbone: LoadedBackbone, album: FaceSet) -> ReportFigure | None:
    """Show the most similar other faces (of other people, if known), by cosine similarity of the features."""
    asked, gallery = album.queries, album.gallery
    similar = _unit(_features(backbone, asked)) @ _unit(_features(backbone, gallery)).T  # [N, n]
    tiles = []
    for place, image in enumerate(asked.images):
        scores = similar[place].masked_fill(torch.tensor(_same(asked, place, gallery)), -2)
        nearest = scores.topk(min(NEIGHBORS, len(scores))).indices.tolist()
        shown = [jpeg(resize(image, TILE), f"face, {asked.named(place)}")]
        shown += [jpeg(resize(gallery.images[other], TILE), f"neighbor, {gallery.named(other)}") for other in nearest]
        said = ", ".join(gallery.named(other) for other in nearest)
        tiles.append(Tile(shown, f"{asked.named(place)}: {said}"))
    about = (
        f"A face, then the {NEIGHBORS} {_others(album)} with the most similar features among "
        f"{len(gallery.images)}. Features of expression retrieve faces with the same expression; features of light, "
        "pose or hair retrieve faces with the same light, pose or hair."
    )
    return ReportFigure("Nearest neighbors", about, tiles)


@torch.no_grad()
def embeddings(backbone: LoadedBackbone, album: FaceSet) -> ReportFigure | None:
    """Map the features of held-out faces to the plane: PCA, and t-SNE (van der Maaten and Hinton 2008) with a fixed
    seed; None for fewer than FEWEST faces."""
    faces = album.heldout
    count = len(faces.images)
    if count < FEWEST:
        return None
    labels = [faces.named(place) for place in range(count)]
    features = _unit(_features(backbone, faces)).numpy()  # [m, C]
    random = random_backbone(backbone.card, 0)
    recalibrate_batchnorm(random, album.gallery.tensor(backbone.card.size).split(CHUNK))
    untrained = _unit(_features(random, faces)).numpy()
    planes = PCA(2, svd_solver="full").fit(features)
    kept = planes.explained_variance_ratio_.sum()
    charts = [
        Chart(
            "t-SNE",
            draw_embedding(_tsne(features), labels, "t-SNE of the features"),
            "Near points are faces with similar features; distances between far groups mean nothing.",
        ),
        Chart(
            "PCA",
            draw_embedding(planes.transform(features), labels, "PCA of the features"),
            f"The two directions of largest variance, {kept:.0%} of the total.",
        ),
        Chart(
            "t-SNE of random weights",
            draw_embedding(_tsne(untrained), labels, "t-SNE of the features of random weights"),
            "The same network without training, for comparison.",
            small=True,
        ),
    ]
    about = (
        f"The features of {count} held-out faces in two dimensions; color and shape are the labels, which training did "
        "not see. Groups of one color mean that similar expressions have similar features."
    )
    return ReportFigure("Map of the features", about, charts=charts)


def _tsne(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return coordinates [m, 2]; equal for equal features."""
    return TSNE(2, perplexity=min(30, (len(features) - 1) / 3), init="pca", random_state=0).fit_transform(features)


def _same(asked: FaceBatch, place: int, gallery: FaceBatch) -> list[bool]:
    """Mark the gallery images that are the query itself, or of the same person if people are known."""
    digest, person = asked.digests[place], asked.groups[place]
    return [
        other == digest or (person != "" and group == person)
        for other, group in zip(gallery.digests, gallery.groups, strict=True)
    ]


def _others(album: FaceSet) -> str:
    """Describe the remaining images."""
    return "images of other people" if all([*album.queries.groups, *album.gallery.groups]) else "other images"


def _features(backbone: LoadedBackbone, faces: FaceBatch) -> Tensor:
    """Normalize [N, C] to unit length."""
    pixels = faces.tensor(backbone.card.size)
    return torch.cat([backbone.module(part) for part in pixels.split(CHUNK)])


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, dim=1)
