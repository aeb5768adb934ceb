"""The client's nouns: `Twins`, what a service holds, and `Mouse`, one twin to ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from types import TracebackType
from typing import Any

from numpy.typing import ArrayLike

from . import optimize
from .build import build_query, columns_of, frame_query, seconds, with_cotangent
from .errors import MousetwinError, Unimplemented
from .frames import Collector, Gradient, Responses, gradient_of, responses_of, split
from .notices import Notices
from .optimization import OptimizeProgress
from .optimized import Optimized
from .query import MouseInfo, Prediction, PredictQuery, Space, TwinRef, TwinSummary, stand_in_warning
from .session import Session
from .transport import Transport, open_transport, shared_transport

Progress = Callable[[int, int], None]


def connect(address: str = "127.0.0.1:8001", *, timeout: float | None = None) -> Twins:
    """The twins at an address: behind `mousetwin serve`, in this process, or behind TorchServe.

    Args:
        address: "host:port" of a service; "local:MODELS" for a folder of bundles ("local:" for the built-in demo
            mouse), which needs the serve extra; or "torchserve://host:port" of TorchServe's gRPC.
        timeout: seconds for any one call that names none itself; None for no limit.

    Raises:
        InvalidArgument: the address is of no such form.
        Unimplemented: what the address needs is not installed.
    """
    return Twins(open_transport(address), seconds(timeout, None))


class Twins:
    """What is served at one address. A context manager; safe to use from several threads.

    Pickles and copies connect again to the same address, also where this one is closed.
    """

    def __init__(self, transport: Transport, timeout: float | None = None) -> None:
        self._transport = transport
        self._timeout = timeout
        self._notices = Notices()

    def __repr__(self) -> str:
        return f"<Twins at {self._transport.address}>"

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self._transport.address, "timeout": self._timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._transport = open_transport(state["address"])
        self._timeout = state["timeout"]
        self._notices = Notices()

    def mice(self, *, timeout: float | None = None) -> list[TwinSummary]:
        """What is served: one entry per mouse, model and version."""
        return self._transport.list_mice(seconds(timeout, self._timeout))

    def mouse(
        self, data_key: str, model: str = "", version: str | int | None = None, *, timeout: float | None = None
    ) -> Mouse:
        """One twin. Where the mouse has one model it need not be named; without a version it is the newest.

        Warns where the newest version does not verify, so that an older one answers: `summary.newer_refused`.

        Raises:
            NotFound: no such mouse, model or version; the message lists those there are.
            InvalidArgument: the mouse has several models and none is named.
        """
        ref = TwinRef(data_key, model, "" if version is None else str(version))
        mouse = Mouse(self._transport, self._transport.get_mouse(ref, seconds(timeout, self._timeout)), self._timeout)
        if not ref.version:
            self._notices.tell(filter(None, [stand_in_warning(mouse.summary)]))
        return mouse

    def __getitem__(self, data_key: str) -> Mouse:
        return self.mouse(data_key)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(summary.twin.mouse for summary in self.mice()))

    def __contains__(self, data_key: object) -> bool:
        return data_key in list(self)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Twins:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Mouse:
    """One twin of one mouse.

    Pickles and copies connect again to the same address, and ask the same version of the twin.

    Attributes:
        info: everything its bundle tells, as of when this object was made.
    """

    def __init__(self, transport: Transport, info: MouseInfo, timeout: float | None = None) -> None:
        self.info = info
        self._transport = transport
        self._timeout = timeout
        self._notices = Notices()

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self._transport.address, "info": self.info, "timeout": self._timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.info = state["info"]
        # Nobody closes a mouse: each task of a pool would leave a connection behind, or load a folder again.
        self._transport = shared_transport(state["address"], self.summary.twin)
        self._timeout = state["timeout"]
        self._notices = Notices()

    @property
    def summary(self) -> TwinSummary:
        return self.info.summary

    def __repr__(self) -> str:
        twin = self.summary.twin
        made_up = ", synthetic" if self.summary.synthetic else ""
        return f"<Mouse {twin.mouse} {twin.model} v{twin.version}: {self.summary.neurons} neurons{made_up}>"

    def predict(
        self,
        images: ArrayLike,
        behavior: ArrayLike | None = None,
        pupil_center: ArrayLike | None = None,
        neurons: ArrayLike | None = None,
        unit_ids: ArrayLike | None = None,
        space: Space | str | None = None,
        *,
        condition_space: Space | str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Responses:
        """Predicted responses to a batch of any length; large ones are sent as frames that stream.

        Arrays may be of any library, or nested lists, as long as they are plain numbers; see `arrays.from_nested`.

        Args:
            images: (N, H, W) or (N, 1, H, W). Integers are gray levels 0-255 at the stimulus or the native size
                (`space="raw"`); floats must say their space.
            behavior: (N, B), or (B,) for all images, in the channels of `summary.behavior`.
            pupil_center: (N, 2), or (2,) for all images.
            neurons: 0-based columns to return (K,), in this order; or (N, 1), for each image a neuron of its own.
            unit_ids: the recording's own ids instead of `neurons`.
            space: "raw" or "model", for images, behavior and pupil center alike.
            condition_space: the same for behavior and pupil center alone, where theirs is another than the images'.
            timeout: seconds for the whole batch.
            progress: called with (images answered, images in all) after each frame.

        Returns:
            float32 (N, K), in units of each neuron's standard deviation, with `.twin`, `.defaults` and `.warnings`;
            each kind of warning is also told once, as a `MousetwinWarning`.

        Raises:
            InvalidArgument: the message names the field, what came and what was expected.
            MousetwinError: any other failure; see `mousetwin.errors`.
        """
        query = build_query(self.summary, images, behavior, pupil_center, neurons, unit_ids, space, condition_space)
        answer = self._ask(query, timeout, progress)
        self._notices.tell(answer.warnings)
        return responses_of(answer)

    def predict_frames(
        self, frames: Iterable[Mapping[str, Any]], *, timeout: float | None = None
    ) -> Iterator[Responses]:
        """Responses to one batch after another, in order, the next ones sent while earlier ones are computed.

        Args:
            frames: arguments of `predict` by name, but for timeout and progress; taken as fast as they are answered,
                with as many images each as a request may hold.
            timeout: seconds for all of them.

        Raises:
            InvalidArgument: also for a name that `predict` does not take.
            MousetwinError: as `predict`, with the answers before it given; also what `frames` raises.
        """
        queries = (frame_query(self.summary, frame) for frame in frames)
        for answer in self._transport.ask_frames(queries, seconds(timeout, self._timeout)):
            self._notices.tell(answer.warnings)
            yield responses_of(answer)

    def gradient(
        self,
        images: ArrayLike,
        cotangent: ArrayLike,
        behavior: ArrayLike | None = None,
        pupil_center: ArrayLike | None = None,
        neurons: ArrayLike | None = None,
        unit_ids: ArrayLike | None = None,
        space: Space | str | None = None,
        *,
        condition_space: Space | str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Gradient:
        """Responses, and the gradient of Σ cotangent · responses with respect to the images, behavior and pupil center.

            responses, d_images = mouse.gradient(images, cotangent)

        Args:
            images, behavior, pupil_center, neurons, unit_ids, space, condition_space, timeout, progress: as for
                `predict`. With `neurons` of shape (N, 1) each image has a neuron of its own, which is computed on what
                it sees alone.
            cotangent: (N, K), or (K,) for all images: what each response counts for.

        Returns:
            Gradients in the units and shapes that were sent; unpacks as responses and the images' gradient.

        Raises:
            Unimplemented: the twin has no gradient; `summary.no_gradient` says why.
            InvalidArgument, MousetwinError: as `predict`.
        """
        query = build_query(self.summary, images, behavior, pupil_center, neurons, unit_ids, space, condition_space)
        answer = self._ask(with_cotangent(query, cotangent), timeout, progress)
        self._notices.tell(answer.warnings)
        return gradient_of(answer)

    def session(self, *, reconnect: float = 10.0) -> Session:
        """An open stream to this twin, for closed loops: `session.predict` and `session.gradient`, at less cost a call.

        Args:
            reconnect: for how many seconds to wait for a service that went away, before the session is lost.
        """
        return Session(self._transport, self.info, reconnect)

    def torch_module(
        self,
        neurons: ArrayLike | None = None,
        unit_ids: ArrayLike | None = None,
        *,
        behavior: ArrayLike | None = None,
        pupil_center: ArrayLike | None = None,
        space: Space | str | None = None,
        condition_space: Space | str | None = None,
    ) -> Any:
        """This twin as a `torch.nn.Module`: whatever runs on a differentiable torch model runs on the service.

        Args:
            neurons, unit_ids: columns of the answer, as for `predict`.
            behavior, pupil_center: for all images that come without; they can also be given to `forward`, as tensors.
            space: of the images: "model" (default, but for whole numbers, which must say) or "raw".
            condition_space: of behavior and pupil center; default: `space` where that is given. One of the two must
                say, unless the numbers are the same in both.

        Returns:
            A `mousetwin.torch_module.TwinModule`.

        Raises:
            Unimplemented: torch (2.7 or newer) is not installed, or the twin has no gradient.
            InvalidArgument: an argument is no array of numbers, or no space.
        """
        if self.summary.no_gradient:
            raise Unimplemented(f"this twin has no gradient: {self.summary.no_gradient}", field="twin")
        try:
            from .torch_module import TwinModule
        except ModuleNotFoundError as error:
            raise Unimplemented(f"torch_module needs {error.name}: pip install torch", field="torch") from None
        return TwinModule(
            self,
            neurons=neurons,
            unit_ids=unit_ids,
            behavior=behavior,
            pupil_center=pupil_center,
            space=space,
            condition_space=condition_space,
        )

    def optimize(
        self,
        neurons: ArrayLike | None = None,
        unit_ids: ArrayLike | None = None,
        *,
        weights: ArrayLike | None = None,
        against: ArrayLike | None = None,
        temperature: float = 1.0,
        behavior: ArrayLike | None = None,
        pupil_center: ArrayLike | None = None,
        space: Space | str | None = None,
        condition_space: Space | str | None = None,
        models: Iterable[str] = (),
        start: str | ArrayLike = "noise",
        seed: int = 0,
        images_each: int = 1,
        min_share: float = 0.9,
        timeout: float | None = None,
        progress: Progress | None = None,
        on_report: Callable[[OptimizeProgress], None] | None = None,
        report_every: int = 10,
        report_images: bool = False,
        **options: Any,
    ) -> Optimized:
        """Images that drive neurons, found on the service by following the gradient.

            found = mouse.optimize(neurons=[3, 14], norm=10.0, steps=100)    # two most-exciting images (MEIs)

        Args:
            neurons: 0-based columns (N,), one an image; or (N, K), a set an image, whose mean response is driven.
            unit_ids: the recording's own ids instead.
            weights: (N, K), or (K,) for all images: what each response counts for, negative to drive it down.
            against: (N,) or (N, M): neurons, or unit ids, that are to stay behind: a contrastive objective.
            temperature: of the contrast, in units of response.
            behavior, pupil_center: the condition (B,) and (2,), or several (C, B) and (C, 2), over which the mean
                response counts. Default: the training set's mean.
            space: "model" (default) or "raw" gray levels: of `start`, the constraints, and what comes back.
            condition_space: "raw" or "model", of behavior and pupil center; default: `space` where that is given. One
                of the two must say, unless the numbers are the same in both.
            models: further models of this mouse; the mean response of all counts.
            start: "noise", "gray", or images (N, H, W) at the native size.
            seed: of noise. The same request gives the same images.
            images_each: images for each target; if more than one, they are pushed apart while each keeps
            min_share: of the best one's objective.
            timeout: seconds for a request of up to 128 images.
            progress: called with (steps done, steps in all).
            on_report: called with a report on the way, every
            report_every: steps; with the images as they are if
            report_images.
            options: constraints (`norm`, `max_norm`, `std`, `max_std`, `mean`, `low`, `high`, `mask`, `background`),
                how the gradient is followed (`steps`, `optimizer`, `step_size`, `blur`, `jitter`, …), and the start's
                `trials` and `trial_steps`: the fields of `mousetwin.optimization.Constraints`, `Ascent` and `Start`,
                which say what each means. Default: a norm of 10 in model units, 100 steps of normalised gradient
                ascent, begun from the best of 8 noise images.

        Raises:
            Unimplemented: the twin has no gradient.
            InvalidArgument: before the first step; the message names the field, what came and what was expected. Later
                where images of the size asked for overflow the twin.
            MousetwinError: any other failure.
        """
        query = optimize.build(
            self.info,
            neurons,
            unit_ids,
            models=models,
            weights=weights,
            against=against,
            temperature=temperature,
            behavior=behavior,
            pupil_center=pupil_center,
            space=space,
            condition_space=condition_space,
            start=start,
            seed=seed,
            images_each=images_each,
            min_share=min_share,
            report_every=report_every,
            report_images=report_images,
            **options,
        )
        requests = optimize.Requests(self.info, query, progress, on_report)
        for request in requests.queries:
            with closing(self._transport.optimize(request, seconds(timeout, self._timeout))) as events:  # type: ignore[type-var]
                for event in events:
                    requests.take(event)
        found = requests.found()
        self._notices.tell(found.warnings)
        return found

    def _ask(self, query: PredictQuery, timeout: float | None, progress: Progress | None) -> Prediction:
        frames = split(query, columns_of(self.summary, query))
        timeout = seconds(timeout, self._timeout)
        if len(frames) == 1:
            answer = self._transport.ask(query, timeout)
            if progress is not None:
                progress(len(query.images), len(query.images))
            return answer
        collector = Collector(frames)
        try:
            for answer in self._transport.ask_frames(frames, timeout):
                collector.add(answer)
                if progress is not None:
                    progress(collector.done, len(query.images))
        except MousetwinError as error:
            raise collector.locate(error) from None
        return collector.result()
