"""`mousetwin serve` and `mousetwin archive`. Imports nothing that only serving needs until one of them runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .hosts.torchserve_settings import Settings


def serve_command(commands: Any) -> None:
    """Add `serve` to the `mousetwin` command."""
    parser = commands.add_parser("serve", help="serve exported twins over gRPC and REST")
    parser.add_argument("--models", type=Path, metavar="MODELS", help="folder of bundles (default: the demo mouse)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    port = _whole_number(0, 65535)
    parser.add_argument("--http-port", type=port, default=8000, help="default: %(default)s; 0 takes a free one")
    parser.add_argument("--grpc-port", type=port, default=8001, help="default: %(default)s; 0 takes a free one")
    parser.add_argument(
        "--device", default="auto", help="auto (GPUs if there are any, else the CPU), cpu, cuda (all GPUs) or cuda:N"
    )
    parser.add_argument("--tf32", action="store_true", help="let GPUs round what they multiply to 10 bits")
    count = _whole_number(1, 1_000_000)
    parser.add_argument("--threads", type=_whole_number(0, 1024), default=0, help="CPU cores to run on (default: all)")
    parser.add_argument("--max-batch", type=count, help="images in one run (default: what is fastest)")
    parser.add_argument("--max-queue", type=count, default=8192, help="images that may wait (default: %(default)s)")
    # gRPC counts the bytes of a message in 32 bits.
    parser.add_argument(
        "--max-request-mb",
        type=_whole_number(1, 2047),
        default=64,
        help="size of one request in MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin ask over HTTP, as https://lab.example; may be repeated; * for all pages",
    )
    parser.set_defaults(run=_run_serve, extra="serve")


def _run_serve(args: argparse.Namespace) -> int:
    from mousetwin.console import warn

    from .hosts.signals import Stopped, stop_at_once

    stop_at_once()
    try:
        return _serve(args)
    except Stopped as stopped:
        warn(f"mousetwin: stopped by {stopped.name}")
        return stopped.status


def _serve(args: argparse.Namespace) -> int:
    # Only here, so that the other commands do not wait for the web stack to load.
    import asyncio
    import logging

    from mousetwin.console import warn
    from mousetwin.errors import NotFound

    from .hosts.listening import Addresses

    addresses = Addresses(args.host, args.http_port, args.grpc_port)
    # Before anything that may take long.
    addresses.check()

    from .api.cors import check_origins
    from .batcher import BatchSettings
    from .device import choose
    from .hosts.standalone import serve
    from .limits import Limits
    from .repository import DEMO_MODELS, Repository
    from .service import TwinService

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    check_origins(args.cors_origin)
    devices = choose(args.device, args.threads, tf32=args.tf32)
    limits = Limits(request_bytes=args.max_request_mb << 20)
    models = args.models or DEMO_MODELS
    repository = Repository.load(models, devices, limits)
    for line in repository.refused.values():
        warn(f"mousetwin: {line}")
    if not repository.twins:
        raise NotFound(f"{models}: no twin in it can be served, expected MOUSE/MODEL/VERSION/bundle.json")
    settings = BatchSettings(max_batch=args.max_batch, max_queued=args.max_queue)

    async def main() -> None:
        service = TwinService(repository, limits=limits, batching=settings)
        await serve(service, addresses, devices, tuple(args.cors_origin))

    asyncio.run(main())
    return 0


def archive_command(commands: Any) -> None:
    """Add `archive` to the `mousetwin` command."""
    parser = commands.add_parser("archive", help="write a model store for TorchServe")
    parser.add_argument("models", type=Path, nargs="?", metavar="MODELS", help="default: the demo mouse")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder to write")
    for name in ("http", "management", "metrics", "grpc", "grpc-management"):
        parser.add_argument(f"--{name}-port", type=int, help="default: %(default)s")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="default: %(default)s")
    parser.add_argument("--max-mb", type=int, help="of a request or an answer, in MiB (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes for each twin (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, help="above 1 a lone request waits for company (default: %(default)s)"
    )
    parser.add_argument("--batch-delay-ms", type=int, help="for how long (default: %(default)s)")
    parser.set_defaults(**asdict(Settings()))
    parser.set_defaults(run=_run_archive, extra="serve")


def _run_archive(args: argparse.Namespace) -> int:
    from .hosts.torchserve_archive import write_store
    from .repository import DEMO_MODELS

    settings = Settings(**{name: getattr(args, name) for name in asdict(Settings())})
    for name in write_store(args.models or DEMO_MODELS, args.out, settings):
        print(name)
    config = os.path.relpath(args.out / "config.properties")
    print(f"Serve them with: torchserve --start --foreground --ncs --ts-config {config}")
    return 0


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from {least} to {most}")
        return number

    return read
