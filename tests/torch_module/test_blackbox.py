"""A generation at a time: CMA-ES finds the Gabor patch that a demo cell was built from."""

from __future__ import annotations

import cmaes
import mousetwin
import numpy as np
import pytest
from mousetwin.blackbox import Evaluator

STILL = [0.0, 0.0, 0.0]


def gabors(x: np.ndarray, y: np.ndarray, angle: np.ndarray, phase: np.ndarray, frequency: float) -> np.ndarray:
    """Patches (P, 36, 64) of norm 10 at (x, y), with a Gaussian envelope of 3 pixels; angle and phase in radians."""
    rows, columns = np.mgrid[:36, :64]
    dx, dy = columns - x[:, None, None], rows - y[:, None, None]
    angle, phase = angle[:, None, None], phase[:, None, None]
    wave = np.cos(2 * np.pi * frequency * (dx * np.cos(angle) + dy * np.sin(angle)) - phase)
    patches = wave * np.exp(-(dx**2 + dy**2) / (2 * 3.0**2))
    return 10 * patches / np.linalg.norm(patches, axis=(1, 2), keepdims=True)


def test_cma_es_finds_what_a_simple_cell_wants() -> None:
    with mousetwin.connect("local:") as twins:
        mouse = twins["demo"]
        truth = mouse.info.truth
        cell = next(c for c in range(100, 320) if not truth["is_complex"][c])
        frequency = float(truth["spatial_frequency_cpp"][cell])
        center = np.array([truth["x"][cell], truth["y"][cell], 0.0, 0.0])
        evaluate = Evaluator(
            mouse,
            lambda p: gabors(p[:, 0], p[:, 1], p[:, 2], p[:, 3], frequency),
            neurons=[cell],
            behavior=STILL,
            pupil_center=[0, 0],
            space="model",
        )
        away = np.array([2, -2, 0.4, 0.5])
        optimizer = cmaes.CMA(mean=center + away, sigma=1.0, seed=1, population_size=12)
        while evaluate.count < 600:
            asked = [optimizer.ask() for _ in range(optimizer.population_size)]
            scores = evaluate(asked)
            optimizer.tell([(x, -score) for x, score in zip(asked, scores, strict=True)])
        assert evaluate.count == 600
        assert evaluate.best is not None
        # The most any image of that norm can reach.
        most = mouse.optimize([cell], norm=10, behavior=STILL, pupil_center=[0, 0], space="model").values[0]
        assert evaluate.best.score > 0.85 * most
        turn = np.degrees(evaluate.best.parameters[2]) - truth["orientation_deg"][cell]
        assert abs((turn + 90) % 180 - 90) < 10
        assert evaluate.best.image.shape == (36, 64)


def test_a_score_of_ones_own_and_images_as_they_are() -> None:
    images = np.random.default_rng(0).normal(size=(6, 36, 64))
    with mousetwin.connect("local:") as twins:
        mouse = twins["demo"]
        evaluate = Evaluator(mouse, score=lambda r: r[:, 0] - r[:, 1], neurons=[3, 14], behavior=STILL, space="model")
        responses = mouse.predict(images, STILL, neurons=[3, 14], space="model")
        np.testing.assert_allclose(evaluate(images), responses[:, 0] - responses[:, 1], atol=1e-6)
        assert evaluate.best is not None
        np.testing.assert_array_equal(evaluate.best.image, images[(responses[:, 0] - responses[:, 1]).argmax()])
        kept = evaluate.best
        evaluate(np.zeros((1, 36, 64)))
        assert evaluate.best.score >= kept.score


def test_what_does_not_fit_is_refused() -> None:
    images = np.zeros((2, 36, 64))
    with mousetwin.connect("local:") as twins:
        mouse = twins["demo"]
        with pytest.raises(mousetwin.InvalidArgument, match="1 images of 2 candidates"):
            Evaluator(mouse, lambda p: p[:1], space="model")(images)
        with pytest.raises(mousetwin.InvalidArgument, match="without NaN"):
            Evaluator(mouse, score=lambda r: r[:, 0] * np.nan, space="model")(images)
        with pytest.raises(mousetwin.InvalidArgument, match="candidates: a single number"):
            Evaluator(mouse, space="model")(3.0)


def test_masks_are_refused_wherever_they_are_handed_over() -> None:
    images = np.zeros((2, 36, 64))
    hiding = np.ma.array(images, mask=np.arange(images.size).reshape(images.shape) == 7)
    with mousetwin.connect("local:") as twins:
        mouse = twins["demo"]
        asked = {
            "candidates": lambda: Evaluator(mouse, space="model")(hiding),
            "to_images": lambda: Evaluator(mouse, lambda p: hiding, space="model")(images),
            "score": lambda: Evaluator(mouse, score=lambda r: np.ma.masked_less(r[:, 0], 9), space="model")(images),
        }
        for field, ask in asked.items():
            with pytest.raises(mousetwin.InvalidArgument, match=f"^{field}: a masked array that hides") as caught:
                ask()
            assert caught.value.field == field
