"""Exported twins against the original library: what a lab gets from us is what it had."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
import pytest
import torch
import yaml
from checkpoints import REAL, real_checkpoint
from mousetwin.cli import main

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


@pytest.mark.parametrize("name", VARIANTS)
def test_every_member_of_the_family_predicts_as_the_original_does(name: str, tmp_path: Path) -> None:
    variant = dict(VARIANTS[name])
    native = variant.pop("native", (36, 64))
    behavior = variant.pop("behavior", 0)
    mice = variant.pop("mice", {"12345-6-7": 23})
    core_bias = variant.pop("core_bias", False)
    config = {**BASE, **variant}
    model = original.build_original(config, mice, native, behavior, core_bias=core_bias)
    checkpoint, written = save(model, config, tmp_path)
    command = ["export", str(checkpoint), "--config", str(written), "--mouse", "all", "--out", str(tmp_path / "models")]
    assert main([*command, "--input-size", f"{native[0]}x{native[1]}"]) == 0
    with mousetwin.connect(f"local:{tmp_path / 'models'}") as twins:
        assert sorted(twins) == sorted(mice)
        for mouse, neurons in mice.items():
            for batch, reach in ((1, 1.0), (5, 3.0), (3, 20.0)):
                inputs = stimulus(batch, native, behavior, bool(config["shifter"]), reach)
                tensors = {key: torch.from_numpy(values).double() for key, values in inputs.items()}
                expected = original.predict(model.double(), mouse, **tensors)
                found = twins[mouse].predict(**inputs, space="model")
                assert found.shape == (batch, neurons)
                np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)
                # Tame weights would make any two models agree. (A pupil far out leads beyond the map: all alike there.)
                assert reach > 3 or batch == 1 or expected.std() > 0.01


@pytest.mark.parametrize("name", REAL)
def test_the_published_models_predict_as_the_original_does(name: str, tmp_path: Path) -> None:
    checkpoint, config_file, mouse = real_checkpoint(name)
    config = yaml.safe_load(config_file.read_text())["model_config"]
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
    neurons = weights[f"readout.{mouse}._features"].shape[3]
    behavior = weights["core.features.layer0.conv.weight"].shape[1] - 1
    model = original.build_original(config, {mouse: neurons}, (36, 64), behavior)
    model.load_state_dict(weights, strict=True)
    out = tmp_path / "models"
    assert main(["export", str(checkpoint), "--config", str(config_file), "--mouse", mouse, "--out", str(out)]) == 0
    with mousetwin.connect(f"local:{out}") as twins:
        twin = twins[mouse]
        for batch, reach in ((1, 0.0), (4, 3.0), (4, 10.0)):
            inputs = stimulus(batch, (36, 64), behavior, config["shifter"], reach)
            single = {key: torch.from_numpy(values) for key, values in inputs.items()}
            in_single = original.predict(model.float(), mouse, **single)
            in_double = original.predict(model.double(), mouse, **{k: v.double() for k, v in single.items()})
            found = twin.predict(**inputs, space="model")
            np.testing.assert_allclose(found, in_single, atol=2e-5, rtol=0)
            np.testing.assert_allclose(found, in_double, atol=2e-5, rtol=0)
