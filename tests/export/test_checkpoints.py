"""Checkpoints as training code writes them: wrapped, prefixed, several in one; and files that are none."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from checkpoints import real_checkpoint
from mousetwin.cli import main
from mousetwin_export.checkpoint import read_checkpoint
from mousetwin_export.config import parse_config
from mousetwin_export.errors import ExportError
from mousetwin_export.family import Core, PointReadout, Shifter
from torch import nn
from torch.optim.swa_utils import AveragedModel

sys.path.insert(0, str(Path(__file__).parent))
from test_bundles import save_checkpoint
from test_refusals import CONFIG, MOUSE, NEURONS, one_line, weights

State = dict[str, Any]


class Model(nn.Module):
    """What the starter kit trains, as far as names go."""

    def __init__(self) -> None:
        super().__init__()
        config = parse_config(CONFIG)
        self.core = Core(config, 4, frozenset())
        self.readout = nn.ModuleDict({MOUSE: PointReadout(config, 4, NEURONS, bias=True)})
        self.shifter = nn.ModuleDict({MOUSE: Shifter(config)})
        self.load_state_dict(weights())


class Training(nn.Module):
    """A LightningModule, as far as names go."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def lightning(state: State) -> State:
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1e-3}]}
    return {
        "epoch": 7,
        "global_step": 900,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"EarlyStopping": {"best_score": torch.tensor(0.3), "patience": 5}},
        "optimizer_states": [optimizer],
        "lr_schedulers": [],
        "hparams_name": None,
    }


WRAPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "plain": (weights, ""),
    "state_dict": (lambda: {"state_dict": weights()}, "read from 'state_dict'"),
    "model_state_dict": (
        lambda: {"model_state_dict": weights(), "epoch": 3, "loss": 0.5},
        "read from 'model_state_dict'",
    ),
    "model": (lambda: {"model": weights(), "optimizer": {"state": {}}}, "read from 'model'"),
    "net": (lambda: {"net": weights(), "acc": 91.2}, "read from 'net'"),
    "two wrappers": (lambda: {"model": {"state_dict": weights()}}, "read from 'model.state_dict'"),
    "a list": (lambda: [weights(), 3], "read from '0'"),
    "data parallel": (lambda: nn.DataParallel(Model()).state_dict(), "without the prefix 'module.'"),
    "compiled": (lambda: torch.compile(Model()).state_dict(), "without the prefix '_orig_mod.'"),
    "compiled data parallel": (
        lambda: under("module.", torch.compile(Model()).state_dict()),
        "without the prefix 'module._orig_mod.'",
    ),
    "lightning": (
        lambda: lightning(Training().state_dict()),
        "read from 'state_dict', without the prefix 'model.'",
    ),
    "lightning, compiled": (
        lambda: lightning(under("model._orig_mod.", weights())),
        "read from 'state_dict', without the prefix 'model._orig_mod.'",
    ),
    "some of it compiled": (
        lambda: {k.replace("core.", "core._orig_mod.", 1): v for k, v in weights().items()},
        "without '_orig_mod.' in names",
    ),
}


# torch.compile imports what torch itself calls deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", WRAPPED)
def test_weights_are_found(case: str, tmp_path: Path) -> None:
    make, told = WRAPPED[case]
    torch.save(make(), tmp_path / "model.pth")
    read = read_checkpoint(tmp_path / "model.pth")
    assert read.read_from == told
    assert list(read.tensors) == list(weights())
    assert all(torch.equal(read.tensors[key], value) for key, value in weights().items())


def test_a_wrapped_checkpoint_is_the_same_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = save_checkpoint(tmp_path)
    manifests = []
    for name, state in {"plain": weights(), "wrapped": lightning(under("model.module.", weights()))}.items():
        torch.save(state, tmp_path / "model.pth")
        capsys.readouterr()
        assert main([*command, "--out", str(tmp_path / name)]) == 0
        told = capsys.readouterr().err
        line = "model.pth: read from 'state_dict', without the prefix 'model.module.'\n"
        assert told.startswith(line) == (name == "wrapped")
        manifests.append(json.loads((tmp_path / name / MOUSE / "cnn" / "1" / "bundle.json").read_text()))
        manifests[-1]["source"].pop("sha256")
    assert manifests[0] == manifests[1]


