"""A remote twin under tools that want a differentiable torch model: torch itself, captum and plenoptic, unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mousetwin
import numpy as np
import pytest
import torch
from bundles import FULL, NO_BEHAVIOR_STATISTICS
from mousetwin_export.demo import DemoCortex
from numpy.testing import assert_allclose
from running import Service

STILL = [0.0, 0.0, 0.0]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def twins(service: Service) -> Iterator[mousetwin.Twins]:
    with mousetwin.connect(service.grpc) as opened:
        yield opened


@pytest.fixture(scope="module")
def demo() -> Iterator[mousetwin.Mouse]:
    with mousetwin.connect("local:") as opened:
        yield opened["demo"]


def given(count: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.tensor(values, dtype=dtype) for values in FULL.inputs(count).values()]


def test_forward_and_backward_are_the_service(twins: mousetwin.Twins) -> None:
    module = twins["full"].torch_module()
    inputs = [value.requires_grad_() for value in given(3, torch.float64)]
    responses = module(*inputs)
    assert responses.dtype == torch.float64
    assert_allclose(responses.detach(), FULL.respond(*(value.detach() for value in inputs)), atol=2e-6)
    cotangent = torch.randn(3, 7, dtype=torch.float64)
    gradients = torch.autograd.grad(responses, inputs, cotangent)
    for found, expected in zip(gradients, FULL.gradient(cotangent).values(), strict=True):
        assert_allclose(found, expected, atol=2e-6)


def test_chosen_neurons_under_a_fixed_condition(twins: mousetwin.Twins) -> None:
    images, behavior, pupil_center = given(2)
    module = twins["full"].torch_module([5, 2], behavior=behavior[0], pupil_center=pupil_center[0])
    images.requires_grad_()
    module(images)[:, 1].sum().backward()
    assert images.grad is not None
    assert_allclose(images.grad, FULL.gradient(np.eye(7)[[2, 2]])["images"], atol=2e-6)
    by_unit = twins["full"].torch_module(unit_ids=[64, 30], behavior=behavior[0], pupil_center=pupil_center[0])
    assert_allclose(by_unit(images).detach(), module(images).detach())


def test_it_sits_among_other_layers(demo: mousetwin.Mouse) -> None:
    """The chain rule through it, against autograd through the model itself in float64."""
    blur = torch.nn.Conv2d(1, 1, 5, padding=2, bias=False)
    image = torch.randn(2, 1, 36, 64, requires_grad=True)
    remote = demo.torch_module(behavior=STILL, pupil_center=[0.0, 0.0])
    torch.log1p(remote(blur(image))).sum().backward()
    found, weights = image.grad, blur.weight.grad
    assert found is not None
    assert weights is not None

    exact = DemoCortex({name: tuple(values) for name, values in demo.info.truth.items()}).double()
    again = image.detach().double().requires_grad_()
    blur.zero_grad()
    blur.double()
    responses = exact(blur(again), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
    torch.log1p(responses).sum().backward()
    assert again.grad is not None
    assert torch.linalg.norm(found - again.grad) / torch.linalg.norm(again.grad) < 1e-5
    assert blur.weight.grad is not None
    assert_allclose(weights, blur.weight.grad, rtol=1e-4, atol=1e-4)


def test_a_torch_optimiser_drives_a_neuron(demo: mousetwin.Mouse) -> None:
    module = demo.torch_module([3], behavior=STILL, pupil_center=[0.0, 0.0])
    image = (0.01 * torch.randn(1, 1, 36, 64)).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.02)
    before = module(image).item()
    for _ in range(30):
        optimizer.zero_grad()
        (-module(image).sum()).backward()
        optimizer.step()
    assert module(image).item() > 3 * before


def test_a_product_with_the_jacobian(twins: mousetwin.Twins) -> None:
    """Forward mode by the derivative of the gradient with respect to its cotangent, as torch and plenoptic do it."""
    inputs = given(2, torch.float64)
    tangents = tuple(torch.randn_like(value) for value in inputs)
    _, pushed = torch.autograd.functional.jvp(twins["full"].torch_module([6, 0, 3]), tuple(inputs), tangents)
    letters = ("W", "B", "P")
    expected = sum(
        tangent.reshape(2, -1).numpy() @ FULL.weights(letter).astype(float)
        for tangent, letter in zip(tangents, letters, strict=True)
    )
    assert_allclose(pushed, expected[:, [6, 0, 3]], atol=1e-5)


def test_other_second_derivatives_are_refused(demo: mousetwin.Mouse, twins: mousetwin.Twins) -> None:
    image = torch.randn(1, 1, 36, 64, requires_grad=True)
    module = demo.torch_module([3], behavior=STILL)
    (gradient,) = torch.autograd.grad(module(image).sum(), image, create_graph=True)
    with pytest.raises(mousetwin.Unimplemented, match="no second derivatives"):
        gradient.square().sum().backward()
    many = torch.randn(60, 1, 36, 64)
    with pytest.raises(mousetwin.Unimplemented, match="60 images × 320 neurons"):
        torch.autograd.functional.jvp(demo.torch_module(behavior=STILL), many, torch.ones_like(many))
    with pytest.raises(mousetwin.Unimplemented, match="made without one"):
        twins["no-behavior-statistics"].torch_module()
    assert not NO_BEHAVIOR_STATISTICS.has_gradient


def test_bad_inputs_raise_the_services_own_errors(demo: mousetwin.Mouse) -> None:
    with pytest.raises(mousetwin.InvalidArgument, match="expected 36×64"):
        demo.torch_module()(torch.zeros(1, 1, 5, 5))


@pytest.mark.filterwarnings("ignore")
def test_captum_runs_on_it(demo: mousetwin.Mouse) -> None:
    from captum.attr import Saliency

    module = demo.torch_module(behavior=STILL, pupil_center=[0.0, 0.0])
    images = torch.randn(2, 1, 36, 64, requires_grad=True)
    attributions = Saliency(module).attribute(images, target=14)
    expected = demo.gradient(images.detach().numpy(), np.eye(320)[14], STILL, [0, 0], space="model").images
    assert_allclose(attributions, np.abs(expected), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_plenoptics_metamers_run_on_it(demo: mousetwin.Mouse, tmp_path: Path) -> None:
    import plenoptic

    module = demo.torch_module(behavior=STILL, pupil_center=[0.0, 0.0]).eval()
    generator = torch.Generator().manual_seed(0)
    image, start = (torch.rand(1, 1, 36, 64, generator=generator) for _ in range(2))
    metamer = plenoptic.Metamer(image, module)
    metamer.setup(initial_image=start)
    metamer.synthesize(max_iter=60, store_progress=False)
    target, before, after = (module(i).detach() for i in (image, start, metamer.metamer))
    assert torch.linalg.norm(after - target) < 0.2 * torch.linalg.norm(before - target)
    assert torch.linalg.norm(metamer.metamer - image) > 0.1 * torch.linalg.norm(image)


@pytest.mark.filterwarnings("ignore")
def test_plenoptics_eigendistortions_run_on_it(twins: mousetwin.Twins) -> None:
    import plenoptic

    _, behavior, pupil_center = given(1)
    module = twins["full"].torch_module(behavior=behavior[0], pupil_center=pupil_center[0]).eval()
    found = plenoptic.Eigendistortion(torch.rand(1, 1, *FULL.native), module)
    found.synthesize(k=1, method="power", max_iter=1000)
    left, values, _ = np.linalg.svd(FULL.weights("W").astype(float), full_matrices=False)
    assert float(found.eigenvalues[0]) == pytest.approx(values[0] ** 2, rel=1e-3)
    most = found.eigendistortions[0].detach().numpy().ravel()
    assert abs(most @ left[:, 0]) > 0.99
