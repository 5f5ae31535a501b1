"""`load_backbone` gives an ordinary module: modes, devices, gradients, states; and `simfle.shards`."""

import copy
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from torch import nn
from torch.nn import functional as F

import shards
import simfle
from simfle.api.backbone import Backbone

ROOT = Path(__file__).parents[4]


@pytest.fixture
def model() -> Backbone:
    return simfle.load_backbone("random:test_resnet+size=32", device="cpu")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 48, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_it_is_a_module_in_eval_mode(model: Backbone, images: torch.Tensor) -> None:
    assert isinstance(model, nn.Module)
    assert not any(module.training for module in model.modules())
    assert all(value.requires_grad for value in model.parameters())
    features = model(images)
    assert features.shape == (4, model.features)
    assert features.dtype == torch.float32
    assert not features.requires_grad  # so that .numpy() works
    assert model.to("cpu", torch.float64) is model
    assert model(images).dtype == torch.float32
    torch.testing.assert_close(model(images), features, rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(simfle.load_backbone("random:test_resnet+seed=1+size=32", device="cpu"))
    assert not torch.equal(again(images), features)
    again.load_state_dict(model.float().state_dict())
    torch.testing.assert_close(again(images), features)
    assert {name.split(".")[0] for name in model.state_dict()} == {"network", "mean", "std"}


def test_gradients_flow_in_train_mode_or_to_the_images(model: Backbone, images: torch.Tensor) -> None:
    head = nn.Linear(model.train().features, 3)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    before = copy.deepcopy(model.state_dict())
    F.cross_entropy(head(model(images)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    assert all(value.grad is not None for value in model.parameters())
    assert all(value.grad.any() for value in model.network.conv1.parameters())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "network.conv1.0.weight" in changed
    assert any("running_mean" in name for name in changed)
    with torch.no_grad():
        assert not model(images).requires_grad
    model.eval()
    assert not model(images).requires_grad
    floats = (images / 255).requires_grad_()
    model.maps(floats).sum().backward()
    assert floats.grad is not None
    assert floats.grad.any()


def test_embedding_leaves_the_modes(model: Backbone, images: torch.Tensor) -> None:
    wanted = model(images)
    before = copy.deepcopy(model.state_dict())
    model.train()
    model.network.bn1.eval()
    found = simfle.embed(images, model)
    assert np.array_equal(found["features"], wanted)
    assert model.training
    assert not model.network.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_network_takes_what_preprocess_gives(model: Backbone, images: torch.Tensor) -> None:
    ready = model.preprocess(images)
    assert ready.shape == (4, 3, 32, 32)
    torch.testing.assert_close(model.network(ready).mean((2, 3)), model(images))


def test_tensors_arrays_and_floats_agree(model: Backbone, images: torch.Tensor) -> None:
    arrays = list(images.permute(0, 2, 3, 1).numpy())
    assert torch.equal(model(arrays), model(images))
    assert torch.equal(model(list(images)), model(images))
    floats = images / 255
    mixed = model([arrays[0], floats[1], images[2], floats[3]])
    for found in (model(floats), mixed):
        assert F.cosine_similarity(found, model(images)).min() > 0.999  # floats are not rounded after the resize
    small = F.interpolate(floats, (32, 32))
    torch.testing.assert_close(model(small), model((small * 255).round().byte()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda images: images.float(), "floats from 0 to 255. Fix: pass floats from 0 to 1"),
        (lambda images: images / 255 * torch.nan, "floats from nan"),
        (lambda images: images.short(), "of torch.int16"),
        (lambda images: images[:, :1], r"\(1, 48, 40\) of torch.uint8"),
        (lambda images: images[:0], "no images"),
        (lambda images: images[..., :0], r"\(3, 48, 0\)"),
        (lambda images: images.numpy() / 255, "of float64"),
    ],
)
def test_other_forms_are_refused(make: object, words: str, model: Backbone, images: torch.Tensor) -> None:
    with pytest.raises(simfle.UserError, match=words) as error:
        model(make(images))  # type: ignore[operator]
    assert "\n" not in str(error.value)


def test_devices() -> None:
    name = "random:test_resnet+size=32"
    assert simfle.load_backbone(name, torch.device("cpu")).device == torch.device("cpu")
    for wrong in ("gpu", "meta", "cuda:x", 1.5):
        with pytest.raises(simfle.UserError, match="choose auto, cpu or cuda"):
            simfle.load_backbone(name, wrong)  # type: ignore[arg-type]
    if torch.cuda.is_available():
        model = simfle.load_backbone(name, "cuda:0")
        assert model.device == torch.device("cuda:0")
        assert model(torch.zeros(3, 9, 9, dtype=torch.uint8)).is_cuda
    else:
        for missing in ("cuda", "cuda:1", torch.device("cuda", 0)):
            with pytest.raises(simfle.UserError, match="torch finds no GPU"):
                simfle.load_backbone(name, missing)


def test_tables_join_with_files(faces: Path, model: Backbone, tmp_path: Path) -> None:
    found = simfle.embed(faces, model, tmp_path / "a.csv", splits="test")
    items = list(shards.open(faces, "test"))
    assert list(found) == ["path", "key", "split", "label", "person", "features"]
    assert found["path"].tolist() == [item.metadata["source"] for item in items]
    assert found["person"].tolist() == [item.metadata["group"] for item in items]
    assert found["label"].tolist() == [item.label for item in items]
    assert all(found["person"])
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="", encoding="utf-8")))
    assert [row["path"] for row in rows] == found["path"].tolist()
    features = np.array([[float(row[f"f{n}"]) for n in range(model.features)] for row in rows], np.float32)
    assert np.array_equal(features, found["features"])
    pictures = tmp_path / 'a, "b" ü'
    pictures.mkdir()
    (pictures / 'x, "y" é.jpg').write_bytes(items[0].image_bytes)
    for name in ("b.npz", "b.parquet", "b.csv"):
        found = simfle.embed(pictures, model, tmp_path / name)
        assert found["path"].tolist() == found["key"].tolist() == ['x, "y" é.jpg']
        assert found["label"].tolist() == found["person"].tolist() == [""]
    assert next(csv.DictReader((tmp_path / "b.csv").open(newline="", encoding="utf-8")))["path"] == 'x, "y" é.jpg'
    table = parquet.read_table(tmp_path / "b.parquet")
    assert table.column_names == list(found)
    with np.load(tmp_path / "b.npz", allow_pickle=False) as kept:
        assert list(kept) == list(found)
    file = pictures / 'x, "y" é.jpg'
    assert simfle.embed([file, items[0].image], model)["path"].tolist() == [str(file), ""]


def test_shards_are_reached_through_simfle(tmp_path: Path) -> None:
    assert simfle.shards is shards
    (tmp_path / "shards").mkdir()
    program = (
        "import sys; sys.meta_path.reverse(); sys.path.insert(0, '')\n"
        f"sys.path.append({str(ROOT)!r})\n"
        "from importlib.machinery import ModuleSpec\n"
        "class Folder:\n"  # finds the folder first, as with an editable installation
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'shards':\n"
        "            spec = ModuleSpec(name, None, is_package=True)\n"
        "            spec.submodule_search_locations = ['shards']\n"
        "            return spec\n"
        "sys.meta_path.insert(0, Folder)\n"
        "if sys.argv[1:]: import shards\n"
        "import simfle, shards\n"
        "assert simfle.shards is shards and shards.open.__name__ == 'open', shards\n"
    )
    for words in ([], ["imported before"]):
        subprocess.run([sys.executable, "-c", program, *words], check=True, cwd=tmp_path)
    (tmp_path / "shards.py").write_text("")
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, ''); import simfle"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "another module shards is found first" in done.stderr.splitlines()[-1]
