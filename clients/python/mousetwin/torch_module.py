"""A twin as a torch module: its forward and backward are the service.

Imported only by `Mouse.torch_module`, since nothing else of the client needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.autograd import Function
from torch.fx import Proxy
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .arrays import from_nested
from .build import optional_array
from .conditions import CONDITIONS, check_model_images, condition_space
from .errors import InvalidArgument, Unimplemented
from .query import Space, space_of
from .torch_rows import fold, rowed, rows_of, spread, summed

if TYPE_CHECKING:
    from .twins import Mouse

# Rows of the Jacobian that a product with it may take.
MOST_ROWS = 16_384
_INPUTS = ("images", "behavior", "pupil_center")
_NOT_TRACED = (
    "a remote twin cannot be traced (torch.jit, torch.export, torch.fx, torch.func.linearize): call it as it is, or "
    "under torch.compile without fullgraph"
)
_NOT_BATCHED = (
    "vectorize=True and is_grads_batched=True do not work on a remote twin: use torch.func.jacrev or jacfwd, or leave "
    "them out"
)


class TwinModule(nn.Module):
    """`forward(images, behavior=None, pupil_center=None)`: (N, 1, H, W) or (N, H, W) to responses (N, K).

    Differentiable once with respect to images, behavior and pupil center, in either mode. Of second derivatives it has
    what a product with the Jacobian needs (that of a gradient with respect to its cotangent); any other raises
    Unimplemented. `torch.func` works on it (vjp, jvp, jacrev, jacfwd, vmap); `torch.compile` calls it as it is, between
    the graphs; `torch.jit` and `torch.export`, which would have to see inside, raise Unimplemented.

    Answers are float32, or of the dtype that the module was moved to (`module.double()`), whatever that of the images,
    and on the images' device; they are computed in float32. Gradients are of the dtype of what they belong to.
    """

    dtype_of_answers: Tensor

    def __init__(
        self,
        mouse: Mouse,
        neurons: ArrayLike | None = None,
        unit_ids: ArrayLike | None = None,
        *,
        behavior: ArrayLike | None = None,
        pupil_center: ArrayLike | None = None,
        space: Space | str | None = None,
        condition_space: Space | str | None = None,
    ) -> None:
        """
        Args:
            mouse: the twin.
            neurons, unit_ids: as for `Mouse.predict`.
            behavior, pupil_center: for all images that come without.
            space: of the images: "model" (default, but for whole numbers, which must say) or "raw".
            condition_space: of behavior and pupil center, also of those that come with images.

        Raises:
            InvalidArgument: one of these is no array of numbers, or no space; or the space of behavior or pupil center
                is not said, and matters.
        """
        super().__init__()
        self.mouse = mouse
        self.behavior = _own(behavior, "behavior")
        self.pupil_center = _own(pupil_center, "pupil_center")
        self._neurons = _own(neurons, "neurons", least=1)
        self._unit_ids = _own(unit_ids, "unit_ids", least=1)
        self._space = space_of(space)
        self._said = space_of(condition_space, "condition_space") or space_of(space)
        _resolve(mouse, self._said, {name: getattr(self, name) for name in CONDITIONS})
        # Follows the module from dtype to dtype, and is no part of its state.
        self.register_buffer("dtype_of_answers", torch.empty(0, dtype=torch.float32), persistent=False)

    @torch.compiler.disable(reason=_NOT_TRACED)  # type: ignore[untyped-decorator, no-untyped-call]
    def forward(self, images: Tensor, behavior: Tensor | None = None, pupil_center: Tensor | None = None) -> Tensor:
        _check_not_traced(images)
        given = {"images": images, "behavior": behavior, "pupil_center": pupil_center}
        found = {name: getattr(self, name, None) if value is None else value for name, value in given.items()}
        twin = _Asked(
            self.mouse,
            self._neurons,
            self._unit_ids,
            self._space,
            self._said,
            self.dtype_of_answers.dtype,
        )
        inputs = [None if value is None else _tensor(value, name) for name, value in found.items()]
        responses: Tensor = _Respond.apply(twin, *inputs)  # type: ignore[no-untyped-call]
        return responses

    def extra_repr(self) -> str:
        chosen = self._neurons if self._neurons is not None else self._unit_ids
        neurons = self.mouse.summary.neurons if chosen is None else chosen.shape
        return f"{self.mouse.summary}, neurons {neurons}, {(self._space or Space.MODEL).value} space"

    def __prepare_scriptable__(self) -> None:
        # torch.jit.script asks for this first.
        raise Unimplemented(_NOT_TRACED, field="torch")


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is asked of the twin beside the inputs, and the dtype of what it answers.

    space: of the images; None is model, where nobody said, of images that are not whole numbers. said: the space of
    conditions; None where nobody said, and each call's numbers may be the same in both.
    """

    mouse: Mouse
    neurons: NDArray[Any] | None
    unit_ids: NDArray[Any] | None
    space: Space | None
    said: Space | None
    dtype: torch.dtype

    @property
    def chosen(self) -> tuple[str, NDArray[Any]]:
        """By which name columns are chosen, and which."""
        if self.unit_ids is not None and self.neurons is None:
            return "unit_ids", self.unit_ids
        return "neurons", np.arange(self.mouse.summary.neurons) if self.neurons is None else self.neurons

    def repeated(self, times: int) -> _Asked:
        """The same of so many times the images."""

        def tiled(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return np.tile(values, (times, 1)) if values is not None and values.ndim == 2 else values

        return replace(self, neurons=tiled(self.neurons), unit_ids=tiled(self.unit_ids))

    def arguments(self, inputs: Sequence[Tensor | None]) -> dict[str, Any]:
        """Of `predict` and `gradient`."""
        values = {name: optional_array(v, name) for name, v in zip(_INPUTS, inputs, strict=True)}
        assert values["images"] is not None
        check_model_images(values["images"], self.space, "images")
        return {
            "neurons": self.neurons,
            "unit_ids": self.unit_ids,
            "space": self.space or Space.MODEL,
            "condition_space": _resolve(self.mouse, self.said, values),
            **values,
        }

    def answer(self, found: NDArray[Any], inputs: Sequence[Tensor | None]) -> Tensor:
        """What came, in the module's dtype and where the images are."""
        images = inputs[0]
        assert images is not None
        if not self.dtype.is_floating_point:
            raise InvalidArgument(f"dtype: the module is {self.dtype}, expected one with fractions", field="dtype")
        return _cast(torch.from_numpy(np.asarray(found)), images.device, self.dtype)


class _Respond(Function):
    @staticmethod
    def forward(twin: _Asked, *inputs: Tensor | None) -> Tensor:
        return twin.answer(twin.mouse.predict(**twin.arguments(inputs)), inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.twin, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> Any:
        wanted = tuple(n for n in range(len(_INPUTS)) if ctx.needs_input_grad[n + 1])
        if cotangent is None or not wanted:
            return (None,) * (len(_INPUTS) + 1)
        inputs = [None if value is None else _apply(_Once, value) for value in ctx.saved_tensors]
        found = dict(zip(wanted, _apply(_PullBack, ctx.twin, wanted, cotangent, *inputs), strict=True))
        return (None, *(found.get(n) for n in range(len(_INPUTS))))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Any:
        return _push_forward(ctx.twin, ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], twin: _Asked, *inputs: Tensor | None) -> tuple[Tensor, int]:
        size = info.batch_size
        folded, rows = fold(spread(inputs, in_dims[1:], size))
        return _apply(_Respond, twin.repeated(size), *folded).unflatten(0, (size, rows)), 0


class _PullBack(Function):
    """cotangent (N, K) to the gradients of Σ cotangent · responses with respect to the wanted inputs."""

    @staticmethod
    def forward(twin: _Asked, wanted: tuple[int, ...], cotangent: Tensor, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        found = twin.mouse.gradient(cotangent=_along(cotangent), **twin.arguments(inputs))
        return tuple(_like(inputs[n], _known(_INPUTS[n], getattr(found, _INPUTS[n]))) for n in wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.twin, ctx.wanted, cotangent, *tensors = inputs
        ctx.dtype = cotangent.dtype
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> Any:
        moved = dict(zip(ctx.wanted, tangents, strict=True))
        pushed = None
        if ctx.needs_input_grad[2] and any(tangent is not None for tangent in tangents):
            every = [moved.get(n) for n in range(len(_INPUTS))]
            pushed = _push_forward(ctx.twin, ctx.saved_tensors, every).to(ctx.dtype)
        # Whoever asks for these meets `_Once`.
        zeros = (
            torch.zeros_like(value) if asked else None
            for value, asked in zip(ctx.saved_tensors, ctx.needs_input_grad[3:], strict=True)
        )
        return (None, None, pushed, *zeros)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        raise _no_second_derivatives()

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], twin: _Asked, wanted: tuple[int, ...], *tensors: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        size = info.batch_size
        cotangent, *inputs = spread(tensors, in_dims[2:], size)
        assert cotangent is not None
        folded, rows = fold(inputs)
        found = _apply(_PullBack, twin.repeated(size), wanted, cotangent.flatten(0, 1), *folded)
        gradients = (value.unflatten(0, (size, rows)) for value in found)
        return tuple(summed(g, inputs[n], 1) for g, n in zip(gradients, wanted, strict=True)), (0,) * len(wanted)


class _NoDerivative(Function):
    """A function whose own derivatives would be second ones."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept: it has no derivative."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> NoReturn:
        raise _no_second_derivatives()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        raise _no_second_derivatives()


class _PushForward(_NoDerivative):
    """Products (T, N, K) of the Jacobian with T tangents of each input, from the gradient of every response alone."""

    @staticmethod
    def forward(twin: _Asked, *both: Tensor | None) -> Tensor:
        inputs, tangents = both[: len(_INPUTS)], both[len(_INPUTS) :]
        count = rows_of(inputs, 0)
        name, neurons = twin.chosen
        each = 1 if neurons.ndim == 2 else len(neurons)
        if count * each > MOST_ROWS:
            raise Unimplemented(
                f"a product with the Jacobian of {count} images × {each} neurons takes as many gradients, the most is "
                f"{MOST_ROWS}: choose neurons",
                field="neurons",
            )
        rows = [None if v is None else rowed(v, 0, count).repeat_interleave(each, 0) for v in inputs]
        columns = neurons if neurons.ndim == 2 else np.tile(neurons, count)[:, None]
        asked = {**twin.arguments(rows), name: columns}
        found = twin.mouse.gradient(cotangent=np.ones(1, np.float32), **asked)
        pushed = np.zeros((1, count, each))
        for field, tangent in zip(_INPUTS, tangents, strict=True):
            if tangent is not None:
                gradient = _known(field, getattr(found, field)).reshape(count, each, -1).astype(np.float64)
                moved = _along(rowed(tangent, 1, count)).reshape(len(tangent), count, -1)
                pushed = pushed + np.einsum("nkd,tnd->tnk", gradient, moved)
        return twin.answer(pushed, inputs)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], twin: _Asked, *both: Tensor | None) -> tuple[Tensor, int]:
        count, size = len(_INPUTS), info.batch_size
        inputs, tangents = both[:count], spread(both[count:], in_dims[count + 1 :], size)
        if all(dim is None for dim in in_dims[1 : count + 1]):
            # One Jacobian for the tangents of all.
            flat = [None if tangent is None else tangent.flatten(0, 1) for tangent in tangents]
            return _apply(_PushForward, twin, *inputs, *flat).unflatten(0, (size, -1)), 0
        folded, rows = fold(spread(inputs, in_dims[1 : count + 1], size))
        flat = [None if t is None else rowed(t, 2, rows).movedim(0, 1).flatten(1, 2) for t in tangents]
        return _apply(_PushForward, twin.repeated(size), *folded, *flat).unflatten(1, (size, rows)), 1


class _Once(_NoDerivative):
    """Its input, of which no second derivative is had."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.view_as(value)


def _resolve(mouse: Mouse, said: Space | None, given: Mapping[str, NDArray[Any] | None]) -> Space:
    return condition_space(said, {name: given[name] for name in CONDITIONS}, mouse.info.statistics)


def _check_not_traced(images: Any) -> None:
    """Raises Unimplemented where one answer would be taken down for good in place of the call."""
    traced = (
        torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch.compiler.is_exporting()
        or get_proxy_mode() is not None
        or isinstance(images, Proxy)
    )
    if traced:
        raise Unimplemented(_NOT_TRACED, field="torch")


def _apply(function: type[Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def _push_forward(twin: _Asked, inputs: Sequence[Tensor | None], tangents: Sequence[Tensor | None]) -> Tensor:
    """The product (N, K) with one tangent of each input."""
    one = (None if tangent is None else tangent[None] for tangent in tangents)
    pushed: Tensor = _apply(_PushForward, twin, *inputs, *one)[0]
    return pushed


def _no_second_derivatives() -> Unimplemented:
    return Unimplemented("a remote twin has no second derivatives with respect to its inputs", field="torch")


def _tensor(value: Any, field: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    found = from_nested(value, field)
    # A copy of one's own: torch takes no array that is read-only, runs backwards or is of another byte order.
    return torch.from_numpy(np.array(found, found.dtype.newbyteorder("="), order="C"))


def _along(value: Tensor) -> NDArray[Any]:
    """A cotangent or tangents, as torch itself made them."""
    try:
        return from_nested(value, "cotangent")
    except InvalidArgument:
        # torch's older way of many at once, which comes here past `vmap`.
        raise Unimplemented(_NOT_BATCHED, field="torch") from None


def _like(value: Tensor | None, gradient: NDArray[np.float32]) -> Tensor:
    """The gradient of `value`, in its shape and dtype, where it is."""
    assert value is not None
    return _cast(summed(torch.from_numpy(gradient), value, 0), value.device, value.dtype)


def _cast(found: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Elsewhere and in another dtype. Raises InvalidArgument where it is beyond that, as 70,000 is beyond float16."""
    cast = found.to(device=device, dtype=dtype)
    if dtype.is_floating_point and dtype.itemsize < found.dtype.itemsize and not torch.isfinite(cast).all():
        raise InvalidArgument(f"dtype: {float(found.abs().max()):g} is beyond {dtype}, use float32", field="dtype")
    return cast


def _own(values: ArrayLike | None, field: str, least: int = 0) -> NDArray[Any] | None:
    """A copy, of at least so many dimensions: the caller may use the array again."""
    found = optional_array(values, field)
    return None if found is None else np.array(found, ndmin=least)


def _known(name: str, gradient: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if gradient is None:
        raise Unimplemented(f"{name}: its gradient is not known in these units; use space='model'", field=name)
    return gradient
