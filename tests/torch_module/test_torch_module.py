"""A remote twin under tools that want a differentiable torch model: torch itself, captum and plenoptic, unchanged."""

from __future__ import annotations

import copy
import io
import pickle
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
from torch.fx.experimental.proxy_tensor import make_fx

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
    module = twins["full"].torch_module(space="model").double()
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
    module = twins["full"].torch_module([5, 2], behavior=behavior[0], pupil_center=pupil_center[0], space="model")
    images.requires_grad_()
    module(images)[:, 1].sum().backward()
    assert images.grad is not None
    assert_allclose(images.grad, FULL.gradient(np.eye(7)[[2, 2]])["images"], atol=2e-6)
    by_unit = twins["full"].torch_module(
        unit_ids=[64, 30], behavior=behavior[0], pupil_center=pupil_center[0], space="model"
    )
    assert_allclose(by_unit(images).detach(), module(images).detach())


def test_it_sits_among_other_layers(demo: mousetwin.Mouse) -> None:
    """The chain rule through it, against autograd through the model itself in float64."""
    blur = torch.nn.Conv2d(1, 1, 5, padding=2, bias=False)
    image = torch.randn(2, 1, 36, 64, requires_grad=True)
    remote = demo.torch_module(behavior=STILL, pupil_center=[0.0, 0.0], space="model")
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
    module = demo.torch_module([3], behavior=STILL, pupil_center=[0.0, 0.0], space="model")
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
    _, pushed = torch.autograd.functional.jvp(
        twins["full"].torch_module([6, 0, 3], space="model"), tuple(inputs), tangents
    )
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

    module = demo.torch_module(behavior=STILL, pupil_center=[0.0, 0.0], space="model")
    images = torch.randn(2, 1, 36, 64, requires_grad=True)
    attributions = Saliency(module).attribute(images, target=14)
    expected = demo.gradient(images.detach().numpy(), np.eye(320)[14], STILL, [0, 0], space="model").images
    assert_allclose(attributions, np.abs(expected), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_plenoptics_metamers_run_on_it(demo: mousetwin.Mouse, tmp_path: Path) -> None:
    import plenoptic

    module = demo.torch_module(behavior=STILL, pupil_center=[0.0, 0.0], space="model").eval()
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
    module = twins["full"].torch_module(behavior=behavior[0], pupil_center=pupil_center[0], space="model").eval()
    found = plenoptic.Eigendistortion(torch.rand(1, 1, *FULL.native), module)
    found.synthesize(k=1, method="power", max_iter=1000)
    left, values, _ = np.linalg.svd(FULL.weights("W").astype(float), full_matrices=False)
    assert float(found.eigenvalues[0]) == pytest.approx(values[0] ** 2, rel=1e-3)
    most = found.eigendistortions[0].detach().numpy().ravel()
    assert abs(most @ left[:, 0]) > 0.99


# --- dtypes


@pytest.mark.parametrize("sent", [torch.uint8, torch.int16, torch.int64, torch.float32, torch.bfloat16, torch.float64])
def test_the_dtype_of_what_goes_in_does_not_decide_what_comes_out(twins: mousetwin.Twins, sent: torch.dtype) -> None:
    mouse = twins["full"]
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, *FULL.stimulus)).astype(np.uint8))
    right = torch.tensor(np.asarray(mouse.predict(images.numpy())))
    module = mouse.torch_module(space="raw")
    found = module(images.to(sent))
    assert found.dtype == torch.float32
    assert_allclose(found, right, atol=1e-5)
    half = module.half()(images.to(sent))
    assert half.dtype == torch.float16
    assert_allclose(half, right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("module_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_are_of_the_dtype_of_what_they_belong_to(twins: mousetwin.Twins, module_dtype: torch.dtype) -> None:
    module = twins["full"].torch_module(space="model").to(module_dtype)
    images, behavior, pupil_center = given(2)
    sent = [images.bfloat16().requires_grad_(), behavior.double().requires_grad_(), pupil_center.requires_grad_()]
    responses = module(*sent)
    assert responses.dtype == module_dtype
    responses.sum().backward()
    expected = FULL.gradient(np.ones((2, 7)))
    for value, right in zip(sent, expected.values(), strict=True):
        assert value.grad is not None
        assert value.grad.dtype == value.dtype
        assert_allclose(value.grad.double(), right, rtol=1e-2)


def test_a_gradient_of_behavior_under_integer_images(twins: mousetwin.Twins) -> None:
    mouse = twins["full"]
    images = torch.randint(0, 256, (2, *FULL.stimulus), dtype=torch.uint8)
    behavior = torch.tensor([10.0, 0.0, 2.0], requires_grad=True)
    mouse.torch_module(space="raw")(images, behavior).sum().backward()
    found = mouse.gradient(images.numpy(), np.ones(7), behavior=behavior.detach().numpy()).behavior
    assert behavior.grad is not None
    assert found is not None
    assert_allclose(behavior.grad, found.sum(0), rtol=1e-5)


def test_inputs_need_not_be_tensors_of_ones_own(twins: mousetwin.Twins) -> None:
    images, behavior, pupil_center = given(2)
    module = twins["full"].torch_module(space="model")
    right = module(images, behavior, pupil_center)
    turned = images.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert_allclose(module(turned, behavior.numpy(), pupil_center.tolist()), right)
    assert_allclose(module(images.numpy()[::-1], behavior.flip(0), pupil_center.flip(0)), right.flip(0))
    with torch.inference_mode():
        assert_allclose(module(images, behavior, pupil_center), right)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.zeros(6, 8), r"shape \(6, 8\) is one image"),
        (torch.zeros(0, 1, 6, 8), "there are none"),
        (torch.zeros(1, 6, 8, dtype=torch.bool), "dtype is bool"),
        (torch.zeros(1, 6, 8, dtype=torch.cfloat), "dtype is complex64"),
        (torch.zeros(1, 6, 8, device="meta"), "cannot be read as an array"),
        (torch.zeros(1, 6, 8).to_sparse(), "to_dense"),
    ],
)
def test_tensors_that_cannot_be_asked_about(twins: mousetwin.Twins, images: torch.Tensor, told: str) -> None:
    with pytest.raises(mousetwin.InvalidArgument, match=f"^images: .*{told}") as caught:
        twins["full"].torch_module(space="model")(images)
    assert "\n" not in str(caught.value)


