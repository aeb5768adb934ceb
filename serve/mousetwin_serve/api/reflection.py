"""gRPC reflection, v1 and v1alpha: the same messages under two names, of which the library brings only the older."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

_OLD, _NEW = "grpc.reflection.v1alpha", "grpc.reflection.v1"


def add_reflection(server: grpc.aio.Server, files: Sequence[Any]) -> None:
    """Let clients ask for what services take and give, without their .proto files.

    Args:
        files: descriptors of the files that the services are in.
    """
    # A pool of its own: another package in the process may bring reflection v1 itself.
    pool = DescriptorPool()
    for file in (*files, reflection_pb2.DESCRIPTOR):
        _add(pool, file)
    pool.AddSerializedFile(_renamed(reflection_pb2.DESCRIPTOR).SerializeToString())
    names = [service.full_name for file in files for service in file.services_by_name.values()]
    servicer = reflection.aio.ReflectionServicer(
        [*names, *(f"{package}.ServerReflection" for package in (_OLD, _NEW))], pool=pool
    )
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for package in (_OLD, _NEW):
        handlers = {"ServerReflectionInfo": handler}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(f"{package}.ServerReflection", handlers),)
        )


def _add(pool: DescriptorPool, file: Any) -> None:
    for needed in file.dependencies:
        _add(pool, needed)
    pool.AddSerializedFile(file.serialized_pb)


def _renamed(file: Any) -> FileDescriptorProto:
    # Names are all that differs, of the package and, in front of each type, of the package again.
    renamed = FileDescriptorProto()
    file.CopyToProto(renamed)
    renamed.name, renamed.package = "grpc/reflection/v1/reflection.proto", _NEW
    renamed.ClearField("options")
    for field in (field for message in renamed.message_type for field in message.field if field.type_name):
        field.type_name = field.type_name.replace(f".{_OLD}.", f".{_NEW}.")
    for method in (method for service in renamed.service for method in service.method):
        method.input_type = method.input_type.replace(f".{_OLD}.", f".{_NEW}.")
        method.output_type = method.output_type.replace(f".{_OLD}.", f".{_NEW}.")
    return renamed
