"""Draws what the compiled twins of the two published models compute: `python docs/figures/window.py`.

Reads the checkpoints from --checkpoints, writes window.png beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.patches import Rectangle
from mousetwin_export import checkpoint, config
from mousetwin_export.forward import Forms, map_size
from mousetwin_export.layers import Window

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
SIZE = (36, 64)
# Pupil centers, in standard deviations from their mean, and how each is drawn.
PUPILS = {(0.0, 0.0): "tab:red", (3.0, 1.0): "tab:orange", (-3.0, -1.0): "gold"}


def outline(axes: Any, window: Window, moved: tuple[float, float], **style: Any) -> None:
    """A window's edge, its pixels being centered on whole numbers."""
    height, width = window.size
    corner = (window.left - 0.5 + moved[0], window.top - 0.5 + moved[1])
    axes.add_patch(Rectangle(corner, width, height, fill=False, linewidth=2, **style))


def frame(axes: Any, size: tuple[int, int], title: str) -> None:
    """A whole image or map, pixel by pixel."""
    axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5), aspect="equal", title=title)
    axes.set(xlabel="x (pixels)", ylabel="y (pixels)")
    axes.set_facecolor("0.92")


def draw(row: Any, file: Path, config_file: Path, mouse: str) -> None:
    """One mouse: what is read of its image, and the cells of the core's map that its neurons look into."""
    twin = checkpoint.build_twin(checkpoint.read_checkpoint(file), config.read_config(config_file), mouse)
    with torch.no_grad():
        seen = Forms(twin, SIZE).all.seen
        size = map_size(twin, SIZE)
        positions = twin.readout.positions_in_pixels(*size)
        moves = {(0, 0): "tab:red"}
        if seen.shift is not None:
            shifts = torch.floor(seen.shift(torch.tensor(list(PUPILS)))).int().tolist()
            moves = {(x, y): color for (x, y), color in zip(shifts, PUPILS.values(), strict=True)}
    image, cells = row
    given = "" if seen.shift is None else ", three pupil centers"
    frame(image, SIZE, f"{mouse}: what is read of the {SIZE[0]}×{SIZE[1]} image{given}")
    for moved, color in moves.items():
        outline(image, seen.core.image_window, moved, edgecolor=color)
        outline(cells, seen.window, moved, edgecolor=color)
    # Where the neurons look with the first pupil center.
    looked = positions + torch.tensor(next(iter(moves)))
    places, counts = torch.unique(torch.floor(looked).int(), dim=0, return_counts=True)
    frame(cells, size, f"{len(looked)} neurons in {len(places)} cells of the {size[0]}×{size[1]} map, neurons a cell")
    cells.set(xlim=(15.5, 39.5), ylim=(20.5, 6.5))
    for (x, y), count in zip(places.tolist(), counts.tolist(), strict=True):
        cells.add_patch(Rectangle((x, y), 1, 1, color=plt.cm.Blues(0.1 + 0.5 * count / int(counts.max())), linewidth=0))
        cells.annotate(str(count), (x + 0.5, y + 0.5), ha="center", va="center", fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=HERE.parents[2] / "shared" / "checkpoints")
    at = parser.parse_args().checkpoints
    figure, rows = plt.subplots(2, 2, figsize=(13, 7.5), layout="constrained")
    draw(rows[0], at / "sensorium_sota_model.pth", at / "sensorium.yaml", "26872-17-20")
    draw(rows[1], at / "sensorium_p_sota_model.pth", at / "sensorium_plus.yaml", "27204-5-13")
    figure.savefig(HERE / "window.png", dpi=80)


if __name__ == "__main__":
    main()
