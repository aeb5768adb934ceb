"""An exported twin on disk: `MODELS/<mouse>/<model>/<version>/` with `bundle.json` and the files it names.

`bundle.json` is the whole truth about the folder: the contract, where the weights come from, the measured parity, and
the sha256 of every other file. Reading verifies all of it before a byte reaches ONNX Runtime. Nothing here knows
torch, onnx or servers.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

SCHEMA = 1
MANIFEST = "bundle.json"
REPLAY = "replay.npz"
WEIGHTS = "weights.npz"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class BundleError(Exception):
    """A bundle that cannot be served (or written): the message names the file and what is wrong with it."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all parts of a manifest have in common: they do not change, and nothing unknown hides in them."""


class Size(_Record, frozen=True):
    height: int
    width: int


class Moments(_Record, frozen=True):
    """Per-channel mean and standard deviation, in the data set's own units; empty where not known."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class Statistics(_Record, frozen=True):
    """The training set's statistics, each empty where not known.

    images: scalar mean and std of gray level. behavior: mean and std per channel (the loader divides by std only; the
    mean gives the default condition). pupil_center: mean and std. responses: std per neuron.
    """

    images: Moments = Moments()
    behavior: Moments = Moments()
    pupil_center: Moments = Moments()
    responses: Moments = Moments()


class Neurons(_Record, frozen=True):
    """Per-neuron facts, in the order of the response columns; None where not known.

    cell_motor_coordinates: (x, y, z) in µm. receptive_field_center: (x, y) in native pixels, pixel centres at integers,
    with the pupil at its mean. receptive_field_size: native pixels that can reach one neuron.
    """

    count: int
    unit_ids: tuple[int, ...] | None = None
    cell_motor_coordinates: tuple[tuple[float, float, float], ...] | None = None
    receptive_field_center: tuple[tuple[float, float], ...] | None = None
    receptive_field_size: Size | None = None


class Inputs(_Record, frozen=True):
    """What the twin takes: `behavior` and `pupil_center` are the names of their channels, empty where it takes none."""

    native_size: Size
    stimulus_size: Size
    channels: int = 1
    behavior: tuple[str, ...] = ()
    pupil_center: tuple[str, ...] = ()


class Tensor(_Record, frozen=True):
    """One input or output of a graph; a dimension of any size is its name, as "batch" or "neurons"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Parity(_Record, frozen=True):
    """Errors against the float64 model, over `cases` (what was run) at export.

    max_abs_error: of responses. gradient_error: of gradients, norm of the difference over norm of the gradient; None
    where the graph gives none.
    """

    max_abs_error: float
    tolerance: float
    cases: tuple[str, ...]
    gradient_error: float | None = None
    gradient_tolerance: float | None = None


class Graph(_Record, frozen=True):
    """An ONNX model. weights: the arrays of the bundle's `weights` that it names as external data."""

    file: str
    sha256: str
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parity: Parity
    weights: tuple[str, ...] = ()


class Weights(_Record, frozen=True):
    """What the graphs share: an npz of their weights, and of what a neuron is.

    `positions`, `features` and `bias` have a row a neuron; graphs that take them as inputs are given those of the
    neurons asked for.
    """

    file: str
    sha256: str


class Replay(_Record, frozen=True):
    """Inputs and the float64 model's outputs, run again whenever a graph is loaded.

    The npz holds `images`, `behavior` and `pupil_center` (those the twin takes) and `responses`. Where the twin has a
    gradient also `cotangent` and the gradients `d_images` … to it; and `neurons`, one an image, with the gradients
    `each_d_images` … of that neuron's response. tolerance: of responses. gradient_tolerance: of gradients, relative.
    """

    file: str
    sha256: str
    tolerance: float
    gradient_tolerance: float = 1e-3


class Source(_Record, frozen=True):
    description: str
    sha256: str
    licence: str


