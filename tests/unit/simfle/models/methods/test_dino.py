"""DINO against its equations in numpy: distributions, cross-entropy, center, temperature, and frozen prototypes."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny_methods import TINY, VIEWS, batch, config
from torch import Tensor

from shards.errors import UserError
from simfle.config.schema import DINOConfig
from simfle.models.methods.dino import UnitPrototypes, cross_entropy, teacher_distribution, teacher_temperature
from simfle.models.registry import build_method

DINO_TINY = TINY.dino


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(**changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_method(config("dino", dino=replace(DINO_TINY, **changes)), VIEWS).train()


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.array([np.exp(value) for value in row])
    return powers / powers.sum()


def test_the_loss_is_the_cross_entropy_with_the_other_views_teacher() -> None:
    """Equations 1 to 3, centered and sharpened (section 3.1); the mean over pairs, as in algorithm 1."""
    students = [random(5, 7, seed=seed).requires_grad_() for seed in (0, 1)]
    teachers, center = [random(5, 7, seed=seed) for seed in (2, 3)], random(7, seed=4)
    codes = [teacher_distribution(each, center, 0.4) for each in teachers]
    ours = cross_entropy(*students, *codes, 0.6)
    g_s = [each.detach().numpy() for each in students]
    g_t = [each.numpy() for each in teachers]
    wanted, slopes = 0.0, [np.zeros((5, 7)), np.zeros((5, 7))]
    for view, other in ((0, 1), (1, 0)):
        for n in range(5):
            p_t = softmax((g_t[other][n] - center.numpy()) / 0.4)
            p_s = softmax(g_s[view][n] / 0.6)
            wanted += -sum(p_t[k] * np.log(p_s[k]) for k in range(7)) / 5 / 2
            slopes[view][n] = (p_s - p_t) / 0.6 / 5 / 2  # the derivative of a cross-entropy
    assert ours.item() == pytest.approx(wanted, rel=1e-12)
    for found, slope in zip(torch.autograd.grad(ours, students), slopes, strict=True):
        np.testing.assert_allclose(found.numpy(), slope, rtol=1e-10, atol=1e-15)


def test_prototypes_are_cosines_with_unit_rows() -> None:
    layer = UnitPrototypes(4, 3).double()
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([[0.5], [1.0], [2.0], [7.0]]))
    rows, weight = random(6, 3).numpy(), layer.weight.detach().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = [[row @ each / np.linalg.norm(each) for each in weight] for row in rows]
    np.testing.assert_allclose(layer(torch.from_numpy(rows)).detach().numpy(), wanted, rtol=1e-12)


def test_a_step_reports_the_loss_and_the_teachers_entropy() -> None:
    """The whole forward pass from the outputs of both networks; the entropy is h(P_t) of equation 5."""
    model, images = made(teacher_temperature=0.2), batch()
    with torch.no_grad():
        model.center.copy_(torch.linspace(-0.2, 0.2, 12))
    shadow = copy.deepcopy(model)  # BatchNorm in train mode: outputs depend on the batch alone
    views = [shadow.normalize(view) for view in (images.view1, images.view2)]
    student = [shadow.online(view)[2].detach().double().numpy() for view in views]
    teacher = [shadow.target(view)[2].double().numpy() for view in views]
    center = shadow.center.double().numpy()
    loss = entropy = 0.0
    for view in (0, 1):
        for n in range(8):
            p_t = softmax((teacher[1 - view][n] - center) / 0.2)
            loss -= (p_t * np.log(softmax(student[view][n] / 0.1))).sum() / 16
            entropy -= (p_t * np.log(p_t)).sum() / 16
    found = model(images)
    assert found["total"].item() == pytest.approx(loss, rel=1e-4)
    assert found["entropy"].item() == pytest.approx(entropy, rel=1e-4)


def test_the_center_follows_the_mean_of_the_teachers_outputs() -> None:
    """Equation 4, over both views and all micro-batches of a step; it does not change before the step's end."""
    model = made(center_momentum=0.8)
    expected = np.zeros(12)
    for step in range(3):
        sums = np.zeros(12)
        for micro in range(2):
            images = batch(4, seed=2 * step + micro)
            shadow = copy.deepcopy(model)
            for view in (images.view1, images.view2):
                sums += shadow.target(shadow.normalize(view))[2].double().numpy().sum(axis=0)
            before = model.center.clone()
            model(images)
            assert torch.equal(model.center, before)
        model.on_step_end(step / 10)
        expected = 0.8 * expected + 0.2 * sums / 16  # 2 micro-batches x 4 images x 2 views
        np.testing.assert_allclose(model.center.numpy(), expected, atol=1e-6)
    model.eval()(batch())
    model.on_step_end(0.5)
    np.testing.assert_allclose(model.center.numpy(), expected, atol=1e-6)  # an evaluation leaves no trace


@pytest.mark.parametrize(("progress", "temperature"), [(0, 0.04), (0.15, 0.055), (0.3, 0.07), (0.31, 0.07), (1, 0.07)])
def test_the_teachers_temperature_is_a_function_of_progress(progress: float, temperature: float) -> None:
    dino = DINOConfig(warmup_teacher_temperature=0.04, teacher_temperature=0.07, warmup_fraction=0.3)
    assert float(teacher_temperature(torch.tensor(progress), dino)) == pytest.approx(temperature, rel=1e-6)
    assert teacher_temperature(torch.tensor(progress), DINOConfig(teacher_temperature=0.05)) == 0.05


def test_the_warm_up_continues_from_the_saved_progress() -> None:
    warm = {"warmup_fraction": 0.5, "warmup_teacher_temperature": 0.02, "teacher_temperature": 0.3}
    model = made(**warm)
    model.on_step_end(0.2)
    resumed = made(**warm)
    assert model(batch())["total"].item() != resumed(batch())["total"].item()
    resumed = made(**warm)
    resumed.load_state_dict(model.state_dict())
    model.load_state_dict(model.state_dict())
    assert {"center", "progress"} <= model.state_dict().keys()
    assert model(batch(seed=1))["total"].item() == resumed(batch(seed=1))["total"].item()


def test_prototypes_get_no_gradient_at_the_beginning() -> None:
    model, free = made(frozen_fraction=0.1), made()
    wanted = free(batch())
    wanted["total"].backward()
    loss = model(batch())
    loss["total"].backward()
    assert loss["total"].item() == wanted["total"].item()
    assert model.online.prototypes.weight.grad.abs().max() == 0
    rest = [key for key, _ in model.online.named_parameters() if not key.startswith("prototypes.")]
    parameters, others = dict(model.online.named_parameters()), dict(free.online.named_parameters())
    assert all(torch.equal(parameters[key].grad, others[key].grad) for key in rest)
    model.on_step_end(0.1)
    model(batch())["total"].backward()
    assert model.online.prototypes.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prototypes": 0}, "model.dino.prototypes=0: must be at least 1"),
        ({"student_temperature": 0.0}, "model.dino.student_temperature=0.0: must be above 0"),
        ({"warmup_fraction": 1.5}, "model.dino.warmup_fraction=1.5: must be 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**changes)
