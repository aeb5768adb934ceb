"""The `mousetwin` command. `mice` and `predict` are here; the serve and export packages add theirs by entry point.

An entry point in `mousetwin.commands` is a function that adds its parser to the subparsers it is given, with the
defaults `run` (takes the arguments, returns the exit status) and `extra` (what to install where one of its imports is
missing).
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from .arrays import read_npz
from .errors import InvalidArgument, MousetwinError, NotFound
from .progress import ProgressBar
from .query import TwinSummary
from .twins import connect

_NPZ_ARRAYS = ("images", "behavior", "pupil_center")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; errors are one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(prog="mousetwin", description="Digital twins of mouse visual cortex.")
    parser.add_argument("--version", action="version", version=f"mousetwin {version('mousetwin')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_mice(commands)
    _add_predict(commands)
    _add_mei(commands)
    for entry_point in sorted(entry_points(group="mousetwin.commands"), key=lambda e: e.name):
        entry_point.load()(commands)
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
    except MousetwinError as error:
        request = f" (request {error.request_id})" if error.request_id else ""
        print(f"mousetwin: {error}{request}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        extra = getattr(args, "extra", None)
        if extra is None:
            raise
        print(f"mousetwin: this needs {error.name}: pip install 'mousetwin[{extra}]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        default=os.environ.get("MOUSETWIN_SERVER", "127.0.0.1:8001"),
        help="HOST:PORT of the service's gRPC, or local:MODELS (default: $MOUSETWIN_SERVER or %(default)s)",
    )
    parser.add_argument("--timeout", type=float, default=None, help="seconds to wait for the answer")


def _add_mice(commands: Any) -> None:
    parser = commands.add_parser("mice", help="list what is served")
    _add_server(parser)
    parser.set_defaults(run=_run_mice)


def _run_mice(args: argparse.Namespace) -> int:
    with connect(args.server, timeout=args.timeout) as twins:
        for summary in twins.mice():
            print(describe(summary))
    return 0


def describe(summary: TwinSummary) -> str:
    """One line on a twin, for people."""
    twin = summary.twin
    takes = ["images", *(["behavior"] if summary.behavior else []), *(["pupil_center"] if summary.pupil_center else [])]
    height, width = summary.native_size
    gradient = "  no gradient" if summary.no_gradient else ""
    synthetic = "  SYNTHETIC" if summary.synthetic else ""
    return (
        f"{twin.mouse}  {twin.model} v{twin.version}  {summary.neurons} neurons  {height}x{width}  "
        f"takes {', '.join(takes)}  on {summary.device}  {twin.digest[:12]}{gradient}{synthetic}"
    )


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser("predict", help="predict responses to the images in a file")
    parser.add_argument("images", type=Path, metavar="IMAGES", help=f".npy, or .npz with {', '.join(_NPZ_ARRAYS)}")
    parser.add_argument("--mouse", required=True, metavar="KEY", help="data_key, as 'mousetwin mice' lists it")
    parser.add_argument("--model", default="")
    parser.add_argument("--version", default=None, help="default: the newest")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=".npy to write, float32 (N, K)")
    parser.add_argument("--behavior", type=Path, metavar="NPY", help="(N, B) or (B,)")
    parser.add_argument("--pupil-center", type=Path, metavar="NPY", help="(N, 2) or (2,)")
    parser.add_argument("--neurons", type=_integers, metavar="I,J,…", help="0-based columns; default: all")
    parser.add_argument("--unit-ids", type=_integers, metavar="I,J,…", help="the recording's own ids instead")
    parser.add_argument("--space", choices=["raw", "model"], help="float images must say; integers are raw")
    _add_server(parser)
    parser.set_defaults(run=_run_predict)


def _add_mei(commands: Any) -> None:
    parser = commands.add_parser("mei", help="most-exciting images of chosen neurons")
    parser.add_argument("--mouse", required=True, metavar="KEY", help="data_key, as 'mousetwin mice' lists it")
    parser.add_argument("--model", default="")
    parser.add_argument("--version", default=None, help="default: the newest")
    parser.add_argument("--neurons", type=_integers, metavar="I,J,…", help="0-based columns, one image each")
    parser.add_argument("--unit-ids", type=_integers, metavar="I,J,…", help="the recording's own ids instead")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=".npz to write")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="picture to draw (needs the plot extra)")
    parser.add_argument("--steps", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--norm", type=float, help="L2 norm in the units of the space (default: 10 in model units)")
    parser.add_argument("--behavior", type=_numbers, metavar="X,Y,…", help="condition (default: the mean)")
    parser.add_argument("--pupil-center", type=_numbers, metavar="X,Y", help="condition (default: the mean)")
    parser.add_argument("--space", choices=["raw", "model"], help="units of all of this (default: model)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    _add_server(parser)
    parser.set_defaults(run=_run_mei)


def _run_mei(args: argparse.Namespace) -> int:
    with _whole_file(args.out) as stream, connect(args.server, timeout=args.timeout) as twins:
        mouse = twins.mouse(args.mouse, args.model, args.version)
        found = mouse.optimize(
            args.neurons,
            args.unit_ids,
            behavior=args.behavior,
            pupil_center=args.pupil_center,
            space=args.space,
            seed=args.seed,
            steps=args.steps,
            norm=args.norm,
            progress=ProgressBar("optimizing", unit="steps"),
        )
        found.save(stream)
    if args.plot is not None:
        found.plot(args.plot)
    synthetic = " (synthetic mouse)" if found.synthetic else ""
    for neuron, value in zip(found.neurons[:, 0], found.values, strict=True):
        print(f"{args.mouse} neuron {neuron}: {value:.3f}{synthetic}")
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected numbers separated by commas") from None


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected whole numbers separated by commas") from None


def _run_predict(args: argparse.Namespace) -> int:
    inputs = _load_inputs(args.images)
    for name in ("behavior", "pupil_center"):
        if (path := getattr(args, name)) is not None:
            if name in inputs:
                raise InvalidArgument(f"{name}: given both in {args.images} and as {path}", field=name)
            inputs[name] = _load_npy(path, name)
    with _whole_file(args.out) as stream, connect(args.server, timeout=args.timeout) as twins:
        mouse = twins.mouse(args.mouse, args.model, args.version)
        responses = mouse.predict(
            inputs["images"],
            inputs.get("behavior"),
            inputs.get("pupil_center"),
            neurons=args.neurons,
            unit_ids=args.unit_ids,
            space=args.space,
            progress=ProgressBar(f"{args.mouse}"),
        )
        np.save(stream, np.asarray(responses), allow_pickle=False)
    assert responses.twin is not None
    defaults = f"; {' and '.join(responses.defaults)} at the training set's mean" if responses.defaults else ""
    twin = responses.twin
    print(
        f"{args.out}: {responses.shape[0]} images × {responses.shape[1]} neurons, float32, "
        f"from {twin.mouse}/{twin.model}/{twin.version} {twin.digest[:12]}{defaults}"
    )
    return 0


def _load_inputs(path: Path) -> dict[str, NDArray[Any]]:
    if path.suffix == ".npz":
        try:
            inputs = read_npz(_read(path), _NPZ_ARRAYS, max_bytes=sys.maxsize)
        except InvalidArgument as error:
            raise InvalidArgument(f"{path}: {error}", field=error.field) from None
        if "images" not in inputs:
            raise InvalidArgument(f"{path}: there is no array 'images' in it", field="images")
        return inputs
    return {"images": _load_npy(path, "images")}


def _load_npy(path: Path, field: str) -> NDArray[Any]:
    wrong = f"{path}: not a .npy file, a damaged one, or one of anything but plain numbers"
    try:
        with path.open("rb") as stream:
            magic = stream.read(len(MAGIC_PREFIX))
        # np.load takes other files as well, and not all of them well.
        if magic != MAGIC_PREFIX:
            raise InvalidArgument(wrong, field=field)
        # Mapped, not read: a recording's images need not fit into memory.
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror or error}", field=field) from None
    except MousetwinError:
        raise
    except ValueError:
        raise InvalidArgument(wrong, field=field) from None
    return array


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}", field="images") from None


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its place at `path` once it is written whole, so that no half-written one passes for an answer.

    It is opened at once: that `path` cannot be written is known before the twin has worked for it.
    """
    partial = None
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with partial.open("wb") as stream:
            yield stream
        os.replace(partial, path)
    except MousetwinError:
        # Some of them are OSErrors too.
        raise
    except OSError as error:
        raise NotFound(f"{path}: cannot be written: {error.strerror}", field="out") from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
