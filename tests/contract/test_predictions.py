"""The right answers, the same from every host."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import httpx
import mousetwin
import numpy as np
import pytest
from bundles import BARE, FULL, IMAGE_ONLY, TWO_MODELS, VERSIONS
from hosts import JSON, NPY, NPZ, Host, Refused
from numpy.testing import assert_allclose
from running import Service

NEAR = {"rtol": 0, "atol": 2e-6}
RNG = np.random.default_rng(0)
SHOWN = RNG.integers(0, 256, (3, *FULL.stimulus)).astype(np.uint8)
NATIVE = RNG.integers(0, 256, (3, *FULL.native)).astype(np.uint8)
BEHAVIOR = np.array([[4.0, 0.5, 9.0], [1.0, -0.5, 0.0], [7.5, 2.0, 30.0]])
PUPIL = np.array([[10.0, -3.0], [-30.0, 9.0], [0.0, 0.0]])


def digest_of(models: Path, mouse: str, model: str, version: str) -> str:
    return hashlib.sha256((models / mouse / model / version / "bundle.json").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "images",
    [SHOWN, NATIVE, SHOWN[:, None], NATIVE[:, None]],
    ids=["shown", "native", "shown, channel", "native, channel"],
)
def test_raw_images_at_stimulus_and_native_size(host: Host, images: np.ndarray) -> None:
    answer = host.predict("full", images, behavior=BEHAVIOR, pupil_center=PUPIL)
    assert_allclose(answer.responses, FULL.respond_raw(images, BEHAVIOR, PUPIL), **NEAR)
    assert answer.responses.dtype == np.float32


@pytest.mark.parametrize("dtype", ["uint16", "int64", "float32", "float64"])
def test_raw_images_of_any_number_type(host: Host, dtype: str) -> None:
    answer = host.predict("full", SHOWN.astype(dtype), behavior=BEHAVIOR, pupil_center=PUPIL, space="raw")
    assert_allclose(answer.responses, FULL.respond_raw(SHOWN, BEHAVIOR, PUPIL), **NEAR)


def test_a_stimulus_that_is_no_multiple_of_the_native_size(host: Host) -> None:
    images = RNG.integers(0, 256, (4, *IMAGE_ONLY.stimulus)).astype(np.uint8)
    answer = host.predict("image-only", images)
    assert_allclose(answer.responses, IMAGE_ONLY.respond_raw(images), **NEAR)
    assert answer.defaults == ()


def test_model_space_is_taken_as_it_is(host: Host) -> None:
    given = FULL.inputs(5)
    answer = host.predict("full", **given, space="model")
    assert_allclose(answer.responses, FULL.respond(**given), **NEAR)


def test_a_twin_without_statistics_takes_model_space(host: Host) -> None:
    given = BARE.inputs(2)
    assert_allclose(host.predict("bare", **given, space="model").responses, BARE.respond(**given), **NEAR)
    without_pupil = host.predict("bare", given["images"], behavior=given["behavior"], space="model")
    assert_allclose(without_pupil.responses, BARE.respond(given["images"], given["behavior"]), **NEAR)
    assert without_pupil.defaults == ("pupil_center",)


def test_what_is_not_sent_stands_at_the_training_sets_mean_and_is_named(host: Host) -> None:
    answer = host.predict("full", SHOWN)
    assert_allclose(answer.responses, FULL.respond_raw(SHOWN), **NEAR)
    assert answer.defaults == ("behavior", "pupil_center")
    answer = host.predict("full", SHOWN, behavior=BEHAVIOR)
    assert_allclose(answer.responses, FULL.respond_raw(SHOWN, BEHAVIOR), **NEAR)
    assert answer.defaults == ("pupil_center",)


def test_the_default_behavior_is_the_same_condition_in_model_space(host: Host) -> None:
    images = FULL.inputs(2)["images"]
    mean = np.divide(FULL.behavior_mean, FULL.behavior_std)
    assert_allclose(host.predict("full", images, space="model").responses, FULL.respond(images, mean), **NEAR)


def test_one_condition_for_all_images(host: Host) -> None:
    answer = host.predict("full", SHOWN, behavior=BEHAVIOR[1], pupil_center=PUPIL[1])
    assert_allclose(answer.responses, FULL.respond_raw(SHOWN, BEHAVIOR[1], PUPIL[1]), **NEAR)


def test_chosen_neurons_come_in_the_order_asked_for(host: Host) -> None:
    everything = FULL.respond_raw(SHOWN)
    assert_allclose(host.predict("full", SHOWN, neurons=[5, 0, 3]).responses, everything[:, [5, 0, 3]], **NEAR)
    assert_allclose(host.predict("full", SHOWN, unit_ids=[1002, 11]).responses, everything[:, [4, 0]], **NEAR)


@pytest.mark.parametrize(("name", "number"), [("neurons", 5), ("unit_ids", 64)])
def test_one_neuron_as_a_number(host: Host, name: str, number: int) -> None:
    answer = host.predict("full", SHOWN, **{name: number})
    assert_allclose(answer.responses, FULL.respond_raw(SHOWN)[:, [5]], **NEAR)
    many = np.repeat(NATIVE, 30, 0)
    right = FULL.respond_raw(many)[:, [5]]
    assert_allclose(host.predict("full", many, **{name: number}).responses, right, **NEAR)
    found = host.gradient("full", SHOWN, [2.0], **{name: number})
    expected = host.gradient("full", SHOWN, 2.0 * np.eye(7)[5])
    assert_allclose(found.gradient["images"], expected.gradient["images"], **NEAR)
    for wrong in (9, -1, 5.5):
        with pytest.raises(Refused) as caught:
            host.predict("full", SHOWN, **{name: wrong})
        assert caught.value.field == name


def test_models_and_versions(host: Host, models: Path) -> None:
    for twin in TWO_MODELS:
        answer = host.predict("two-models", SHOWN, model=twin.model)
        assert_allclose(answer.responses, twin.respond_raw(SHOWN), **NEAR)
        assert answer.twin == ("two-models", twin.model, "1")
    nine, ten = VERSIONS
    for version, twin in (("", ten), ("9", nine), ("10", ten)):
        answer = host.predict("versions", SHOWN, version=version)
        assert_allclose(answer.responses, twin.respond_raw(SHOWN), **NEAR)
        assert answer.twin == ("versions", "linear", twin.version)
        assert answer.digest == digest_of(models, *answer.twin)


def test_what_is_told_of_a_twin(host: Host, models: Path) -> None:
    told, digest = host.about("full")
    assert told == {
        "neurons": 7,
        "native_size": [6, 8],
        "stimulus_size": [24, 32],
        "behavior": ["pupil dilation", "its derivative", "running"],
        "pupil_center": ["horizontal", "vertical"],
        "takes_raw": True,
        "required": ["images"],
        "unit_ids": [11, 7, 30, 5, 1002, 64, 8],
        "image_mean": [113.0],
    }
    assert digest == digest_of(models, "full", "linear", "1")
    told, _ = host.about("bare")
    assert (told["takes_raw"], told["required"], told["unit_ids"]) == (False, ["images", "behavior"], None)


def test_a_large_batch_gives_what_its_images_give_alone(host: Host) -> None:
    given = FULL.inputs(200)
    answer = host.predict("full", **given, space="model")
    assert_allclose(answer.responses, FULL.respond(**given), **NEAR)
    for row in (0, 63, 64, 191, 199):
        alone = host.predict("full", **{name: values[row : row + 1] for name, values in given.items()}, space="model")
        assert_allclose(alone.responses[0], answer.responses[row], rtol=0, atol=1e-6)


def test_npy_bodies_with_the_rest_as_query_parameters(service: Service) -> None:
    def npy(array: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    url = f"{service.http}/v1/mice/full/predict"
    response = httpx.post(url, content=npy(SHOWN), headers={"content-type": NPY}, params={"neurons": "6,2"})
    assert response.headers["content-type"] == NPY
    found = np.load(io.BytesIO(response.content))
    assert_allclose(found, FULL.respond_raw(SHOWN)[:, [6, 2]], **NEAR)

    images = np.asfortranarray(FULL.inputs(2)["images"].astype(">f8"))
    parameters = {"space": "model", "unit_ids": "30", "model": "linear", "version": "1", "timeout": "60"}
    response = httpx.post(url, content=npy(images), headers={"content-type": NPY, "accept": JSON}, params=parameters)
    assert response.headers["content-type"] == JSON
    mean = np.divide(FULL.behavior_mean, FULL.behavior_std)
    assert_allclose(response.json()["responses"], FULL.respond(images, mean)[:, [2]], **NEAR)


@pytest.mark.parametrize(
    ("accept", "answered_as"),
    [
        ("*/*", NPY),
        (JSON, JSON),
        (f"{NPZ}, {JSON};q=0.5", NPZ),
        (f"text/html, {JSON};q=0.1", JSON),
        (f"{NPY};q=0, application/*", JSON),
    ],
)
def test_the_answer_is_of_the_type_the_caller_prefers(service: Service, accept: str, answered_as: str) -> None:
    stream = io.BytesIO()
    np.save(stream, SHOWN)
    response = httpx.post(
        f"{service.http}/v1/mice/full/predict",
        content=stream.getvalue(),
        headers={"content-type": NPY, "accept": accept},
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == answered_as


def test_both_protocols_list_the_same_twins(service: Service) -> None:
    import mousetwin

    over_rest = [tuple(m["twin"].values()) for m in httpx.get(f"{service.http}/v1/mice").json()["mice"]]
    with mousetwin.connect(service.grpc) as twins:
        over_grpc = [(s.twin.mouse, s.twin.model, s.twin.version, s.twin.digest) for s in twins.mice()]
    assert over_rest == over_grpc
    assert [twin[:3] for twin in over_grpc if twin[0] == "versions"] == [
        ("versions", "linear", "9"),
        ("versions", "linear", "10"),
    ]


def test_one_image_is_answered_under_each_of_several_conditions(host: Host) -> None:
    image = FULL.inputs(1)["images"]
    behavior = RNG.normal(size=(5, 3))
    found = host.predict("full", image, behavior=behavior, space="model").responses
    assert_allclose(found, FULL.respond(image.repeat(5, 0), behavior), rtol=0, atol=2e-6)
    pupil_center = RNG.normal(size=(5, 2))
    found = host.predict("full", image, behavior=behavior[0], pupil_center=pupil_center, space="model").responses
    assert_allclose(found, FULL.respond(image.repeat(5, 0), behavior[[0] * 5], pupil_center), rtol=0, atol=2e-6)
    answer = host.gradient("full", image, np.ones(7), behavior=behavior, space="model")
    assert_allclose(answer.gradient["images"], FULL.gradient(np.ones((5, 7)))["images"], rtol=0, atol=2e-6)
    with pytest.raises(Refused, match="pupil_center"):
        host.predict("full", image, behavior=behavior, pupil_center=pupil_center[:3], space="model")


def test_conditions_of_one_image_are_bounded_by_what_they_expand_to(service: Service) -> None:
    """A few bytes each, and a whole image each once they are run."""
    image, behavior = FULL.inputs(1)["images"], np.zeros((3000, 3), np.float16)
    with mousetwin.connect(service.grpc) as twins:
        with pytest.raises(mousetwin.ResourceExhausted, match="one image under 3000 conditions, at most"):
            twins["full"].predict(image, behavior, neurons=[0], space="model")
        assert twins["full"].predict(image, behavior[:1000], neurons=[0], space="model").shape == (1000, 1)
