"""Predictions over every protocol, against arithmetic done here."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tiny
from mousetwin import arrays
from serving import Caller, RestCaller
from skimage.transform import rescale

rng = np.random.default_rng(5)
IMAGES = rng.normal(size=(5, 36, 64)).astype(np.float32)
RAW = rng.integers(0, 256, (5, 144, 256)).astype(np.uint8)
BEHAVIOR = rng.normal(size=(5, 3)).astype(np.float32)
PUPIL = rng.normal(size=(5, 2)).astype(np.float32)
MEAN = {"behavior": np.array([[1.0, 1.0, 0.75]]), "pupil_center": np.zeros((1, 2))}


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def loader(raw: np.ndarray[Any, Any], factor: float = 0.25) -> np.ndarray[Any, Any]:
    """The training loader's order: normalise with scalar statistics, then rescale each image."""
    normal = (raw.astype(np.float64) - 110) / 60
    settings = {"order": 1, "anti_aliasing": False, "mode": "reflect", "clip": False}
    return np.stack([rescale(image, factor, **settings) for image in normal])


def test_model_space(caller: Caller) -> None:
    answer = caller.predict("linear", images=IMAGES, behavior=BEHAVIOR, pupil_center=PUPIL, space="model")
    close(answer.responses, tiny.LINEAR.respond(IMAGES, behavior=BEHAVIOR, pupil_center=PUPIL))
    assert answer.responses is not None
    assert answer.responses.dtype == np.float32
    assert answer.twin == "linear/a/1"
    assert len(answer.digest) == 64
    assert answer.defaults == ()


def test_images_may_have_a_channel_axis(caller: Caller) -> None:
    flat = caller.predict("linear", images=IMAGES, space="model")
    with_channel = caller.predict("linear", images=IMAGES[:, None], space="model")
    np.testing.assert_array_equal(flat.responses, with_channel.responses)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "float32", "float64"])
def test_raw_images_go_the_way_of_the_training_loader(caller: Caller, dtype: str) -> None:
    space = "raw" if dtype.startswith("float") else None
    answer = caller.predict("linear", images=RAW.astype(dtype), space=space)
    close(answer.responses, tiny.LINEAR.respond(loader(RAW), **MEAN))
    assert answer.defaults == ("behavior", "pupil_center")


def test_raw_images_at_the_native_size(caller: Caller) -> None:
    native = RAW[:, :36, :64]
    answer = caller.predict("linear", images=native)
    close(answer.responses, tiny.LINEAR.respond((native - 110.0) / 60, **MEAN))


def test_raw_behavior_and_pupil_center(caller: Caller) -> None:
    raw_pupil = PUPIL * [10, 5] + [100, 80]
    answer = caller.predict("linear", images=RAW, behavior=BEHAVIOR * [1, 2, 4], pupil_center=raw_pupil)
    close(answer.responses, tiny.LINEAR.respond(loader(RAW), behavior=BEHAVIOR, pupil_center=PUPIL))


def test_one_condition_stands_for_all_images(caller: Caller) -> None:
    one = caller.predict("linear", images=IMAGES, behavior=BEHAVIOR[0], pupil_center=PUPIL[0], space="model")
    expected = tiny.LINEAR.respond(IMAGES, behavior=BEHAVIOR[:1], pupil_center=PUPIL[:1])
    close(one.responses, expected)


def test_chosen_neurons_come_in_the_order_asked(caller: Caller) -> None:
    everything = caller.predict("linear", images=IMAGES, space="model")
    assert everything.responses is not None
    chosen = caller.predict("linear", images=IMAGES, space="model", neurons=[7, 0, 11])
    np.testing.assert_array_equal(chosen.responses, everything.responses[:, [7, 0, 11]])
    by_id = caller.predict("linear", images=IMAGES, space="model", unit_ids=[34, 1, 233])
    np.testing.assert_array_equal(by_id.responses, everything.responses[:, [7, 0, 11]])


def test_a_twin_of_another_size_without_behavior(caller: Caller) -> None:
    images = rng.normal(size=(2, 20, 30)).astype(np.float32)
    answer = caller.predict("bare", images=images, space="model")
    close(answer.responses, tiny.BARE.respond(images))


def test_behavior_given_where_it_has_no_default(caller: Caller) -> None:
    answer = caller.predict("condition", images=IMAGES, behavior=BEHAVIOR, space="model")
    expected = tiny.CONDITION.respond(IMAGES, behavior=BEHAVIOR, pupil_center=np.zeros((1, 2)))
    close(answer.responses, expected)
    assert answer.defaults == ("pupil_center",)


def test_the_newest_version_and_the_named_model(caller: Caller) -> None:
    assert caller.predict("versions", images=IMAGES, space="model").twin == "versions/a/10"
    assert caller.predict("versions", images=IMAGES, space="model", version="9").twin == "versions/a/9"
    assert caller.predict("twice", images=IMAGES, space="model", model="b").twin == "twice/b/1"


def test_a_batch_answers_as_its_images_do_alone(caller: Caller) -> None:
    images = rng.normal(size=(150, 36, 64)).astype(np.float32)
    together = caller.predict("linear", images=images, space="model").responses
    assert together is not None
    for index in (0, 77, 149):
        alone = caller.predict("linear", images=images[index : index + 1], space="model").responses
        np.testing.assert_allclose(together[index : index + 1], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sent", ["application/json", "application/x-npy", "application/x-npz"])
@pytest.mark.parametrize("accepted", ["application/json", "application/x-npy", "application/x-npz", "*/*", None])
def test_rest_takes_and_gives_json_npy_and_npz(rest: RestCaller, sent: str, accepted: str | None) -> None:
    body = {
        "application/json": json.dumps({"images": RAW[:2].tolist(), "neurons": [3, 1]}).encode(),
        "application/x-npy": arrays.write_npy(RAW[:2]),
        "application/x-npz": arrays.write_npz({"images": RAW[:2], "neurons": np.array([3, 1])}),
    }[sent]
    parameters = {"neurons": "3,1"} if sent == "application/x-npy" else None
    headers = {"content-type": sent} | ({"accept": accepted} if accepted else {})
    response = rest.client.post("/v1/mice/linear/predict", content=body, params=parameters, headers=headers)
    assert response.status_code == 200
    expected_type = accepted if accepted not in (None, "*/*") else sent
    assert response.headers["content-type"] == expected_type
    close(rest.read(response), tiny.LINEAR.respond(loader(RAW[:2]), **MEAN)[:, [3, 1]])


def test_json_says_what_the_headers_say(rest: RestCaller) -> None:
    # MATLAB's webwrite sends whole numbers where a value is whole: "space" is what decides.
    body = {"images": np.zeros((1, 36, 64), int).tolist(), "space": "model", "behavior": [1, 1, 0]}
    response = rest.client.post("/v1/mice/linear/predict", json=body)
    document = response.json()
    assert document["defaults"] == ["pupil_center"]
    assert document["twin"]["digest"] == response.headers["x-mousetwin-digest"]
    black = {"behavior": np.array([[1.0, 1.0, 0.0]]), "pupil_center": np.zeros((1, 2))}
    close(document["responses"], tiny.LINEAR.respond(np.zeros((1, 36, 64)), **black))


def test_a_request_that_outlives_its_deadline(caller: Caller) -> None:
    answer = caller.predict("linear", images=np.zeros((60, 36, 64)), space="model", timeout=1e-9)
    assert answer.code == "DEADLINE_EXCEEDED"
    assert answer.status in (None, 504)
