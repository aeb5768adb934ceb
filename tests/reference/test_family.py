"""Exported twins against the original library: what a lab gets from us is what it had."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from checkpoints import REAL, real_checkpoint
from mousetwin.cli import main
from mousetwin_export.checkpoint import build_twin, read_checkpoint
from mousetwin_export.config import parse_config
from mousetwin_export.forward import Forms
from mousetwin_serve import bundle
from mousetwin_serve.batch import Answer, Batch
from mousetwin_serve.device import choose
from mousetwin_serve.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))
import original

BASE: dict[str, Any] = {
    "pad_input": False,
    "stack": -1,
    "layers": 3,
    "input_kern": 5,
    "hidden_kern": 3,
    "hidden_channels": 8,
    "depth_separable": True,
    "grid_mean_predictor": {
        "type": "cortex",
        "input_dimensions": 2,
        "hidden_layers": 1,
        "hidden_features": 30,
        "final_tanh": True,
    },
    "init_sigma": 0.1,
    "init_mu_range": 0.3,
    "gauss_type": "full",
    "shifter": False,
    "gamma_input": 6.3831,
    "gamma_readout": 0.0076,
}

# Overrides of BASE; "native", "behavior", "mice" and "core_bias" are about the model around the config.
VARIANTS: dict[str, dict[str, Any]] = {
    "image only": {},
    "linear": {"linear": True},
    "behavior and shifter": {"behavior": 3, "shifter": True},
    "behavior without shifter": {"behavior": 3},
    "shifter without behavior": {"shifter": True, "shift_layers": 1},
    "two behavior variables": {"behavior": 2, "shifter": True, "hidden_channels_shifter": 3, "shift_layers": 2},
    "affine shifter": {"shifter": True, "shifter_type": "StaticAffine"},
    "affine shifter without bias": {"shifter": True, "shifter_type": "StaticAffine", "shifter_bias": False},
    "many mice": {"mice": {"1-1-1": 17, "2-2-2": 5, "3-3-3": 4}, "shifter": True},
    "one layer": {"layers": 1, "input_kern": 9},
    "five layers, wide kernels": {"layers": 5, "hidden_kern": 7, "input_kern": 13, "hidden_channels": 6},
    "kernels of several sizes": {"layers": 4, "hidden_kern": [7, 3, 5]},
    "more kernels than layers": {"layers": 2, "hidden_kern": [7, 3, 5]},
    "dilated": {"hidden_dilation": 2},
    "plain convolutions": {"depth_separable": False},
    "plain convolutions with biases, no batch norm": {
        "depth_separable": False,
        "batch_norm": False,
        "core_bias": True,
    },
    "depth-separable with biases": {"core_bias": True},
    "padded input": {"pad_input": True},
    "hidden padding given": {"hidden_padding": 0},
    "all layers stacked": {"stack": None},
    "two layers stacked": {"stack": [0, -1]},
    "last two layers stacked": {"stack": -2, "layers": 4},
    "skip connections": {"skip": 2, "layers": 4, "depth_separable": False},
    "no final nonlinearity": {"final_nonlinearity": False},
    "output offset": {"elu_offset": 0.5},
    "no readout bias": {"readout_bias": False},
    "learned positions, some beyond the map": {"grid_mean_predictor": None, "gauss_type": "uncorrelated"},
    "learned positions and shifter": {"grid_mean_predictor": None, "gauss_type": "isotropic", "shifter": True},
    "predictor without hidden layer or tanh": {
        "grid_mean_predictor": {"type": "cortex", "input_dimensions": 3, "hidden_layers": 0, "final_tanh": False}
    },
    "another size": {"native": (20, 31)},
    "stimulus size": {"native": (144, 256), "shifter": True, "behavior": 3, "hidden_channels": 4},
}


def save(model: torch.nn.Module, config: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    checkpoint, written = folder / "model.pth", folder / "config.yaml"
    torch.save(model.state_dict(), checkpoint)
    document = {"model_fn": "sensorium.models.stacked_core_full_gauss_readout", "model_config": config}
    written.write_text(yaml.safe_dump(document))
    return checkpoint, written


def stimulus(
    batch: int, native: tuple[int, int], behavior: int, pupil: bool, reach: float
) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(batch)
    inputs = {"images": rng.normal(size=(batch, 1, *native)).astype(np.float32)}
    if behavior:
        inputs["behavior"] = rng.normal(1, 1, (batch, behavior)).astype(np.float32)
    if pupil:
        inputs["pupil_center"] = rng.uniform(-reach, reach, (batch, 2)).astype(np.float32)
    return inputs


Arrays = dict[str, np.ndarray[Any, Any]]


def expected_of(
    model: torch.nn.Module, mouse: str, inputs: Arrays, cotangent: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], Arrays]:
    """The original's responses in float64, and its own gradient of Σ cotangent · responses."""
    given = {name: torch.from_numpy(values).double().requires_grad_() for name, values in inputs.items()}
    responses = original.respond(model.double(), mouse, **given)
    gradients = torch.autograd.grad(responses, list(given.values()), torch.from_numpy(cotangent).double())
    return responses.detach().numpy(), {name: g.numpy() for name, g in zip(given, gradients, strict=True)}


