"""What an optimisation found, with how it came about: to look at, to save, to run again."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgument
from .figures import new_figure, saved
from .files import Where, whole_file
from .query import Space

_ARRAYS = ("images", "responses", "values", "trace", "neurons", "field_center")
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Optimized:
    """Images that drive chosen neurons.

    Attributes:
        images: float32 (N, H, W), at the twin's native size, in the units of `space`.
        responses: float32 (N, K + M): of each image's neurons, then of those it stands against; means over conditions.
        values: float32 (N,): the objective.
        trace: float32 (T, N): the objective at each step after the trials; NaN where a run had stopped.
        neurons: int64 (N, K): the columns, or unit ids where those were asked for.
        space: what the numbers of `images` mean.
        records: one a request: the request, the twins' digests, versions, the device, and why it stopped. Where arrays
            of the request are large they stand as their sha256.
        synthetic: whether the twin is made up.
        warnings: a line for each thing that was taken and is nearly always a mistake, and for neurons that do not
            respond to what was found for them.
        field_center: float32 (N, 2), x and y in pixels of each image's first neuron's receptive field; NaN where not
            known.
        field_size: (height, width) of native pixels that can reach a neuron; None where not known.
    """

    images: NDArray[np.float32]
    responses: NDArray[np.float32]
    values: NDArray[np.float32]
    trace: NDArray[np.float32]
    neurons: NDArray[np.int64]
    space: Space
    records: tuple[dict[str, Any], ...]
    synthetic: bool
    field_center: NDArray[np.float32]
    field_size: tuple[int, int] | None
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        twins = self.records[0]["twins"]
        named = f"{twins[0]['mouse']} {' + '.join(twin['model'] for twin in twins)}"
        made_up = " (synthetic)" if self.synthetic else ""
        return (
            f"<Optimized of {named}{made_up}: images {self.images.shape} in {self.space.value} space, neurons "
            f"{self.neurons.shape}, values {self.values.min():.4g} to {self.values.max():.4g}>"
        )

    def save(self, file: Where | BinaryIO) -> None:
        """Write everything to a `.npz` file, which `Optimized.load` and numpy read.

        Raises:
            NotFound: it cannot be written.
            InvalidArgument: its name does not end in `.npz`.
        """
        about = {
            "format": _FORMAT,
            "space": self.space.value,
            "records": self.records,
            "synthetic": self.synthetic,
            "field_size": self.field_size,
            "warnings": self.warnings,
        }
        with whole_file(file, "path", (".npz",)) if isinstance(file, Where) else contextlib.nullcontext(file) as stream:
            np.savez_compressed(stream, about=np.array(json.dumps(about)), **{n: getattr(self, n) for n in _ARRAYS})

    @classmethod
    def load(cls, path: str | Path) -> Optimized:
        """Read what `save` wrote. Raises InvalidArgument for any other file."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                if about["format"] != _FORMAT:
                    raise InvalidArgument(f"{path}: format {about['format']}, expected {_FORMAT}", field="path")
                found = {name: stored[name] for name in _ARRAYS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidArgument(f"{path}: not a saved optimisation: {error}", field="path") from None
        size = about["field_size"]
        return cls(
            **found,
            space=Space(about["space"]),
            records=tuple(about["records"]),
            synthetic=about["synthetic"],
            field_size=None if size is None else (size[0], size[1]),
            # Files of before there were any have none.
            warnings=tuple(about.get("warnings", ())),
        )

    def plot(self, path: Where | None = None, *, columns: int = 5) -> Any:
        """All images in gray, one range for all, with each first neuron's receptive field; to a file if one is named.

        Args:
            path: a picture file, by its ending.
            columns: images in a row.

        Returns:
            The matplotlib figure.

        Raises:
            Unimplemented: matplotlib is not installed (`pip install 'mousetwin[plot]'`).
            InvalidArgument: `path` is no picture's name.
            NotFound: `path` cannot be written.
        """
        count, columns = len(self.images), min(columns, len(self.images))
        rows = -(-count // columns)
        figure = new_figure(2.6 * columns, 1.75 * rows + 0.3)
        from matplotlib.patches import Ellipse  # there, since the figure is

        low, high = self._range()
        for n, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            axes.axis("off")
            if n >= count:
                continue
            axes.imshow(self.images[n], cmap="gray", vmin=low, vmax=high)
            named = ", ".join(map(str, self.neurons[n][:3])) + ("…" if self.neurons.shape[1] > 3 else "")
            axes.set_title(f"{named}: {self.responses[n, : self.neurons.shape[1]].mean():.2f}", fontsize=9)
            if self.field_size is not None and np.isfinite(self.field_center[n]).all():
                height, width = self.field_size
                axes.add_patch(
                    Ellipse(self.field_center[n], width, height, fill=False, color="tab:orange", linestyle=":")
                )
        made_up = " (synthetic mouse)" if self.synthetic else ""
        twin = self.records[0]["twins"][0]
        what = "neuron and its response" if self.neurons.shape[1] == 1 else "neurons and their mean response"
        figure.suptitle(f"{twin['mouse']} {twin['model']}{made_up}: {what}", fontsize=10)
        return saved(figure, path)

    def _range(self) -> tuple[float, float]:
        if self.space is Space.RAW:
            return 0.0, 255.0
        most = float(np.abs(self.images).max()) or 1.0
        return -most, most
