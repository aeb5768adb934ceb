"""What a command reads its images from: files of any size, read as they are needed."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from .arrays import NPY_HEAD, npy_layout, open_npz, read_npy
from .dataset import Dataset
from .dataset_files import find_in_folder
from .errors import InvalidArgument, ResourceExhausted
from .npy_file import NpyFile
from .npy_rows import NpyRows
from .pictures import PNG_MAGIC, read_picture
from .sources import IMAGE_SUFFIXES, Sources, entries, folders_among, is_folder, listed, open_file, stamp

BESIDE = ("behavior", "pupil_center")
KINDS = "a .npy, .npz or .png file, a folder of .npy or .png files, or a data set's folder or .zip"
_FILES = (".npy", ".npz", ".png", ".zip")
_PIECE = 1 << 20
_MAX_BESIDE = 1 << 30
Rows = NDArray[Any]


@dataclass(frozen=True)
class Inputs:
    """Images, and what goes with them.

    Attributes:
        count: how many images.
        shape, dtype: of one image.
        rows: reads (start, size): images from `start` on, `size` at a time (the last ones may be fewer).
        sources: the files they are read from.
        told: what says that these are the same inputs as another time.
        beside: behavior and pupil_center, a row an image or one row for all.
        dataset: the data set they are of, raw and with all that was recorded; None where they are of none.
    """

    count: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: Callable[[int, int], Iterator[Rows]]
    sources: Sources
    told: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Rows] = field(default_factory=dict)
    dataset: Dataset | None = None


def open_inputs(path: Path, stack: ExitStack, tier: str | None = None) -> Inputs:
    """The images in a file or folder of one of the `KINDS`, by its suffix in any case, or else by how it begins.

    Args:
        path: the file or folder.
        stack: closes what is opened.
        tier: of a data set; None for all of its trials.

    Raises:
        NotFound, InvalidArgument: there is no such file, or it cannot be read; the message names it.
        Unimplemented: PNG files need pillow.
    """
    if str(path) == "-":
        raise InvalidArgument(
            "images: standard input cannot be gone on with, expected a file or folder", field="images"
        )
    kind = _kind_of_folder(path) if is_folder(path, "images") else _kind_of(path)
    if kind == ".zip":
        found = _of_dataset(stack.enter_context(Dataset.open(path)), tier)
    elif tier is not None:
        raise InvalidArgument(f"{path}: not a data set, so it has no tiers", field="tier")
    elif kind == "folder":
        found = _of_folder(path)
    elif kind == ".npz":
        found = _of_npz(path)
    elif kind == ".png":
        found = _of_files(Sources.of_file(path), [path], read_picture)
    else:
        found = _of_npy(path, stack)
    return replace(found, told={"tier": tier, **found.sources.told()})


def load_beside(path: Path, what: str) -> Rows:
    """Behavior or pupil centers in a `.npy` file. Raises as `open_inputs`."""
    with NpyFile(path, what) as file:
        if file.nbytes > _MAX_BESIDE:
            raise InvalidArgument(f"{what}: shape {file.shape} in {path}, expected a few numbers an image", field=what)
        return file.whole()


def fingerprint(values: Rows) -> str:
    """What says that these are the same values as another time."""
    told = f"{values.dtype.str}{values.shape}".encode()
    return hashlib.sha256(told + np.ascontiguousarray(values).tobytes()).hexdigest()


def _kind_of_folder(path: Path) -> str:
    """ "folder" of images, or ".zip" for a data set, which is the same as in one."""
    top = find_in_folder(path)
    if top and (images := _images_by_kind(entries(path, "images"))):
        raise InvalidArgument(
            f"{path}: holds {next(iter(images.values()))[0]} and the data set {top}, expected one of them",
            field="images",
        )
    return "folder" if top is None else ".zip"


def _kind_of(path: Path) -> str:
    """The suffix of a file of this kind."""
    if path.suffix.lower() in _FILES:
        return path.suffix.lower()
    with open_file(path, "images") as stream:
        head = stream.read(len(PNG_MAGIC))
        if head.startswith(MAGIC_PREFIX):
            return ".npy"
        if head == PNG_MAGIC:
            return ".png"
        if head.startswith(b"PK"):
            return _kind_of_zip(path, stream)
    raise InvalidArgument(f"{path}: not of a kind that is taken, expected {KINDS}", field="images")


def _kind_of_zip(path: Path, stream: BinaryIO) -> str:
    try:
        with zipfile.ZipFile(stream) as archive:
            return ".npz" if "images.npy" in archive.namelist() else ".zip"
    except Exception:  # zipfile raises of every kind
        raise InvalidArgument(f"{path}: not a .npz or .zip file, or a damaged one", field="images") from None


def _of_npy(path: Path, stack: ExitStack) -> Inputs:
    sources = Sources.of_file(path)
    images = stack.enter_context(NpyFile(path, "images"))
    if not images.shape:
        raise InvalidArgument(f"{path}: a single number, expected images", field="images")

    def rows(start: int, size: int) -> Iterator[Rows]:
        for i in range(start, images.shape[0], size):
            yield images.rows(i, size)

    return Inputs(images.shape[0], images.shape[1:], images.dtype, rows, sources)


def _of_npz(path: Path) -> Inputs:
    sources = Sources.of_file(path)

    def begin(scope: ExitStack) -> tuple[dict[str, Rows], bytes, Callable[[int], bytes]]:
        """What is beside the images, how their `.npy` file begins, and the rest of it."""
        file = scope.enter_context(open_file(path, "images"))
        beside, stream = open_npz(scope, file, "images", ("images", *BESIDE), sys.maxsize)
        return beside, stream.read(_PIECE), stream.read

    def streamed(start: int, size: int) -> Iterator[Rows]:
        images = NpyRows("images")
        with ExitStack() as scope:
            _, piece, read = begin(scope)
            # Where it is compressed, what comes before can only be read again.
            position = 0
            while piece:
                images.feed(piece)
                most = min(size, start - position) if position < start else size
                while (block := images.ready(most)) is not None:
                    position += len(block)
                    if position > start:
                        yield block
                    most = min(size, start - position) if position < start else size
                piece = read(_PIECE)
            images.check_ended()

    def rows(start: int, size: int) -> Iterator[Rows]:
        try:
            if whole is None:
                yield from streamed(start, size)
            else:
                yield from (whole[i : i + size] for i in range(start, len(whole), size))
        except InvalidArgument as error:
            raise InvalidArgument(f"{path}: {error}", field=error.field) from None

    whole: Rows | None = None
    try:
        with ExitStack() as scope:
            beside, head, read = begin(scope)
            layout = npy_layout(head[:NPY_HEAD], None, "images")
            if not layout.shape:
                raise InvalidArgument("images: a single number, expected images", field="images")
            if layout.fortran_order and len(layout.shape) > 1:
                # Its images lie all over the file.
                whole = read_npy(head + read(-1), "images")
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error}", field=error.field) from None
    except MemoryError:
        raise ResourceExhausted(
            f"{path}: images: in Fortran order, which is read whole, and too large for the memory", field="images"
        ) from None
    return Inputs(layout.shape[0], layout.shape[1:], layout.dtype.newbyteorder("="), rows, sources, beside=beside)


def _of_folder(path: Path) -> Inputs:
    # Listed again at the end: a file that came or went in between is a change.
    sources = Sources.begin(path, lambda: {file.name: stamp(file) for file in _images_in(path)})
    files = _images_in(path)
    read = read_picture if files[0].suffix.lower() == ".png" else _read_image
    return _of_files(sources, files, read)


def _images_in(folder: Path) -> list[Path]:
    """The files of images right in a folder, all of one kind, 2 before 10."""
    inside = entries(folder, "images")
    by_kind = _images_by_kind(inside)
    below = [name for name in folders_among(inside) if _images_by_kind(entries(folder / name, "images"))]
    if len(by_kind) == 1 and not below and by_kind.keys() <= {".npy", ".png"}:
        (names,) = by_kind.values()
        return [folder / name for name in names]
    others = sorted(by_kind.keys() - {".npy", ".png"})
    if others:
        what = f"{by_kind[others[0]][0]} in it: {others[0]} files are not taken from a folder, .npy or .png files are"
    elif len(by_kind) > 1:
        what = "both .npy and .png files in it, expected one kind"
    elif by_kind:
        what = f"images in it and in {listed(below)} inside, expected one folder of them"
    else:
        files = [entry.name for entry in inside if Path(entry.name).suffix.lower() in _FILES]
        hint = f" (there is {listed(below or files)}: name it)" if below or files else ""
        what = f"no .npy and no .png file, and no data set in it{hint}"
    raise InvalidArgument(f"{folder}: {what}", field="images")


def _images_by_kind(inside: list[os.DirEntry[str]]) -> dict[str, list[str]]:
    """Names of what looks like images, by suffix."""
    found: dict[str, list[str]] = {}
    for entry in inside:
        kind = Path(entry.name).suffix.lower()
        if kind in IMAGE_SUFFIXES:
            found.setdefault(kind, []).append(entry.name)
    return found


def _of_files(sources: Sources, files: list[Path], read: Callable[[Path], Rows]) -> Inputs:
    first = read(files[0])

    def rows(start: int, size: int) -> Iterator[Rows]:
        for i in range(start, len(files), size):
            block = np.empty((len(files[i : i + size]), *first.shape), first.dtype)
            for n, file in enumerate(files[i : i + size]):
                image = read(file)
                if image.shape != first.shape or image.dtype != first.dtype:
                    raise InvalidArgument(
                        f"{file}: {image.dtype} {image.shape}, {files[0].name} has {first.dtype} {first.shape}",
                        field="images",
                    )
                block[n] = image
            yield block

    return Inputs(len(files), first.shape, first.dtype, rows, sources)


def _of_dataset(dataset: Dataset, tier: str | None) -> Inputs:
    trials = np.arange(dataset.trials) if tier is None else dataset.trials_of(tier)
    names = tuple(name for name in BESIDE if name in dataset.variables)
    sources = Sources.begin(dataset.path, lambda: dataset.stamps(("images", *names), trials))
    first = next(dataset.batches("images", trials[:1], 1))
    beside = {name: np.concatenate(list(dataset.batches(name, trials, 256))) for name in names}

    def rows(start: int, size: int) -> Iterator[Rows]:
        return dataset.batches("images", trials[start:], size)

    return Inputs(len(trials), first.shape[1:], first.dtype, rows, sources, beside=beside, dataset=dataset)


def _read_image(path: Path) -> Rows:
    with NpyFile(path, "images") as file:
        if len(file.shape) not in (2, 3) or (len(file.shape) == 3 and file.shape[0] != 1):
            raise InvalidArgument(f"{path}: shape {file.shape}, expected one image (H, W) or (1, H, W)", field="images")
        return file.whole()
