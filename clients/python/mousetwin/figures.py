"""Figures, where matplotlib is installed: `pip install 'mousetwin[plot]'`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import InvalidArgument, Unimplemented
from .files import whole_file


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches, that lays itself out. Raises Unimplemented where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Unimplemented("plots need matplotlib: pip install 'mousetwin[plot]'", field="plot") from None
    return Figure(figsize=(width, height), layout="constrained")


def picture_kind(path: str | Path) -> str:
    """What kind of picture a name means, by its ending.

    Raises:
        Unimplemented: matplotlib is not installed.
        InvalidArgument: none that matplotlib draws.
    """
    kind, kinds = Path(path).suffix[1:].lower(), sorted(new_figure(1, 1).canvas.get_supported_filetypes())
    if kind not in kinds:
        raise InvalidArgument(
            f"plot: {str(path)!r}, expected a name that ends in one of {', '.join(kinds)}", field="plot"
        )
    return kind


def saved(figure: Any, path: str | Path | None) -> Any:
    """The figure, written to a picture file if one is named. Raises as `picture_kind` and `whole_file`."""
    if path is not None:
        kind = picture_kind(path)
        with whole_file(path, "plot") as stream:
            figure.savefig(stream, format=kind, dpi=120)
    return figure
