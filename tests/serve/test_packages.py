"""What may import what, and that the committed stubs are those of the committed contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from mousetwin.v1 import digital_twin_pb2 as pb

ROOT = Path(__file__).parents[2]
SERVE_ONLY = ("onnxruntime", "starlette", "uvicorn", "msgspec", "mousetwin_serve")
EXPORT_ONLY = ("torch", "onnx", "yaml", "mousetwin_export")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("mousetwin, mousetwin.aio, mousetwin.cli", SERVE_ONLY + EXPORT_ONLY),
        ("mousetwin_serve.hosts.standalone, mousetwin_serve.local", EXPORT_ONLY),
        ("mousetwin_export.cli", ("torch", "onnx", "yaml", "onnxruntime")),
    ],
)
def test_nothing_is_imported_that_need_not_be_installed(module: str, absent: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_stubs_are_those_of_the_contract(tmp_path: Path) -> None:
    file = "mousetwin/v1/digital_twin.proto"
    out = tmp_path / "descriptors"
    assert protoc.main(["protoc", f"-I{ROOT / 'protos'}", f"--descriptor_set_out={out}", file]) == 0
    (contract,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    stubs = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(stubs)
    # Names for JSON are filled in by the one and not the other, and say nothing new.
    for message in (*contract.message_type, *stubs.message_type):
        for part in (message, *message.nested_type):
            for field in part.field:
                field.ClearField("json_name")
    assert stubs == contract