def check_gradients(found: Any, expected: Arrays) -> None:
    for name, values in expected.items():
        # Relative to its norm. Behavior's and a pupil's are sums over all pixels or neurons: what is left where their
        # thousands of terms cancel holds more of the terms' rounding, by another amount on another processor.
        relative, rounding = {"images": (1e-5, 1e-9), "behavior": (1e-4, 1e-9), "pupil_center": (1e-4, 1e-5)}[name]
        assert np.linalg.norm(found[name] - values) <= relative * np.linalg.norm(values) + rounding


@pytest.mark.parametrize("name", VARIANTS)
def test_every_member_of_the_family_answers_as_the_original_does(name: str, tmp_path: Path) -> None:
    """The forms that are exported, run in torch: all neurons, chosen ones and one an image, with their gradients."""
    variant = dict(VARIANTS[name])
    native, behavior = variant.pop("native", (36, 64)), variant.pop("behavior", 0)
    mice, core_bias = variant.pop("mice", {"12345-6-7": 23}), variant.pop("core_bias", False)
    config = {**BASE, **variant}
    model = original.build_original(config, mice, native, behavior, core_bias=core_bias)
    checkpoint, _ = save(model, config, tmp_path)
    read, parsed = read_checkpoint(checkpoint), parse_config(config)
    rng = np.random.default_rng(0)
    for mouse, neurons in mice.items():
        forms = Forms(build_twin(read, parsed, mouse).requires_grad_(False), native)
        for batch, reach in ((1, 1.0), (5, 3.0), (3, 20.0)):
            inputs = stimulus(batch, native, behavior, bool(config["shifter"]), reach)
            own, weights = rng.integers(0, neurons, batch), rng.normal(size=(batch, neurons)).astype(np.float32)
            one = np.eye(neurons, dtype=np.float32)[own]
            for form, columns, cotangent in (
                (forms.all, None, weights),
                (forms.chosen, np.arange(neurons)[::-1], weights),
                (forms.each, own, one),
            ):
                if form is None:
                    continue
                expected, gradients = expected_of(model, mouse, inputs, cotangent)
                rows = {} if columns is None else {key: values[columns.copy()] for key, values in forms.table.items()}
                given = {key: torch.from_numpy(values).requires_grad_() for key, values in inputs.items()}
                found = form(**given, **rows)
                if form is forms.each:
                    expected, cotangent = expected[np.arange(batch), own][:, None], np.ones((batch, 1), np.float32)
                elif columns is not None:
                    expected, cotangent = expected[:, columns], cotangent[:, columns]
                np.testing.assert_allclose(found.detach().numpy(), expected, atol=2e-5, rtol=0)
                pulled = torch.autograd.grad(found, list(given.values()), torch.from_numpy(cotangent.copy()))
                check_gradients({key: g.numpy() for key, g in zip(given, pulled, strict=True)}, gradients)
            # Tame weights would make any two models agree. (A pupil far out leads beyond the map: all alike there.)
            assert reach > 3 or batch == 1 or expected_of(model, mouse, inputs, weights)[0].std() > 0.01


