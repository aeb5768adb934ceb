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


def saved(figure: Any, path: str | Path | None) -> Any:
    """The figure, written to a picture file if one is named.

    Raises:
        InvalidArgument: the name's ending is of no kind of picture that matplotlib draws.
        NotFound: the file cannot be written.
    """
    if path is None:
        return figure
    kind, kinds = Path(path).suffix[1:].lower(), sorted(figure.canvas.get_supported_filetypes())
    if kind not in kinds:
        raise InvalidArgument(
            f"plot: {str(path)!r}, expected a name that ends in one of {', '.join(kinds)}", field="plot"
        )
    with whole_file(path, "plot") as stream:
        figure.savefig(stream, format=kind, dpi=120)
    return figure
