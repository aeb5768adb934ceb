"""A twin as a torch module: its forward and backward are the service.

Imported only by `Mouse.torch_module`, since nothing else of the client needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import Function

from .errors import Unimplemented

if TYPE_CHECKING:
    from .twins import Mouse

# Rows of the Jacobian that a product with it may take.
MOST_ROWS = 16_384
_CONDITIONS = ("behavior", "pupil_center")


class TwinModule(nn.Module):
    """`forward(images, behavior=None, pupil_center=None)`: (N, 1, H, W) or (N, H, W) to responses (N, K).

    Differentiable once with respect to images, behavior and pupil center. Of second derivatives it has what a product
    with the Jacobian needs (that of a gradient with respect to its cotangent); any other raises Unimplemented. Answers
    come in the dtype and on the device of the images; they are computed in float32.
    """

    def __init__(self, mouse: Mouse, **asked: Any) -> None:
        """
        Args:
            mouse: the twin.
            asked: as for `Mouse.predict`; behavior and pupil center are for all images that come without.
        """
        super().__init__()
        self.mouse = mouse
        self.asked = {name: value for name, value in asked.items() if value is not None}

    def forward(self, images: Tensor, behavior: Tensor | None = None, pupil_center: Tensor | None = None) -> Tensor:
        responses: Tensor = _Respond.apply(self, images, behavior, pupil_center)  # type: ignore[no-untyped-call]
        return responses

    def ask(self, images: Tensor, conditions: tuple[Tensor | None, ...]) -> dict[str, Any]:
        """Arguments for `predict` and `gradient`."""
        given = {name: _array(value) for name, value in zip(_CONDITIONS, conditions, strict=True) if value is not None}
        return {**self.asked, **given, "images": _array(images)}


class _Respond(Function):
    @staticmethod
    def forward(ctx: Any, module: TwinModule, images: Tensor, *conditions: Tensor | None) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(images, *conditions)
        return _like(images, module.mouse.predict(**module.ask(images, conditions)))

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        inputs = (None if value is None else _Once.apply(value) for value in ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return (None, *_PullBack.apply(ctx.module, cotangent, *inputs))  # type: ignore[no-untyped-call]


class _PullBack(Function):
    """cotangent (N, K) to the gradients of Σ cotangent · responses with respect to each input."""

    @staticmethod
    def forward(
        ctx: Any, module: TwinModule, cotangent: Tensor, images: Tensor, *conditions: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.module = module
        ctx.save_for_backward(images, *conditions)
        found = module.mouse.gradient(cotangent=_array(cotangent), **module.ask(images, conditions))
        gradients = (getattr(found, name) for name in _CONDITIONS)
        rest = (
            None if value is None else _like(value, _known(name, gradient))
            for name, value, gradient in zip(_CONDITIONS, conditions, gradients, strict=True)
        )
        return (_like(images, found.images), *rest)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> Any:
        inputs = ctx.saved_tensors
        pushed = _push_forward(ctx.module, inputs, tangents)
        # Whoever asks for these meets `_Once`.
        return (None, pushed, *(None if value is None else torch.zeros_like(value) for value in inputs))


class _Once(Function):
    """Its input, of which no second derivative is had."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise Unimplemented("a remote twin has no second derivatives with respect to its inputs")


def _push_forward(module: TwinModule, inputs: tuple[Tensor | None, ...], tangents: tuple[Tensor | None, ...]) -> Tensor:
    """The Jacobian's product with tangents of the inputs, (N, K), from the gradient of every response alone."""
    images = inputs[0]
    assert images is not None
    count = len(images)
    asked, every = module.asked, np.arange(module.mouse.summary.neurons)
    neurons = np.asarray(asked.get("neurons", asked.get("unit_ids", every)))
    if neurons.ndim != 1:
        raise Unimplemented("products with the Jacobian are of the same neurons for all images", field="neurons")
    if count * len(neurons) > MOST_ROWS:
        raise Unimplemented(
            f"a product with the Jacobian of {count} images × {len(neurons)} neurons takes as many gradients, the most "
            f"is {MOST_ROWS}: choose neurons",
            field="neurons",
        )
    rows = [None if value is None else value.repeat_interleave(len(neurons), 0) for value in inputs]
    assert rows[0] is not None
    own = {"unit_ids" if "unit_ids" in asked else "neurons": np.tile(neurons, count)[:, None]}
    found = module.mouse.gradient(cotangent=np.ones(1, np.float32), **{**module.ask(rows[0], tuple(rows[1:])), **own})
    pushed = np.zeros(count * len(neurons))
    for gradient, tangent in zip((found.images, found.behavior, found.pupil_center), tangents, strict=True):
        if tangent is not None:
            moved = np.repeat(_array(tangent).astype(np.float64), len(neurons), 0)
            pushed += (np.asarray(gradient, np.float64) * moved).reshape(len(pushed), -1).sum(1)
    return _like(images, pushed.reshape(count, len(neurons)))


def _array(value: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = value.detach().cpu().numpy()
    return found


def _like(value: Tensor, found: NDArray[Any]) -> Tensor:
    return torch.as_tensor(np.asarray(found)).to(value)


def _known(name: str, gradient: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if gradient is None:
        raise Unimplemented(f"{name}: its gradient is not known in these units; use space='model'", field=name)
    return gradient
