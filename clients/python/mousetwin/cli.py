"""The `mousetwin` command. The client's are here and beside; the serve and export packages add theirs by entry point.

An entry point in `mousetwin.commands` is a function that adds its parser to the subparsers it is given, with the
defaults `run` (takes the arguments, returns the exit status) and `extra` (what to install where one of its imports is
missing).
"""

from __future__ import annotations

import argparse
import errno
import functools
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from typing import Any

from .apart import check_outputs
from .arrays import whole_numbers
from .console import discard_output, warn
from .errors import MousetwinError, MousetwinWarning
from .figures import picture_kinds
from .files import add_overwrite, output, whole_file
from .interrupts import Terminated, terminable
from .predict_cli import add_predict
from .progress import ProgressBar
from .query import TwinSummary
from .score_cli import add_score
from .twins import connect


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; errors are one line on stderr and exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files may hold what the terminal's encoding, or any, cannot tell.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(argv)
        finally:
            # Here, since at exit Python can only tell of what fails.
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt as error:
        # Over what a progress bar drew.
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        warn(f"{clear}mousetwin: {str(error) or 'interrupted'}")
        return 143 if isinstance(error, Terminated) else 130
    except BrokenPipeError:
        # Whoever read it has enough, as `head` has; the status is a shell's for SIGPIPE.
        discard_output()
        return 141
    except OSError as error:
        # Of a file it would have a name.
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        discard_output()
        warn(f"mousetwin: standard output: {error.strerror}")
        return 1


def _run(argv: Sequence[str] | None) -> int:
    parser = _Parser(prog="mousetwin", description="Digital twins of mouse visual cortex.")
    parser.add_argument("--version", action="version", version=f"mousetwin {version('mousetwin')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_mice(commands)
    add_predict(commands, _add_server, _integers)
    add_score(commands, _add_server)
    _add_mei(commands)
    for entry_point in sorted(entry_points(group="mousetwin.commands"), key=lambda e: e.name):
        entry_point.load()(commands)
    args = parser.parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", MousetwinWarning)
            warnings.showwarning = _show_warning
            status: int = args.run(args)
    except MousetwinError as error:
        request = f" (request {error.request_id})" if error.request_id else ""
        warn(_one_line(f"mousetwin: {error}{request}"))
        return 1
    except ModuleNotFoundError as error:
        extra = getattr(args, "extra", None)
        if extra is None:
            raise
        warn(f"mousetwin: this needs {error.name}: pip install 'mousetwin[{extra}]'")
        return 1
    return status


# Where a service is: what wraps a command has its own, and whoever calls that says otherwise.
_PLACES = {"--server", "--host", "--http-port", "--grpc-port"}


class _Parser(argparse.ArgumentParser):
    """Refuses what argparse would pick from in silence: an option given twice, or by a part of its name.

    Options with action="append" are meant to be repeated, and of `_PLACES` the last one counts.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})
        self.register("action", None, _StoreOnce)
        self.register("action", "store", _StoreOnce)
        self.register("action", "store_true", functools.partial(_switch, True))
        self.register("action", "store_false", functools.partial(_switch, False))


class _StoreOnce(argparse.Action):
    _given = False

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if self._given and _PLACES.isdisjoint(self.option_strings):
            raise argparse.ArgumentError(self, "given twice")
        self._given = bool(self.option_strings)
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)


def _switch(stored: bool, option_strings: Sequence[str], dest: str, **options: Any) -> _StoreOnce:
    return _StoreOnce(option_strings, dest, nargs=0, const=stored, **{"default": not stored, **options})


def _one_line(text: str) -> str:
    """Line ends and the like, as a file's name may hold them, written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """One line on stderr, as errors are; Python's own form for warnings that are not ours."""
    ours = issubclass(category, MousetwinWarning)
    text = f"mousetwin: warning: {message}\n" if ours else warnings.formatwarning(message, category, *place[:2])
    sys.stderr.write(text)


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        default=os.environ.get("MOUSETWIN_SERVER", "127.0.0.1:8001"),
        help="HOST:PORT of the service's gRPC, local:MODELS or torchserve://HOST:PORT "
        "(default: $MOUSETWIN_SERVER or %(default)s)",
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


def _add_mei(commands: Any) -> None:
    parser = commands.add_parser("mei", help="most-exciting images of chosen neurons")
    parser.add_argument("--mouse", required=True, metavar="KEY", help="data_key, as 'mousetwin mice' lists it")
    parser.add_argument("--model", default="")
    parser.add_argument("--version", default=None, help="default: the newest")
    parser.add_argument("--neurons", type=_integers, metavar="I,J,…", help="0-based columns, one image each")
    parser.add_argument("--unit-ids", type=_integers, metavar="I,J,…", help="the recording's own ids instead")
    parser.add_argument("--out", required=True, metavar="FILE", help=".npz to write, or - for standard output")
    parser.add_argument("--plot", metavar="PNG", help="picture to draw (needs the plot extra)")
    add_overwrite(parser)
    parser.add_argument("--steps", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--norm", type=float, help="L2 norm in the units of the space (default: 10 in model units)")
    parser.add_argument("--behavior", type=_numbers, metavar="X,Y,…", help="condition (default: the mean)")
    parser.add_argument("--pupil-center", type=_numbers, metavar="X,Y", help="condition (default: the mean)")
    parser.add_argument("--space", choices=["raw", "model"], help="units of all of this (default: model)")
    parser.add_argument("--condition-space", choices=["raw", "model"], help="of --behavior and --pupil-center alone")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    _add_server(parser)
    parser.set_defaults(run=_run_mei)


def _run_mei(args: argparse.Namespace) -> int:
    out = output(args.out, "out", (".npz",), overwrite=args.overwrite, default=".npz")
    plot = None if args.plot is None else output(args.plot, "plot", picture_kinds(), overwrite=args.overwrite)
    check_outputs([one for one in (out, plot) if one is not None], {})
    with terminable(), whole_file(out, "out") as stream, connect(args.server, timeout=args.timeout) as twins:
        mouse = twins.mouse(args.mouse, args.model, args.version)
        found = mouse.optimize(
            args.neurons,
            args.unit_ids,
            behavior=args.behavior,
            pupil_center=args.pupil_center,
            space=args.space,
            condition_space=args.condition_space,
            seed=args.seed,
            steps=args.steps,
            norm=args.norm,
            progress=ProgressBar("optimizing", unit="steps"),
        )
        found.save(stream)
    if plot is not None:
        found.plot(plot)
    synthetic = " (synthetic mouse)" if found.synthetic else ""
    for neuron, value in zip(found.neurons[:, 0], found.values, strict=True):
        print(
            f"{args.mouse} neuron {neuron}: {value:.3f}{synthetic}",
            file=sys.stderr if out.is_standard_output else sys.stdout,
        )
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected numbers separated by commas") from None


def _integers(text: str) -> list[int]:
    try:
        return whole_numbers(text.replace(", ", ","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected whole numbers separated by commas") from None


if __name__ == "__main__":
    sys.exit(main())
