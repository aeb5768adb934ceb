"""The demo mouse is what its truth says, and the shipped bundle is what the code builds."""

from __future__ import annotations

from pathlib import Path

import mousetwin
import numpy as np
import onnx
import pytest
from mousetwin.cli import main
from mousetwin_export.demo import demo_filter
from mousetwin_serve import bundle
from mousetwin_serve.repository import DEMO_MODELS

FOLDER = Path("demo/gabor/1")
NO_GAIN = np.array([0.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def mouse() -> mousetwin.Mouse:
    return mousetwin.connect("local:")["demo"]


def gratings(orientations: np.ndarray, frequency: float, phase: float, x0: float, y0: float) -> np.ndarray:
    """Full-field gratings (N, 36, 64), `phase` at (x0, y0)."""
    y, x = np.mgrid[:36, :64]
    angle = np.deg2rad(orientations)[:, None, None]
    return np.cos(2 * np.pi * frequency * ((x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)) - phase)


def test_the_shipped_bundle_is_what_the_code_builds(tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path)]) == 0
    shipped, rebuilt = bundle.read(DEMO_MODELS / FOLDER), bundle.read(tmp_path / FOLDER)
    for fact in ("truth", "neurons", "inputs", "statistics", "description"):
        assert getattr(shipped.manifest, fact) == getattr(rebuilt.manifest, fact)
    assert shipped.graphs.keys() == rebuilt.graphs.keys() == {"forward", "gradient"}
    for name in shipped.graphs:
        one, other = (onnx.load_from_string(b.graphs[name]).graph.node for b in (shipped, rebuilt))
        assert [node.op_type for node in one] == [node.op_type for node in other]
    # Another processor may round a cosine another way; the weights are the same to that.
    assert shipped.weights.keys() == rebuilt.weights.keys()
    for name, values in shipped.weights.items():
        np.testing.assert_allclose(values, rebuilt.weights[name], atol=1e-6)
    for name, values in shipped.replay.items():
        np.testing.assert_allclose(values, rebuilt.replay[name], atol=1e-5)


def test_it_is_small_and_says_that_it_is_synthetic(mouse: mousetwin.Mouse) -> None:
    files = list((DEMO_MODELS / FOLDER).iterdir())
    assert sum(file.stat().st_size for file in files) < 1_000_000
    assert mouse.summary.synthetic
    assert "SYNTHETIC" in mouse.summary.description
    assert "synthetic" in repr(mouse)
    assert "synthetic" in mouse.info.source


def test_responses_follow_the_documented_formula(mouse: mousetwin.Mouse) -> None:
    """Computed here from the truth alone, in numpy."""
    truth = {name: np.asarray(values) for name, values in mouse.info.truth.items()}
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 36, 64)) * 2
    behavior = np.array([[4.0, 0.1, 0.5], [3.0, -1.0, 0.0], [5.0, 0.0, 4.0]])
    found = mouse.predict(images, behavior, np.zeros(2), space="model")
    quadrature = {**mouse.info.truth, "phase_rad": truth["phase_rad"] + np.pi / 2}
    for cell in range(0, mouse.summary.neurons, 7):
        one = (images * demo_filter(mouse.info.truth, cell)).sum((1, 2))
        if truth["is_complex"][cell]:
            other = (images * demo_filter(quadrature, cell)).sum((1, 2))
            drive = np.sqrt(one**2 + other**2 + 0.01)
        else:
            drive = one
        z = truth["drive_gain"][cell] * drive - truth["threshold"][cell]
        gain = 1 + truth["behavior_gain"][cell] * np.tanh(0.5 * behavior[:, 2] + 0.1 * behavior[:, 0])
        expected = gain * (np.where(z > 0, z, np.expm1(z)) + 1)
        np.testing.assert_allclose(found[:, cell], expected, atol=2e-5)


def test_tuning_peaks_where_the_cell_was_built_to_peak(mouse: mousetwin.Mouse) -> None:
    truth = mouse.info.truth
    orientations = np.arange(0, 180, 22.5)
    for cell in range(0, mouse.summary.neurons, 11):
        stimuli = gratings(
            orientations,
            truth["spatial_frequency_cpp"][cell],
            truth["phase_rad"][cell],
            truth["x"][cell],
            truth["y"][cell],
        )
        responses = mouse.predict(stimuli, NO_GAIN, np.zeros(2), neurons=[cell], space="model")[:, 0]
        assert orientations[responses.argmax()] == truth["orientation_deg"][cell]


def test_complex_cells_do_not_care_about_phase_and_simple_cells_do(mouse: mousetwin.Mouse) -> None:
    truth = mouse.info.truth
    phases = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    modulation = []
    for cell in range(0, mouse.summary.neurons, 5):
        place = (truth["x"][cell], truth["y"][cell])
        orientation = np.array([truth["orientation_deg"][cell]])
        frequency = truth["spatial_frequency_cpp"][cell]
        stimuli = np.concatenate([gratings(orientation, frequency, phase, *place) for phase in phases])
        responses = mouse.predict(stimuli, NO_GAIN, np.zeros(2), neurons=[cell], space="model")[:, 0]
        # F1 over F0, above and below 1 for simple and complex cells (Skottun et al. 1991).
        f1 = 2 * abs((responses * np.exp(1j * phases)).mean())
        modulation.append((f1 / responses.mean(), truth["is_complex"][cell]))
    assert min(ratio for ratio, is_complex in modulation if not is_complex) > 1
    assert max(ratio for ratio, is_complex in modulation if is_complex) < 0.3


def test_the_eye_moves_every_receptive_field(mouse: mousetwin.Mouse) -> None:
    """A pupil position that shifts by whole pixels is the same as the image shifted the other way."""
    pupil = [np.arctanh(2 / 31.5) / 0.05, np.arctanh(1 / 17.5) / 0.06]
    image = np.random.default_rng(2).normal(size=(1, 36, 64))
    looked = mouse.predict(image, NO_GAIN, pupil, space="model")
    moved = mouse.predict(np.roll(image, (-1, -2), axis=(1, 2)), NO_GAIN, [0, 0], space="model")
    np.testing.assert_allclose(looked, moved, atol=1e-5)


def test_receptive_fields_unit_ids_and_coordinates_are_told(mouse: mousetwin.Mouse) -> None:
    info = mouse.info
    assert info.receptive_field_center is not None
    np.testing.assert_array_equal(info.receptive_field_center[:, 0], info.truth["x"])
    assert info.unit_ids is not None
    assert 13 not in info.unit_ids
    assert info.cell_motor_coordinates is not None
    assert info.cell_motor_coordinates.shape == (320, 3)
    assert info.licence == "MIT"
