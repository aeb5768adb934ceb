"""Weights that several graphs share, kept once.

Each graph names its weights as ONNX's external data, at their place in `weights.npz` beside it: in its folder it is a
model that any ONNX runtime loads.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

# Smaller ones stay in the graph.
_LEAST_BYTES = 1024
_LOCAL_HEADER = 30

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Shared:
    """Graphs by name, without their weights; which weights each names; and the `.npz` that holds them."""

    graphs: dict[str, bytes]
    names: dict[str, tuple[str, ...]]
    npz: bytes


def share(graphs: Mapping[str, bytes], table: Arrays, file: str) -> Shared:
    """Take the weights out of some graphs.

    Args:
        graphs: ONNX models by name.
        table: further arrays for the `.npz`, which keep their names.
        file: what the `.npz` will be called.
    """
    models = {name: onnx.load_from_string(data) for name, data in graphs.items()}
    arrays = dict(table)
    known: dict[bytes, str] = {}
    for model in models.values():
        names: dict[str, str] = {}
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.nbytes >= _LEAST_BYTES:
                key = hashlib.sha256(f"{values.dtype}{values.shape}".encode() + values.tobytes()).digest()
                names[tensor.name] = known.setdefault(key, f"weight_{len(known)}")
                arrays[names[tensor.name]] = values
                tensor.name = names[tensor.name]
        for node in model.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    places = _places(stream)
    named: dict[str, tuple[str, ...]] = {}
    for graph, model in models.items():
        shared = [tensor for tensor in model.graph.initializer if tensor.name in places]
        for tensor in shared:
            _refer(tensor, file, *places[tensor.name])
        named[graph] = tuple(tensor.name for tensor in shared)
    stripped = {name: model.SerializeToString(deterministic=True) for name, model in models.items()}
    return Shared(stripped, named, stream.getvalue())


def _places(stream: io.BytesIO) -> dict[str, tuple[int, int]]:
    """Offset and length of each array's data in an uncompressed `.npz`."""
    places = {}
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            # The header in front of a member may be longer than its twin in the directory.
            stream.seek(member.header_offset)
            name, extra = struct.unpack("<HH", stream.read(_LOCAL_HEADER)[26:])
            begin = member.header_offset + _LOCAL_HEADER + name + extra
            stream.seek(begin)
            npy_format.read_magic(stream)
            npy_format.read_array_header_1_0(stream)
            header = stream.tell() - begin
            places[member.filename.removesuffix(".npy")] = (begin + header, member.file_size - header)
    return places


def _refer(tensor: TensorProto, file: str, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
