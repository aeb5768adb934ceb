"""`mousetwin export`, `mousetwin fetch` and `mousetwin demo`.

torch is loaded only when one of them runs, so that the other commands start without it, or without having it.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mousetwin.progress import ProgressBar


def export_command(commands: Any) -> None:
    """Add `export` to the `mousetwin` command."""
    parser = commands.add_parser("export", help="export a SENSORIUM checkpoint to a bundle")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="state_dict, read with weights_only")
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="model_fn and model_config")
    parser.add_argument("--mouse", required=True, metavar="KEY", help="data_key in the checkpoint, or 'all'")
    parser.add_argument("--out", type=Path, required=True, metavar="MODELS", help="folder of bundles")
    parser.add_argument("--model", metavar="NAME", help="default: cnn, or ln for a linear config")
    parser.add_argument("--version", default="", help="default: the next number")
    parser.add_argument(
        "--weights", metavar="NAME", help="which of a checkpoint that has several: keys, joined by dots"
    )
    parser.add_argument("--statistics", type=Path, metavar="YAML", help="images, behavior, …: {mean, std}")
    parser.add_argument("--dataset", type=Path, metavar="PATH", help="the mouse's data set, folder or zip")
    parser.add_argument("--input-size", type=_size, default=(36, 64), metavar="HxW", help="default: 36x64")
    parser.add_argument("--description", default="")
    parser.add_argument("--licence", default="not stated", help="of the weights")
    parser.add_argument(
        "--tolerance", type=_tolerance, default=2e-5, help="parity, max abs error (default: %(default)s)"
    )
    _add_no_gradient(parser)
    parser.set_defaults(run=_run_export, extra="export")


def fetch_command(commands: Any) -> None:
    """Add `fetch` to the `mousetwin` command."""
    parser = commands.add_parser("fetch", help="download the official SENSORIUM 2022 baselines and export them")
    parser.add_argument("--out", type=Path, default=Path("models"), metavar="MODELS", help="default: %(default)s")
    parser.add_argument("--mouse", metavar="KEY", help="default: both mice")
    parser.add_argument("--model", choices=["cnn", "ln"], help="default: both")
    parser.add_argument("--base-url", metavar="URL", help="default: the public repository")
    _add_no_gradient(parser)
    parser.set_defaults(run=_run_fetch, extra="export")


def demo_command(commands: Any) -> None:
    """Add `demo` to the `mousetwin` command."""
    parser = commands.add_parser("demo", help="build the synthetic demo mouse")
    parser.add_argument("--out", type=Path, required=True, metavar="MODELS", help="folder of bundles")
    parser.set_defaults(run=_run_demo, extra="export")


def _run_export(args: argparse.Namespace) -> int:
    from mousetwin_serve import bundle

    from . import dataset, statistics
    from .checkpoint import read_checkpoint
    from .config import read_config
    from .errors import ExportError
    from .export import Contract, export_twin

    config = read_config(args.config)
    checkpoint = read_checkpoint(args.checkpoint, args.weights)
    if checkpoint.read_from:
        print(f"{checkpoint.name}: {checkpoint.read_from}", file=sys.stderr)
    mice = checkpoint.mice() if args.mouse == "all" else [args.mouse]
    if len(mice) > 1 and args.dataset is not None:
        raise ExportError("--dataset is of one mouse: export the mice of this checkpoint one by one")
    for mouse in mice:
        contract = Contract(
            mouse=mouse,
            model=args.model or ("ln" if config.linear else "cnn"),
            version=args.version,
            native_size=args.input_size,
            description=args.description,
            source=bundle.Source(description=checkpoint.name, sha256=checkpoint.sha256, licence=args.licence),
        )
        if args.statistics is not None:
            contract = replace(contract, statistics=statistics.read_statistics(args.statistics))
        if args.dataset is not None:
            facts = dataset.read_dataset(args.dataset, checkpoint.neurons(mouse), mouse)
            contract = replace(
                contract,
                statistics=statistics.merge(contract.statistics, facts.statistics),
                unit_ids=facts.unit_ids,
                cell_motor_coordinates=facts.cell_motor_coordinates,
            )
        folder = export_twin(checkpoint, config, contract, args.out, tolerance=args.tolerance, gradient=args.gradient)
        print(folder)
    return 0


def _run_fetch(args: argparse.Namespace) -> int:
    from .fetch import BASE_URL, choose, fetch

    def progress(label: str) -> ProgressBar:
        return ProgressBar(label, unit="bytes")

    baselines, url = choose(args.mouse, args.model), args.base_url or BASE_URL
    folders = fetch(baselines, args.out, url, gradient=args.gradient, progress=progress)
    for folder in folders:
        print(folder)
    print(f"Serve them with: mousetwin serve --models {args.out}")
    return 0


def _run_demo(args: argparse.Namespace) -> int:
    from .demo import export_demo

    print(export_demo(args.out))
    return 0


def _add_no_gradient(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-gradient", dest="gradient", action="store_false", help="leave gradients out: half the time to export"
    )


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # JSON has no infinity: a bundle that said so could not be read back.
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a finite number, at least 0")
    return value


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}, expected HEIGHTxWIDTH as in 36x64")
    return (int(match[1]), int(match[2]))
