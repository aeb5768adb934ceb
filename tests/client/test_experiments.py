"""In-silico experiments on the synthetic demo mouse, whose truth tells what each must find."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
import pytest
from mousetwin import experiments, scores
from mousetwin.blackbox import Evaluator
from mousetwin.experiments.stimuli import gabors, gratings
from numpy.testing import assert_allclose

STILL = [0.0, 0.0, 0.0]
CELLS = list(range(0, 320, 13))
CONDITION: dict[str, Any] = {"behavior": STILL, "pupil_center": [0.0, 0.0], "condition_space": "model"}


@pytest.fixture(scope="module")
def mouse(server_address: str) -> Iterator[mousetwin.Mouse]:
    with mousetwin.connect(server_address, timeout=60) as twins:
        yield twins["demo"]


@pytest.fixture(scope="module")
def tuning(mouse: mousetwin.Mouse) -> experiments.GratingTuning:
    return experiments.grating_tuning(mouse, neurons=CELLS, **CONDITION)


def test_tuning_peaks_where_the_cells_were_built_to_peak(
    mouse: mousetwin.Mouse, tuning: experiments.GratingTuning
) -> None:
    truth = mouse.info.truth
    assert list(tuning.axes) == ["orientation", "spatial_frequency", "phase", "neuron"]
    assert tuning.responses.shape == (8, 4, 8, len(CELLS))
    assert_allclose(tuning.preferred("orientation"), truth["orientation_deg"][CELLS])
    assert_allclose(tuning.preferred("spatial_frequency"), truth["spatial_frequency_cpp"][CELLS], atol=0.041)
    assert (tuning.orientation_selectivity > 0.2).all()


def test_simple_cells_modulate_and_complex_cells_do_not(
    mouse: mousetwin.Mouse, tuning: experiments.GratingTuning
) -> None:
    is_complex = mouse.info.truth["is_complex"][CELLS] > 0
    assert tuning.modulation_ratio[~is_complex].min() > 1
    assert tuning.modulation_ratio[is_complex].max() < 0.3


def test_orientation_selectivity_is_one_minus_the_circular_variance() -> None:
    angles = np.arange(0, 180, 22.5)
    curve = np.array([0.1, 0.4, 2.0, 0.6, 0.2, 0.1, 0.1, 0.1], np.float32)
    responses = np.stack([curve, np.ones(8, np.float32)], -1)[:, None, None]
    axes = {"orientation": angles, "spatial_frequency": np.array([0.1]), "phase": np.zeros(1), "neuron": np.arange(2)}
    found = experiments.GratingTuning(responses, axes, None).orientation_selectivity  # type: ignore[arg-type]
    doubled = np.radians(2 * angles)
    length = np.hypot((curve * np.cos(doubled)).sum(), (curve * np.sin(doubled)).sum()) / curve.sum()
    assert_allclose(found, [length, 0], atol=1e-6)


def test_gratings_are_what_they_say() -> None:
    stimuli = gratings((36, 64), [0.0, 90.0], 0.125, 0.5, [1.0, 0.25], center=(20.0, 10.0))
    x, y = np.arange(64) - 20.0, np.arange(36) - 10.0
    assert_allclose(stimuli[0], np.tile(np.cos(2 * np.pi * 0.125 * x - 0.5), (36, 1)), atol=1e-6)
    assert_allclose(stimuli[1], 0.25 * np.tile(np.cos(2 * np.pi * 0.125 * y - 0.5)[:, None], (1, 64)), atol=1e-6)
    inside = gratings((36, 64), diameter=10.0, center=(30.0, 15.0))[0] != 0
    assert inside.sum() == pytest.approx(np.pi * 25, rel=0.15)
    assert gabors((36, 64), sigma=2.0, center=(30.0, 15.0))[0].argmax() == 15 * 64 + 30


def test_contrast_series(mouse: mousetwin.Mouse) -> None:
    truth = mouse.info.truth
    cell = next(c for c in CELLS if not truth["is_complex"][c])
    image = gratings(
        (36, 64),
        truth["orientation_deg"][cell],
        truth["spatial_frequency_cpp"][cell],
        truth["phase_rad"][cell],
        center=(truth["x"][cell], truth["y"][cell]),
    )[0]
    series = experiments.contrast_series(mouse, image, [0, 0.25, 0.5, 1], neurons=[cell], **CONDITION)
    found = series.responses[:, 0]
    assert (np.diff(found) > 0).all()
    gray, full = found[0], found[3]
    assert gray < 1 < full
    assert_allclose(
        mouse.predict(image[None] / 2, neurons=[cell], space="model", **CONDITION)[0, 0], found[2], atol=1e-5
    )


def test_receptive_fields_from_noise_and_from_the_gradient(mouse: mousetwin.Mouse) -> None:
    truth = mouse.info.truth
    simple = [cell for cell in CELLS if not truth["is_complex"][cell]][:3]
    seen: list[tuple[int, int]] = []
    from_noise = experiments.receptive_fields(
        mouse, simple, images=1500, contrast=1.0, progress=lambda *done: seen.append(done), **CONDITION
    )
    from_gradient = experiments.gradient_fields(mouse, simple, **CONDITION)
    assert from_noise.fields.shape == from_gradient.fields.shape == (3, 36, 64)
    assert seen[-1] == (1500, 1500)
    for cell, noisy, exact in zip(simple, from_noise.fields, from_gradient.fields, strict=True):
        built = gabors(
            (36, 64),
            truth["orientation_deg"][cell],
            truth["spatial_frequency_cpp"][cell],
            truth["phase_rad"][cell],
            center=(truth["x"][cell], truth["y"][cell]),
            sigma=float(truth["sigma_px"][cell]),
        )[0]
        assert correlation(exact, built) > 0.95
        assert correlation(noisy, built) > 0.3


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_behavior_sweeps_follow_the_documented_gain(mouse: mousetwin.Mouse) -> None:
    truth = mouse.info.truth
    image = np.random.default_rng(0).normal(size=(36, 64))
    behavior = np.array([[0.0, 0, 0], [2.0, 0, 1.0], [4.0, 1.0, 6.0], [1.0, -1.0, 0.2]])
    sweep = experiments.behavior_sweep(mouse, image, behavior, space="model", neurons=CELLS)
    assert list(sweep.axes) == ["behavior", "neuron"]
    arousal = np.tanh(0.5 * behavior[:, 2] + 0.1 * behavior[:, 0])
    gain = 1 + truth["behavior_gain"][CELLS] * arousal[:, None]
    assert_allclose(sweep.responses, gain * sweep.responses[0], rtol=1e-4, atol=1e-5)


def test_pupil_sweeps_move_the_image(mouse: mousetwin.Mouse) -> None:
    image = np.random.default_rng(1).normal(size=(36, 64))
    pupil = np.array([[0.0, 0.0], [np.arctanh(2 / 31.5) / 0.05, np.arctanh(1 / 17.5) / 0.06]])
    sweep = experiments.pupil_sweep(mouse, image, pupil, space="model", neurons=CELLS, behavior=STILL)
    moved = mouse.predict(np.roll(image, (-1, -2), (0, 1))[None], STILL, [0, 0], neurons=CELLS, space="model")
    assert_allclose(sweep.responses[1], moved[0], atol=1e-5)


def test_top_images_are_those_of_a_full_sort(mouse: mousetwin.Mouse) -> None:
    images = np.random.default_rng(2).normal(size=(300, 36, 64)).astype(np.float32)
    images[290] = images[20]
    asked: dict[str, Any] = {"neurons": [3, 14], "space": "model", **CONDITION}
    found = experiments.top_images(mouse, images, k=30, **asked)
    responses = np.asarray(mouse.predict(images, **asked))
    order = np.argsort(-responses, 0, kind="stable")[:30]
    assert_allclose(found.responses, np.take_along_axis(responses, order, 0).T, atol=1e-5)
    assert (np.diff(found.responses, axis=1) <= 0).all()
    assert_allclose(np.take_along_axis(responses, found.indices.T, 0).T, found.responses, atol=1e-5)
    streamed = experiments.top_images(mouse, (images[i : i + 70] for i in range(0, 300, 70)), k=30, **asked)
    assert_allclose(streamed.responses, found.responses, atol=1e-5)
    assert streamed.count == found.count == 300
    everything = experiments.top_images(mouse, images[:4], k=9, **asked)
    assert everything.indices.shape == (2, 4)
    for k, some in ((0, images), (3, [])):
        with pytest.raises(mousetwin.InvalidArgument, match="at least"):
            experiments.top_images(mouse, some, k=k, **asked)


def test_what_is_found_prints_as_one_line(mouse: mousetwin.Mouse, tuning: experiments.GratingTuning) -> None:
    images = np.random.default_rng(2).normal(size=(9, 36, 64))
    asked: dict[str, Any] = {"neurons": [3, 14], **CONDITION}
    evaluate = Evaluator(mouse, space="model", **asked)
    evaluate(images)
    rows = np.random.default_rng(0).random((4, 3))
    printed = {
        repr(tuning): "orientation 8 × spatial_frequency 4 × phase 8 × neuron 25",
        repr(experiments.contrast_series(mouse, images[0], [0, 1], **asked)): "responses by contrast 2 × neuron 2",
        repr(experiments.gradient_fields(mouse, [3, 14], **CONDITION)): "fields (2, 36, 64)",
        repr(experiments.top_images(mouse, images, 3, space="model", **asked)): "the best 3 of 9 images for 2 neurons",
        repr(evaluate): "9 candidates, best score",
    }
    for line, told in printed.items():
        assert told in line
        assert "demo gabor v1 (synthetic)" in line
    others = {
        repr(evaluate.best): "image (36, 64), responses (2,)",
        repr(scores.score(rows, rows, [0, 0, 1, 1])): "3 neurons, 4 trials of 2 images",
    }
    for line, told in (printed | others).items():
        assert told in line
        assert len(line) < 200
        assert "\n" not in line
        assert " at 0x" not in line


def test_a_set_of_images_may_be_of_any_library_and_is_refused_where_it_is_none(mouse: mousetwin.Mouse) -> None:
    images = np.random.default_rng(2).normal(size=(9, 36, 64))
    for wrong in (images[0], images[0, 0], 5, np.float64(5), {"images": images}, images[0].tolist()):
        with pytest.raises(mousetwin.InvalidArgument, match=r"^images: "):
            experiments.top_images(mouse, wrong, space="model", neurons=[3])


def test_everything_can_be_looked_at_and_says_that_the_mouse_is_synthetic(
    mouse: mousetwin.Mouse, tuning: experiments.GratingTuning, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    images = np.random.default_rng(2).normal(size=(9, 36, 64))
    top = experiments.top_images(mouse, images, 3, neurons=[3], space="model", **CONDITION)
    figures = [
        tuning.plot(tmp_path / "0.png"),
        tuning.plot(tmp_path / "1.png", "spatial_frequency"),
        experiments.contrast_series(mouse, images[0], neurons=[3], **CONDITION).plot(tmp_path / "2.png"),
        experiments.gradient_fields(mouse, [3, 14], **CONDITION).plot(tmp_path / "3.png"),
        top.plot(images, tmp_path / "4.png"),
        experiments.behavior_sweep(mouse, images[0], np.zeros((2, 3)), space="model", neurons=[3]).plot(
            tmp_path / "5.png"
        ),
    ]
    for number, figure in enumerate(figures):
        assert "synthetic" in figure.get_suptitle()
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
    assert figures[0].axes[0].get_xlabel() == "orientation (degrees)"


def test_what_the_service_refuses_is_raised_as_it_is(mouse: mousetwin.Mouse) -> None:
    with pytest.raises(mousetwin.InvalidArgument, match="neurons: 320"):
        experiments.grating_tuning(mouse, neurons=[320], **CONDITION)
    with pytest.raises(mousetwin.InvalidArgument, match="behavior"):
        experiments.behavior_sweep(mouse, np.zeros((36, 64)), np.zeros((2, 4)), space="model")
