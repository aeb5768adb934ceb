"""What does not fit is refused, with the offending key named, and nothing is written."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mousetwin.cli import main
from mousetwin_export.checkpoint import read_checkpoint
from mousetwin_export.config import parse_config
from mousetwin_export.errors import ExportError
from mousetwin_export.family import Core, PointReadout, Shifter

MOUSE = "12345-6-7"
MODEL_FN = "model_fn: stacked_core_full_gauss_readout\n"
CONFIG: dict[str, Any] = {
    "stack": -1,
    "layers": 2,
    "input_kern": 5,
    "hidden_kern": 3,
    "hidden_channels": 4,
    "depth_separable": True,
    "grid_mean_predictor": {"type": "cortex", "hidden_layers": 1, "hidden_features": 6, "final_tanh": True},
    "shifter": True,
}
NEURONS = 9
# Each line is nine times the one before.
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))


def weights() -> dict[str, Any]:
    torch.manual_seed(0)
    config = parse_config(CONFIG)
    parts = {
        "core": Core(config, 4, frozenset()),
        f"readout.{MOUSE}": PointReadout(config, 4, NEURONS, bias=True),
        f"shifter.{MOUSE}": Shifter(config),
    }
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    for key in ("_features", "source_grid", "bias"):
        state[f"readout.{MOUSE}.{key}"].normal_(0, 0.5)
    return state


Exporter = Callable[..., int]


@pytest.fixture
def export(tmp_path: Path) -> Exporter:
    """Runs `mousetwin export` on a state_dict and a config, without the slow gradients."""

    def run(state: Any, config: Any, *options: str, mouse: str = MOUSE) -> int:
        checkpoint, written = tmp_path / "model.pth", tmp_path / "config.yaml"
        torch.save(state, checkpoint)
        document = {"model_fn": "sensorium.models.stacked_core_full_gauss_readout", "model_config": config}
        written.write_text(config if isinstance(config, str) else yaml.safe_dump(document))
        command = ["export", str(checkpoint), "--config", str(written), "--mouse", mouse]
        return main([*command, "--no-gradient", "--out", str(tmp_path / "models"), *options])

    return run


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error: the last line on stderr."""
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("mousetwin: ")
    return line


def test_what_fits_is_exported(export: Exporter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(weights(), CONFIG) == 0
    folder = tmp_path / "models" / MOUSE / "cnn" / "1"
    assert capsys.readouterr().out.strip() == str(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "bundle.json",
        "forward.onnx",
        "forward_chosen.onnx",
        "forward_each.onnx",
        "replay.npz",
        "weights.npz",
    ]


STATES: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "missing key": (
        lambda s: {k: v for k, v in s.items() if k != "core.features.layer1.norm.running_var"},
        ["core.features.layer1.norm.running_var", "missing"],
    ),
    "unexpected key": (lambda s: {**s, "core.features.layer7.conv.weight": torch.zeros(1)}, ["layer7", "not expected"]),
    "foreign part": (lambda s: {**s, "modulator.gain": torch.zeros(1)}, ["modulator.gain", "not expected"]),
    "wrong shape": (
        lambda s: {**s, f"shifter.{MOUSE}.mlp.0.weight": torch.zeros(7, 2)},
        ["mlp.0.weight", "(7, 2)", "(5, 2)"],
    ),
    "NaN": (
        lambda s: {**s, f"readout.{MOUSE}.bias": torch.full((NEURONS,), float("nan"))},
        [f"readout.{MOUSE}.bias", "NaN"],
    ),
    "complex": (
        lambda s: {k: v.to(torch.complex64) if k.endswith("_features") else v for k, v in s.items()},
        ["_features", "real numbers"],
    ),
    "sparse": (
        lambda s: {k: v.to_sparse() if k.endswith("_features") else v for k, v in s.items()},
        ["_features", "dense"],
    ),
    "not tensors": (lambda s: {**s, "epoch": 3}, ["epoch", "int"]),
    "not a state_dict": (lambda s: [1, 2], ["list", "state_dict"]),
    "empty": (lambda s: {}, ["state_dict"]),
}


