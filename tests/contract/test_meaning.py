"""What numbers mean: the space of conditions, warnings of what is nearly always a mistake, answers that overflow."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import mousetwin
import mousetwin.aio
import numpy as np
import pytest
from bundles import BARE, FULL, TinyTwin
from hosts import Host, Refused
from mousetwin import arrays
from mousetwin.cli import main
from mousetwin.v1 import digital_twin_pb2 as pb
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from running import Service, in_thread

NEAR: dict[str, Any] = {"rtol": 0, "atol": 2e-5}
GIVEN = FULL.inputs(3)
BEHAVIOR = np.array([[4.0, 0.5, 9.0], [1.0, -0.5, 0.0], [7.5, 2.0, 30.0]])
PUPIL = np.array([[10.0, -3.0], [-30.0, 9.0], [0.0, 0.0]])
MOVED = BEHAVIOR / FULL.behavior_std
LOOKED = (PUPIL - FULL.pupil_mean) / FULL.pupil_std
GRAY = np.full((1, *FULL.stimulus), 113, np.uint8)


@pytest.fixture
def mouse(service: Service) -> Iterator[mousetwin.Mouse]:
    """New for each test: what it was warned of is forgotten."""
    with mousetwin.connect(service.grpc, timeout=60) as twins:
        yield twins["full"]


# --- conditions say their own space


def test_raw_conditions_beside_images_in_model_space(host: Host) -> None:
    images = GIVEN["images"]
    answer = host.predict("full", images, behavior=BEHAVIOR, pupil_center=PUPIL, space="model", condition_space="raw")
    assert_allclose(answer.responses, FULL.respond(images, MOVED, LOOKED), **NEAR)
    answer = host.gradient(
        "full", images, np.ones(7), behavior=BEHAVIOR, pupil_center=PUPIL, space="model", condition_space="raw"
    )
    right = FULL.gradient(np.ones((3, 7)))
    assert_allclose(answer.gradient["images"], right["images"], **NEAR)
    assert_allclose(answer.gradient["behavior"], right["behavior"] / FULL.behavior_std, **NEAR)
    assert_allclose(answer.gradient["pupil_center"], right["pupil_center"] / FULL.pupil_std, **NEAR)


def test_conditions_in_model_units_beside_raw_images(host: Host) -> None:
    right = FULL.respond_raw(np.repeat(GRAY, 3, 0), BEHAVIOR, PUPIL)
    for space in ({}, {"space": "raw"}):
        answer = host.predict("full", GRAY, behavior=MOVED, pupil_center=LOOKED, condition_space="model", **space)
        assert_allclose(answer.responses, right, **NEAR)
        assert answer.defaults == ()
    answer = host.gradient("full", GRAY, np.ones(7), behavior=MOVED, condition_space="model")
    assert answer.gradient["images"].shape == (3, *FULL.stimulus)
    assert_allclose(answer.gradient["behavior"], FULL.gradient(np.ones((3, 7)))["behavior"], **NEAR)


def test_conditions_follow_the_images_where_they_say_nothing(host: Host) -> None:
    right = FULL.respond_raw(np.repeat(GRAY, 3, 0), BEHAVIOR, PUPIL)
    assert_allclose(host.predict("full", GRAY, behavior=BEHAVIOR, pupil_center=PUPIL).responses, right, **NEAR)
    assert_allclose(host.predict("full", **_named(GIVEN), space="model").responses, FULL.respond(**GIVEN), **NEAR)


def test_an_unknown_condition_space_is_refused(host: Host) -> None:
    with pytest.raises(Refused, match="'lab', expected 'raw' or 'model'") as caught:
        host.predict("full", GRAY, behavior=BEHAVIOR[0], condition_space="lab")
    assert caught.value.field == "condition_space"


def _named(given: dict[str, Any]) -> dict[str, Any]:
    return dict(given)


@pytest.mark.parametrize(
    ("twin", "given"),
    [
        ("full", {"behavior": [55, 0, 20]}),
        ("full", {"pupil_center": [0, 0]}),
        ("full", {"behavior": [[0, 0, 0], [0, 0, 1e-3]]}),
        ("full", {"behavior": [0, 0, 0], "pupil_center": [1, 1]}),
        ("bare", {"behavior": [1, 2, 3]}),
    ],
)
@pytest.mark.filterwarnings("ignore::mousetwin.MousetwinWarning")
@pytest.mark.parametrize("where", ["grpc", "local"])
def test_an_optimisation_does_not_guess_the_space_of_conditions(
    where: str, twin: str, given: dict[str, Any], service: Service, models: Path
) -> None:
    given = {"behavior": [0, 0, 0], **given}
    with mousetwin.connect(service.grpc if where == "grpc" else f"local:{models}") as twins:
        with pytest.raises(mousetwin.InvalidArgument, match=r"'raw'.*'model'") as caught:
            twins[twin].optimize([1], steps=2, **given)
        assert caught.value.field == "condition_space"
        # Each of the two words settles it.
        for said in ({"space": "model"}, {"condition_space": "model"}):
            assert len(twins[twin].optimize([1], steps=2, **given, **said).images) == 1


def test_conditions_that_are_the_same_in_both_spaces_need_not_say(mouse: mousetwin.Mouse) -> None:
    still = mouse.optimize([1], steps=4, norm=2, behavior=[0, 0, 0])
    said = mouse.optimize([1], steps=4, norm=2, behavior=[0, 0, 0], condition_space="model")
    assert np.array_equal(still.images, said.images)


def test_an_optimisation_under_raw_conditions(mouse: mousetwin.Mouse) -> None:
    options: dict[str, Any] = {"steps": 60, "norm": 2}
    found = mouse.optimize([1], behavior=BEHAVIOR[2], pupil_center=PUPIL[1], condition_space="raw", **options)
    image = found.images[0] / np.linalg.norm(found.images[0])
    filtered = FULL.weights("W")[:, 1].reshape(FULL.native)
    assert_allclose(image, filtered / np.linalg.norm(filtered), atol=2e-2)
    assert_allclose(found.values, FULL.respond(found.images, MOVED[2], LOOKED[1])[:, 1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["grating_tuning", "contrast_series", "gradient_fields", "receptive_fields"])
def test_experiments_do_not_guess_it_either(name: str, mouse: mousetwin.Mouse) -> None:
    from mousetwin import experiments

    arguments: dict[str, Any] = {
        "grating_tuning": {"neurons": [1]},
        "contrast_series": {"image": np.ones(FULL.native), "neurons": [1]},
        "gradient_fields": {"neurons": [1]},
        "receptive_fields": {"neurons": [1], "images": 8},
    }[name]
    run = getattr(experiments, name)
    with pytest.raises(mousetwin.InvalidArgument) as caught:
        run(mouse, **arguments, behavior=BEHAVIOR[2])
    assert caught.value.field == "condition_space"
    with pytest.raises(mousetwin.InvalidArgument, match="made in model space") as caught:
        run(mouse, **arguments, space="raw")
    assert caught.value.field == "space"
    raw = run(mouse, **arguments, behavior=BEHAVIOR[2], condition_space="raw")
    model = run(mouse, **arguments, behavior=MOVED[2], condition_space="model")
    both = [getattr(found, "responses", getattr(found, "fields", None)) for found in (raw, model)]
    assert_allclose(*both, **NEAR)


def test_a_torch_module_does_not_guess_it_either(mouse: mousetwin.Mouse) -> None:
    torch = pytest.importorskip("torch")
    images = torch.tensor(GIVEN["images"])
    with pytest.raises(mousetwin.InvalidArgument) as caught:
        mouse.torch_module(behavior=BEHAVIOR[2])
    assert caught.value.field == "condition_space"
    with pytest.raises(mousetwin.InvalidArgument) as caught:
        mouse.torch_module()(images, torch.tensor(BEHAVIOR))
    assert caught.value.field == "condition_space"
    right = FULL.respond(GIVEN["images"], MOVED, LOOKED)
    raw = mouse.torch_module(condition_space="raw")
    assert_allclose(raw(images, torch.tensor(BEHAVIOR), torch.tensor(PUPIL)), right, **NEAR)
    model = mouse.torch_module(space="model", pupil_center=LOOKED)
    assert_allclose(model(images, torch.tensor(MOVED)), right, **NEAR)
    # What is the same in both need not say.
    still = mouse.torch_module(behavior=[0, 0, 0])
    assert_allclose(still(images), FULL.respond(GIVEN["images"], np.zeros((3, 3))), **NEAR)


def test_images_to_start_from_say_what_they_are(mouse: mousetwin.Mouse) -> None:
    start = np.full((1, *FULL.native), 100, np.uint8)
    with pytest.raises(mousetwin.InvalidArgument, match=r"uint8 images to start from must say") as caught:
        mouse.optimize([1], start=start, steps=2)
    assert caught.value.field == "space"
    assert mouse.optimize([1], start=start, steps=2, space="raw").images.min() >= 0


def test_the_command_asks_for_the_space_of_conditions(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["mei", "--mouse", "full", "--neurons", "1", "--steps", "3", "--server", service.grpc]
    far = ["--behavior", "50,0,10", "--out", "a.npz"]
    assert main([*command, *far]) == 1
    assert capsys.readouterr().err.startswith("mousetwin: condition_space: behavior must say")
    assert not list(tmp_path.iterdir())
    assert main([*command, *far, "--condition-space", "model"]) == 0
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert told.startswith("mousetwin: warning: behavior: pupil dilation is 48 standard deviations")
    assert main([*command, "--behavior", "5,0,10", "--condition-space", "raw", "--out", "b.npz"]) == 0
    assert "warning" not in capsys.readouterr().err

    np.save("images.npy", GRAY)
    np.save("behavior.npy", MOVED)
    ask = ["predict", "images.npy", "--mouse", "full", "--server", service.grpc, "--behavior", "behavior.npy"]
    assert main([*ask, "--condition-space", "model", "--out", "r.npy"]) == 0
    assert_allclose(np.load("r.npy"), FULL.respond_raw(np.repeat(GRAY, 3, 0), BEHAVIOR), **NEAR)


# --- warnings

SCALED = np.random.default_rng(0).uniform(0, 1, (2, *FULL.stimulus))
LEVELS = np.random.default_rng(1).integers(0, 256, (2, *FULL.native)).astype(np.float32)
MODEL_IMAGES = GIVEN["images"][:2]
# mouse, query, how the one warning begins.
MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "floats from 0 to 1": ("full", {"images": SCALED, "space": "raw"}, "images: raw gray levels of at most"),
    "a stimulus of 0 and 1": (
        "full",
        {"images": (SCALED > 0.5).astype(np.uint8)},
        "images: raw gray levels of at most 1",
    ),
    "gray levels as the network's": (
        "full",
        {"images": LEVELS, "space": "model"},
        "images: model space runs from",
    ),
    "ten deviations of running": ("full", {"images": GRAY, "behavior": [4, 0.5, 39]}, "behavior: running is 10 "),
    "the other way": ("full", {"images": GRAY, "behavior": [-17, 0.5, 9]}, "behavior: pupil dilation is -10.5 "),
    "raw behavior as the network's": (
        "full",
        {"images": MODEL_IMAGES, "behavior": [4, 0.5, 20], "space": "model"},
        "behavior: running is 17 ",
    ),
    "one of many rows": (
        "full",
        {"images": MODEL_IMAGES, "behavior": [[2, 2, 3], [2, -9, 3]], "space": "model"},
        "behavior: its derivative is -11 ",
    ),
    "behavior without statistics": (
        "bare",
        {"images": MODEL_IMAGES, "behavior": [50, 0, 10], "space": "model"},
        "behavior: pupil dilation is 50 ",
    ),
    "a pupil elsewhere": ("full", {"images": GRAY, "pupil_center": [100, -3]}, "pupil_center: horizontal is 18 "),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.filterwarnings("ignore::mousetwin.MousetwinWarning")
def test_what_is_nearly_always_a_mistake_is_answered_with_a_warning(name: str, host: Host) -> None:
    twin, query, words = MISTAKES[name]
    answer = host.predict(twin, **query)
    (told,) = answer.warnings
    assert told.startswith(words), told
    model = query.get("space") == "model"
    respond = {"full": FULL, "bare": BARE}[twin]
    given: list[Any] = [query["images"]]
    count = len(query["images"])
    mean = np.divide(FULL.behavior_mean, FULL.behavior_std) if model else FULL.behavior_mean
    given.append(np.broadcast_to(query.get("behavior", mean), (count, 3)))
    given.append(query.get("pupil_center"))
    right = respond.respond(*given) if model else respond.respond_raw(*given)
    assert_allclose(answer.responses, right, rtol=1e-5, atol=1e-4)
    assert host.gradient(twin, cotangent=np.ones(7), **query).warnings == answer.warnings


@pytest.mark.parametrize(
    "query",
    [
        {"images": GRAY},
        {"images": np.zeros_like(GRAY)},
        {"images": GRAY.astype(float), "space": "raw"},
        {"images": np.random.default_rng(2).normal(0, 4, (2, *FULL.native)), "space": "model"},
        {"images": GRAY, "behavior": [20, 0.5, 9], "pupil_center": [50, -3]},
        {"images": np.zeros((1, *FULL.native)), "behavior": [0, 0, 0], "space": "model"},
    ],
)
def test_what_is_usual_brings_no_warning(query: dict[str, Any], host: Host) -> None:
    assert host.predict("full", **query).warnings == ()


def test_a_loop_is_told_of_each_mistake_once(mouse: mousetwin.Mouse) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for scale in (1.0, 0.9, 0.4):
            found = mouse.predict(SCALED * scale, space="raw")
            assert len(found.warnings) == 1
        mouse.gradient(SCALED, np.ones(7), space="raw")
        mouse.predict(GRAY, [4, 0.5, 60])
        mouse.predict(GRAY, [4, 0.5, 90])
    assert [str(one.message).split(":")[0] for one in caught] == ["images", "behavior"]
    assert all(one.category is mousetwin.MousetwinWarning for one in caught)
    # It points at who asked.
    assert all(Path(one.filename) == Path(__file__) for one in caught)


def test_warnings_of_every_frame_come_together(mouse: mousetwin.Mouse) -> None:
    images = np.random.default_rng(3).integers(0, 256, (400, *FULL.native)).astype(np.float32)
    images[300:] /= 255
    with pytest.warns(mousetwin.MousetwinWarning, match="scaled to 0 to 1"):
        found = mouse.predict(images, space="raw")
    assert len(found.warnings) == 1
    assert found[:10].warnings == found.warnings


def test_sessions_frames_and_asyncio_tell_too(service: Service, mouse: mousetwin.Mouse) -> None:
    import asyncio

    with mouse.session() as session, pytest.warns(mousetwin.MousetwinWarning, match="images"):
        assert session.predict(SCALED, space="raw").warnings
    with pytest.warns(mousetwin.MousetwinWarning, match="images"):
        (answer,) = mouse.predict_frames([{"images": SCALED, "space": "raw"}])
    assert answer.warnings

    async def ask() -> mousetwin.Responses:
        async with mousetwin.aio.connect(service.grpc) as twins:
            return await (await twins.mouse("full")).predict(SCALED, space="raw")

    with pytest.warns(mousetwin.MousetwinWarning, match="images"):
        assert asyncio.run(ask()).warnings


def test_other_languages_find_warnings_in_the_trailing_metadata(service: Service) -> None:
    request = pb.PredictRequest(
        twin=pb.TwinRef(mouse="full"), images=arrays.to_proto(SCALED), space=pb.SPACE_RAW
    ).SerializeToString()
    with grpc.insecure_channel(service.grpc) as channel:
        ask: Any = channel.unary_unary("/mousetwin.v1.DigitalTwin/Predict")
        answer, call = ask.with_call(request)
    told = [value for key, value in call.trailing_metadata() if key == "warning"]
    assert told == list(pb.PredictResponse.FromString(answer).warnings)
    assert len(told) == 1


class Silent(TinyTwin):
    """Neuron 2 answers 0 to everything."""

    def weights(self, what: str) -> NDArray[np.float32]:
        found = super().weights(what)
        found[:, 2] = 0
        return found


def test_an_optimisation_whose_best_image_does_not_respond_says_so(tmp_path: Path) -> None:
    Silent("silent", unit_ids=(11, 7, 30, 5, 1002, 64, 8)).write(tmp_path)
    with in_thread(tmp_path) as service, mousetwin.connect(service.grpc) as twins:
        mouse = twins["silent"]
        with pytest.warns(mousetwin.MousetwinWarning, match=r"neurons: 1 of 2 do not respond .*\(2;"):
            found = mouse.optimize([1, 2], steps=4)
        assert len(found.warnings) == 1
        with pytest.warns(mousetwin.MousetwinWarning, match=r"unit_ids: 1 of 1 do not respond .*\(30;"):
            mouse.optimize(unit_ids=[30], steps=4)
        # A neuron that is to be driven down may well be silent.
        assert mouse.optimize([[2]], weights=[-1.0], steps=4).warnings == ()
        found.save(tmp_path / "found.npz")
        assert mousetwin.Optimized.load(tmp_path / "found.npz").warnings == found.warnings


# --- answers that are not finite


@pytest.mark.filterwarnings("ignore::mousetwin.MousetwinWarning")
@pytest.mark.parametrize("value", [3e38, -3e38])
def test_a_response_that_overflows_is_an_error_that_says_so(value: float, host: Host) -> None:
    images = (value * np.sign(FULL.weights("W")[:, 3])).reshape(1, *FULL.native).repeat(2, 0)
    with pytest.raises(Refused, match=r"responses at \(\d, \d\) came out as (-?inf|nan)") as caught:
        host.predict("full", images, behavior=[0, 0, 0], space="model")
    assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", "images")
    with pytest.raises(Refused, match=r"the gradient of \w+ at .* came out as -?inf") as caught:
        host.gradient("full", GIVEN["images"], np.full(7, value), space="model")
    assert caught.value.field == "cotangent"
    assert_allclose(host.predict("full", **_named(GIVEN), space="model").responses, FULL.respond(**GIVEN), **NEAR)


def test_a_response_beyond_float16_is_an_error_that_says_so(service: Service) -> None:
    images = np.full((300, *FULL.native), 1e5, np.float32)
    for count in (1, 300):
        answer = httpx.post(
            f"{service.http}/v1/mice/full/predict",
            params={"space": "model", "dtype": "float16"},
            content=arrays.write_npy(images[:count]),
            headers={"content-type": "application/x-npy"},
        )
        assert answer.status_code == 400
        assert answer.json()["field"] == "dtype"
        assert "beyond float16" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["npy", "csv", "npz", "zarr"])
def test_the_command_writes_no_response_beyond_float16(
    kind: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.zeros((300, *FULL.native), np.float32)
    images[200] = 1e5 * np.sign(FULL.weights("W")[:, 3]).reshape(FULL.native)
    np.save("images.npy", images)
    command = ["predict", "images.npy", "--mouse", "full", "--space", "model", "--server", service.grpc]
    assert main([*command, "--dtype", "float16", "--out", f"r.{kind}"]) == 1
    assert "dtype: a response of" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["images.npy"]
    assert main([*command, "--out", f"r.{kind}"]) == 0


@pytest.mark.parametrize("address", ["grpc", "local:"])
@pytest.mark.parametrize(
    "options", [{"norm": 1e30}, {"max_norm": 1e30, "start": "noise"}, {"std": 1e35}, {"norm": 1e300}]
)
def test_images_too_large_to_compute_are_an_error_that_says_so(
    address: str, options: dict[str, Any], tmp_path: Path
) -> None:
    from mousetwin_serve.repository import DEMO_MODELS

    with (
        in_thread(DEMO_MODELS) as service,
        mousetwin.connect(service.grpc if address == "grpc" else address) as twins,
    ):
        mouse = twins["demo"]
        # Complex cells, whose energy is a square.
        cells = np.flatnonzero(mouse.info.truth["is_complex"])[:2]
        with pytest.raises(mousetwin.InvalidArgument, match=r"came out as (-?inf|nan)") as caught:
            mouse.optimize(cells, steps=3, **options)
        assert caught.value.field == next(iter(options))
        assert np.isfinite(mouse.optimize(cells, steps=3).images).all()


def test_json_never_holds_null_for_a_response(service: Service) -> None:
    images = 3e38 * np.sign(FULL.weights("W")[:, 3]).reshape(1, *FULL.native)
    body = {"images": images.tolist(), "space": "model"}
    answer = httpx.post(f"{service.http}/v1/mice/full/predict", json=body)
    assert answer.status_code == 400
    assert "null" not in answer.text
    assert json.loads(answer.text)["code"] == "INVALID_ARGUMENT"


# --- frames are mappings, whose names must be known


@pytest.mark.parametrize(
    ("frame", "field", "words"),
    [
        ({"images": GRAY, "neuron": [1]}, "neuron", "a frame may not hold it, expected some of images, behavior"),
        ({"images": GRAY, "Space": "raw"}, "Space", "condition_space"),
        ({"image": GRAY}, "image", "expected some of images"),
        ({"images": GRAY, "timeout": 3}, "timeout", "a frame may not hold it"),
        ({"images": GRAY, 3: 4}, "3", "a frame may not hold it"),
        ({"behavior": [1, 2, 3]}, "images", "missing in a frame"),
    ],
)
def test_a_name_that_a_frame_may_not_hold_is_refused(
    frame: dict[Any, Any], field: str, words: str, mouse: mousetwin.Mouse
) -> None:
    answers = mouse.predict_frames([{"images": GRAY}, frame])
    assert_allclose(next(answers), FULL.respond_raw(GRAY), **NEAR)
    with pytest.raises(mousetwin.InvalidArgument, match=words) as caught:
        next(answers)
    assert caught.value.field == field


# --- what changes nothing is not taken in silence


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": 0.5}, "temperature"),
        ({"min_share": 0.5}, "min_share"),
        ({"background": np.zeros(FULL.native)}, "background"),
        ({"tolerance": 0.1}, "tolerance"),
        ({"momentum": 0.2, "optimizer": "adam"}, "momentum"),
        ({"trials": 4, "start": "gray"}, "trials"),
        ({"trial_steps": 2, "start": "gray"}, "trial_steps"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    options: dict[str, Any], field: str, mouse: mousetwin.Mouse
) -> None:
    with pytest.raises(mousetwin.InvalidArgument, match="changes nothing without") as caught:
        mouse.optimize([1], steps=4, **options)
    assert caught.value.field == field


def test_whole_numbers_say_what_they_are_where_images_are_made_for_the_network(mouse: mousetwin.Mouse) -> None:
    from mousetwin import experiments

    with pytest.raises(mousetwin.InvalidArgument, match="uint8 images must say") as caught:
        experiments.contrast_series(mouse, np.ones(FULL.native, np.uint8), neurons=[1])
    assert caught.value.field == "space"
    torch = pytest.importorskip("torch")
    images = torch.tensor(np.arange(48).reshape(1, *FULL.native))
    with pytest.raises(mousetwin.InvalidArgument, match="int64 images must say"):
        mouse.torch_module()(images)
    assert_allclose(mouse.torch_module(space="raw")(images), FULL.respond_raw(images), **NEAR)


def test_images_to_start_from_are_warned_of(mouse: mousetwin.Mouse) -> None:
    start = np.full((1, *FULL.native), 120.0)
    with pytest.warns(mousetwin.MousetwinWarning, match="images: model space runs from 120 to 120"):
        mouse.optimize([1], start=start, steps=2, max_norm=1e4)


def test_one_neuron_and_one_model_by_themselves(service: Service) -> None:
    from mousetwin import experiments

    with mousetwin.connect(service.grpc) as twins:
        tuning = experiments.grating_tuning(twins["full"], neurons=3)
        assert tuning.axes["neuron"].tolist() == [3]
        assert experiments.gradient_fields(twins["full"], 3).fields.shape == (1, *FULL.native)
        found = twins.mouse("two-models", "cnn").optimize([2], models="ln", steps=2)
        assert [twin["model"] for twin in found.records[0]["twins"]] == ["cnn", "ln"]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_timeout_is_seconds(timeout: Any, mouse: mousetwin.Mouse, service: Service) -> None:
    for ask in (
        lambda: mouse.predict(GRAY, timeout=timeout),
        lambda: mouse.optimize([1], steps=1, timeout=timeout),
        lambda: mousetwin.connect(service.grpc, timeout=timeout),
        lambda: mousetwin.aio.connect(service.grpc, timeout=timeout),
    ):
        with pytest.raises(mousetwin.InvalidArgument, match="expected seconds, more than 0") as caught:
            ask()
        assert caught.value.field == "timeout"


@pytest.mark.parametrize(
    "parameters", [{}, {"neurons": "1,2"}, {"unit_ids": "7,11"}, {"dtype": "float16", "neurons": "1,2"}]
)
def test_an_answer_is_in_c_order_whatever_was_chosen(parameters: dict[str, str], service: Service) -> None:
    for accept in ("application/x-npy", "application/x-npz"):
        answer = httpx.post(
            f"{service.http}/v1/mice/full/predict",
            params=parameters,
            content=arrays.write_npy(np.repeat(GRAY, 3, 0)),
            headers={"content-type": "application/x-npy", "accept": accept},
        )
        assert b"'fortran_order': False" in answer.content
        assert b"'fortran_order': True" not in answer.content


# --- constraints hold, or are refused


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"low": 5, "high": 6}, "low"),
        ({"low": 1, "high": 4, "std": 1}, "low"),
        ({"low": -4, "high": -1, "max_norm": 5}, "high"),
        ({"low": 120, "high": 200, "norm": 800, "space": "raw"}, "low"),
        ({"weights": [[1e-30]]}, "weights"),
        ({"weights": [[1e30]]}, "weights"),
        ({"fourier": 100}, "fourier"),
        ({"l2": 1e300}, "l2"),
        ({"total_variation": 1e300}, "total_variation"),
        ({"against": [3], "temperature": 1e16}, "temperature"),
        ({"against": [3], "temperature": 1e-6}, "temperature"),
        ({"mask": np.full(FULL.native, np.nan)}, "mask"),
        # A twin that is linear has a gradient at gray; a mask of nothing leaves no room.
        ({"mask": np.full(FULL.native, 1e-200)}, "norm"),
    ],
)
def test_what_cannot_be_kept_or_followed_is_refused(
    options: dict[str, Any], field: str, mouse: mousetwin.Mouse
) -> None:
    with pytest.raises(mousetwin.InvalidArgument) as caught:
        mouse.optimize([1], steps=4, **options)
    assert caught.value.field == field, caught.value


def test_an_image_that_stays_blank_is_no_most_exciting_image() -> None:
    with mousetwin.connect("local:") as twins:
        mouse = twins["demo"]
        # At gray the energy of a complex cell does not change with any pixel.
        cell = int(np.flatnonzero(mouse.info.truth["is_complex"])[0])
        with pytest.raises(mousetwin.InvalidArgument, match=r"norm: image 0 has not the size that is held"):
            mouse.optimize([cell], start="gray", steps=5)


def test_an_ensemble_sees_the_same_gray_levels(tmp_path: Path) -> None:
    class Dark(TinyTwin):
        image_mean, image_std = 60.0, 20.0

    TinyTwin("pair", "a").write(tmp_path)
    Dark("pair", "b").write(tmp_path)
    TinyTwin("pair", "c", statistics=False).write(tmp_path)
    with mousetwin.connect(f"local:{tmp_path}") as twins:
        for other in ("b", "c"):
            with pytest.raises(mousetwin.InvalidArgument, match=r"gray levels|image statistics") as caught:
                twins.mouse("pair", "a").optimize([1], models=[other], space="raw", behavior=[0, 0, 0], steps=2)
            assert caught.value.field == "space"


def test_an_optimisation_warns_of_gray_levels_in_model_space(mouse: mousetwin.Mouse) -> None:
    with pytest.warns(mousetwin.MousetwinWarning, match="images: model space runs from"):
        found = mouse.optimize([1], mean=110, std=25, steps=3)
    assert len(found.warnings) == 1


# --- what was sent is what is used, whatever the caller does with its arrays


@pytest.mark.parametrize("where", ["grpc", "local"])
def test_a_session_answers_what_was_sent(where: str, service: Service, models: Path) -> None:
    buffer = np.zeros((1, *FULL.native), np.float32)
    with mousetwin.connect(service.grpc if where == "grpc" else f"local:{models}") as twins:
        session = twins["full"].session()
        for level in (1, 2):
            buffer[:] = level
            session.send_predict(buffer, [0, 0, 0], space="model")
        for level in (1, 2):
            right = FULL.respond(np.full((1, *FULL.native), level), np.zeros((1, 3)))
            assert_allclose(session.receive(), right, **NEAR)
        session.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_and_the_best_candidate_keep_what_they_were_given(mouse: mousetwin.Mouse) -> None:
    from mousetwin.blackbox import Evaluator

    candidates = np.ones((2, *FULL.native))
    evaluate = Evaluator(mouse, neurons=[1], space="model")
    evaluate(candidates)
    candidates[:] = 0
    assert evaluate.best is not None
    assert evaluate.best.image.min() == 1
    torch = pytest.importorskip("torch")
    behavior = np.zeros(3)
    module = mouse.torch_module(neurons=2, behavior=behavior)
    behavior[:] = 5
    images = torch.tensor(GIVEN["images"])
    assert_allclose(module(images), FULL.respond(GIVEN["images"], np.zeros((3, 3)))[:, [2]], **NEAR)
    assert torch.func.jacfwd(module)(images[:1]).shape == (1, 1, 1, 1, *FULL.native)


def test_a_table_says_which_channel_is_which(mouse: mousetwin.Mouse) -> None:
    pandas = pytest.importorskip("pandas")
    names = list(mouse.summary.behavior)
    rows = dict(zip(names, BEHAVIOR.T, strict=True))
    images = np.repeat(GRAY, 3, 0)
    assert_allclose(mouse.predict(images, pandas.DataFrame(rows)), FULL.respond_raw(images, BEHAVIOR), **NEAR)
    for wrong in (
        pandas.DataFrame({name: rows[name] for name in names[::-1]}),
        pandas.DataFrame(BEHAVIOR, columns=[names[0], "b", "c"]),
        pandas.Series(BEHAVIOR[0], index=names[::-1]),
    ):
        with pytest.raises(mousetwin.InvalidArgument, match="behavior: columns") as caught:
            mouse.predict(images, wrong)
        assert caught.value.field == "behavior"


def test_experiments_in_chunks_take_one_condition(mouse: mousetwin.Mouse) -> None:
    from mousetwin import experiments

    rows = np.zeros((256, 3))
    for run in (
        lambda: experiments.top_images(mouse, np.repeat(GRAY, 512, 0), k=1, behavior=rows),
        lambda: experiments.receptive_fields(mouse, [1], images=512, behavior=rows),
    ):
        with pytest.raises(mousetwin.InvalidArgument, match="expected one row for all images") as caught:
            run()
        assert caught.value.field == "behavior"
    with pytest.raises(mousetwin.InvalidArgument, match="images: 0"):
        experiments.receptive_fields(mouse, [1], images=0)
    tuning = experiments.grating_tuning(mouse, neurons=[1])
    with pytest.raises(mousetwin.InvalidArgument, match="'orientatoin', expected one of orientation"):
        tuning.curve("orientatoin")


def test_names_that_no_message_can_hold(service: Service) -> None:
    with mousetwin.connect(service.grpc) as twins:
        for key in ("\udcff", 5):
            with pytest.raises(mousetwin.InvalidArgument, match="expected text") as caught:
                twins.mouse(key)  # type: ignore[arg-type]
            assert caught.value.field == "mouse"


def test_a_model_counts_once(service: Service) -> None:
    with mousetwin.connect(service.grpc) as twins, pytest.raises(mousetwin.InvalidArgument, match="ln is repeated"):
        twins.mouse("two-models", "cnn").optimize([1], models=["ln", "ln"], steps=2)