EXPORTED = ("image only", "many mice", "padded input", "plain convolutions with biases, no batch norm")


@pytest.mark.parametrize("name", EXPORTED)
def test_a_member_of_the_family_through_the_command(name: str, tmp_path: Path) -> None:
    variant = dict(VARIANTS[name])
    mice, core_bias = variant.pop("mice", {"12345-6-7": 23}), variant.pop("core_bias", False)
    config = {**BASE, **variant}
    model = original.build_original(config, mice, (36, 64), 0, core_bias=core_bias)
    checkpoint, written = save(model, config, tmp_path)
    command = ["export", str(checkpoint), "--config", str(written), "--mouse", "all", "--out", str(tmp_path / "models")]
    assert main([*command, "--no-gradient"]) == 0
    with mousetwin.connect(f"local:{tmp_path / 'models'}") as twins:
        assert sorted(twins) == sorted(mice)
        for mouse, neurons in mice.items():
            inputs = stimulus(5, (36, 64), 0, bool(config["shifter"]), 3.0)
            tensors = {key: torch.from_numpy(values).double() for key, values in inputs.items()}
            expected = original.predict(model.double(), mouse, **tensors)
            found = twins[mouse].predict(**inputs, space="model")
            assert found.shape == (5, neurons)
            np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)
            assert "not asked for" in twins[mouse].summary.no_gradient


