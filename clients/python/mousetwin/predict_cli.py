"""`mousetwin predict`: responses to files of any size, unattended, without losing work."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .apart import check_outputs
from .errors import InvalidArgument, Unavailable
from .files import add_overwrite, named_path, output
from .fits import check_fits
from .formats import DEFAULT_KIND, FILE_KINDS, ZARR_FORMATS, Answer
from .frames import frame_size
from .inputs import BESIDE, KINDS, Inputs, fingerprint, load_beside, open_inputs
from .interrupts import terminable
from .outputs import Output, open_output
from .progress import ProgressBar
from .query import Space
from .twins import Mouse, connect

_PAUSE_SECONDS = 0.2


def add_predict(commands: Any, add_server: Callable[[argparse.ArgumentParser], None], integers: Any) -> None:
    """Add `predict` to the `mousetwin` command."""
    parser = commands.add_parser("predict", help="predict responses to files of any size")
    parser.add_argument(
        "images",
        type=named_path,
        metavar="IMAGES",
        help=f"{KINDS}; a .npz holds images and may hold {' and '.join(BESIDE)}",
    )
    parser.add_argument("--mouse", required=True, metavar="KEY", help="data_key, as 'mousetwin mice' lists it")
    parser.add_argument("--model", default="")
    parser.add_argument("--version", default=None, help="default: the newest")
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=f"{', '.join(FILE_KINDS)} to write, (N, K), or - for standard output; the same command again goes on",
    )
    add_overwrite(parser)
    parser.add_argument(
        "--zarr-format", type=int, choices=ZARR_FORMATS, help=f"of a .zarr; default: {ZARR_FORMATS[0]}, read by all"
    )
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="default: %(default)s")
    parser.add_argument("--tier", help="of a data set: train, validation, test, …; default: all trials")
    parser.add_argument("--behavior", type=named_path, metavar="NPY", help="(N, B) or (B,)")
    parser.add_argument("--pupil-center", type=named_path, metavar="NPY", help="(N, 2) or (2,)")
    parser.add_argument("--neurons", type=integers, metavar="I,J,…", help="0-based columns; default: all")
    parser.add_argument("--unit-ids", type=integers, metavar="I,J,…", help="the recording's own ids instead")
    parser.add_argument("--space", choices=["raw", "model"], help="float images must say; integers are raw")
    parser.add_argument("--condition-space", choices=["raw", "model"], help="of behavior and pupil center alone")
    parser.add_argument(
        "--retry", type=float, default=60.0, metavar="SECONDS", help="for a service that went away (default: 60)"
    )
    add_server(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    out = output(args.out, "out", FILE_KINDS, overwrite=args.overwrite, default=DEFAULT_KIND)
    if args.zarr_format is not None and out.kind != ".zarr":
        raise InvalidArgument(f"zarr_format: only of a .zarr, out is {args.out!r}", field="zarr_format")
    read = {"images": args.images, "behavior": args.behavior, "pupil_center": args.pupil_center}
    check_outputs([out], {name: path for name, path in read.items() if path is not None})
    with contextlib.ExitStack() as stack:
        stack.enter_context(terminable())
        inputs = open_inputs(args.images, stack, args.tier)
        beside = _beside(args, inputs)
        twins = stack.enter_context(connect(args.server, timeout=args.timeout))
        mouse = twins.mouse(args.mouse, args.model, args.version)
        if inputs.dataset is not None:
            if odd := check_fits(inputs.dataset, mouse.info):
                print(f"note: {odd}", file=sys.stderr)
            # A recording has everything; a twin may take less.
            taken = {name for name in BESIDE if getattr(mouse.summary, name) or getattr(args, name) is not None}
            beside = {name: values for name, values in beside.items() if name in taken}
        space = args.space or ("raw" if inputs.dataset is not None else None)
        job = _Job(mouse, inputs, beside, space, args.condition_space, args.neurons, args.unit_ids)
        answer = job.answer(args.dtype, args.zarr_format or ZARR_FORMATS[0])
        responses = stack.enter_context(open_output(out, job.asked(), answer))
        if responses.rows:
            print(f"{out.name}: going on after {responses.rows} of {job.shape[0]} images", file=sys.stderr)
        _fill(responses, job, args.retry)
        inputs.sources.check_unchanged()
    standing = f"; {' and '.join(responses.defaults)} at the training set's mean" if responses.defaults else ""
    print(
        f"{out.name}: {job.shape[0]} images × {job.shape[1]} neurons, {args.dtype}, "
        f"from {answer.twin} {answer.digest[:12]}{standing}",
        file=sys.stderr if out.is_standard_output else sys.stdout,
    )
    return 0


class _Job:
    """What is asked of one twin. shape: of the whole answer."""

    def __init__(
        self,
        mouse: Mouse,
        inputs: Inputs,
        beside: dict[str, NDArray[Any]],
        space: str | None,
        condition_space: str | None,
        neurons: list[int] | None,
        unit_ids: list[int] | None,
    ) -> None:
        chosen = neurons if neurons is not None else unit_ids
        columns = mouse.summary.neurons if chosen is None else len(chosen)
        # One image may come with many conditions, and is answered under each.
        rows = max([1, *(len(v) for v in beside.values() if v.ndim == 2)]) if inputs.count == 1 else inputs.count
        self.mouse = mouse
        self.shape = (rows, columns)
        self._inputs = inputs
        self._beside = beside
        self._space = space
        self._condition_space = condition_space
        self._neurons = neurons
        self._unit_ids = unit_ids
        each = inputs.dtype.itemsize * int(np.prod(inputs.shape, dtype=np.int64))
        self._size = max(frame_size(each, 4 * columns), int(inputs.count == 1))
        if len(inputs.shape) < 2:
            # No set of images: sent in one piece, so that what the service says of it is about all of it.
            self._size = max(1, inputs.count)
        if inputs.count > self._size:
            for name, values in beside.items():
                if values.ndim == 2 and len(values) != inputs.count:
                    raise InvalidArgument(
                        f"{name}: {len(values)} rows, expected one for each of {inputs.count} images", field=name
                    )

    def asked(self) -> dict[str, Any]:
        """Everything that the answer depends on."""
        return {
            "inputs": self._inputs.told,
            "beside": {name: fingerprint(values) for name, values in self._beside.items()},
            "digest": self.mouse.summary.twin.digest,
            "device": self.mouse.summary.device,
            "library": version("mousetwin"),
            "space": self._space,
            "condition_space": self._condition_space,
            "neurons": self._neurons,
            "unit_ids": self._unit_ids,
        }

    def answer(self, dtype: str, zarr_format: Literal[2, 3]) -> Answer:
        """What will be written."""
        twin = self.mouse.summary.twin
        chosen, called = (self._unit_ids, "unit_ids") if self._unit_ids is not None else (self._neurons, "neurons")
        return Answer(
            self.shape,
            np.dtype(dtype),
            range(self.shape[1]) if chosen is None else chosen,
            called,
            f"{twin.mouse}/{twin.model}/{twin.version}",
            twin.digest,
            zarr_format,
        )

    def queries(self, start: int) -> Iterator[dict[str, Any]]:
        """Arguments of `Mouse.predict`, a frame at a time, from image `start` on."""
        for images in self._inputs.rows(start, self._size):
            stop = start + len(images)
            one = self._inputs.count <= self._size
            yield {
                "images": images,
                **{n: v[start:stop] if v.ndim == 2 and not one else v for n, v in self._beside.items()},
                "space": self._space,
                "condition_space": self._condition_space,
                "neurons": self._neurons,
                "unit_ids": self._unit_ids,
            }
            start = stop
        if not self._inputs.count:
            # What to say to none at all is the service's business.
            yield {"images": np.zeros((0, *self._inputs.shape), self._inputs.dtype), "space": self._space or Space.RAW}


def _fill(output: Output, job: _Job, retry: float) -> None:
    """Write the rows that are missing. Waits for a service that went away."""
    done, total = output.rows, job.shape[0]
    bar = ProgressBar(job.mouse.summary.twin.mouse, start=done)
    give_up = time.monotonic() + retry
    while done < total or not total:
        try:
            for responses in job.mouse.predict_frames(job.queries(done)):
                output.append(np.asarray(responses), responses.defaults)
                done += len(responses)
                give_up = time.monotonic() + retry
                bar(done, total)
        except Unavailable:
            if time.monotonic() >= give_up:
                raise
            time.sleep(_PAUSE_SECONDS)
        except InvalidArgument as error:
            if done:
                raise InvalidArgument(
                    f"{error} (in the frame that begins at image {done})", field=error.field
                ) from None
            raise


def _beside(args: argparse.Namespace, inputs: Inputs) -> dict[str, NDArray[Any]]:
    beside = dict(inputs.beside)
    for name in BESIDE:
        if (path := getattr(args, name)) is not None:
            if name in beside:
                raise InvalidArgument(f"{name}: given both in {args.images} and as {path}", field=name)
            beside[name] = load_beside(path, name)
    return beside
