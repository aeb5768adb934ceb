"""Images that drive chosen neurons, over gRPC and in process: against closed forms where twins are linear, against what
the demo mouse's cells were built from, and whatever cannot be done refused before the first step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import mousetwin
import numpy as np
import pytest
from bundles import BARE, FULL, TWO_MODELS
from mousetwin.optimized import Optimized
from mousetwin_export.demo import demo_filter
from mousetwin_serve.repository import DEMO_MODELS
from numpy.testing import assert_allclose
from running import Service, in_thread, until

STILL = [0.0, 0.0, 0.0]


@pytest.fixture(scope="module", params=["gRPC", "local"])
def twins(request: pytest.FixtureRequest, service: Service, models: Path) -> Iterator[mousetwin.Twins]:
    with mousetwin.connect(service.grpc if request.param == "gRPC" else f"local:{models}") as opened:
        yield opened


@pytest.fixture(scope="module")
def demo() -> Iterator[mousetwin.Mouse]:
    with mousetwin.connect(f"local:{DEMO_MODELS}") as opened:
        yield opened["demo"]


def filters(twin: Any = FULL) -> np.ndarray:
    """What each neuron of a linear twin is the product with, (K, H, W)."""
    return twin.weights("W").T.astype(np.float64).reshape(twin.neurons, *twin.native)


def unit(images: np.ndarray) -> np.ndarray:
    return images / np.linalg.norm(images, axis=(1, 2), keepdims=True)


def test_a_linear_neuron_wants_its_own_filter(twins: mousetwin.Twins) -> None:
    found = twins["full"].optimize([3, 0], behavior=STILL, space="model")
    expected = 10 * unit(filters()[[3, 0]])
    assert_allclose(found.images, expected, atol=2e-2)
    conditions = {"behavior": np.zeros((2, 3)), "pupil_center": np.zeros((2, 2))}
    right = FULL.respond(found.images[:, None], **conditions)[[0, 1], [3, 0]]
    assert_allclose(found.responses[:, 0], right, atol=1e-5)
    assert_allclose(found.values, right, atol=1e-5)
    best = 10 * np.linalg.norm(filters()[[3, 0]], axis=(1, 2)) + FULL.weights("c")[0, [3, 0]]
    assert_allclose(found.values, best, rtol=1e-4)


def test_populations_weighed_up_and_down(twins: mousetwin.Twins) -> None:
    weights = np.array([1.0, -2.0, 0.5])
    found = twins["full"].optimize([[4, 1, 6], [0, 2, 3]], weights=weights, norm=3, behavior=STILL)
    directions = np.einsum("k,nkyx->nyx", weights, filters()[[[4, 1, 6], [0, 2, 3]]])
    assert_allclose(found.images, 3 * unit(directions), atol=2e-2)
    assert found.responses.shape == (2, 3)
    assert_allclose(found.values, found.responses @ weights, rtol=1e-5)


def test_unit_ids_mean_what_the_recording_calls_them(twins: mousetwin.Twins) -> None:
    mouse = twins["full"]
    by_unit = mouse.optimize(unit_ids=[1002, 11], against=[[5], [8]], behavior=STILL, steps=20)
    by_column = mouse.optimize([4, 0], against=[[3], [6]], behavior=STILL, steps=20)
    assert_allclose(by_unit.images, by_column.images)
    assert by_unit.neurons.tolist() == [[1002], [11]]


def test_the_same_request_gives_the_same_image_in_any_company(twins: mousetwin.Twins) -> None:
    mouse = twins["full"]
    options: dict[str, Any] = {"behavior": STILL, "steps": 7, "seed": 3, "jitter": 1, "norm": 5}
    first = mouse.optimize([1, 4, 6], **options)
    assert np.array_equal(first.images, mouse.optimize([1, 4, 6], **options).images)
    # Another request for more images: the first three begin from the same noise.
    assert_allclose(mouse.optimize([1, 4, 6, 2, 0], **options).images[:3], first.images, atol=1e-5)
    other = mouse.optimize([1, 4, 6], **{**options, "seed": 4, "start": "noise", "steps": 1})
    assert not np.allclose(other.images, mouse.optimize([1, 4, 6], **{**options, "steps": 1}).images)


def test_hundreds_of_neurons_go_in_several_requests(twins: mousetwin.Twins) -> None:
    mouse, seen = twins["full"], list[tuple[int, int]]()
    neurons = np.arange(300) % 7
    found = mouse.optimize(neurons, behavior=STILL, steps=60, progress=lambda done, total: seen.append((done, total)))
    assert_allclose(found.images, 10 * unit(filters()[neurons]), atol=0.2)
    assert len(found.records) == 3
    assert found.trace.shape[1] == 300
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (180, 180)


CONSTRAINTS: dict[str, tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray], float]] = {
    "norm": ({"norm": 4.0}, lambda i: np.linalg.norm(i, axis=(1, 2)), 4.0),
    "contrast": ({"std": 0.3}, lambda i: i.std((1, 2)), 0.3),
    "norm about a mean": ({"norm": 4.0, "mean": 0.5}, lambda i: np.linalg.norm(i - 0.5, axis=(1, 2)), 4.0),
    "mean": ({"norm": 4.0, "mean": 0.5}, lambda i: i.mean((1, 2)), 0.5),
    "contrast and range": ({"std": 0.4, "low": -0.6, "high": 0.5}, lambda i: i.std((1, 2)), 0.4),
    "mean, contrast and range": (
        {"std": 0.4, "mean": 0.1, "low": -0.6, "high": 0.7},
        lambda i: np.abs(i.mean((1, 2)) - 0.1) + np.abs(i.std((1, 2)) - 0.4),
        0.0,
    ),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_what_is_held_is_held(twins: mousetwin.Twins, name: str) -> None:
    options, measure, held = CONSTRAINTS[name]
    found = twins["full"].optimize([0, 5], behavior=STILL, **options)
    assert_allclose(measure(found.images.astype(np.float64)), held, atol=2e-3)
    assert found.images.min() >= options.get("low", -np.inf) - 1e-6
    assert found.images.max() <= options.get("high", np.inf) + 1e-6


def test_what_is_capped_is_reached_only_where_it_pays(twins: mousetwin.Twins) -> None:
    mouse = twins["full"]
    up = mouse.optimize([2], max_norm=3, behavior=STILL)
    assert_allclose(np.linalg.norm(up.images), 3, rtol=1e-3)
    # A squared difference from gray of weight 1 is worth a norm of half the filter's, less than the cap.
    held_back = mouse.optimize([2], max_norm=3, l2=1.0, behavior=STILL, start="gray", steps=300)
    assert_allclose(held_back.images, filters()[[2]] / 2, atol=2e-2)


def test_only_what_the_mask_leaves_changes(twins: mousetwin.Twins) -> None:
    mask = np.zeros(FULL.native)
    mask[1:5, 2:6] = 1
    background = np.random.default_rng(0).normal(size=FULL.native)
    found = twins["full"].optimize([1], mask=mask, background=background, norm=2, behavior=STILL)
    assert_allclose(found.images[0][mask == 0], background[mask == 0], atol=1e-6)
    expected = 2 * unit(mask * filters()[[1]])
    assert_allclose(found.images[0] * mask, expected[0], atol=1e-2)


def test_in_gray_levels(twins: mousetwin.Twins) -> None:
    mouse = twins["full"]
    found = mouse.optimize([3], std=20, mean=100, space="raw", behavior=list(FULL.behavior_mean))
    assert found.images.min() >= 0
    assert found.images.max() <= 255
    assert_allclose([found.images.mean(), found.images.std()], [100, 20], atol=0.1)
    direction = filters()[3] - filters()[3].mean()
    assert np.corrcoef(found.images[0].ravel(), direction.ravel())[0, 1] > 0.99
    again = mouse.predict(found.images, list(FULL.behavior_mean), neurons=[3], space="raw")
    assert_allclose(again, found.responses, atol=1e-4)
    assert found.records[0]["defaults"] == ["pupil_center"]


def test_over_several_conditions_the_mean_counts(twins: mousetwin.Twins) -> None:
    behavior = np.array([[1.0, 0, 0], [0, 2.0, 0], [0, 0, -1.0]])
    conditions: dict[str, Any] = {"behavior": behavior, "pupil_center": [1.0, -1.0], "condition_space": "model"}
    found = twins["full"].optimize([5], **conditions, norm=2)
    image = found.images[:, None].repeat(3, 0)
    right = FULL.respond(image, behavior, np.tile([1.0, -1.0], (3, 1)))[:, 5].mean()
    assert_allclose(found.responses[0, 0], right, atol=1e-5)


def test_an_ensemble_is_driven_as_one(twins: mousetwin.Twins) -> None:
    found = twins.mouse("two-models", "cnn").optimize([2], models=["ln"], behavior=STILL, norm=2)
    both = (filters(TWO_MODELS[0]) + filters(TWO_MODELS[1]))[[2]] / 2
    assert_allclose(found.images, 2 * unit(both), atol=1e-2)
    assert [twin["model"] for twin in found.records[0]["twins"]] == ["cnn", "ln"]


def test_adam_finds_the_same(twins: mousetwin.Twins) -> None:
    found = twins["full"].optimize([3], optimizer="adam", norm=2, behavior=STILL, steps=300)
    assert_allclose(found.images, 2 * unit(filters()[[3]]), atol=5e-2)


def test_it_stops_when_nothing_improves(twins: mousetwin.Twins) -> None:
    found = twins["full"].optimize([3], behavior=STILL, steps=5000, patience=10)
    assert found.records[0]["stopped"] == "patience"
    assert found.records[0]["steps_taken"] < 500
    assert found.values[0] == pytest.approx(found.trace.max(), rel=1e-5)


def test_reports_come_on_the_way_with_images_if_asked(service: Service) -> None:
    with mousetwin.connect(service.grpc) as opened:
        reports: list[Any] = []
        opened["full"].optimize([3, 1], behavior=STILL, steps=40, on_report=reports.append)
    assert [report.step for report in reports] == [10, 20, 30, 40]
    assert reports[-1].values.shape == (2,)
    assert reports[-1].images is None
    with mousetwin.connect(service.grpc) as opened:
        reports.clear()
        options: dict[str, Any] = {"report_every": 7, "report_images": True, "norm": 3}
        found = opened["full"].optimize([3, 1], behavior=STILL, steps=20, on_report=reports.append, **options)
    assert [report.step for report in reports] == [7, 14, 20]
    for report in reports:
        assert_allclose(np.linalg.norm(report.images, axis=(1, 2)), 3, rtol=1e-3)
    assert found.images.shape == reports[0].images.shape


def test_what_was_found_is_kept_whole(twins: mousetwin.Twins, tmp_path: Path) -> None:
    found = twins["full"].optimize([3, 1], behavior=STILL, steps=10, seed=7)
    found.save(tmp_path / "meis.npz")
    loaded = Optimized.load(tmp_path / "meis.npz")
    for name in ("images", "responses", "values", "trace", "neurons", "field_center"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(found, name))
    assert loaded.records == found.records
    record = loaded.records[0]
    assert record["request"]["start"]["seed"] == 7
    assert record["twins"][0]["digest"] == twins["full"].summary.twin.digest
    assert record["versions"].keys() == {"mousetwin", "numpy", "onnxruntime"}
    json.dumps(record)
    (tmp_path / "other.npz").write_bytes(b"nothing")
    with pytest.raises(mousetwin.InvalidArgument, match=r"other\.npz"):
        Optimized.load(tmp_path / "other.npz")


def test_it_can_be_looked_at(demo: mousetwin.Mouse, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = demo.optimize([3, 14, 15], behavior=STILL, steps=4)
    figure = found.plot(tmp_path / "meis.png")
    assert "synthetic" in figure.get_suptitle()
    assert (tmp_path / "meis.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_cells_get_the_image_they_were_built_from(demo: mousetwin.Mouse) -> None:
    truth = demo.info.truth
    cells = [cell for cell in range(0, 320, 5) if not truth["is_complex"][cell]]
    found = demo.optimize(cells, behavior=STILL)
    built = np.stack([demo_filter(truth, cell) for cell in cells])
    correlation = (unit(found.images - found.images.mean((1, 2), keepdims=True)) * unit(built)).sum((1, 2))
    assert correlation.min() > 0.9


def test_complex_cells_get_their_orientation_and_frequency(demo: mousetwin.Mouse) -> None:
    truth = demo.info.truth
    cells = [cell for cell in range(0, 320, 7) if truth["is_complex"][cell]]
    found = demo.optimize(cells, behavior=STILL)
    frequencies = np.fft.fftfreq(256)
    for cell, image in zip(cells, found.images, strict=True):
        spectrum = np.abs(np.fft.fft2(image, (256, 256)))
        row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
        fy, fx = frequencies[row], frequencies[column]
        assert np.hypot(fx, fy) == pytest.approx(truth["spatial_frequency_cpp"][cell], abs=0.02)
        off = (np.degrees(np.arctan2(fy, fx)) - truth["orientation_deg"][cell] + 90) % 180 - 90
        assert abs(off) < 8


def test_a_contrast_separates_two_groups(demo: mousetwin.Mouse) -> None:
    """Two groups of cells at one place, of orthogonal orientations."""
    truth = demo.info.truth
    near = (abs(truth["x"] - 32) < 6) & (abs(truth["y"] - 18) < 6)
    groups = [np.flatnonzero(near & (truth["orientation_deg"] == angle))[:3] for angle in (0, 90)]
    count = min(len(group) for group in groups)
    assert count > 0
    on, off = (group[:count] for group in groups)
    both = demo.optimize([on, off], against=[off, on], behavior=STILL, temperature=0.5)
    means = both.responses.reshape(2, 2, count).mean(2)
    assert (means[:, 0] > 3 * means[:, 1]).all(), means
    assert_allclose(both.values, contrast(means[:, 0], means[:, 1], 0.5), rtol=1e-4)


def contrast(on: np.ndarray, off: np.ndarray, temperature: float) -> np.ndarray:
    return on - temperature * np.log((np.exp(on / temperature) + np.exp(off / temperature)) / 2)


def test_images_of_a_group_differ_and_keep_their_share(demo: mousetwin.Mouse) -> None:
    truth = demo.info.truth
    cells = np.flatnonzero(truth["is_complex"])[:2]
    together = demo.optimize(cells, images_each=4, min_share=0.8, behavior=STILL)
    assert together.neurons[:, 0].tolist() == [cells[0]] * 4 + [cells[1]] * 4
    values = together.values.reshape(2, 4)
    alone = demo.optimize(cells, behavior=STILL)
    assert (values > 0.79 * alone.values[:, None]).all()
    same = demo.optimize(np.repeat(cells, 4), behavior=STILL)
    assert (closeness(together.images) < closeness(same.images) - 0.1).all()


def closeness(images: np.ndarray) -> np.ndarray:
    """Mean correlation between the images of each group of four."""
    groups = unit(images).reshape(-1, 4, images[0].size)
    return np.array([(group @ group.T)[np.triu_indices(4, 1)].mean() for group in groups])


def test_smoothing_takes_the_fine_grain_out(demo: mousetwin.Mouse) -> None:
    def roughness(**options: Any) -> float:
        images = demo.optimize([3, 14], behavior=STILL, steps=20, **options).images
        return float(np.abs(np.diff(images, axis=2)).sum() / np.abs(images).sum())

    plain = roughness()
    for options in ({"blur": 2.0, "blur_end": 2.0}, {"fourier": 1.0}, {"total_variation": 0.5}):
        assert roughness(**options) < plain, options


def test_interactive_requests_are_answered_while_it_runs_and_it_ends_when_it_is_left(models: Path) -> None:
    with in_thread(models) as service, mousetwin.connect(service.grpc) as opened:
        answered: list[Any] = []

        class Left(Exception):
            pass

        def on_report(report: Any) -> None:
            answered.append(opened["full"].predict(np.zeros((1, *FULL.native)), STILL, space="model"))
            if len(answered) == 3:
                raise Left

        with pytest.raises(Left):
            opened["full"].optimize([0] * 64, behavior=STILL, steps=10_000, on_report=on_report)
        assert_allclose(answered[0], FULL.respond(np.zeros((1, 1, *FULL.native)), [STILL]), atol=1e-5)

        def cancelled() -> bool:
            metrics = httpx.get(f"{service.http}/metrics").text
            return 'mousetwin_requests_total{call="Optimize",code="CANCELLED",protocol="grpc"} 1.0' in metrics

        until(cancelled)
        # What was on its way is done, and nothing more comes.
        until(lambda: runs(service) == runs(service))


def runs(service: Service) -> list[str]:
    lines = httpx.get(f"{service.http}/metrics").text.splitlines()
    return [line for line in lines if line.startswith("mousetwin_run_images_count")]


def test_a_deadline_ends_it(service: Service) -> None:
    with mousetwin.connect(service.grpc) as opened, pytest.raises(mousetwin.DeadlineExceeded):
        opened["full"].optimize([0], steps=10_000, behavior=STILL, timeout=0.3)


BAD: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "no target": ({}, "neurons", ["missing"]),
    "unknown neuron": ({"neurons": [7]}, "neurons", ["7", "0 to 6"]),
    "unknown unit": ({"unit_ids": [12]}, "unit_ids", ["12"]),
    "both": ({"neurons": [1], "unit_ids": [7]}, "unit_ids", ["one of the two"]),
    "a neuron twice": ({"neurons": [[1, 1]]}, "neurons", ["twice"]),
    "weights that disagree": ({"neurons": [[1, 2]], "weights": [1, 2, 3]}, "weights", ["(3,)", "(1, 2)"]),
    "weights of nothing": ({"neurons": [[1, 2]], "weights": [0, 0]}, "weights", ["not 0"]),
    "against of another batch": ({"neurons": [1, 2], "against": [[3]]}, "against", ["(1, 1)", "(2, M)"]),
    "against itself": ({"neurons": [1], "against": [[1]]}, "neurons", ["twice"]),
    "no temperature": ({"neurons": [1], "against": [2], "temperature": 0.0}, "temperature", ["0"]),
    "no steps": ({"neurons": [1], "steps": 0}, "steps", ["0", "1 to 10000"]),
    "a million steps": ({"neurons": [1], "steps": 1_000_000}, "steps", ["1000000", "1 to 10000"]),
    "NaN start": ({"neurons": [1], "start": np.full((1, 6, 8), np.nan)}, "images", ["nan", "finite"]),
    "start of another batch": ({"neurons": [1, 2], "start": np.zeros((3, 6, 8))}, "images", ["(3, 6, 8)", "(2, 6, 8)"]),
    "an unknown start": ({"neurons": [1], "start": "black"}, "start", ["black", "noise, gray"]),
    "an unknown optimiser": ({"neurons": [1], "optimizer": "newton"}, "optimizer", ["newton", "ascent, adam"]),
    "an unknown option": ({"neurons": [1], "stepsize": 3}, "stepsize", ["not known", "step_size"]),
    "two sizes": ({"neurons": [1], "norm": 1.0, "std": 1.0}, "std", ["norm"]),
    "a norm out of reach": ({"neurons": [1], "norm": 10.0, "low": -1.0, "high": 1.0}, "norm", ["pixel range"]),
    "a contrast out of reach": ({"neurons": [1], "std": 2.0, "low": -1.0, "high": 1.0}, "std", ["pixel range"]),
    "a mean outside": ({"neurons": [1], "mean": 3.0, "low": -1.0, "high": 1.0}, "mean", ["range"]),
    "no range": ({"neurons": [1], "low": 1.0, "high": 1.0}, "low", ["high"]),
    "NaN norm": ({"neurons": [1], "norm": float("nan")}, "norm", ["nan", "finite"]),
    "negative norm": ({"neurons": [1], "norm": -1.0}, "norm", ["-1"]),
    "an empty mask": ({"neurons": [1], "mask": np.zeros((6, 8))}, "mask", ["empty"]),
    "a mask of another size": ({"neurons": [1], "mask": np.ones((3, 8))}, "mask", ["(3, 8)", "(6, 8)"]),
    "a mask out of range": ({"neurons": [1], "mask": np.full((6, 8), 2.0)}, "mask", ["2", "0 to 1"]),
    "conditions that disagree": (
        {"neurons": [1], "behavior": np.zeros((2, 3)), "pupil_center": np.zeros((3, 2))},
        "behavior",
        ["2 of behavior and 3 of pupil_center"],
    ),
    "behavior of another width": ({"neurons": [1], "behavior": np.zeros((2, 4))}, "behavior", ["(2, 4)"]),
    "too much momentum": ({"neurons": [1], "momentum": 1.0}, "momentum", ["0.999"]),
    "too much jitter": ({"neurons": [1], "jitter": 4}, "jitter", ["0 to 3"]),
    "an unknown space": ({"neurons": [1], "space": "lab"}, "space", ["lab"]),
    "an unknown model": ({"neurons": [1], "models": ["other"]}, "model", ["other"]),
    "no image each": ({"neurons": [1], "images_each": 0}, "images_each", ["0"]),
    "no share": ({"neurons": [1], "images_each": 2, "min_share": 2.0}, "min_share", ["2"]),
    "reports never": ({"neurons": [1], "report_every": 0}, "report_every", ["0"]),
    "a negative seed": ({"neurons": [1], "seed": -1}, "seed", ["-1"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_refused(twins: mousetwin.Twins, case: str) -> None:
    options, field, words = BAD[case]
    reports: list[Any] = []
    with pytest.raises(mousetwin.MousetwinError) as caught:
        twins["full"].optimize(**{"behavior": STILL, **options}, on_report=reports.append)
    assert caught.value.field == field, caught.value
    assert caught.value.code in ("INVALID_ARGUMENT", "NOT_FOUND")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not reports


def test_a_batch_over_the_limit_is_refused(twins: mousetwin.Twins) -> None:
    with pytest.raises(mousetwin.ResourceExhausted, match="1025 a step, the limit is 1024"):
        twins["full"].optimize([1], behavior=np.zeros((1025, 3)))


def test_without_a_gradient_or_statistics_it_says_so(twins: mousetwin.Twins) -> None:
    with pytest.raises(mousetwin.Unimplemented, match="has no gradient: made without one"):
        twins["no-behavior-statistics"].optimize([1], behavior=STILL)
    with pytest.raises(mousetwin.InvalidArgument, match="image statistics"):
        twins["bare"].optimize([1], behavior=STILL, space="raw")
    assert BARE.neurons == 7
