"""Checkpoints: reading them safely, and fitting them to their config."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from mousetwin_serve.bundle import sha256
from torch import Tensor, nn

from .config import ModelConfig
from .errors import ExportError
from .family import Core, PointReadout, Shifter, Twin
from .not_checkpoints import SAVE, not_a_checkpoint
from .unwrap import find_weights

# Part of a checkpoint, and of no consequence at inference.
_IGNORED_SUFFIXES = ("num_batches_tracked", ".sigma")
_IGNORED_PREFIXES = ("core._input_weights_regularizer.",)
# How torch names what it would not unpickle.
_PICKLED = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True)
class Checkpoint:
    """A state_dict.

    Attributes:
        name: the file's name.
        sha256: of the file.
        tensors: by name, without wrappers and prefixes.
        read_from: which were there; "" where none was.
    """

    name: str
    sha256: str
    tensors: Mapping[str, Tensor]
    read_from: str = ""

    def mice(self) -> list[str]:
        """The data_keys it holds a readout for."""
        return list(dict.fromkeys(key.split(".")[1] for key in self.tensors if key.startswith("readout.")))

    def neurons(self, mouse: str) -> int:
        """How many neurons a mouse has; ExportError where the checkpoint has no such mouse."""
        features = _require(self, _below(f"readout.{self.check_mouse(mouse)}.", self.tensors), mouse, "_features", 4)
        return features.shape[3]

    def check_mouse(self, mouse: str) -> str:
        """`mouse` itself; ExportError, listing those there are, where the checkpoint has no such mouse."""
        if mouse not in self.mice():
            there = ", ".join(self.mice()) or "none at all"
            raise ExportError(f"{self.name}: no mouse {mouse!r}, expected one of {there}")
        return mouse


def read_checkpoint(path: Path, weights: str | None = None) -> Checkpoint:
    """The checkpoint in a file, read with `weights_only=True`: a state_dict, alone or wrapped.

    Args:
        path: the file.
        weights: the name of the weights where there are several, as the error says it: keys joined by dots.

    Raises:
        ExportError: the file cannot be read, is no checkpoint, holds anything but named tensors where its weights are,
            or has them more than once.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}") from None
    if what := not_a_checkpoint(data):
        raise ExportError(f"{path}: {what}")
    try:
        with warnings.catch_warnings():
            # torch warns of pickles it did not write itself; what is in them is judged below.
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged pickle can fail anywhere in torch's reader, with whatever exception that line raises.
        if pickled := _PICKLED.search(str(error)):
            raise ExportError(
                f"{path}: holds a pickled {pickled[1]}: a whole module, or something beside the weights; "
                f"neither is read, {SAVE}"
            ) from None
        raise ExportError(f"{path}: not a checkpoint that holds nothing but weights ({type(error).__name__})") from None
    found = find_weights(str(path), loaded, weights)
    for key, value in found.tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ExportError(f"{path}: {key!r} is a {type(value).__name__}, expected a state_dict of named tensors")
        if value.layout != torch.strided or value.is_complex() or value.is_quantized:
            raise ExportError(f"{path}: {key} is not a dense tensor of real numbers")
    return Checkpoint(path.name, sha256(data), found.tensors, found.read_from)


def build_twin(checkpoint: Checkpoint, config: ModelConfig, mouse: str) -> Twin:
    """The model of one mouse with the checkpoint's weights, in eval mode, float32.

    Raises:
        ExportError: no such mouse, or a key that is missing, not expected or of another shape than the config says.
    """
    checkpoint.check_mouse(mouse)
    tensors = {k: v for k, v in checkpoint.tensors.items() if not _ignored(k)}
    parts = {
        "core": _below("core.", tensors),
        f"readout.{mouse}": _below(f"readout.{mouse}.", tensors),
        f"shifter.{mouse}": _below(f"shifter.{mouse}.", tensors),
    }
    first = _require(checkpoint, parts["core"], "core", "features.layer0.conv.weight", 4)
    features = _require(checkpoint, parts[f"readout.{mouse}"], f"readout.{mouse}", "_features", 4)
    biased = frozenset(
        key.removeprefix("features.").removesuffix(".bias")
        for key in parts["core"]
        if key.endswith(".bias") and ".norm." not in key
    )
    if not config.core_bias and biased:
        raise ExportError(f"{checkpoint.name}: core.features.{min(biased)}.bias: not expected, core_bias is false")
    core = Core(config, first.shape[1], biased)
    channels = config.hidden_channels * len(config.stacked_layers)
    readout = PointReadout(config, channels, features.shape[3], config.readout_bias)
    shifter = Shifter(config) if config.shifter else None
    modules: dict[str, nn.Module] = {"core": core, f"readout.{mouse}": readout}
    if shifter is not None:
        modules[f"shifter.{mouse}"] = shifter
    for name, given in parts.items():
        if name in modules:
            _fit(checkpoint, name, modules[name], given)
        elif given:
            raise ExportError(f"{checkpoint.name}: {name}.{next(iter(given))}: not expected, shifter is false")
    for key in tensors:
        if key.split(".")[0] not in ("core", "readout", "shifter"):
            raise ExportError(f"{checkpoint.name}: {key}: not expected in a model of this family")
    return Twin(core, readout, shifter, config.elu_offset).eval().requires_grad_(False)


def _ignored(key: str) -> bool:
    return key.endswith(_IGNORED_SUFFIXES) or key.startswith(_IGNORED_PREFIXES)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _require(checkpoint: Checkpoint, part: Mapping[str, Tensor], name: str, key: str, rank: int) -> Tensor:
    if key not in part:
        raise ExportError(f"{checkpoint.name}: {name}.{key}: missing")
    if part[key].ndim != rank:
        raise ExportError(f"{checkpoint.name}: {name}.{key}: shape {tuple(part[key].shape)}, expected rank {rank}")
    return part[key]


def _fit(checkpoint: Checkpoint, name: str, module: nn.Module, given: Mapping[str, Tensor]) -> None:
    expected = {key: value for key, value in module.state_dict().items() if not _ignored(key)}
    for key, value in expected.items():
        if key not in given:
            raise ExportError(f"{checkpoint.name}: {name}.{key}: missing, the config wants {tuple(value.shape)}")
        if given[key].shape != value.shape:
            raise ExportError(
                f"{checkpoint.name}: {name}.{key}: shape {tuple(given[key].shape)}, "
                f"the config wants {tuple(value.shape)}"
            )
        if not torch.isfinite(given[key]).all():
            raise ExportError(f"{checkpoint.name}: {name}.{key}: holds NaN or infinite values")
    for key in given:
        if key not in expected:
            raise ExportError(f"{checkpoint.name}: {name}.{key}: not expected by the config")
    module.load_state_dict(dict(given), strict=False)
