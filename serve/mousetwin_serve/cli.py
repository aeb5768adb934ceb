"""`mousetwin serve`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def command(commands: Any) -> None:
    """Add `serve` to the `mousetwin` command."""
    parser = commands.add_parser("serve", help="serve exported twins over gRPC and REST")
    parser.add_argument("--models", type=Path, metavar="MODELS", help="folder of bundles (default: the demo mouse)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--http-port", type=int, default=8000, help="default: %(default)s; 0 takes a free one")
    parser.add_argument("--grpc-port", type=int, default=8001, help="default: %(default)s; 0 takes a free one")
    parser.add_argument(
        "--device", default="auto", help="auto (GPUs if there are any, else the CPU), cpu, cuda (all GPUs) or cuda:N"
    )
    parser.add_argument("--tf32", action="store_true", help="let GPUs round what they multiply to 10 bits")
    parser.add_argument("--threads", type=int, default=0, help="CPU cores to run on (default: all)")
    parser.add_argument("--max-batch", type=int, help="images in one run (default: what is fastest)")
    parser.add_argument("--max-queue", type=int, default=8192, help="images that may wait (default: %(default)s)")
    parser.add_argument(
        "--max-request-mb", type=int, default=64, help="size of one request in MiB (default: %(default)s)"
    )
    parser.set_defaults(run=_run, extra="serve")


def _run(args: argparse.Namespace) -> int:
    # Only here, so that the other commands do not wait for the web stack to load.
    import asyncio
    import logging
    import sys

    from mousetwin.errors import NotFound

    from .batcher import BatchSettings
    from .device import choose
    from .hosts.standalone import Addresses, serve
    from .repository import DEMO_MODELS, Repository
    from .service import TwinService
    from .stimulus import Limits

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    devices = choose(args.device, args.threads, tf32=args.tf32)
    limits = Limits(request_bytes=args.max_request_mb << 20)
    models = args.models or DEMO_MODELS
    repository = Repository.load(models, devices, limits)
    for line in repository.refused:
        print(f"mousetwin: {line}", file=sys.stderr)
    if not repository.twins:
        raise NotFound(f"{models}: no twin in it can be served, expected MOUSE/MODEL/VERSION/bundle.json")
    settings = BatchSettings(max_batch=args.max_batch, max_queued=args.max_queue)
    addresses = Addresses(args.host, args.http_port, args.grpc_port)

    async def main() -> None:
        await serve(TwinService(repository, limits=limits, batching=settings), addresses, devices)

    asyncio.run(main())
    return 0