class Manifest(_Record, frozen=True):
    """`bundle.json`.

    graphs: "forward" answers all neurons, "gradient" also the gradient; with "_chosen" for some neurons, with "_each"
    for one neuron an image. All but "forward" may be missing; no_gradient says why there is no "gradient".
    """

    schema: int
    mouse: str
    model: str
    version: str
    description: str
    synthetic: bool
    neurons: Neurons
    inputs: Inputs
    statistics: Statistics
    output_units: str
    graphs: dict[str, Graph]
    replay: Replay
    source: Source
    built_with: dict[str, str]
    weights: Weights | None = None
    no_gradient: str = ""
    truth: dict[str, tuple[float, ...]] = msgspec.field(default_factory=dict)


class Bundle:
    """A verified bundle, in memory.

    Attributes:
        manifest: what `bundle.json` says.
        digest: sha256 of `bundle.json`, which holds the sha256 of every file: the twin's identity.
        graphs: ONNX bytes by name.
        weights, replay: arrays by name.
    """

    def __init__(
        self,
        manifest: Manifest,
        digest: str,
        graphs: Mapping[str, bytes],
        weights: Mapping[str, NDArray[Any]],
        replay: Mapping[str, NDArray[Any]],
    ) -> None:
        self.manifest = manifest
        self.digest = digest
        self.graphs = graphs
        self.weights = weights
        self.replay = replay


def check_name(what: str, name: str) -> str:
    """`name` itself, if it can be a folder of the repository; else BundleError."""
    if not _NAME.fullmatch(name):
        raise BundleError(f"{what} {name!r} cannot name a folder: letters, digits, '.', '_' and '-' only")
    return name


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(folder: Path) -> Bundle:
    """Read and verify the bundle in `folder`.

    Raises:
        BundleError: a file is missing, does not match its sha256, or `bundle.json` is not of this schema.
    """
    manifest, digest = read_manifest(folder)
    graphs = {name: _read_verified(folder, graph.file, graph.sha256) for name, graph in manifest.graphs.items()}
    replay = _load_arrays(folder, manifest.replay)
    _check_replay(folder, manifest, replay)
    weights = {} if manifest.weights is None else _load_arrays(folder, manifest.weights)
    _check_weights(folder, manifest, weights)
    return Bundle(manifest, digest, graphs, weights, replay)


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """What the bundle in `folder` says of itself, and its digest. Raises as `read`."""
    raw = _read_file(folder, MANIFEST)
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{folder / MANIFEST}: {error}") from error
    _check_manifest(folder, manifest)
    return manifest, sha256(raw)