def test_a_real_checkpoint_wrapped(tmp_path: Path) -> None:
    checkpoint, _, _ = real_checkpoint("sensorium_plus")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    torch.save(lightning(under("model.", state)), tmp_path / "epoch=7.ckpt")
    read, plain = read_checkpoint(tmp_path / "epoch=7.ckpt"), read_checkpoint(checkpoint)
    assert plain.read_from == ""
    assert list(read.tensors) == list(plain.tensors)
    assert all(torch.equal(read.tensors[key], value) for key, value in plain.tensors.items())


def other() -> State:
    return {key: value + 1 if value.is_floating_point() else value for key, value in weights().items()}


# What is in it, what is told of, and the name of the weights that `weights()` are.
SEVERAL: dict[str, tuple[Callable[[], Any], list[str], str]] = {
    "ema beside": (
        lambda: {"model_state_dict": weights(), "ema_state_dict": other()},
        ["'model_state_dict'", "'ema_state_dict'", "--weights"],
        "model_state_dict",
    ),
    "model_ema beside": (lambda: {"state_dict": other(), "model_ema": weights()}, ["'state_dict'"], "model_ema"),
    "ema by prefix": (lambda: {**other(), **under("ema.", weights())}, ["'.'", "'ema'", "--weights"], "ema"),
    "plain beside ema": (lambda: {**weights(), **under("module.", other())}, ["'.'", "'module'"], "."),
    "within a wrapper": (
        lambda: lightning({**under("model.", other()), **under("ema_model.", weights())}),
        ["'state_dict.model'", "'state_dict.ema_model'"],
        "state_dict.ema_model",
    ),
    "averaged": (lambda: AveragedModel(Model()).state_dict(), ["n_averaged", "--weights module"], "module"),
    "a loss with weights": (
        lambda: lightning({**under("model.", weights()), "loss.scale": torch.ones(1)}),
        ["loss.scale", "--weights state_dict.model"],
        "state_dict.model",
    ),
    "an ensemble": (lambda: {"models": [other(), weights(), other()]}, ["'models.0'", "'models.2'"], "models.1"),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_weights_are_never_guessed(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words, name = SEVERAL[case]
    command = save_checkpoint(tmp_path)
    torch.save(make(), tmp_path / "model.pth")
    assert main([*command, "--out", str(tmp_path / "models")]) == 1
    line = one_line(capsys)
    assert all(word in line for word in ["model.pth", *words]), line
    assert main([*command, "--out", str(tmp_path / "models"), "--weights", "nobody"]) == 1
    line = one_line(capsys)
    assert "weights: no 'nobody', expected one of" in line
    assert repr(name) in line
    assert not (tmp_path / "models").exists()
    read = read_checkpoint(tmp_path / "model.pth", name)
    chosen = {key: value for key, value in read.tensors.items() if key.startswith(("core", "readout", "shifter"))}
    assert list(chosen) == list(weights())
    assert all(torch.equal(chosen[key], value) for key, value in weights().items())


def test_the_chosen_weights_are_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = save_checkpoint(tmp_path)
    torch.save({"state_dict": weights(), "ema": other()}, tmp_path / "model.pth")
    assert main([*command, "--out", str(tmp_path / "models"), "--weights", "state_dict"]) == 0
    assert capsys.readouterr().err.startswith("model.pth: read from 'state_dict'\n")


def compiled_twice() -> State:
    key = next(key for key in weights() if key.startswith("core.features"))
    return {**weights(), key.replace("core.", "core._orig_mod."): torch.zeros(1)}


UNFIT: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "half of it prefixed": (
        lambda: {f"module.{k}" if k.startswith("core") else k: v for k, v in weights().items()},
        ["'module'", "'.'"],
    ),
    "numbers among the weights": (lambda: {"state_dict": {**weights(), "epoch": 3}}, ["'epoch'", "int"]),
    "a key too many under the prefix": (
        lambda: under("module.", {**weights(), "modulator.gain": torch.zeros(1)}),
        ["modulator.gain", "not expected"],
    ),
    "one layer compiled and not": (compiled_twice, ["_orig_mod", "not expected"]),
    "another network": (
        lambda: {"state_dict": {"conv1.weight": torch.zeros(3)}, "epoch": 1},
        ["'state_dict' (dict), 'epoch' (int)", "core, readout or shifter"],
    ),
    "no weights": (lambda: {"epoch": 1}, ["'epoch' (int)", "expected a state_dict"]),
    "a tensor": (lambda: torch.zeros(3), ["Tensor", "expected a state_dict"]),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_is_wrapped_and_does_not_fit(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words = UNFIT[case]
    command = save_checkpoint(tmp_path)
    torch.save(make(), tmp_path / "model.pth")
    assert main([*command, "--out", str(tmp_path / "models")]) == 1
    line = one_line(capsys)
    assert all(word in line for word in words), line
    assert not (tmp_path / "models").exists()


def saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def in_a_zip(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def in_a_tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return stream.getvalue()


def numpy_file(save: Callable[..., None]) -> bytes:
    stream = io.BytesIO()
    save(stream, np.zeros(3))
    return stream.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"core.w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def onnx_graph() -> bytes:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    return bytes(onnx.helper.make_model(graph).SerializeToString())


def torch_script() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), stream)
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 2383728\n"
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (bytes, "an empty file"),
    "git lfs": (lambda: LFS, "a Git LFS pointer, not the file itself: fetch that with git lfs pull"),
    "git-annex": (lambda: b"/annex/objects/SHA256E-s2383728--7a87.pth\n", "a git-annex pointer"),
    "page": (lambda: b"\n<!DOCTYPE html>\n<html><head><title>404</title>", "an HTML page, saved instead of the file"),
    "page in capitals": (lambda: b"\xef\xbb\xbf<HTML>", "an HTML page"),
    "text": (lambda: b'{"message": "Not Found"}', 'a text file that begins \'{"message": "Not Found"}\''),
    "gzip": (lambda: gzip.compress(saved(weights())), "compressed with gzip"),
    "bzip2": (lambda: bz2.compress(b"model"), "compressed with bzip2"),
    "xz": (lambda: lzma.compress(b"model"), "compressed with xz"),
    "tar": (in_a_tar, "a tar archive"),
    "zip": (lambda: in_a_zip("model.pth", saved(weights())), "a zip archive, with 'model.pth' in it: unpack it"),
    "cut off": (lambda: saved(weights())[:4000], "cut off or damaged"),
    "npy": (lambda: numpy_file(np.save), "a numpy file"),
    "npz": (lambda: numpy_file(np.savez), "a numpy file"),
    "safetensors": (safetensors, "a safetensors file"),
    "onnx": (onnx_graph, "an ONNX graph"),
    "torchscript": (torch_script, "a TorchScript archive"),
    "pickle": (lambda: pickle.dumps({"core.weight": [1.0]}), "a pickle that torch did not write"),
    "whole module": (lambda: saved(nn.Linear(2, 2)), "torch.nn.modules.linear.Linear: a whole module, or"),
    "whole module, as torch wrote them once": (
        lambda: saved(nn.Linear(2, 2), _use_new_zipfile_serialization=False),
        "torch.nn.modules.linear.Linear: a whole module, or",
    ),
    "an object beside": (lambda: saved({"state_dict": weights(), "path": Path("a")}), "beside the weights"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_checkpoint_are_told_for_what_they_are(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = FILES[case]
    command = save_checkpoint(tmp_path)
    (tmp_path / "model.pth").write_bytes(make())
    assert main([*command, "--out", str(tmp_path / "models")]) == 1
    line = one_line(capsys)
    assert "model.pth: " in line
    assert words in line
    assert not (tmp_path / "models").exists()


def test_a_checkpoint_as_torch_wrote_them_once(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(saved({"state_dict": weights()}, _use_new_zipfile_serialization=False))
    assert list(read_checkpoint(tmp_path / "model.pth").tensors) == list(weights())


def test_whatever_a_file_begins_with_is_told_in_a_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    starts = [make()[:40] for make, _ in FILES.values() if make is not torch_script]
    for n in range(400):
        start = starts[n % len(starts)][: rng.integers(0, 40)]
        (tmp_path / "model.pth").write_bytes(start + rng.bytes(rng.integers(0, 300)))
        with pytest.raises(ExportError):
            read_checkpoint(tmp_path / "model.pth")
