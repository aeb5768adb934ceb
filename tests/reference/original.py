"""The original library, built from a config the way the starter kit's `stacked_core_full_gauss_readout` builds it."""

from __future__ import annotations

import collections
import collections.abc
import sys
import types
import warnings
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():
    # neuralpredictors 0.3.0 imports names that Python 3.10 moved, and a torchvision it does not use here. The stub is
    # taken away again, since torch.onnx looks torchvision up.
    warnings.simplefilter("ignore")
    collections.Iterable = collections.abc.Iterable  # type: ignore[attr-defined]
    collections.Mapping = collections.abc.Mapping  # type: ignore[attr-defined]
    stub = "torchvision" not in sys.modules
    if stub:
        sys.modules["torchvision"] = types.ModuleType("torchvision")
    from neuralpredictors.layers.cores import Stacked2dCore
    from neuralpredictors.layers.encoders import FiringRateEncoder
    from neuralpredictors.layers.readouts import FullGaussian2d, MultiReadoutSharedParametersBase
    from neuralpredictors.layers.shifters import MLPShifter, StaticAffine2dShifter

    if stub:
        del sys.modules["torchvision"]


class MultipleFullGaussian2d(MultiReadoutSharedParametersBase):  # type: ignore[misc]
    _base_readout = FullGaussian2d


def build_original(
    config: dict[str, Any],
    neurons: dict[str, int],
    native_size: tuple[int, int],
    behavior: int,
    *,
    core_bias: bool = False,
) -> torch.nn.Module:
    """A model of the original library in eval mode, with its own random weights.

    Args:
        config: a `model_config`.
        neurons: how many each mouse has.
        native_size: (height, width) of the images.
        behavior: how many behavior variables ride behind the image.
        core_bias: whether hidden convolutions have biases; those of the published checkpoints have none.
    """
    settings = {
        "hidden_channels": 32,
        "input_kern": 13,
        "hidden_kern": 3,
        "layers": 3,
        "gamma_input": 15.5,
        "skip": 0,
        "final_nonlinearity": True,
        "momentum": 0.9,
        "pad_input": False,
        "batch_norm": True,
        "hidden_dilation": 1,
        "laplace_padding": None,
        "input_regularizer": "LaplaceL2norm",
        "use_avg_reg": False,
        "stack": None,
        "depth_separable": False,
        "linear": False,
        "attention_conv": False,
        "hidden_padding": None,
    }
    core_config = {name: config.get(name, default) for name, default in settings.items()}
    grid = dict(config["grid_mean_predictor"]) if config.get("grid_mean_predictor") else None
    kind = grid.pop("type") if grid else None
    dimensions = grid.pop("input_dimensions", 2) if grid else 2
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        core = Stacked2dCore(input_channels=1 + behavior, bias=core_bias, **core_config)
        with torch.no_grad():
            in_shape = core(torch.zeros(1, 1 + behavior, *native_size)).shape[1:]
        readout = MultipleFullGaussian2d(
            in_shape_dict=dict.fromkeys(neurons, in_shape),
            n_neurons_dict=neurons,
            loader=None,
            init_mu_range=config.get("init_mu_range", 0.2),
            bias=config.get("readout_bias", True),
            init_sigma=config.get("init_sigma", 1.0),
            gamma_readout=4,
            gauss_type=config.get("gauss_type", "full"),
            grid_mean_predictor=grid,
            grid_mean_predictor_type=kind,
            source_grids={key: rng.normal(size=(count, dimensions)) for key, count in neurons.items()}
            if grid
            else None,
        )
    shifter = None
    if config.get("shifter"):
        if config.get("shifter_type", "MLP") == "MLP":
            shifter = MLPShifter(
                data_keys=list(neurons),
                input_channels=2,
                hidden_channels_shifter=config.get("hidden_channels_shifter", 5),
                shift_layers=config.get("shift_layers", 3),
            )
        else:
            shifter = StaticAffine2dShifter(
                data_keys=list(neurons), input_channels=2, bias=config.get("shifter_bias", True)
            )
    model = FiringRateEncoder(core=core, readout=readout, shifter=shifter, elu_offset=config.get("elu_offset", 0))
    return randomise(model.eval())


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights as varied as a trained model's: fresh ones are too tame (unit BatchNorm, equal features) to tell."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0, generator=generator)
            elif name.endswith(("running_mean", "norm.bias")):
                value.normal_(0, 0.3, generator=generator)
            elif name.endswith("_features"):
                value.normal_(0, 0.15, generator=generator)
            elif name.endswith("_mu"):
                # Beyond the map too, where the original clamps.
                value.uniform_(-1.3, 1.3, generator=generator)
            elif name.startswith("shifter"):
                value.normal_(0, 0.5, generator=generator)
    return model


def respond(
    model: torch.nn.Module,
    mouse: str,
    images: torch.Tensor,
    behavior: torch.Tensor | None = None,
    pupil_center: torch.Tensor | None = None,
) -> torch.Tensor:
    """The original's responses, in the dtype of the model: behavior as constant channels, as the loader appends it."""
    dtype = next(model.parameters()).dtype
    inputs = images
    if behavior is not None:
        planes = behavior[:, :, None, None].expand(-1, -1, *images.shape[-2:])
        inputs = torch.cat([images, planes], 1)
    pupil = None if pupil_center is None else pupil_center.to(dtype)
    responses: torch.Tensor = model(inputs.to(dtype), data_key=mouse, pupil_center=pupil)
    return responses


def predict(
    model: torch.nn.Module,
    mouse: str,
    images: torch.Tensor,
    *given: torch.Tensor | None,
    **named: torch.Tensor,
) -> np.ndarray[Any, Any]:
    """`respond` in numpy."""
    with torch.no_grad():
        found: np.ndarray[Any, Any] = respond(model, mouse, images, *given, **named).numpy()
    return found