def write(models: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write a bundle under `models` and return its folder.

    The manifest's `version` decides the folder; with an empty one, the next free number is taken, or the number of an
    existing bundle that is the same in all else. The folder appears whole or not at all.

    Raises:
        BundleError: a name that cannot be a folder, files that differ from what the manifest says, or a given version
            that exists with other content.
    """
    home = models / check_name("mouse", manifest.mouse) / check_name("model", manifest.model)
    if manifest.version:
        candidates = [check_name("version", manifest.version)]
    else:
        existing = (
            sorted(int(p.name) for p in home.iterdir() if re.fullmatch("[0-9]+", p.name)) if home.is_dir() else []
        )
        candidates = [str(n) for n in existing] + [str(existing[-1] + 1 if existing else 1)]
    for version in candidates:
        folder = home / version
        final = msgspec.structs.replace(manifest, version=version)
        _check_manifest(folder, final)
        _check_files(folder, final, files)
        document = encode_manifest(final)
        if folder.exists():
            if (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == document:
                return folder
            continue
        _write_folder(folder, {**files, MANIFEST: document})
        return folder
    raise BundleError(f"{home / manifest.version} exists with other content; choose another version")


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON, one top-level field a line: a person can read it, and equal manifests are equal bytes."""
    fields = msgspec.to_builtins(manifest)
    lines = [f"  {msgspec.json.encode(key).decode()}: {msgspec.json.encode(fields[key]).decode()}" for key in fields]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for name, data in files.items():
            (staging / name).write_bytes(data)
        staging.chmod(0o755)
        os.replace(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _check_files(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    described = {part.file: part.sha256 for part in _parts(manifest)}
    for name in sorted({*described, *files}):
        if name not in files or sha256(files[name]) != described.get(name):
            raise BundleError(f"{folder / name}: is not the file that {MANIFEST} describes")


def _check_manifest(folder: Path, manifest: Manifest) -> None:
    def require(ok: bool, complaint: str) -> None:
        if not ok:
            raise BundleError(f"{folder / MANIFEST}: {complaint}")

    require(manifest.schema == SCHEMA, f"schema is {manifest.schema}, this version reads {SCHEMA}")
    for what in ("mouse", "model", "version"):
        check_name(what, getattr(manifest, what))
    place = (folder.parent.parent.name, folder.parent.name, folder.name)
    named = (manifest.mouse, manifest.model, manifest.version)
    require(place == named, f"lies in {'/'.join(place)} but says it is {'/'.join(named)}")
    require("forward" in manifest.graphs, "graphs: there is no 'forward'")
    for part in _parts(manifest):
        plain = _NAME.fullmatch(part.file) is not None and part.file != MANIFEST
        require(plain, f"{part.file!r} is not a plain file name")
    _check_lengths(manifest, require)


def _check_lengths(manifest: Manifest, require: Any) -> None:
    neurons, statistics, inputs = manifest.neurons, manifest.statistics, manifest.inputs
    require(neurons.count > 0, f"neurons.count is {neurons.count}, expected at least 1")
    for what in ("unit_ids", "cell_motor_coordinates", "receptive_field_center"):
        values = getattr(neurons, what)
        require(values is None or len(values) == neurons.count, f"neurons.{what} does not hold {neurons.count} entries")
    ids = neurons.unit_ids
    require(ids is None or len(set(ids)) == len(ids), "neurons.unit_ids repeat")
    widths = {
        "images": inputs.channels,
        "behavior": len(inputs.behavior),
        "pupil_center": len(inputs.pupil_center),
        "responses": neurons.count,
    }
    for what, width in widths.items():
        moments: Moments = getattr(statistics, what)
        for kind in ("mean", "std"):
            values = getattr(moments, kind)
            require(len(values) in (0, width), f"statistics.{what}.{kind} has {len(values)} entries, expected {width}")
        require(all(std > 0 for std in moments.std), f"statistics.{what}.std must be positive")
    for what, values in manifest.truth.items():
        require(len(values) == neurons.count, f"truth.{what} does not hold {neurons.count} entries")


def _read_file(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise BundleError(f"{folder / name}: {error.strerror}") from error


def _read_verified(folder: Path, name: str, expected: str) -> bytes:
    data = _read_file(folder, name)
    if (found := sha256(data)) != expected:
        raise BundleError(f"{folder / name}: sha256 is {found}, {MANIFEST} says {expected}")
    return data


def _parts(manifest: Manifest) -> list[Graph | Weights | Replay]:
    """All of a bundle's files but the manifest itself."""
    return [*manifest.graphs.values(), manifest.replay, *([manifest.weights] if manifest.weights else [])]


def _load_arrays(folder: Path, part: Weights | Replay) -> dict[str, NDArray[Any]]:
    data = _read_verified(folder, part.file, part.sha256)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:
        raise BundleError(f"{folder / part.file}: {error}") from error


def _check_replay(folder: Path, manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
    inputs = {"images"}
    inputs |= {"behavior"} if manifest.inputs.behavior else set()
    inputs |= {"pupil_center"} if manifest.inputs.pupil_center else set()
    expected = {*inputs, "responses"}
    if "gradient" in manifest.graphs:
        expected |= {"cotangent", "neurons", *(f"{kind}d_{name}" for kind in ("", "each_") for name in inputs)}
    if set(arrays) != expected:
        raise BundleError(f"{folder / manifest.replay.file}: holds {sorted(arrays)}, expected {sorted(expected)}")


def _check_weights(folder: Path, manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
    for graph in manifest.graphs.values():
        rows = {"positions", "features", "bias"} & {tensor.name for tensor in graph.inputs}
        if missing := sorted({*graph.weights, *rows} - set(arrays)):
            where = folder / (manifest.weights.file if manifest.weights else MANIFEST)
            raise BundleError(f"{where}: there is no {missing[0]!r}, which {graph.file} needs")
        if any(len(arrays[name]) != manifest.neurons.count for name in rows):
            raise BundleError(f"{folder / graph.file}: weights are not of {manifest.neurons.count} neurons")
