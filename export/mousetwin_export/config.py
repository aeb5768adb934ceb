"""The starter kit's model configs: `model_fn` and `model_config` in YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .errors import ExportError
from .yaml_file import named, read_yaml, shown

MODEL_FN = "stacked_core_full_gauss_readout"

# No layer, channel or kernel of a model of this family counts so far; a slip of the hand does.
_MOST = 4096

# Arguments of the starter kit's function that matter only in training.
_TRAINING_ONLY = frozenset(
    {
        "gamma_input",
        "gamma_readout",
        "gamma_shifter",
        "init_mu_range",
        "init_sigma",
        "input_regularizer",
        "laplace_padding",
        "momentum",
        "use_avg_reg",
    }
)


@dataclass(frozen=True)
class GridPredictorConfig:
    """How positions follow from cortical coordinates."""

    input_dimensions: int = 2
    hidden_layers: int = 0
    hidden_features: int = 20
    final_tanh: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """What of a `model_config` matters at inference; defaults are those of the starter kit's function."""

    hidden_channels: int = 32
    input_kern: int = 13
    hidden_kern: int | tuple[int, ...] = 3
    layers: int = 3
    skip: int = 0
    final_nonlinearity: bool = True
    pad_input: bool = False
    batch_norm: bool = True
    hidden_dilation: int = 1
    hidden_padding: int | None = None
    core_bias: bool = True
    readout_bias: bool = True
    elu_offset: float = 0.0
    stack: int | tuple[int, ...] | None = None
    depth_separable: bool = False
    linear: bool = False
    gauss_type: str = "full"
    grid_mean_predictor: GridPredictorConfig | None = None
    attention_conv: bool = False
    shifter: bool = False
    shifter_type: str = "MLP"
    input_channels_shifter: int = 2
    hidden_channels_shifter: int = 5
    shift_layers: int = 3
    shifter_bias: bool = True

    @property
    def hidden_kerns(self) -> tuple[int, ...]:
        """Kernel size of each layer after the first; a list may be longer than that, as in neuralpredictors."""
        if isinstance(self.hidden_kern, int):
            return (self.hidden_kern,) * (self.layers - 1)
        return self.hidden_kern[: self.layers - 1]

    @property
    def effective_hidden_padding(self) -> int:
        """Zero padding of all layers after the first.

        neuralpredictors works it out from the first of them and keeps it for the rest, whatever their kernels.
        """
        if self.hidden_padding is not None:
            return self.hidden_padding
        kernel = self.hidden_kerns[0] if self.layers > 1 else 1
        return ((kernel - 1) * self.hidden_dilation + 1) // 2

    @property
    def stacked_layers(self) -> tuple[int, ...]:
        """Which layers' maps the readout sees."""
        if self.stack is None:
            return tuple(range(self.layers))
        if isinstance(self.stack, int):
            return tuple(range(self.layers)[self.stack :])
        return tuple(number % self.layers for number in self.stack)


def read_config(path: Path) -> ModelConfig:
    """The config in a YAML file in the starter kit's form.

    Raises:
        ExportError: the file cannot be read, names another model, or holds a key or value that is not known; the
            message names the key.
    """
    document = read_yaml(path)
    if not isinstance(document, dict) or not {"model_fn", "model_config"} <= set(document):
        raise ExportError(f"{path}: expected the keys model_fn and model_config")
    if unknown := sorted(set(map(str, document)) - {"model_fn", "model_config"}):
        raise ExportError(f"{path}: {named(unknown[0])} is not known, expected model_fn and model_config")
    if str(document["model_fn"]).rpartition(".")[2] != MODEL_FN:
        raise ExportError(f"{path}: model_fn is {shown(document['model_fn'])}, expected sensorium.models.{MODEL_FN}")
    try:
        return parse_config(document["model_config"])
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from None