def test_what_a_module_is_made_with_is_checked_then(twins: mousetwin.Twins) -> None:
    with pytest.raises(mousetwin.InvalidArgument, match="behavior: a masked array that hides 1 of 3"):
        twins["full"].torch_module(behavior=np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0]))
    with pytest.raises(mousetwin.InvalidArgument, match="space: 'rgb'"):
        twins["full"].torch_module(space="rgb")


# --- torch.func and the like, against the linear twin's own weights

LETTERS = ("W", "B", "P")


def jacobian() -> list[torch.Tensor]:
    """(7, …) of each input: the twin is linear, so it is the same everywhere."""
    shapes = [value.shape[1:] for value in given(1)]
    return [
        torch.tensor(FULL.weights(letter).T.astype(np.float32)).reshape(7, *shape)
        for letter, shape in zip(LETTERS, shapes, strict=True)
    ]


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert_allclose(found.detach(), expected, atol=1e-4)


# torch scripts its own forward-mode rules, and warns of that.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def test_vjp_and_jacrev(twins: mousetwin.Twins) -> None:
    module, inputs = twins["full"].torch_module(space="model"), given(2)
    responses, pull_back = torch.func.vjp(module, *inputs)
    near(responses, module(*inputs))
    found = torch.func.jacrev(module, (0, 1, 2))(*inputs)
    for pulled, full, exact in zip(pull_back(torch.ones(2, 7)), found, jacobian(), strict=True):
        near(pulled, exact.sum(0).expand(2, *exact.shape[1:]))
        for n in range(2):
            near(full[n, :, n], exact)
            assert not full[n, :, 1 - n].any()
    # One row of behavior for all images has one gradient.
    near(torch.func.jacrev(module, 1)(inputs[0], inputs[1][0], inputs[2]), jacobian()[1].expand(2, 7, 3))
    near(torch.func.functional_call(module, {}, tuple(inputs)), responses)


