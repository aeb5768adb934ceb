"""What a model store of TorchServe can be told, and `mousetwin archive`. Imports nothing that only serving needs."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mousetwin.errors import InvalidArgument


@dataclass(frozen=True)
class Settings:
    """Where the host listens, and what its workers are told.

    Attributes:
        http_port, management_port, metrics_port, grpc_port, grpc_management_port: on loopback.
        device: auto, cpu or cuda.
        max_mb: size of a request, and of an answer, in MiB.
        workers: for each twin.
        batch_size, batch_delay_ms: more than one request at a time makes a lone one wait that long for company.
    """

    http_port: int = 8080
    management_port: int = 8081
    metrics_port: int = 8082
    grpc_port: int = 7070
    grpc_management_port: int = 7071
    device: str = "auto"
    max_mb: int = 256
    workers: int = 1
    batch_size: int = 1
    batch_delay_ms: int = 1

    def check(self) -> None:
        """Raises InvalidArgument for what TorchServe could not start with."""
        ports = {name: value for name, value in asdict(self).items() if name.endswith("_port")}
        for name, port in ports.items():
            if not 0 < port < 65536 or list(ports.values()).count(port) > 1:
                raise InvalidArgument(f"{name}: {port}, expected 1 to 65535 and another for each port", field=name)
        # TorchServe counts bytes in 32 bits.
        if not 1 <= self.max_mb < 2048:
            raise InvalidArgument(f"max_mb: {self.max_mb}, expected 1 to 2047", field="max_mb")
        for name in ("workers", "batch_size", "batch_delay_ms"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name}: {getattr(self, name)}, expected 1 or more", field=name)


def command(commands: Any) -> None:
    """Add `archive` to the `mousetwin` command."""
    defaults = Settings()
    parser = commands.add_parser("archive", help="write a model store for TorchServe")
    parser.add_argument("models", type=Path, nargs="?", metavar="MODELS", help="default: the demo mouse")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder to write")
    for name in ("http", "management", "metrics", "grpc", "grpc-management"):
        default = getattr(defaults, f"{name.replace('-', '_')}_port")
        parser.add_argument(f"--{name}-port", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--max-mb", type=int, default=defaults.max_mb, help="of a request or an answer (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes for each twin (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="above 1 a lone request waits for company (default: 1)"
    )
    parser.add_argument("--batch-delay-ms", type=int, default=1, help="for how long (default: %(default)s)")
    parser.set_defaults(run=_run, extra="serve")


def _run(args: argparse.Namespace) -> int:
    from ..repository import DEMO_MODELS
    from .torchserve_archive import write_store

    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    for name in write_store(args.models or DEMO_MODELS, args.out, settings):
        print(name)
    config = os.path.relpath(args.out / "config.properties")
    print(f"Serve them with: torchserve --start --foreground --ncs --ts-config {config}")
    return 0