@pytest.fixture(scope="module", params=REAL)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A published model: the original, its mouse and its twin."""
    checkpoint, config_file, mouse = real_checkpoint(request.param)
    config = yaml.safe_load(config_file.read_text())["model_config"]
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
    neurons = weights[f"readout.{mouse}._features"].shape[3]
    behavior = weights["core.features.layer0.conv.weight"].shape[1] - 1
    model = original.build_original(config, {mouse: neurons}, (36, 64), behavior)
    model.load_state_dict(weights, strict=True)
    out = tmp_path_factory.mktemp("models")
    assert main(["export", str(checkpoint), "--config", str(config_file), "--mouse", mouse, "--out", str(out)]) == 0
    (folder,) = out.glob("*/*/*")
    with mousetwin.connect(f"local:{out}") as twins:
        yield model, twins[mouse], lambda n, reach: stimulus(n, (36, 64), behavior, config["shifter"], reach), folder


def test_the_published_models_predict_as_the_original_does(published: Any) -> None:
    model, twin, stimuli, _ = published
    mouse = twin.summary.twin.mouse
    for batch, reach in ((1, 0.0), (4, 3.0), (4, 10.0)):
        inputs = stimuli(batch, reach)
        single = {key: torch.from_numpy(values) for key, values in inputs.items()}
        in_single = original.predict(model.float(), mouse, **single)
        in_double = original.predict(model.double(), mouse, **{k: v.double() for k, v in single.items()})
        found = twin.predict(**inputs, space="model")
        np.testing.assert_allclose(found, in_single, atol=2e-5, rtol=0)
        np.testing.assert_allclose(found, in_double, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["all", "some", "many", "one", "one an image"])
def test_the_published_models_gradients_are_the_originals(published: Any, kind: str) -> None:
    model, twin, stimuli, _ = published
    mouse, neurons = twin.summary.twin.mouse, twin.summary.neurons
    rng = np.random.default_rng(0)
    inputs = stimuli(3, 3.0)
    columns = {
        "all": np.arange(neurons),
        "some": rng.permutation(neurons)[:10],
        "many": rng.permutation(neurons)[:2000],
        "one": np.array([77]),
        "one an image": rng.integers(0, neurons, (3, 1)),
    }[kind]
    cotangent = rng.normal(size=(3, columns.shape[-1])).astype(np.float32)
    whole = np.zeros((3, neurons), np.float32)
    places = np.broadcast_to(columns, cotangent.shape)
    np.put_along_axis(whole, places, cotangent, 1)
    expected, gradients = expected_of(model, mouse, inputs, whole)
    asked = {} if kind == "all" else {"neurons": columns}
    gradient = twin.gradient(cotangent=cotangent, **inputs, **asked, space="model")
    np.testing.assert_allclose(gradient.responses, np.take_along_axis(expected, places, 1), atol=2e-5, rtol=0)
    check_gradients({name: getattr(gradient, name) for name in gradients}, gradients)
    found = twin.predict(**inputs, **asked, space="model")
    np.testing.assert_allclose(found, np.take_along_axis(expected, places, 1), atol=2e-5, rtol=0)


def test_the_published_models_gradients_are_slopes(published: Any) -> None:
    """By central differences of the original in float64, along random directions."""
    model, twin, stimuli, _ = published
    mouse, rng = twin.summary.twin.mouse, np.random.default_rng(1)
    inputs = stimuli(1, 1.0)
    cotangent = rng.normal(size=twin.summary.neurons)
    gradient = twin.gradient(cotangent=cotangent, **inputs, space="model")
    for name in inputs:
        direction = rng.normal(size=inputs[name].shape)

        def at(step: float, name: str = name, direction: Any = direction) -> float:
            moved = {key: torch.from_numpy(values).double() for key, values in inputs.items()}
            moved[name] = moved[name] + step * torch.from_numpy(direction)
            return float(original.predict(model.double(), mouse, **moved)[0] @ cotangent)

        slope = (at(1e-5) - at(-1e-5)) / 2e-5
        found = float((getattr(gradient, name) * direction).sum())
        assert abs(found - slope) <= 1e-3 * abs(slope) + 1e-4


@pytest.mark.parametrize("kind", ["all", "some", "one an image"])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_is_answered_with_the_same_bits_alone_and_in_a_batch(published: Any, kind: str, threads: int) -> None:
    """Whatever else is in its run; on the CPU."""
    _, _, stimuli, folder = published
    engine = Engine(bundle.read(folder), choose("cpu", threads))
    rng = np.random.default_rng(0)
    inputs = stimuli(21, 3.0)
    columns = {
        "all": None,
        "some": rng.permutation(engine.neurons)[:10],
        "one an image": rng.integers(0, 7000, (21, 1)),
    }
    chosen = columns[kind]
    answered = engine.neurons if chosen is None else chosen.shape[-1]
    for cotangent in (None, rng.normal(size=(21, answered)).astype(np.float32)):

        def ask(rows: slice, cotangent: Any = cotangent) -> Answer:
            each = {name: values[rows] for name, values in inputs.items()}
            own = chosen[rows] if chosen is not None and chosen.ndim == 2 else chosen
            batch = Batch(**each, columns=own, cotangent=None if cotangent is None else cotangent[rows])
            work = engine.plan(batch)
            return engine.run([work])[0]

        together = ask(slice(0, 21))
        for rows in (slice(0, 1), slice(7, 8), slice(3, 5), slice(8, 16), slice(20, 21)):
            part = ask(rows)
            np.testing.assert_array_equal(part.responses, together.responses[rows])
            for name, values in part.gradient.items():
                np.testing.assert_array_equal(values, together.gradient[name][rows])


def test_a_bundle_is_small(published: Any) -> None:
    _, _, _, folder = published
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8_000_000


def test_each_graph_is_a_model_of_its_own_beside_its_weights(published: Any) -> None:
    """As ONNX Runtime loads them from the folder, without this project."""
    _, twin, stimuli, folder = published
    inputs = stimuli(2, 3.0)
    expected = twin.predict(**inputs, space="model")
    session = onnxruntime.InferenceSession(folder / "forward.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=1e-6)
    for name in folder.glob("*.onnx"):
        onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"])