@forward_mode
def test_jvp_and_jacfwd(twins: mousetwin.Twins) -> None:
    module, inputs = twins["full"].torch_module(space="model"), given(2)
    tangents = [torch.randn_like(value) for value in inputs]
    expected = sum(t.flatten(1) @ exact.flatten(1).T for t, exact in zip(tangents, jacobian(), strict=True))
    assert isinstance(expected, torch.Tensor)
    near(torch.func.jvp(module, tuple(inputs), tuple(tangents))[1], expected)
    with torch.autograd.forward_ad.dual_level():
        dual = [torch.autograd.forward_ad.make_dual(*pair) for pair in zip(inputs, tangents, strict=True)]
        near(torch.autograd.forward_ad.unpack_dual(module(*dual)).tangent, expected)
    near(torch.func.jacfwd(module, 1)(*inputs)[1, :, 1], jacobian()[1])
    near(torch.func.jacfwd(module, 1)(inputs[0], inputs[1][0], inputs[2]), jacobian()[1].expand(2, 7, 3))
    each = twins["full"].torch_module(neurons=[[3], [1]], space="model")
    near(torch.func.jvp(each, tuple(inputs), tuple(tangents))[1], expected[[0, 1], [3, 1]][:, None])


def test_vmap_folds_what_is_mapped_over_into_the_batch(twins: mousetwin.Twins) -> None:
    mouse = twins["full"]
    module = mouse.torch_module(space="model")
    images, behavior, pupil_center = given(2)
    many = torch.stack([images, 2 * images, -images])
    conditions = torch.stack([behavior, 2 * behavior, 3 * behavior])
    vmap = torch.func.vmap
    near(vmap(module)(many), torch.stack([module(i) for i in many]))
    apart = torch.stack([module(i, behavior, pupil_center) for i in many])
    near(vmap(module, (0, None, None))(many, behavior, pupil_center), apart)
    near(vmap(module, (1, None, None))(many.movedim(0, 1), behavior, pupil_center), apart)
    near(
        vmap(module, (None, 0, None))(images, behavior, pupil_center[0]),
        torch.stack([module(images, row, pupil_center[0]) for row in behavior]),
    )
    near(
        vmap(module, (0, 0, None))(many, conditions, pupil_center),
        torch.stack([module(*pair, pupil_center) for pair in zip(many, conditions, strict=True)]),
    )
    # One image under several rows of behavior, mapped over.
    near(
        vmap(module, (0, None, None))(many[:, :1], behavior, pupil_center[0]),
        torch.stack([module(i[:1], behavior, pupil_center[0]) for i in many]),
    )
    fixed = mouse.torch_module(neurons=[[3], [1]], behavior=behavior, space="model")
    near(vmap(fixed)(many), torch.stack([fixed(i) for i in many]))
    twice = vmap(vmap(module, (0, None, None)), (0, None, None))
    near(twice(torch.stack([many, many]), behavior, pupil_center), torch.stack([apart, apart]))
    with pytest.raises(mousetwin.InvalidArgument, match=r"shape \(6, 8\) is one image"):
        vmap(module)(many[:, 0, 0])


@forward_mode
def test_vmap_of_gradients(twins: mousetwin.Twins) -> None:
    module = twins["full"].torch_module(space="model")
    images, behavior, pupil_center = given(2)
    many = torch.stack([images, 2 * images, -images])
    exact = jacobian()

    def total(images: torch.Tensor) -> torch.Tensor:
        return module(images, behavior, pupil_center).sum()

    vmap = torch.func.vmap
    near(vmap(torch.func.grad(total))(many), exact[0].sum(0).expand(3, 2, 1, 6, 8))
    near(vmap(torch.func.grad(total))(many[:, :1]), 2 * exact[0].sum(0).expand(3, 1, 1, 6, 8))
    by_behavior = vmap(torch.func.grad(lambda b: module(images, b, pupil_center).sum()))(behavior)
    near(by_behavior, 2 * exact[1].sum(0).expand(2, 3))
    near(vmap(torch.func.jacfwd(lambda b: module(images, b, pupil_center)))(behavior), exact[1].expand(2, 2, 7, 3))


