"""What a command reads its images from: files of any size, read as they are needed."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from .arrays import NpyRows, open_npz
from .dataset import Dataset
from .errors import InvalidArgument, MousetwinError, NotFound, Unimplemented

BESIDE = ("behavior", "pupil_center")
_PIECE = 1 << 20
Rows = NDArray[Any]


@dataclass(frozen=True)
class Inputs:
    """Images, and what goes with them.

    Attributes:
        count: how many images.
        shape, dtype: of one image.
        rows: reads (start, size): images from `start` on, `size` at a time (the last ones may be fewer).
        beside: behavior and pupil_center, a row an image or one row for all.
        told: what says that these are the same inputs as another time.
        recorded: whether they are a data set's, raw and with all that was recorded.
    """

    count: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: Callable[[int, int], Iterator[Rows]]
    beside: dict[str, Rows] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    recorded: bool = False


def open_inputs(path: Path, stack: ExitStack, tier: str | None = None) -> Inputs:
    """The images in a `.npy`, an `.npz` with `images`, a folder of `.npy` or PNG files, or a SENSORIUM data set.

    Args:
        path: the file or folder; a data set may be a folder or its zip.
        stack: closes what is opened.
        tier: of a data set; None for all of its trials.

    Raises:
        NotFound, InvalidArgument: there is no such file, or it cannot be read; the message names it.
        Unimplemented: PNG files need pillow.
    """
    if path.suffix == ".zip" or (path / "meta").is_dir():
        return _of_dataset(stack.enter_context(Dataset.open(path)), path, tier)
    if tier is not None:
        raise InvalidArgument(f"{path}: not a data set, so it has no tiers", field="tier")
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".npz":
        return _of_npz(path, stack)
    images = load_npy(path, "images")
    if images.ndim < 1:
        raise InvalidArgument(f"{path}: a single number, expected images", field="images")

    def rows(start: int, size: int) -> Iterator[Rows]:
        for i in range(start, len(images), size):
            yield np.ascontiguousarray(images[i : i + size])

    return Inputs(len(images), images.shape[1:], images.dtype, rows, told={"file": _stamp(path)})


def load_npy(path: Path, what: str) -> Rows:
    """A `.npy` file, mapped and not read: a recording's images need not fit into memory. Raises as `open_inputs`."""
    wrong = f"{path}: not a .npy file, a damaged one, or one of anything but plain numbers"
    try:
        with path.open("rb") as stream:
            magic = stream.read(len(MAGIC_PREFIX))
        # np.load takes other files as well, and not all of them well.
        if magic != MAGIC_PREFIX:
            raise InvalidArgument(wrong, field=what)
        array: Rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror or error}", field=what) from None
    except MousetwinError:
        raise
    except ValueError:
        raise InvalidArgument(wrong, field=what) from None
    return array


def fingerprint(values: Rows) -> str:
    """What says that these are the same values as another time."""
    told = f"{values.dtype.str}{values.shape}".encode()
    return hashlib.sha256(told + np.ascontiguousarray(values).tobytes()).hexdigest()


def _of_npz(path: Path, stack: ExitStack) -> Inputs:
    def begin(scope: ExitStack) -> tuple[dict[str, Rows], NpyRows, Callable[[], bytes]]:
        try:
            file = scope.enter_context(path.open("rb"))
        except OSError as error:
            raise NotFound(f"{path}: {error.strerror}", field="images") from None
        try:
            beside, stream = open_npz(scope, file, "images", ("images", *BESIDE), sys.maxsize)
            images = NpyRows("images")
            while images.shape is None and (data := stream.read(_PIECE)):
                images.feed(data)
            if images.shape is None:
                images.check_ended()
        except InvalidArgument as error:
            raise InvalidArgument(f"{path}: {error}", field=error.field) from None
        return beside, images, lambda: stream.read(_PIECE)

    def rows(start: int, size: int) -> Iterator[Rows]:
        with ExitStack() as scope:
            _, images, read = begin(scope)
            assert images.shape is not None
            # Where it is compressed, what comes before can only be read again.
            position = 0
            try:
                while position < images.shape[0]:
                    most = min(size, start - position) if position < start else size
                    while (block := images.ready(most)) is None:
                        if not (data := read()):
                            images.check_ended()
                            return
                        images.feed(data)
                    position += len(block)
                    if position > start:
                        yield block
            except InvalidArgument as error:
                raise InvalidArgument(f"{path}: {error}", field=error.field) from None

    with ExitStack() as scope:
        beside, images, _ = begin(scope)
        assert images.shape is not None
        shape, dtype = images.shape, images.dtype
    return Inputs(shape[0], shape[1:], dtype, rows, beside, {"file": _stamp(path)})


def _of_folder(path: Path) -> Inputs:
    found = {kind: [f for f in path.iterdir() if f.suffix.lower() == kind] for kind in (".npy", ".png")}
    kinds = [kind for kind, files in found.items() if files]
    if len(kinds) != 1:
        what = "both .npy and .png files" if kinds else "no .npy and no .png file, and no data set"
        raise InvalidArgument(f"{path}: {what} in it, expected one image a file", field="images")
    files = sorted(found[kinds[0]], key=_by_number)
    read = _read_png if kinds[0] == ".png" else _read_image
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

    told = [[file.name, *_stamp(file)] for file in files]
    return Inputs(
        len(files),
        first.shape,
        first.dtype,
        rows,
        told={"folder": str(path.resolve()), "files": hashlib.sha256(repr(told).encode()).hexdigest()},
    )


def _of_dataset(dataset: Dataset, path: Path, tier: str | None) -> Inputs:
    trials = np.arange(dataset.trials) if tier is None else dataset.trials_of(tier)
    first = next(dataset.batches("images", trials[:1], 1))
    beside = {
        name: np.concatenate(list(dataset.batches(name, trials, 256))) for name in BESIDE if name in dataset.variables
    }

    def rows(start: int, size: int) -> Iterator[Rows]:
        return dataset.batches("images", trials[start:], size)

    told = {"dataset": str(path.resolve()), "stamp": _stamp(path), "tier": tier}
    return Inputs(len(trials), first.shape[1:], first.dtype, rows, beside, told, recorded=True)


def _read_image(path: Path) -> Rows:
    image = np.asarray(load_npy(path, "images"))
    if image.ndim not in (2, 3) or (image.ndim == 3 and len(image) != 1):
        raise InvalidArgument(f"{path}: shape {image.shape}, expected one image (H, W) or (1, H, W)", field="images")
    return image


def _read_png(path: Path) -> Rows:
    try:
        from PIL import Image
    except ImportError:
        raise Unimplemented("PNG files need pillow: pip install 'mousetwin[plot]'", field="images") from None
    try:
        with Image.open(path) as picture:
            if picture.mode != "L":
                raise InvalidArgument(f"{path}: mode {picture.mode}, expected 8-bit gray (L)", field="images")
            return np.asarray(picture)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error}", field="images") from None


def _by_number(path: Path) -> list[Any]:
    """2.npy before 10.npy."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]
