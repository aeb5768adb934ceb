"""What an experiment found: responses with named axes, to work with and to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import from_nested
from ..errors import InvalidArgument
from ..figures import new_figure, saved
from ..query import TwinSummary

if TYPE_CHECKING:
    from ..twins import Mouse

Float = NDArray[np.float32]
Axis = NDArray[Any]
# More neurons than this are drawn without their names.
_NAMED = 10
_UNITS = {
    "orientation": "orientation (degrees)",
    "spatial_frequency": "spatial frequency (cycles a pixel)",
    "phase": "phase (radians)",
    "x": "x (pixels)",
    "y": "y (pixels)",
}


@dataclass(frozen=True, eq=False)
class Experiment:
    """Responses, one dimension an axis.

    Attributes:
        responses: float32, in units of each neuron's standard deviation.
        axes: name to values, in the order of the dimensions; the last is "neuron".
        twin: the twin that answered.
    """

    responses: Float
    axes: Mapping[str, Axis]
    twin: TwinSummary

    def __repr__(self) -> str:
        axes = " × ".join(f"{name} {len(values)}" for name, values in self.axes.items())
        return f"<{type(self).__name__} of {self.twin}: responses by {axes}>"

    def curve(self, axis: str) -> Float:
        """Responses (A, K) along one axis: phases averaged, then the most over all other axes.

        Raises InvalidArgument for an axis there is none of.
        """
        if axis not in self.axes or axis == "neuron":
            there = ", ".join(name for name in self.axes if name != "neuron")
            raise InvalidArgument(f"axis: {axis!r}, expected one of {there}", field="axis")
        values, names = self.responses, list(self.axes)
        if "phase" in names and axis != "phase":
            values = values.mean(names.index("phase"), keepdims=True)
        others = tuple(n for n, name in enumerate(names) if name not in (axis, "neuron"))
        return np.asarray(values.max(others), np.float32)

    def plot(self, path: str | Path | None = None, axis: str = "") -> Any:
        """Each neuron's curve along an axis; the first one where none is named. Returns the matplotlib figure.

        Raises:
            Unimplemented: matplotlib is not installed (`pip install 'mousetwin[plot]'`).
            InvalidArgument: `path` is no picture's name.
            NotFound: `path` cannot be written.
        """
        axis = axis or next(iter(self.axes))
        curves = self.curve(axis)
        figure, (panel,) = new_panels(1, (5.0, 3.4), self.twin)
        # An axis of conditions is a table: its rows are counted.
        places = self.axes[axis] if self.axes[axis].ndim == 1 else np.arange(len(self.axes[axis]))
        for neuron, curve in zip(self.axes["neuron"], curves.T, strict=True):
            panel.plot(places, curve, marker="o", markersize=3, label=str(neuron))
        panel.set(xlabel=_UNITS.get(axis, axis), ylabel="response (standard deviations)")
        if len(self.axes["neuron"]) <= _NAMED:
            panel.legend(title="neuron", fontsize=7, ncols=2)
        return saved(figure, path)


def new_panels(panels: int, size: tuple[float, float], twin: TwinSummary, columns: int = 5) -> tuple[Any, list[Any]]:
    """A figure of so many panels, titled with the twin. Raises Unimplemented without matplotlib."""
    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = new_figure(size[0] * columns, size[1] * rows)
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in every[panels:]:
        spare.axis("off")
    made_up = " (synthetic mouse)" if twin.synthetic else ""
    figure.suptitle(f"{twin.twin.mouse} {twin.twin.model}{made_up}", fontsize=10)
    return figure, every[:panels]


def neuron_axis(mouse: Mouse, asked: Mapping[str, Any]) -> Axis:
    """What the columns of an answer are called: neurons, or unit ids where those were asked for."""
    for name in ("neurons", "unit_ids"):
        if asked.get(name) is not None:
            return np.atleast_1d(from_nested(asked[name], name))
    return np.arange(mouse.summary.neurons)