@forward_mode
def test_functional_jacobians(twins: mousetwin.Twins) -> None:
    module, inputs = twins["full"].torch_module(space="model"), tuple(given(2))
    found = torch.autograd.functional.jacobian(module, inputs)
    for one, other in zip(found, torch.func.jacrev(module, (0, 1, 2))(*inputs), strict=True):
        near(one, other)
    for strategy in ("reverse-mode", "forward-mode"):
        with pytest.raises(mousetwin.Unimplemented, match=r"vectorize=True.*use torch\.func\.jacrev") as caught:
            torch.autograd.functional.jacobian(module, inputs, vectorize=True, strategy=strategy)
        assert "\n" not in str(caught.value)


@forward_mode
def test_no_way_leads_to_second_derivatives(twins: mousetwin.Twins) -> None:
    module = twins["full"].torch_module(space="model")
    images, behavior, pupil_center = given(1)

    def total(images: torch.Tensor) -> torch.Tensor:
        return module(images, behavior, pupil_center).sum()

    for attempt in (
        lambda: torch.func.hessian(total)(images),
        lambda: torch.func.jacrev(torch.func.jacrev(total))(images),
        lambda: torch.func.jacfwd(torch.func.jacfwd(total))(images),
        lambda: torch.autograd.functional.hessian(total, images),
        lambda: torch.autograd.functional.hvp(total, images, images),
    ):
        with pytest.raises(mousetwin.Unimplemented, match="no second derivatives"):
            attempt()


@pytest.mark.filterwarnings("ignore")
def test_torch_compile_calls_it_between_graphs(twins: mousetwin.Twins) -> None:
    module = twins["full"].torch_module(space="model")
    images, behavior, pupil_center = given(2)
    images.requires_grad_()

    def around(images: torch.Tensor) -> torch.Tensor:
        return (torch.relu(module(2 * images, behavior, pupil_center)) ** 2).sum()

    (right,) = torch.autograd.grad(around(images), images)
    compiled = torch.compile(around, backend="aot_eager")
    near(compiled(images), around(images).detach())
    (found,) = torch.autograd.grad(compiled(images), images)
    near(found, right)
    alone = torch.compile(module, backend="eager")(images, behavior, pupil_center)
    near(alone, module(images, behavior, pupil_center).detach())


@pytest.mark.filterwarnings("ignore")
def test_what_would_write_an_answer_down_for_good_is_refused(twins: mousetwin.Twins) -> None:
    module, inputs = twins["full"].torch_module(space="model").eval(), tuple(given(2))
    for attempt in (
        lambda: torch.jit.trace(module, inputs),
        lambda: torch.jit.script(torch.nn.Sequential(module)),
        lambda: torch.export.export(module, inputs),
        lambda: torch.fx.symbolic_trace(module),
        lambda: make_fx(module)(*inputs),
        lambda: torch.func.linearize(module, *inputs),
    ):
        with pytest.raises(mousetwin.Unimplemented, match="a remote twin cannot be traced") as caught:
            attempt()
        assert "\n" not in str(caught.value)


# --- copies


def test_a_module_goes_where_its_mouse_goes(twins: mousetwin.Twins) -> None:
    images, behavior, _ = given(2)
    module = twins["full"].torch_module([5, 2], behavior=behavior[0], space="model").double()
    right = module(images)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for again in (
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(module),
        torch.load(saved, weights_only=False),
    ):
        assert again(images).dtype == torch.float64
        assert_allclose(again(images), right)
    assert not module.state_dict()
    assert repr(module) == "TwinModule(full linear v1 (synthetic), neurons (2,), model space)"
