"""Gradients, the same from every host: with respect to what was sent, in its units and shape."""

from __future__ import annotations

from typing import Any

import httpx
import mousetwin
import numpy as np
import pytest
from bundles import BARE, FULL, IMAGE_ONLY, NO_BEHAVIOR_STATISTICS
from hosts import JSON, Host, Refused, RestHost
from numpy.testing import assert_allclose
from running import Service

NEAR = {"rtol": 1e-5, "atol": 2e-6}
RNG = np.random.default_rng(0)
COTANGENT = RNG.normal(size=(3, FULL.neurons))
BEHAVIOR = np.array([[4.0, 0.5, 9.0], [1.0, -0.5, 0.0], [7.5, 2.0, 30.0]])
PUPIL = np.array([[10.0, -3.0], [-30.0, 9.0], [0.0, 0.0]])


def slope(twin: Any, cotangent: Any, images: Any, **conditions: Any) -> dict[str, np.ndarray]:
    """The gradient, by central differences of the right answer to raw inputs; it is linear, so they are exact."""
    found = {}
    for name, values in {"images": images, **conditions}.items():
        gradient = np.zeros(values.shape)
        for place in np.ndindex(values.shape):
            step = np.zeros(values.shape)
            step[place] = 1.0
            given = {"images": images, **conditions}
            above, below = (twin.respond_raw(**{**given, name: values + sign * step}) for sign in (1, -1))
            gradient[place] = ((above - below) * cotangent).sum() / 2
        found[name] = gradient
    return found


def test_in_model_space(host: Host) -> None:
    given = FULL.inputs(3)
    answer = host.gradient("full", cotangent=COTANGENT, **given, space="model")
    assert_allclose(answer.responses, FULL.respond(**given), **NEAR)
    assert set(answer.gradient) == {"images", "behavior", "pupil_center"}
    for name, expected in FULL.gradient(COTANGENT).items():
        assert_allclose(answer.gradient[name], expected, **NEAR)
    assert answer.twin == ("full", "linear", "1")
    assert answer.defaults == ()


@pytest.mark.parametrize("size", ["native", "stimulus"])
def test_with_respect_to_raw_inputs_as_they_were_sent(host: Host, size: str) -> None:
    images = RNG.integers(1, 255, (3, *getattr(FULL, size))).astype(np.uint8)
    answer = host.gradient("full", images, COTANGENT, behavior=BEHAVIOR, pupil_center=PUPIL)
    expected = slope(FULL, COTANGENT, images.astype(float), behavior=BEHAVIOR, pupil_center=PUPIL)
    assert_allclose(answer.responses, FULL.respond_raw(images, BEHAVIOR, PUPIL), **NEAR)
    for name, values in expected.items():
        assert answer.gradient[name].shape == values.shape
        assert_allclose(answer.gradient[name], values, **NEAR)


def test_a_stimulus_that_is_no_multiple_of_the_native_size(host: Host) -> None:
    images = RNG.integers(1, 255, (2, 1, *IMAGE_ONLY.stimulus)).astype(np.uint8)
    cotangent = RNG.normal(size=IMAGE_ONLY.neurons)
    answer = host.gradient("image-only", images, cotangent)
    assert set(answer.gradient) == {"images"}
    assert_allclose(answer.gradient["images"], slope(IMAGE_ONLY, cotangent, images.astype(float))["images"], **NEAR)


def test_one_cotangent_and_one_condition_for_all_images(host: Host) -> None:
    images = RNG.integers(0, 255, (3, *FULL.native)).astype(np.uint8)
    answer = host.gradient("full", images, COTANGENT[0], behavior=BEHAVIOR[0])
    expected = FULL.gradient(np.broadcast_to(COTANGENT[0], (3, 7)))
    assert_allclose(answer.gradient["behavior"], expected["behavior"] / FULL.behavior_std, **NEAR)
    assert_allclose(answer.gradient["pupil_center"], expected["pupil_center"] / FULL.pupil_std, **NEAR)
    assert answer.defaults == ("pupil_center",)


def test_of_chosen_neurons_and_of_one_an_image(host: Host) -> None:
    given = FULL.inputs(3)
    everything = FULL.respond(**given)
    chosen, weights = [5, 0], np.array([[1.0, -2.0], [0.5, 0.0], [3.0, 1.0]])
    answer = host.gradient("full", cotangent=weights, **given, neurons=chosen, space="model")
    assert_allclose(answer.responses, everything[:, chosen], **NEAR)
    whole = np.zeros((3, 7))
    whole[:, chosen] = weights
    assert_allclose(answer.gradient["images"], FULL.gradient(whole)["images"], **NEAR)

    own = np.array([[4], [1], [4]])
    expected = FULL.gradient(np.eye(7)[own[:, 0]] * 2)
    asked: list[dict[str, Any]] = [{"neurons": own}, {"unit_ids": np.array(FULL.unit_ids)[own]}]
    for which in asked:
        answer = host.gradient("full", cotangent=[2.0], **given, **which, space="model")
        assert_allclose(answer.responses, np.take_along_axis(everything, own, 1), **NEAR)
        assert_allclose(answer.gradient["images"], expected["images"], **NEAR)
        found = host.predict("full", **given, **which, space="model").responses
        assert_allclose(found, np.take_along_axis(everything, own, 1), **NEAR)