def parse_config(values: Any) -> ModelConfig:
    """The config in a `model_config` mapping.

    Raises:
        ExportError: a key or value that is not known; the message names it.
    """
    if not isinstance(values, dict):
        raise ExportError("model_config: expected a mapping")
    known = {field.name: field.default for field in fields(ModelConfig)}
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in _TRAINING_ONLY:
            continue
        if key not in known:
            raise ExportError(f"model_config.{named(key)} is not known")
        found[key] = _READERS.get(key, _like_default)(f"model_config.{key}", value, known[key])
    config = ModelConfig(**found)
    _check(config)
    return config


def _check(config: ModelConfig) -> None:
    def require(ok: bool, key: str, expected: str) -> None:
        if not ok:
            raise ExportError(f"model_config.{key}: {shown(getattr(config, key))}, expected {expected}")

    for key in (
        "hidden_channels",
        "input_kern",
        "layers",
        "hidden_dilation",
        "shift_layers",
        "hidden_channels_shifter",
    ):
        require(1 <= getattr(config, key) <= _MOST, key, f"1 to {_MOST}")
    require(0 <= config.skip <= _MOST, "skip", f"0 to {_MOST}")
    require(config.hidden_padding is None or 0 <= config.hidden_padding <= _MOST, "hidden_padding", f"0 to {_MOST}")
    require(math.isfinite(config.elu_offset), "elu_offset", "a finite number")
    require(not config.attention_conv, "attention_conv", "false: attention cores cannot be exported")
    require(config.gauss_type in ("full", "uncorrelated", "isotropic"), "gauss_type", "full, uncorrelated or isotropic")
    require(config.shifter_type in ("MLP", "StaticAffine"), "shifter_type", "MLP or StaticAffine")
    require(config.input_channels_shifter == 2, "input_channels_shifter", "2: a pupil center and no trial index")
    kernels = config.hidden_kerns
    require(
        len(kernels) == config.layers - 1 and all(1 <= size <= _MOST for size in kernels),
        "hidden_kern",
        f"one per hidden layer, each 1 to {_MOST}",
    )
    predictor = config.grid_mean_predictor
    for key, least in (("input_dimensions", 1), ("hidden_layers", 0), ("hidden_features", 1)):
        if predictor is not None and not least <= getattr(predictor, key) <= _MOST:
            raise ExportError(
                f"model_config.grid_mean_predictor.{key}: {shown(getattr(predictor, key))}, expected {least} to {_MOST}"
            )
    if isinstance(config.stack, tuple):
        require(all(-config.layers <= n < config.layers for n in config.stack), "stack", "layers that there are")
    require(bool(config.stacked_layers), "stack", "at least one layer")


def _like_default(key: str, value: Any, default: Any) -> Any:
    kind = type(default)
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    if type(value) is not kind:
        raise ExportError(f"{key}: {shown(value)}, expected {_KINDS[kind]}")
    return value


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def _whole_numbers(key: str, value: Any, default: Any) -> Any:
    if isinstance(value, list) and all(type(v) is int for v in value):
        return tuple(value)
    return _like_default(key, value, 0)


def _optional_whole_numbers(key: str, value: Any, default: Any) -> Any:
    return None if value is None else _whole_numbers(key, value, default)


def _optional_whole_number(key: str, value: Any, default: Any) -> Any:
    return None if value is None else _like_default(key, value, 0)


def _flag(key: str, value: Any, default: Any) -> Any:
    return False if value is None else _like_default(key, value, default)


def _grid_predictor(key: str, value: Any, default: Any) -> GridPredictorConfig | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ExportError(f"{key}: {shown(value)}, expected a mapping")
    if value.get("type", "cortex") != "cortex":
        raise ExportError(f"{key}.type: {shown(value['type'])}, expected cortex")
    known = {field.name: field.default for field in fields(GridPredictorConfig)}
    found = {}
    for name, entry in value.items():
        if name == "type":
            continue
        if name not in known:
            raise ExportError(f"{key}.{named(name)} is not known")
        found[name] = _like_default(f"{key}.{name}", entry, known[name])
    return GridPredictorConfig(**found)


_READERS = {
    "hidden_kern": _whole_numbers,
    "stack": _optional_whole_numbers,
    "hidden_padding": _optional_whole_number,
    "shifter": _flag,
    "grid_mean_predictor": _grid_predictor,
}
