"""The images of a large set that drive neurons most, without holding all responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import from_nested
from ..conditions import check_one_condition
from ..errors import InvalidArgument
from ..figures import saved
from ..query import TwinSummary
from .results import Axis, Float, neuron_axis, new_panels

if TYPE_CHECKING:
    from ..twins import Mouse

_CHUNK = 256


@dataclass(frozen=True, eq=False)
class TopImages:
    """Each neuron's best images, best first.

    Attributes:
        indices: int64 (K, k), places in the set.
        responses: float32 (K, k).
        neurons: (K,).
        twin: the twin that answered.
        count: how many images there were.
    """

    indices: NDArray[np.int64]
    responses: Float
    neurons: Axis
    twin: TwinSummary
    count: int

    def __repr__(self) -> str:
        neurons, best = self.indices.shape
        return f"<TopImages of {self.twin}: the best {best} of {self.count} images for {neurons} neurons>"

    def plot(self, images: ArrayLike, path: str | Path | None = None) -> Any:
        """The images, a row a neuron, out of the set. Returns the matplotlib figure; raises as `Experiment.plot`."""
        shown = from_nested(images, "images")
        figure, panels = new_panels(self.indices.size, (2.4, 1.8), self.twin, columns=self.indices.shape[1])
        neurons = np.repeat(self.neurons, self.indices.shape[1])
        cells = zip(panels, neurons, self.indices.flat, self.responses.flat, strict=True)
        for panel, neuron, index, response in cells:
            panel.imshow(shown[index].reshape(shown.shape[-2:]), cmap="gray")
            panel.set_title(f"{neuron}: {response:.2f}", fontsize=7)
            panel.axis("off")
        return saved(figure, path)


def top_images(
    mouse: Mouse,
    images: ArrayLike | Iterable[ArrayLike],
    k: int = 10,
    *,
    progress: Callable[[int, int], None] | None = None,
    **asked: Any,
) -> TopImages:
    """The k images of a set with the highest response, for each neuron; of equal ones the earlier come first.

    Args:
        mouse: the twin.
        images: (N, H, W) or (N, 1, H, W), of numpy, a memory map, or of any library whose arrays can be sliced; or
            batches of such, one after the other.
        k: how many; all where the set is smaller.
        progress: called with (images done, images in all, 0 where that is not known).
        asked: as for `Mouse.predict`; behavior and pupil_center are for all images.

    Raises:
        InvalidArgument: k is less than 1, or there are no images.
    """
    if k < 1:
        raise InvalidArgument(f"k: {k}, expected at least 1", field="k")
    total, batches = _batches(images)
    check_one_condition(asked)
    names = neuron_axis(mouse, asked)
    best = np.zeros((0, len(names)), np.float32)
    places = np.zeros((0, len(names)), np.int64)
    done = 0
    for batch in batches:
        responses = np.asarray(mouse.predict(batch, **asked))
        best = np.concatenate([best, responses])
        here = np.arange(done, done + len(batch))[:, None]
        places = np.concatenate([places, np.broadcast_to(here, responses.shape)])
        order = np.argsort(-best, 0, kind="stable")[:k]
        best, places = np.take_along_axis(best, order, 0), np.take_along_axis(places, order, 0)
        done += len(batch)
        if progress is not None:
            progress(done, total)
    if not done:
        raise InvalidArgument("images: there are none, expected at least one", field="images")
    return TopImages(places.T, best.T, names, mouse.summary, done)


def _batches(images: Any) -> tuple[int, Iterable[Any]]:
    """How many images there are, 0 where that is not known; and the batches they are asked for in."""
    if not hasattr(images, "shape") and isinstance(images, Iterable):
        return 0, images
    if len(getattr(images, "shape", ())) < 3:
        # What is no set of images is for the service to refuse.
        return 0, [images]
    return len(images), (images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK))