def test_what_is_not_known_in_raw_units_is_left_out(host: Host) -> None:
    given = BARE.inputs(2)
    answer = host.gradient("bare", cotangent=np.ones(7), **given, space="model")
    assert_allclose(answer.gradient["behavior"], BARE.gradient(np.ones((2, 7)))["behavior"], **NEAR)


def test_a_large_batch_gives_what_its_images_give_alone(host: Host) -> None:
    given, weights = FULL.inputs(150), RNG.normal(size=(150, 7)).astype(np.float32)
    answer = host.gradient("full", cotangent=weights, **given, space="model")
    for name, expected in FULL.gradient(weights).items():
        assert_allclose(answer.gradient[name], expected, **NEAR)
    own = RNG.integers(0, 7, (150, 1))
    answer = host.gradient("full", cotangent=np.ones((150, 1)), **given, neurons=own, space="model")
    assert_allclose(answer.gradient["images"], FULL.gradient(np.eye(7)[own[:, 0]])["images"], **NEAR)


REFUSED: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "neurons": ({"cotangent": np.ones(6)}, "cotangent", ["(6,)", "(3, 7)", "(7,)"]),
    "chosen neurons": ({"cotangent": np.ones(7), "neurons": [1, 2]}, "cotangent", ["(7,)", "(3, 2)"]),
    "images": ({"cotangent": np.ones((2, 7))}, "cotangent", ["(2, 7)", "(3, 7)"]),
    "one number": ({"cotangent": 1.0}, "cotangent", ["()", "(7,)"]),
    "not finite": ({"cotangent": np.array([1, 2, np.inf, 0, 0, 0, 0])}, "cotangent", ["inf at (2,)"]),
    "words": ({"cotangent": ["a"] * 7}, "cotangent", ["expected"]),
    "an image's own neurons": ({"cotangent": [1], "neurons": [[1], [2]]}, "neurons", ["(2, 1)", "(3, 1)"]),
    "several neurons of its own": ({"cotangent": [1, 1], "neurons": [[1, 2]] * 3}, "neurons", ["(3, 2)", "(3, 1)"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_the_field(host: Host, case: str) -> None:
    asked, field, words = REFUSED[case]
    if case == "not finite" and isinstance(host, RestHost) and host.media_type == JSON:
        field, words = "body", ["JSON"]
    with pytest.raises(Refused) as caught:
        host.gradient("full", **FULL.inputs(3), space="model", **asked)
    assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", field)
    assert all(word in caught.value.message for word in words), caught.value.message


def test_a_twin_without_a_gradient_says_so_and_predicts(host: Host) -> None:
    given = NO_BEHAVIOR_STATISTICS.inputs(2)
    with pytest.raises(Refused) as caught:
        host.gradient("no-behavior-statistics", cotangent=np.ones(7), **given, space="model")
    assert caught.value.code == "UNIMPLEMENTED"
    assert "made without one, for a test" in caught.value.message
    found = host.predict("no-behavior-statistics", **given, space="model").responses
    assert_allclose(found, NO_BEHAVIOR_STATISTICS.respond(**given), **NEAR)


def test_the_metadata_say_whether_there_is_a_gradient(service: Service) -> None:
    with mousetwin.connect(service.grpc) as twins:
        told = {summary.twin.mouse: summary for summary in twins.mice()}
        assert told["full"].no_gradient == ""
        assert "gradient" in told["full"].graphs
        assert told["no-behavior-statistics"].no_gradient == "made without one, for a test"
        twins["full"].gradient(FULL.inputs(1)["images"], np.ones(7), space="model")
        report = twins["full"].info.graphs["gradient"]
        assert report.replay_error is not None
        assert report.replay_error < 1e-5


def test_the_pairs_name_and_the_whole(service: Service) -> None:
    """As the client hands it out: a pair for the usual case, the rest by name."""
    given = FULL.inputs(2)
    with mousetwin.connect(service.grpc) as twins:
        gradient = twins["full"].gradient(cotangent=np.ones(7), **given, space="model")
    responses, images = gradient
    assert responses is gradient.responses
    assert images is gradient.images
    assert images.shape == given["images"].shape
    assert gradient.responses.twin is not None
    # Arrays of the caller's own.
    images += 1


def test_rest_tells_predict_and_gradient_apart_by_their_path(service: Service) -> None:
    images = np.zeros((1, *FULL.native)).tolist()
    url = f"{service.http}/v1/mice/full"
    body: dict[str, Any] = {"images": images, "space": "model"}
    for path, given in (("gradient", body), ("predict", {**body, "cotangent": [1.0] * 7})):
        answer = httpx.post(f"{url}/{path}", json=given)
        problem = answer.json()
        assert (answer.status_code, problem["field"]) == (400, "cotangent"), problem
    assert "gradient" in problem["detail"]
