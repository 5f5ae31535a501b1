"""Pictures on a page show what the models do: masks are the model's own, neighbors the nearest."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from helpers.report_fixtures import make_run
from helpers.synthetic_shards import make_faces
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

from simfle.batch import Batch
from simfle.config.schema import FaceMAEConfig, ModelConfig, PretrainConfig, ViewsConfig
from simfle.errors import UserError
from simfle.models.methods.simfle import SimFLE
from simfle.models.registry import build_method
from simfle.report import visualizations
from simfle.report.face_samples import FaceBatch, FaceSet, pick_faces, read_face_set, synthetic_faces
from simfle.report.load_runs import read_runs
from simfle.report.report import Content, Extras, render, write_report
from simfle.report.tables import tables

pytestmark = pytest.mark.slow

TINY = FaceMAEConfig(
    patch_size=8, embed_dim=32, depth=1, num_heads=4, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4
)
GROUPS, SIDE = 4, 64
ALWAYS = ["Class activation maps, correct and wrong", "Nearest neighbors", "Map of the features"]


def config(method: str = "simfle") -> PretrainConfig:
    backbone = "test_vit" if method == "mae" else "test_resnet"
    model = ModelConfig(method, backbone, head_hidden_dim=32, head_out_dim=16, mask_groups=GROUPS, facemae=TINY)
    return PretrainConfig(views=ViewsConfig(size=SIDE, face_size=SIDE), model=model)


def with_checkpoint(folder: Path, method: str = "simfle") -> Path:
    run = make_run(folder, config(method))
    checkpoint = run / "checkpoints" / "step-00000030"
    checkpoint.mkdir(parents=True)
    torch.manual_seed(4)
    state = build_method(config(method).model, config(method).views).state_dict()
    save_file({name: value.clone().contiguous() for name, value in state.items()}, checkpoint / "model.safetensors")
    (checkpoint / "COMPLETE").touch()
    return run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces") / "shards"
    make_faces(folder, "--people", "8")
    return folder


@pytest.fixture(scope="module")
def album(shards: Path) -> FaceSet:
    return read_face_set([str(shards)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_checkpoint(tmp_path_factory.mktemp("run") / "run")


def decode(data: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_album_asks_about_other_people_than_it_searches(album: FaceSet) -> None:
    assert len(album.queries.images) == 6
    assert len(set(album.queries.labels)) == 6  # one of each class first
    assert not set(album.queries.groups) & set(album.gallery.groups)
    assert not set(album.heldout.groups) & set(album.gallery.groups)
    assert album.source()
    assert album.is_synthetic


def test_synthetic_faces_differ_in_person_and_expression() -> None:
    faces = synthetic_faces()
    assert faces.is_synthetic
    assert not faces.gallery.images
    assert len({*faces.queries.groups}) == len({*faces.queries.digests}) == 6
    assert len({*faces.queries.labels}) >= 4


def test_masks_are_those_of_the_model(run: Path, album: FaceSet) -> None:
    method, settings = visualizations._load(run)
    assert isinstance(method, SimFLE)
    sheet = visualizations.masks(method, album, settings.views.face_size, settings.model.facemae.patch_size)
    assert sheet is not None
    face = album.queries.tensor(SIDE)
    for group in range(GROUPS):
        method.capture_reconstruction = True
        draw = torch.full((len(face),), (group + 0.5) / GROUPS, dtype=torch.float64)
        with torch.no_grad():
            method(Batch(face, face, face, torch.arange(len(face)), draw))
        assert method.reconstruction is not None
        for place, tile in enumerate(sheet.tiles):
            image, shown = (decode(tile.images[number].data)[::2, ::2] for number in (0, 1 + group))
            assert tile.images[1 + group].alt == f"patches kept by group {group + 1}"
            whole = face[place].permute(1, 2, 0).numpy()
            assert np.array_equal(image, whole)
            visible = set(method.reconstruction.visible[place].tolist())
            for patch in range(64):
                top, start = patch // 8 * 8, patch % 8 * 8
                wanted = whole[top : top + 8, start : start + 8] if patch in visible else np.full((8, 8, 3), 150)
                assert np.array_equal(shown[top : top + 8, start : start + 8], wanted), (group, patch)


def _asked(image: np.ndarray, person: str, classes: tuple[str, ...], gallery: FaceBatch) -> FaceSet:
    queries = FaceBatch([image], [0], [person], classes)
    return FaceSet(queries, gallery, queries, [])


def test_neighbors_are_the_nearest_of_other_people(run: Path, album: FaceSet) -> None:
    backbone = visualizations._backbone(*visualizations._load(run))
    images = [image for image in album.gallery.images if image.shape == album.gallery.images[0].shape][:12]
    asked, classes = images[3] + (images[3] < 255), ("a", "b", "c", "d")
    people = [*(f"p{number}" for number in range(12)), "me", "twin", "copy"]
    gallery = FaceBatch([*images, images[3], images[3], asked], [0] * 12 + [1, 2, 3], people, classes)
    sheet = visualizations.neighbors(backbone, _asked(asked, "me", classes, gallery))
    assert sheet is not None
    name, found = sheet.tiles[0].caption.split(": ")
    assert name == "a"
    # Number 3 and the twin all but equal it; b is the same person, d the same image.
    assert sorted(found.split(", ")[:2]) == ["a", "c"]
    assert not {"b", "d"} & set(found.split(", "))
    assert "images of other people" in sheet.about
    unknown = visualizations.neighbors(backbone, _asked(asked, "", classes, gallery))
    assert unknown is not None
    assert "other images with" in unknown.about


@pytest.mark.parametrize("classes", [2, 4])
def test_activation_weights_are_those_of_the_decision(classes: int) -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 5)), np.arange(60) % classes + 3
    model = LogisticRegression().fit(features, labels)
    chosen = model.predict(features)
    scores = (features * visualizations._weights_of(model, chosen)).sum(1)
    decision = model.decision_function(features) - model.intercept_
    rows = np.searchsorted(model.classes_, chosen)
    wanted = np.where(rows == 0, -decision, decision) if classes == 2 else decision[np.arange(60), rows]
    np.testing.assert_allclose(scores, wanted)


@pytest.mark.parametrize(
    ("method", "titles"),
    [
        ("simfle", ["Semantic masks of every group", "Reconstructions", *ALWAYS]),
        ("byol", ALWAYS),
        ("mae", ["Reconstructions", *ALWAYS]),
    ],
)
def test_pictures_of_each_method(method: str, titles: list[str], album: FaceSet, tmp_path: Path) -> None:
    found = visualizations.figures(with_checkpoint(tmp_path / "run", method), album)
    assert [sheet.title for sheet in found] == titles
    counts = {"Semantic masks of every group": 3, ALWAYS[0]: 12, ALWAYS[2]: 0}
    for sheet in found:
        assert len(sheet.tiles) == counts.get(sheet.title, 6)
        for tile in sheet.tiles:
            assert decode(tile.images[0].data).std() > 5  # something is on it
            assert tile.caption
            assert all(image.alt for image in tile.images)
    assert [chart.title for chart in found[-1].charts] == ["t-SNE", "PCA", "t-SNE of random weights"]
    assert [chart.small for chart in found[-1].charts] == [False, False, True]


def test_wrong_maps_are_shown_with_their_share(run: Path, album: FaceSet) -> None:
    backbone = visualizations._backbone(*visualizations._load(run))
    sheet = visualizations.activation(backbone, album)
    assert sheet is not None
    captions = [tile.caption for tile in sheet.tiles]
    wrong = [caption for caption in captions if "wrong: " in caption]
    assert 0 < len(wrong) < len(captions)
    assert all(", predicted as " in caption for caption in wrong)
    correct, total = map(int, re.findall(r"correct for (\d+) of (\d+) held-out faces", sheet.about)[0])
    assert total == len(album.heldout.images) == 24
    assert f"chosen at random before the prediction; {len(captions) - len(wrong)} of them are correct" in sheet.about
    assert len(captions) - len(wrong) <= correct < total
    # The same faces whatever the labels are: the choice does not depend on the prediction.
    labels = [(label or 0) * 0 + place % 7 for place, label in enumerate(album.heldout.labels)]
    other = visualizations.activation(backbone, replace(album, heldout=replace(album.heldout, labels=labels)))
    assert other is not None
    assert [tile.images[0].data for tile in other.tiles] == [tile.images[0].data for tile in sheet.tiles]
    unlabeled = replace(album.heldout, labels=[None] * len(labels))
    assert visualizations.activation(backbone, replace(album, heldout=unlabeled)) is None


def test_the_map_of_the_features_is_repeatable_and_colored_by_label(run: Path, album: FaceSet) -> None:
    backbone = visualizations._backbone(*visualizations._load(run))
    first, second = (visualizations.embeddings(backbone, album) for _ in range(2))
    assert first is not None
    assert first == second
    for chart in first.charts:
        tree = ElementTree.fromstring(chart.svg)
        assert f"{len(album.heldout.images)} faces as points, colored by 7 labels" in tree.attrib["aria-label"]
        assert {*album.heldout.classes} <= set(tree.itertext())
        assert chart.svg.count("<use ") >= len(album.heldout.images)
    few = replace(album, heldout=pick_faces(album.heldout, range(9)))
    assert visualizations.embeddings(backbone, few) is None


def test_a_page_with_faces_says_so(run: Path, shards: Path, album: FaceSet, tmp_path: Path) -> None:
    images = r'<img src="data:image/(?:png|jpeg);base64,'
    masks, reconstructions = 3 * (1 + GROUPS), 6 * 3
    (path,) = write_report([run], tmp_path / "page.html", shards=[str(shards)])
    text = path.read_text()
    assert "All faces on this page are synthetic" in text
    assert len(re.findall(images, text)) == masks + reconstructions + 12 * 2 + 6 * 6 + 3
    photos = replace(album, manifests=[replace(album.manifests[0], corpus="photos")])
    assert not photos.is_synthetic
    content = Content([read_runs([run])[0]], tables([], 5), [], Extras(), [], photos.source(), photos.is_synthetic)
    assert "This page contains images of faces</strong> from photos (terms: " in render(content)


def test_masks_of_synthetic_faces_are_shown_without_shards(run: Path, tmp_path: Path) -> None:
    (path,) = write_report([run], tmp_path / "page.html")
    text = path.read_text()
    assert "All faces on this page are synthetic" in text
    assert "Semantic masks of every group" in text
    assert text.count("<img ") == 3 * (1 + GROUPS) + 6 * 3  # and none of those that training drew
    corrupt = with_checkpoint(tmp_path / "corrupt")
    next(corrupt.glob("checkpoints/*/model.safetensors")).write_bytes(b"nonsense")
    (path,) = write_report([corrupt], tmp_path / "page.html")
    text = path.read_text()
    assert "<img" not in text
    assert "model.safetensors cannot be loaded" in text


def test_errors(run: Path, shards: Path, tmp_path: Path) -> None:
    empty = make_run(tmp_path / "empty", config())
    with pytest.raises(UserError, match="no complete checkpoint yet"):
        write_report([empty], shards=[str(shards)])
    other = with_checkpoint(tmp_path / "other")
    (other / "config.yaml").write_text(
        (other / "config.yaml").read_text().replace("head_hidden_dim: 32", "head_hidden_dim: 48")
    )
    with pytest.raises(UserError, match=r"model\.safetensors cannot be loaded"):
        write_report([other], shards=[str(shards)])
    (other / "config.yaml").write_text((run / "config.yaml").read_text())
    next(other.glob("checkpoints/*/model.safetensors")).write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be loaded"):
        write_report([other], shards=[str(shards)])
