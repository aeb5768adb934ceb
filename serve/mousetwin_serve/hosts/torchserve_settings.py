"""What a model store of TorchServe can be told."""

from __future__ import annotations

from dataclasses import asdict, dataclass

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