@pytest.mark.parametrize("name", STATES)
def test_checkpoints_that_do_not_fit(
    name: str, export: Exporter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = STATES[name]
    assert export(change(weights()), CONFIG) == 1
    line = one_line(capsys)
    assert all(word in line for word in words), line
    assert not (tmp_path / "models").exists()


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "more layers than there are": ({"layers": 3}, "core.features.layer2"),
    "fewer layers": ({"layers": 1}, "core.features.layer1"),
    "other channels": ({"hidden_channels": 5}, "core.features.layer0.conv.weight"),
    "other kernel": ({"input_kern": 7}, "core.features.layer0.conv.weight"),
    "no shifter": ({"shifter": False}, "shifter"),
    "other shifter": ({"shifter_type": "StaticAffine"}, f"shifter.{MOUSE}.weight"),
    "no predictor": ({"grid_mean_predictor": None}, "_mu"),
    "unknown key": ({"hiden_channels": 4}, "hiden_channels"),
    "wrong type": ({"layers": "four"}, "layers"),
    "fewer kernels than layers": ({"hidden_kern": []}, "hidden_kern"),
    "not a layer": ({"stack": [5]}, "stack"),
    "attention": ({"attention_conv": True}, "attention_conv"),
    "predictor narrower than nothing": (
        {"grid_mean_predictor": {"type": "cortex", "hidden_layers": 1, "hidden_features": -1}},
        "grid_mean_predictor.hidden_features",
    ),
    "unknown predictor key": ({"grid_mean_predictor": {"type": "cortex", "depth": 2}}, "grid_mean_predictor.depth"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_do_not_fit(name: str, export: Exporter, capsys: pytest.CaptureFixture[str]) -> None:
    change, word = CONFIGS[name]
    assert export(weights(), {**CONFIG, **change}) == 1
    assert word in one_line(capsys)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("model_fn: a.b\nmodel_config: {}", "model_fn"),
        ("layers: 3", "model_fn"),
        ("a: [", "not YAML"),
        ("model_fn: stacked_core_full_gauss_readout\nmodel_config: 3", "model_config"),
        ("model_fn: stacked_core_full_gauss_readout\nmodel_config: {}\nseed: 4", "seed"),
        (f"{MODEL_FN}model_config: {{layers: 2, layers: 3}}", "layers twice in a mapping"),
        (f"{MODEL_FN}{MODEL_FN}model_config: {{}}", "model_fn twice in a mapping"),
        (f"{MODEL_FN}model_config: &a {{}}\nseed: *a", "an alias"),
        (
            f"{MODEL_FN}model_config: {{layers: 1000000000000}}",
            "layers: 1000000000000, expected 1 to 4096",
        ),
        (f"{MODEL_FN}model_config: {{elu_offset: .inf}}", "model_config.elu_offset: inf, expected a finite number"),
        (f"{MODEL_FN}model_config: {{skip: 0x{'f' * 6000}}}", "model_config.skip: int too long to show"),
        (f"{MODEL_FN}model_config: {{{'x' * 200}: 1}}", f"model_config.{'x' * 80}… is not known"),
        ("[" * 20_000, "nested too deeply"),
        ("a: 2024-99-99", "not YAML: month must be in 1..12"),
        (f"a: {'9' * 6000}", "not YAML: Exceeds the limit"),
        ("a: 1\n---\nb: 2", "not YAML: expected a single document"),
        ("!!python/object/apply:os.getcwd []", "not YAML: could not determine a constructor"),
        ("\t\0", "not YAML"),
        ("# " + "x" * (5 << 20), "longer than 4 MiB"),
    ],
    ids=lambda value: value[:40],
)
def test_files_that_are_no_config(text: str, word: str, export: Exporter, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(weights(), text) == 1
    assert word in one_line(capsys)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"images: {mean: 1, std: 2}\nimages: {mean: 1, std: 3}", "images twice in a mapping"),
        (b"images: {mean: 1, mean: 2}", "mean twice in a mapping"),
        (b"images: &a {mean: 1}\nbehavior: *a", "an alias"),
        (b"images: {mean: 1, std: 0}", "images.std: expected positive numbers"),
        (b"behavior: {std: [1, -1]}", "behavior.std: expected positive numbers"),
        (b"images: {mean: .nan, std: 1}", "images.mean: nan, expected a number or a list of numbers"),
        (b"images: {mean: 1, std: .inf}", "images.std: inf"),
        (b"images: {mean: 1" + b"0" * 400 + b"}", "images.mean: 1000"),
        (b"images: {mean: true}", "images.mean: True"),
        (b"images: {mean: '1'}", "images.mean: '1'"),
        (b"images: {mean: []}", "images.mean: []"),
        (b"images: {}", "images: expected the keys mean and std"),
        (b"images: {median: 1}", "images: expected the keys mean and std"),
        (b"image: {mean: 1}", "image is not known"),
        (b"- 1", "expected some of the keys images"),
        (b"", "expected some of the keys images"),
        (b"\x80\x02}q\0.", "not YAML"),
        (b"im\xe9ges: 1", "not YAML"),
        (LAUGHS.encode(), "an alias"),
    ],
    ids=lambda value: str(value[:40]),
)
def test_files_that_are_no_statistics(
    text: bytes, word: str, export: Exporter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "statistics.yaml"
    path.write_bytes(text)
    assert export(weights(), CONFIG, "--statistics", str(path)) == 1
    line = one_line(capsys)
    assert f"{path}: " in line
    assert word in line
    assert len(line) < 600


def test_yaml_that_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, word in (("pipe.yaml", "a pipe, expected a file"), (".", "a folder, expected a file"), ("no", "No such")):
        path = tmp_path / name
        command = ["export", "none.pth", "--config", str(path), "--mouse", "a", "--out", str(tmp_path / "models")]
        assert main(command) == 1
        assert f"{path}: {word}" in one_line(capsys)


def test_a_data_set_of_another_mouse(export: Exporter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("animal_ids", 12345), ("sessions", 6), ("scan_idx", 8)):
        path = tmp_path / f"set/meta/neurons/{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full(NEURONS, value))
    assert export(weights(), CONFIG, "--dataset", str(tmp_path / "set")) == 1
    assert f"meta/neurons: of the mouse 12345-6-8, expected {MOUSE}" in one_line(capsys)


def test_a_mouse_that_is_not_in_it(export: Exporter, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(weights(), CONFIG, mouse="9-9-9") == 1
    line = one_line(capsys)
    assert "9-9-9" in line
    assert MOUSE in line


def test_an_image_smaller_than_the_kernels(export: Exporter, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(weights(), CONFIG, "--input-size", "4x64") == 1
    assert "5x5" in one_line(capsys)


def test_an_export_over_tolerance_writes_nothing(
    export: Exporter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(weights(), CONFIG, "--tolerance", "0") == 1
    assert "parity" in one_line(capsys)
    assert not (tmp_path / "models").exists()


def overflowing() -> dict[str, Any]:
    """Two channels that cancel: at the parity test's higher contrast, infinity less infinity in float32."""
    torch.manual_seed(0)
    return {
        "core.features.layer0.conv.weight": torch.randn(1, 1, 5, 5).repeat(2, 1, 1, 1) * 2e37,
        f"readout.{MOUSE}._mu": torch.zeros(1, 3, 1, 2),
        f"readout.{MOUSE}._features": torch.tensor([1.0, -1.0])[None, :, None, None].repeat(1, 1, 1, 3),
        f"readout.{MOUSE}.bias": torch.zeros(3),
    }


def test_a_graph_that_answers_nan_writes_nothing(
    export: Exporter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where only some of the cases do."""
    config = {"layers": 1, "input_kern": 5, "hidden_channels": 2, "batch_norm": False, "linear": True, "stack": -1}
    assert export(overflowing(), config, "--input-size", "8x9") == 1
    printed = capsys.readouterr().err
    assert "batch 1: max abs error 0 " in printed
    assert "nan from the float64 model" in printed.splitlines()[-1]
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("tolerance", ["inf", "nan", "-1", "much"])
def test_a_tolerance_that_is_none(tolerance: str, export: Exporter, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export(weights(), CONFIG, f"--tolerance={tolerance}")
    assert "finite number" in capsys.readouterr().err


def test_damaged_checkpoints_are_refused_whatever_is_broken(tmp_path: Path) -> None:
    whole = tmp_path / "model.pth"
    torch.save(weights(), whole)
    rng = random.Random(0)
    for _ in range(500):
        data = bytearray(whole.read_bytes())
        for _ in range(rng.choice([1, 2, 8])):
            data[rng.randrange(min(len(data), 6000))] = rng.randrange(256)
        (tmp_path / "damaged.pth").write_bytes(data)
        # Some bytes matter to nobody; what must not happen is another exception.
        with contextlib.suppress(ExportError):
            read_checkpoint(tmp_path / "damaged.pth")


class Trap:
    """A pickle that would run code where a checkpoint is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sprung = tmp_path / "sprung"
    checkpoint = tmp_path / "model.pth"
    checkpoint.write_bytes(pickle.dumps({"weight": Trap(sprung)}))
    config = tmp_path / "config.yaml"
    config.write_text("model_fn: stacked_core_full_gauss_readout\nmodel_config: {}")
    assert main(["export", str(checkpoint), "--config", str(config), "--mouse", "a", "--out", str(tmp_path / "m")]) == 1
    assert "model.pth" in one_line(capsys)
    assert not sprung.exists()


def test_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    command = ["export", str(tmp_path / "none.pth"), "--config", str(config), "--mouse", "a", "--out", str(tmp_path)]
    assert main(command) == 1
    assert "config.yaml" in one_line(capsys)
    config.write_text("model_fn: stacked_core_full_gauss_readout\nmodel_config: {}")
    assert main(command) == 1
    assert "none.pth" in one_line(capsys)
