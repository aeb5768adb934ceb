"""Whatever is in files and whatever they are called, reading them gives numbers or one of our own errors."""

from __future__ import annotations

import io
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fuzzing import damaged, laid_out, npy, npz
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mousetwin.arrays import DTYPES
from mousetwin.dataset import Dataset
from mousetwin.errors import MousetwinError
from mousetwin.inputs import open_inputs
from mousetwin_export.config import ModelConfig, read_config
from mousetwin_export.statistics import VARIABLES, read_statistics
from PIL import Image

FUZZ = settings(max_examples=100, deadline=None, derandomize=True, database=None)


@contextmanager
def folder(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder with some files, or what of them can be written."""
    top = Path(tempfile.mkdtemp())
    try:
        for name, data in files.items():
            try:
                path = top / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            except (OSError, ValueError):
                continue
        yield top
    finally:
        shutil.rmtree(top)


def read_or_refused(path: Path) -> None:
    try:
        with ExitStack() as stack:
            inputs = open_inputs(path, stack)
            blocks = list(inputs.rows(0, 2))
    except MousetwinError as error:
        names_its_file(error, path)
        return
    assert sum(len(block) for block in blocks) == inputs.count
    for block in blocks:
        assert block.shape[1:] == inputs.shape
        assert block.dtype.name in DTYPES


def names_its_file(error: MousetwinError, path: Path) -> None:
    assert str(path) in str(error)
    assert len(str(error)) < 1000


# --- pictures and arrays


def png(image: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", **options)
    return stream.getvalue()


pictures = st.sampled_from(
    [
        png(np.arange(24, dtype=np.uint8).reshape(4, 6)),
        png(np.arange(24, dtype=np.uint8).reshape(4, 6), compress_level=0),
        png(np.zeros((3, 3, 3), np.uint8)),
        png(np.zeros((3, 3), np.uint16)),
    ]
)


settings_of_png = st.lists(st.sampled_from([0, 1, 8, 16]), min_size=5, max_size=5)
chunk_kinds = st.sampled_from(
    ["zTXt", "iTXt", "tEXt", "iCCP", "PLTE", "tRNS", "acTL", "fcTL", "fdAT", "IDAT", "eXIf"]
).map(str.encode)


@st.composite
def well_summed(draw: st.DrawFn) -> bytes:
    """A PNG of damaged or odd chunks whose checksums are right, so that a decoder is asked for what is in them."""
    numbers = st.integers(0, 2**32 - 1) | st.integers(0, 6)
    head = struct.pack(
        ">IIBBBBB", draw(numbers), draw(numbers), *(draw(st.sampled_from([0, 1, 8, 16])) for _ in range(5))
    )
    pixels = draw(damaged(st.just(zlib.compress(bytes(40)))) | st.just(zlib.compress(bytes(40))))
    more = draw(st.lists(st.tuples(chunk_kinds, st.binary(max_size=20)), max_size=3))
    chunks = [(b"IHDR", head), *more, (b"IDAT", pixels), (b"IEND", b"")]
    summed = [struct.pack(">I", len(b)) + k + b + zlib.crc32(k + b).to_bytes(4, "big") for k, b in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(summed)


@given(st.binary() | pictures | damaged(pictures) | well_summed())
@FUZZ
def test_any_bytes_as_a_picture(data: bytes) -> None:
    with folder({"x.png": data}) as top:
        read_or_refused(top / "x.png")


@given(st.sampled_from(["x.npy", "x.NPZ", "x.zip", "x", "x.txt"]), st.binary() | damaged(laid_out().map(npy)))
@FUZZ
def test_any_bytes_as_a_file(name: str, data: bytes) -> None:
    with folder({name: data}) as top:
        read_or_refused(top / name)


archives = st.dictionaries(st.sampled_from(["images", "behavior", "pupil_center", "x"]), laid_out().map(npy)).map(
    lambda members: npz({f"{name}.npy": data for name, data in members.items()})
)


@given(st.sampled_from(["x.npz", "x"]), archives | damaged(archives))
@FUZZ
def test_any_bytes_as_an_npz(name: str, data: bytes) -> None:
    with folder({name: data}) as top:
        read_or_refused(top / name)


NAMES = [
    "1.npy",
    "2.npy",
    "1²2.npy",
    "10.png",
    "².png",
    "a.PNG",
    "a.jpg",
    "._1.npy",
    "meta/x.npy",
    "a/meta/x",
    "a/1.npy",
    "a.zip",
]
names = st.text(max_size=6) | st.sampled_from(NAMES)
contents = st.binary(max_size=20) | laid_out().map(npy) | pictures


@given(st.dictionaries(names, contents, max_size=5))
@FUZZ
def test_any_files_in_a_folder(files: dict[str, bytes]) -> None:
    with folder(files) as top:
        read_or_refused(top)


# --- data sets

WORDS = np.array(["train", "test", "test"])
RECORDED: dict[str, Any] = {
    "meta/neurons/unit_ids.npy": np.arange(4),
    "meta/neurons/animal_ids.npy": np.full(4, 1),
    "meta/neurons/sessions.npy": np.full(4, 2),
    "meta/neurons/scan_idx.npy": np.full(4, 3),
    "meta/neurons/cell_motor_coordinates.npy": np.zeros((4, 3)),
    "meta/trials/tiers.npy": WORDS,
    "meta/trials/frame_image_id.npy": np.array([1, 2, 2]),
    "meta/trials/trial_idx.npy": np.arange(3),
    "meta/statistics/images/all/mean.npy": np.array(113.0),
    "meta/statistics/responses/all/std.npy": np.ones(4),
    **{f"data/images/{n}.npy": np.zeros((1, 3, 4), np.uint8) for n in range(3)},
    **{f"data/responses/{n}.npy": np.ones(4) for n in range(3)},
    **{f"data/behavior/{n}.npy": np.ones(3) for n in range(3)},
}
FILES = {name: npy(values) for name, values in RECORDED.items()}

odd_words = st.sampled_from(
    [
        np.array(["train", "x"]),
        np.full(3, b"\xff"),
        np.full(3, 0x110000, "<u4").view("<U1"),
        np.full(3, 0xD800, "<u4").view("<U1"),
        np.zeros(3, "M8[s]"),
        np.full(4, 1.7e308),
        np.full(4, np.inf),
        np.full(4, 2**64 - 1, np.uint64),
    ]
).map(npy)
odd_files = st.dictionaries(
    st.sampled_from(sorted(FILES)),
    st.binary(max_size=30) | laid_out().map(npy) | odd_words | damaged(st.sampled_from(sorted(FILES.values()))),
    min_size=1,
    max_size=3,
)
ODD_NAMES = [
    "Meta/x.npy",
    "a/meta/x.npy",
    "data\\images\\1.npy",
    "data/images/7.npy",
    "/",
    "meta",
    "../meta/x",
    "data/images/",
    "\\",
    "meta//trials/tiers.npy",
    "._1.npy",
    "__MACOSX/meta/x.npy",
    "data/behavior/9.npy/1.npy",
]
further = st.dictionaries(st.sampled_from(ODD_NAMES) | st.text(max_size=8), st.binary(max_size=9), max_size=2)


def use(path: Path) -> None:
    """All that anyone asks a data set."""
    with Dataset.open(path) as dataset:
        told = (
            dataset.data_key,
            dataset.unit_ids,
            dataset.cell_motor_coordinates,
            dataset.image_ids,
            dataset.trial_idx,
        )
        assert len(told) == 5
        for variable in VARIABLES:
            for kind in ("mean", "std"):
                values = dataset.statistic(variable, kind)
                assert values is None or np.isfinite(values).all()
        trials = dataset.trials_of("test")
        dataset.stamps(("images",), trials)
        for variable in dataset.variables:
            for batch in dataset.batches(variable, trials, 2):
                assert np.isfinite(batch).all()


def used_or_refused(path: Path) -> None:
    for ask in (use, read_or_refused):
        try:
            ask(path)
        except MousetwinError as error:
            names_its_file(error, path)


def test_a_data_set_as_it_should_be() -> None:
    with folder(FILES) as top:
        use(top)
        (top / "set.zip").write_bytes(npz(FILES))
        use(top / "set.zip")


@given(odd_files)
@FUZZ
def test_any_files_in_a_data_set(files: dict[str, bytes]) -> None:
    with folder({**FILES, **files}) as top:
        used_or_refused(top)


@given(odd_files, further, st.sampled_from(["", "a/", "meta/", "a\\b\\"]))
@FUZZ
def test_any_files_in_a_zip(files: dict[str, bytes], more: dict[str, bytes], top: str) -> None:
    members = {f"{top}{name}": data for name, data in {**FILES, **files}.items()}
    try:
        data = npz({**members, **more}, zipfile.ZIP_STORED)
    except (ValueError, IndexError):
        # Names that Python's zipfile does not write.
        return
    with folder({"set.zip": data}) as at:
        used_or_refused(at / "set.zip")


@given(damaged(st.sampled_from([npz(FILES), npz(FILES, zipfile.ZIP_STORED), npz({}), npz({"meta/": b""})])))
@FUZZ
def test_any_bytes_as_a_zip(data: bytes) -> None:
    with folder({"set.zip": data}) as at:
        used_or_refused(at / "set.zip")


# --- YAML

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=2),
    max_leaves=8,
)
moments = st.fixed_dictionaries(
    {"mean": values, "std": st.floats() | st.integers() | st.lists(st.floats(), max_size=3)}
)
statistics = st.dictionaries(st.sampled_from(VARIABLES), moments | values, max_size=3)
keys = st.sampled_from(sorted(ModelConfig.__dataclass_fields__))
configs = st.fixed_dictionaries(
    {"model_fn": st.just("stacked_core_full_gauss_readout"), "model_config": st.dictionaries(keys, values, max_size=4)}
)
written = (statistics | configs | values).map(yaml.safe_dump).map(str.encode)


@given(st.binary() | st.text().map(str.encode) | written | damaged(written))
@example(b"[" * 20_000)
@example(b"a: &a [x]\nb: [*a, *a]")
@example(b"images: {mean: 1, std: 2}\nimages: {mean: 1, std: 3}")
@example(b"images: {mean: 2024-99-99}")
@example(b"images: {mean: 0x" + b"f" * 6000 + b"}")
@example(b"images: {mean: 1" + b"0" * 400 + b"}")
@example(b"images: {std: 1" + b"0" * 6000 + b"}")
@example(b"model_fn: stacked_core_full_gauss_readout\nmodel_config: {layers: 100000000000000000000}")
@settings(FUZZ, max_examples=300)
def test_any_bytes_as_yaml(data: bytes) -> None:
    with folder({"x.yaml": data}) as top:
        for read in (read_config, read_statistics):
            try:
                read(top / "x.yaml")
            except MousetwinError as error:
                names_its_file(error, top / "x.yaml")
