"""The demo mouse: a small **synthetic** primary visual cortex, with every cell's truth known.

Not fitted to any recording. 320 cells on a retinotopic grid, each a Gabor filter of known place, orientation, spatial
frequency and phase: simple cells half-wave rectify one filter, complex cells take the energy of a quadrature pair
(Adelson & Bergen 1985). With E and O the dot products of the image (in model space) with the cell's even and odd
filter, each zero-mean and of unit norm:

    drive    = cos(phase)·E + sin(phase)·O           simple
               sqrt(E² + O² + 0.01)                  complex
    aroused  = tanh(0.5·running_speed + 0.1·pupil_dilation)
    response = (1 + behavior_gain·aroused) · (elu(drive_gain·drive - threshold) + 1)

with behavior in units of its standard deviations. The eye moves every filter together: by 31.5·tanh(0.05·horizontal)
pixels to the right and 17.5·tanh(0.06·vertical) pixels down, pupil center in z-scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mousetwin_serve import bundle
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from . import parity
from .config import ModelConfig
from .crop import crop
from .export import BEHAVIOR, PUPIL_CENTER, Contract, Say, Shape, say_on_stderr, write_module
from .family import PointReadout, Shifter
from .layers import Window
from .shift import PupilShift
from .tiles import ShiftedTiledReadout, cells_of
from .variants import Variant

MOUSE, MODEL = "demo", "gabor"
NATIVE_SIZE = (36, 64)
KERNEL = 17
ORIENTATIONS = 8
# Cycles per pixel, and the standard deviation of the Gaussian window in pixels.
BANDS = ((0.08, 3.0), (0.12, 2.5), (0.17, 2.0))
COLUMNS, ROWS = 20, 16

Truth = Mapping[str, tuple[float, ...]]


def build_truth(seed: int = 7) -> dict[str, tuple[float, ...]]:
    """What each cell is built from, one tuple of 320 per property.

    x, y: the filter's centre in native pixels. orientation_deg: the direction in which the grating varies, 0 for
    vertical bars, growing clockwise on the monitor. spatial_frequency_cpp: cycles per native pixel. sigma_px: of the
    Gaussian window. phase_rad: 0 for the even filter. is_complex: 0 or 1. drive_gain, threshold, behavior_gain: see the
    module's formula.
    """
    rng = np.random.default_rng(seed)
    count = COLUMNS * ROWS
    bands = rng.integers(0, len(BANDS), count)
    column, row = np.divmod(np.arange(count), ROWS)
    complex_cells = rng.random(count) < 0.4
    truth = {
        "x": 12.0 + 2 * column,
        "y": 10.0 + row,
        "orientation_deg": rng.integers(0, ORIENTATIONS, count) * 180 / ORIENTATIONS,
        "spatial_frequency_cpp": np.array([BANDS[band][0] for band in bands]),
        "sigma_px": np.array([BANDS[band][1] for band in bands]),
        "phase_rad": np.where(complex_cells, 0.0, rng.uniform(-math.pi, math.pi, count)).round(4),
        "is_complex": complex_cells.astype(float),
        "drive_gain": rng.uniform(0.5, 1.2, count).round(4),
        "threshold": rng.uniform(0.8, 1.6, count).round(4),
        "behavior_gain": rng.uniform(0.0, 0.8, count).round(4),
    }
    return {name: tuple(values.tolist()) for name, values in truth.items()}


def gabor_pair(orientation_deg: float, frequency_cpp: float, sigma_px: float) -> NDArray[np.float64]:
    """The even and the odd filter (2, 17, 17): a windowed grating, zero-mean under its window, of unit norm."""
    offset = np.arange(KERNEL) - KERNEL // 2
    y, x = np.meshgrid(offset, offset, indexing="ij")
    angle = math.radians(orientation_deg)
    phase = 2 * math.pi * frequency_cpp * (x * math.cos(angle) + y * math.sin(angle))
    window = np.exp(-(x**2 + y**2) / (2 * sigma_px**2))
    pair = np.stack([window * np.cos(phase), window * np.sin(phase)])
    pair -= window * (pair.sum((1, 2)) / window.sum())[:, None, None]
    normalised: NDArray[np.float64] = pair / np.sqrt((pair**2).sum((1, 2), keepdims=True))
    return normalised


def demo_filter(truth: Truth, cell: int) -> NDArray[np.float64]:
    """The filter of a cell as an image (36, 64) in model space, pupil at its mean; of a complex cell, the even one."""
    even, odd = gabor_pair(
        truth["orientation_deg"][cell], truth["spatial_frequency_cpp"][cell], truth["sigma_px"][cell]
    )
    phase = truth["phase_rad"][cell]
    image = np.zeros(NATIVE_SIZE)
    top, left = int(truth["y"][cell]) - KERNEL // 2, int(truth["x"][cell]) - KERNEL // 2
    image[top : top + KERNEL, left : left + KERNEL] = math.cos(phase) * even + math.sin(phase) * odd
    return image


class DemoCortex(nn.Module):
    """The demo mouse in torch, through the same readout as the fitted twins.

    `forward(images, behavior, pupil_center)`: (N, 1, 36, 64), (N, 3), (N, 2) in model space to responses (N, 320).
    """

    def __init__(self, truth: Truth) -> None:
        super().__init__()
        keys = list(zip(*(truth[k] for k in ("orientation_deg", "spatial_frequency_cpp", "sigma_px")), strict=True))
        filters = sorted(set(keys))
        pairs = np.stack([gabor_pair(*key) for key in filters])
        self.bank = nn.Conv2d(1, 2 * len(filters), KERNEL, padding=KERNEL // 2, bias=False)
        self.bank.weight = nn.Parameter(torch.from_numpy(pairs.reshape(-1, 1, KERNEL, KERNEL)).float())
        # E of every cell, then O of every cell, each read out like a neuron of its own.
        channels = [2 * filters.index(key) for key in keys]
        channels += [channel + 1 for channel in channels]
        self.readout = PointReadout(ModelConfig(), 2 * len(filters), len(channels), bias=False)
        features = F.one_hot(torch.tensor(channels), 2 * len(filters)).T.float()
        self.readout._features = nn.Parameter(features[None, :, None])
        height, width = NATIVE_SIZE
        # Twice each (these are tuples): E and O are read at the same place.
        places = torch.tensor([truth["x"] * 2, truth["y"] * 2]).T * 2 / torch.tensor([width - 1, height - 1]) - 1
        self.readout._mu = nn.Parameter(places[None, :, None])
        self.shifter = Shifter(ModelConfig(shifter=True, shifter_type="StaticAffine", shifter_bias=False))
        self.shifter.weight = nn.Parameter(torch.diag(torch.tensor([0.05, 0.06])))
        self.cells = Cells(truth)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        responses: Tensor = self.cells(self.readout(self.bank(images), self.shifter(pupil_center)), behavior)
        return responses


class Cells(nn.Module):
    """Filter outputs (N, 2K) and behavior (N, 3) to responses (N, K): the formula at the top of this module."""

    phase: Tensor
    complex_cells: Tensor
    drive_gain: Tensor
    threshold: Tensor
    behavior_gain: Tensor

    def __init__(self, truth: Truth) -> None:
        super().__init__()
        phase = torch.tensor(truth["phase_rad"])
        self.register_buffer("phase", torch.stack([torch.cos(phase), torch.sin(phase)]))
        self.register_buffer("complex_cells", torch.tensor(truth["is_complex"]) > 0)
        for name in ("drive_gain", "threshold", "behavior_gain"):
            self.register_buffer(name, torch.tensor(truth[name]))

    def forward(self, filtered: Tensor, behavior: Tensor) -> Tensor:
        even, odd = filtered.chunk(2, dim=1)
        simple = self.phase[0] * even + self.phase[1] * odd
        energy = torch.sqrt(even**2 + odd**2 + 0.01)
        drive = torch.where(self.complex_cells, energy, simple)
        aroused = torch.tanh(0.5 * behavior[:, 2:] + 0.1 * behavior[:, :1])
        return (1 + self.behavior_gain * aroused) * (F.elu(self.drive_gain * drive - self.threshold) + 1)


class DemoGraph(nn.Module):
    """`DemoCortex` with the readout in tiles, for ONNX."""

    def __init__(self, cortex: DemoCortex) -> None:
        super().__init__()
        self.bank = cortex.bank
        self.shift = PupilShift(cortex.shifter, NATIVE_SIZE)
        positions = cortex.readout.positions_in_pixels(*NATIVE_SIZE)
        self._window = cells_of(positions).grown(Window(0, 2, 0, 2))
        self.readout = ShiftedTiledReadout(positions, cortex.readout.features(), None, self._window)
        self.cells = cortex.cells

    def forward(self, images: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        shift = self.shift(pupil_center)
        whole = torch.floor(shift)
        x, y = whole.float().unbind(1)
        maps = crop(self.bank(images), y + self._window.top, x + self._window.left, self._window.size)
        responses: Tensor = self.cells(self.readout(maps, (shift - whole).float()), behavior)
        return responses


def export_demo(models: Path, say: Say = say_on_stderr) -> Path:
    """Build the demo mouse from nothing and write its bundle; returns its folder.

    Raises:
        ExportError: `models` holds another demo mouse as version 1, or cannot be written.
    """
    truth = build_truth()
    count = len(truth["x"])
    rng = np.random.default_rng(11)
    # Cortex mirrors the visual field: about 20 µm a native pixel, with the scatter of real maps.
    scatter = rng.normal(0, 10, (count, 3))
    depth = np.repeat(np.linspace(160, 320, COLUMNS), ROWS)
    x, y = np.array(truth["x"]), np.array(truth["y"])
    coordinates = (np.stack([20 * (x - 31), -20 * (y - 17), depth], 1) + scatter).round(1)
    # Real recordings skip ids; 13 is missing there too.
    unit_ids = [unit_id for unit_id in range(1, 2 * count) if unit_id % 13][:count]
    contract = Contract(
        mouse=MOUSE,
        model=MODEL,
        version="1",
        native_size=NATIVE_SIZE,
        description="SYNTHETIC demo mouse: Gabor model cells with known properties, fitted to no recording",
        synthetic=True,
        source=bundle.Source(description="synthetic, built by `mousetwin demo`", sha256="", licence="MIT"),
        statistics=bundle.Statistics(
            images=bundle.Moments(mean=(112.0,), std=(60.0,)),
            behavior=bundle.Moments(mean=(40.0, 0.0, 3.0), std=(10.0, 1.0, 6.0)),
            pupil_center=bundle.Moments(mean=(100.0, 80.0), std=(8.0, 6.0)),
            responses=bundle.Moments(mean=(1.0,) * count, std=(1.0,) * count),
        ),
        unit_ids=tuple(unit_ids),
        cell_motor_coordinates=tuple((a, b, c) for a, b, c in coordinates.tolist()),
        truth=truth,
    )
    shape = Shape(
        neurons=count,
        behavior=BEHAVIOR,
        pupil_center=PUPIL_CENTER,
        receptive_field_center=tuple(zip(truth["x"], truth["y"], strict=True)),
        receptive_field_size=(KERNEL, KERNEL),
    )
    cortex = DemoCortex(truth)
    return write_module(
        cortex, [Variant("", DemoGraph(cortex))], {}, shape, contract, models, parity.TOLERANCE, say=say
    )
