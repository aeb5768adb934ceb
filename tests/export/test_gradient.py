"""Gradients of modules that are nothing like the published models: a lab's own twin, as long as torch can trace it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
import onnxruntime as ort
import pytest
import torch
from mousetwin_export.export import Contract, Shape, write_module
from mousetwin_export.variants import Variant, compile_variants
from mousetwin_serve import bundle
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = (12, 16)
NEURONS = 5


class Pooling(nn.Module):
    """Strides, both kinds of pooling, normalisation over channels and over features."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1),
            nn.GroupNorm(2, 6),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=2),
            nn.Softplus(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.LayerNorm(48),
        )
        self.readout = nn.Linear(48, NEURONS)

    def forward(self, images: Tensor) -> Tensor:
        return torch.exp(self.readout(self.core(images)))


class Attending(nn.Module):
    """Patches that attend to each other, with behavior as one more token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.state = nn.Conv2d(1, 8, 4, stride=4), nn.Linear(3, 8)
        self.mix, self.readout = nn.Linear(8, 24), nn.Linear(8, NEURONS)

    def forward(self, images: Tensor, behavior: Tensor) -> Tensor:
        tokens = torch.cat([self.patches(images).flatten(2).transpose(1, 2), self.state(behavior)[:, None]], 1)
        query, key, value = self.mix(tokens).unflatten(-1, (2, 12)).transpose(1, 2).chunk(3, -1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return F.elu(self.readout(attended.transpose(1, 2).flatten(2).mean(1))) + 1


class Sampling(nn.Module):
    """A readout by grid sampling that the pupil moves, as the original library has it."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.moved = nn.Conv2d(1, 4, 5), nn.Linear(2, 2)
        self.register_buffer("places", torch.rand(1, NEURONS, 1, 2) * 1.4 - 0.7)
        self.features = nn.Parameter(torch.randn(4, NEURONS))

    def forward(self, images: Tensor, pupil_center: Tensor) -> Tensor:
        looked = self.places + 0.2 * torch.tanh(self.moved(pupil_center))[:, None, None]
        seen = F.grid_sample(torch.tanh(self.core(images)), looked, align_corners=True)[..., 0]
        return F.softplus((seen * self.features).sum(1))


class RaggedPooling(nn.Module):
    """ONNX has a word for pooling whose last windows hang over the border, and none for its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(6 * 8, NEURONS)

    def forward(self, images: Tensor) -> Tensor:
        return F.softplus(self.readout(F.avg_pool2d(images, 3, 2, ceil_mode=True).flatten(1)))


MODULES: dict[str, tuple[type[nn.Module], dict[str, tuple[int, ...]]]] = {
    "pooling": (Pooling, {"images": (1, *SIZE)}),
    "attention": (Attending, {"images": (1, *SIZE), "behavior": (3,)}),
    "grid sampling": (Sampling, {"images": (1, *SIZE), "pupil_center": (2,)}),
}


@pytest.mark.parametrize("name", MODULES)
def test_any_traceable_module_has_its_gradient(name: str) -> None:
    kind, shapes = MODULES[name]
    torch.manual_seed(0)
    module = kind().eval()
    built = compile_variants(
        module, [Variant("", module)], {}, shapes, NEURONS, 2e-5, gradient=True, say=lambda line: None
    )
    assert built.no_gradient == ""
    session = ort.InferenceSession(built.graphs["gradient"], providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    for count in (1, 7):
        given = {key: rng.normal(size=(count, *dims)).astype(np.float32) for key, dims in shapes.items()}
        cotangent = rng.normal(size=(count, NEURONS)).astype(np.float32)
        found = dict(
            zip(
                (o.name for o in session.get_outputs()),
                session.run(None, {"cotangent": cotangent, **given}),
                strict=True,
            )
        )
        exact = {key: torch.tensor(values, dtype=torch.float64, requires_grad=True) for key, values in given.items()}
        responses = module.double()(**exact)
        slopes = torch.autograd.grad(responses, list(exact.values()), torch.tensor(cotangent, dtype=torch.float64))
        module.float()
        np.testing.assert_allclose(found["responses"], responses.detach().numpy(), rtol=1e-5, atol=2e-5)
        for key, slope in zip(exact, slopes, strict=True):
            off = np.linalg.norm(found[f"d_{key}"] - slope.numpy()) / float(torch.linalg.norm(slope))
            assert off < 1e-5, (key, off)


def test_a_module_whose_gradient_cannot_be_traced_is_served_without(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = RaggedPooling().eval()
    said: list[str] = []
    contract = Contract(
        mouse="lab",
        model="ragged",
        native_size=SIZE,
        source=bundle.Source(description="made for a test", sha256="", licence="MIT"),
    )
    shape = Shape(NEURONS, (), (), ((0.0, 0.0),) * NEURONS, SIZE)
    write_module(module, [Variant("", module)], {}, shape, contract, tmp_path, 2e-5, say=said.append)
    assert any(line.startswith("no gradient: ") for line in said)
    images: Any = np.random.default_rng(2).normal(size=(3, *SIZE))
    with mousetwin.connect(f"local:{tmp_path}") as twins:
        mouse = twins["lab"]
        assert mouse.summary.graphs == ("forward",)
        assert "gradient cannot be" in mouse.summary.no_gradient
        expected = module(torch.tensor(images[:, None], dtype=torch.float32)).detach().numpy()
        np.testing.assert_allclose(mouse.predict(images, space="model"), expected, atol=2e-5)
        with pytest.raises(mousetwin.errors.Unimplemented, match="this twin has none: the gradient cannot be"):
            mouse.gradient(images, np.ones(NEURONS), space="model")
