"""Asking a service the way any program would: plain protobuf messages over gRPC, plain bodies over REST."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import numpy as np
from mousetwin import arrays, wire
from mousetwin.v1 import digital_twin_pb2 as pb
from numpy.typing import NDArray
from running import Service


@dataclass(frozen=True)
class Answer:
    """What a caller got: `code` is "OK" or the gRPC status's name, `status` the HTTP status where there is one."""

    code: str
    message: str = ""
    field: str = ""
    request_id: str = ""
    responses: NDArray[Any] | None = None
    twin: str = ""
    digest: str = ""
    defaults: tuple[str, ...] = ()
    status: int | None = None


ARRAYS = ("images", "behavior", "pupil_center", "neurons", "unit_ids")


class GrpcCaller:
    """Asks over gRPC, with plain messages as any language would send them."""

    name = "grpc"

    def __init__(self, service: Service) -> None:
        self.channel = grpc.insecure_channel(service.grpc)

    def method(self, name: str) -> Any:
        """A call from bytes to bytes."""
        return self.channel.unary_unary(f"/{wire.SERVICE}/{name}")

    def predict(self, mouse: str, **query: Any) -> Answer:
        spaces = {None: 0, "raw": pb.SPACE_RAW, "model": pb.SPACE_MODEL}
        request = pb.PredictRequest(
            twin=pb.TwinRef(mouse=mouse, model=query.get("model", ""), version=query.get("version", "")),
            space=spaces[query.get("space")],
            **{name: to_message(query[name]) for name in ARRAYS if query.get(name) is not None},
        )
        return self.send(request.SerializeToString(), timeout=query.get("timeout"))

    def send(self, request: bytes, timeout: float | None = None) -> Answer:
        try:
            data, call = self.method("Predict").with_call(request, timeout=timeout)
        except grpc.RpcError as error:
            failed: Any = error
            trailing = dict(failed.trailing_metadata() or ())
            return Answer(
                failed.code().name, failed.details(), trailing.get("error-field", ""), trailing.get("request-id", "")
            )
        response = pb.PredictResponse.FromString(data)
        twin = response.twin
        return Answer(
            "OK",
            request_id=dict(call.trailing_metadata())["request-id"],
            responses=arrays.from_proto(response.responses, "responses"),
            twin=f"{twin.mouse}/{twin.model}/{twin.version}",
            digest=twin.digest,
            defaults=tuple(response.defaults),
        )

    def close(self) -> None:
        self.channel.close()


class RestCaller:
    """Asks over REST, with `.npz` bodies."""

    name = "rest"

    def __init__(self, service: Service) -> None:
        self.client = httpx.Client(base_url=service.http, timeout=30)

    def predict(self, mouse: str, **query: Any) -> Answer:
        body = arrays.write_npz({name: np.asarray(query[name]) for name in ARRAYS if query.get(name) is not None})
        parameters = {name: query[name] for name in ("space", "model", "version", "timeout") if query.get(name)}
        return self.send(mouse, body, "application/x-npz", parameters)

    def send(
        self, mouse: str, body: Any, content_type: str, parameters: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        headers = {"content-type": content_type, **(headers or {})}
        response = self.client.post(f"/v1/mice/{mouse}/predict", params=parameters, content=body, headers=headers)
        request_id = response.headers.get("x-request-id", "")
        if response.status_code != 200:
            assert response.headers["content-type"] == "application/problem+json"
            problem = json.loads(response.content)
            assert problem["status"] == response.status_code
            assert problem.get("request_id", request_id) == request_id
            code, field = problem.get("code", ""), problem.get("field", "")
            return Answer(code, problem["detail"], field, request_id, status=response.status_code)
        return Answer(
            "OK",
            request_id=request_id,
            responses=self.read(response),
            twin=response.headers["x-mousetwin-twin"],
            digest=response.headers["x-mousetwin-digest"],
            defaults=tuple(filter(None, response.headers["x-mousetwin-defaults"].split(","))),
            status=200,
        )

    @staticmethod
    def read(response: httpx.Response) -> NDArray[Any]:
        kind = response.headers["content-type"]
        if kind == "application/x-npy":
            return arrays.read_npy(response.content, "responses")
        if kind == "application/x-npz":
            return arrays.read_npz(response.content, ["responses"], 1 << 30)["responses"]
        return np.array(json.loads(response.content)["responses"], np.float32)

    def close(self) -> None:
        self.client.close()


Caller = GrpcCaller | RestCaller


def to_message(values: Any) -> pb.Array:
    """An array message, of any dtype: the service is what refuses."""
    array = np.asarray(values)
    return pb.Array(dtype=array.dtype.name, shape=array.shape, data=array.tobytes())
