"""Figures, where matplotlib is installed: `pip install 'mousetwin[plot]'`."""

from __future__ import annotations

from typing import Any

from .errors import Unimplemented
from .files import Destination, Where, destination, known_kind, whole_file


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches, that lays itself out. Raises Unimplemented where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Unimplemented("plots need matplotlib: pip install 'mousetwin[plot]'", field="plot") from None
    return Figure(figsize=(width, height), layout="constrained")


def picture_kinds() -> list[str]:
    """Suffixes of the pictures that matplotlib draws. Raises Unimplemented where it is not installed."""
    return [f".{kind}" for kind in sorted(new_figure(1, 1).canvas.get_supported_filetypes())]


def saved(figure: Any, where: Where | None) -> Any:
    """The figure, written to a picture file if one is named.

    Raises:
        Unimplemented: matplotlib is not installed.
        InvalidArgument: the name is no picture's.
        NotFound: it cannot be written.
    """
    if where is not None:
        out = where if isinstance(where, Destination) else destination(where, "plot")
        kind = known_kind(out, picture_kinds())
        with whole_file(out, "plot") as stream:
            figure.savefig(stream, format=kind[1:], dpi=120)
    return figure
