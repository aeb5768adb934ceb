"""What TorchServe's workers run: one twin, or the catalog of all, over the same engine, checks and encodings.

TorchServe finds it through the few lines that `mousetwin archive` puts into every archive.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from mousetwin import wire
from mousetwin.errors import InvalidArgument, MousetwinError, NotFound, Unimplemented
from mousetwin.query import GradientAnswer, Prediction, PredictQuery
from mousetwin.v1 import digital_twin_pb2 as pb
from starlette.exceptions import HTTPException

from .. import bundle
from ..api import bodies, media, parameters
from ..api.errors import as_domain_error, http_status, new_request_id
from ..device import choose
from ..limits import Limits
from ..repository import folders, resolve
from ..twin import Twin, summarize

_TYPES = (bodies.JSON, bodies.NPY, bodies.NPZ)
_loaded: dict[str, Callable[[Any, Any], list[bytes]]] = {}


def handle(data: Any, context: Any) -> list[bytes] | None:
    """TorchServe's entry point: called once without data to get ready, then with a list of requests."""
    folder = Path(context.system_properties["model_dir"])
    if data is None:
        # TorchServe would read JSON itself, and forget what is said twice.
        os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
        catalog = context.model_yaml_config.get("catalog")
        _loaded[str(folder)] = _Catalog(folder) if catalog else _Served(folder, context)
        return None
    return _loaded[str(folder)](data, context)


class _Served:
    """One twin."""

    def __init__(self, folder: Path, context: Any) -> None:
        settings: Mapping[str, Any] = context.model_yaml_config
        # A larger answer would not be refused by TorchServe: its worker would die of it.
        self._limits = Limits(settings["request_bytes"], settings["response_bytes"])
        (found,) = folders(folder / "models")
        devices = choose(settings["device"])
        # TorchServe gives each worker a GPU, where there are any.
        if (given := context.system_properties.get("gpu_id")) is not None and devices[0].kind == "cuda":
            devices = (devices[int(given) % len(devices)],)
        self._twin = Twin(bundle.read(found), devices, self._limits)
        identity = self._twin.identity
        self._key = (identity.mouse, identity.model, identity.version)

    def __call__(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        answers = []
        for index, item in enumerate(data):
            if "call" in item:
                answers.append(_reply(item, self._call, context.get_request_id(index)))
            else:
                answers.append(self._rest(item, context, index))
        return answers

    def _call(self, call: str, request: bytes) -> Message:
        if call == "GetMouse":
            return wire.mouse_to_proto(self._twin.info)
        if call == "Predict":
            return wire.prediction_to_proto(self._answer(wire.query_from_proto(wire.parse(pb.PredictRequest, request))))
        if call == "Gradient":
            answer = self._answer(wire.gradient_query_from_proto(wire.parse(pb.GradientRequest, request)))
            assert isinstance(answer, GradientAnswer)
            return wire.gradient_to_proto(answer)
        raise Unimplemented(f"{call[:80]}: not on this host: TorchServe knows no streams", field="call")

    def _answer(self, query: PredictQuery) -> Prediction:
        resolve([self._key], query.twin)
        stimulus = self._twin.stimulus.read(query)
        return self._twin.answer(stimulus, self._twin.engine.answer(stimulus.batch))

    def _rest(self, item: Mapping[str, Any], context: Any, index: int) -> bytes:
        """A body as our REST takes it, answered as our REST does; the status is told through the context."""
        # TorchServe tells its own in a header.
        request_id = context.get_request_id(index) or new_request_id()
        headers: Mapping[str, str] = context.get_all_request_header(index)
        sent = {name.lower(): value for name, value in headers.items() if value}
        try:
            kind = media.sent_as(sent, _TYPES)
            answered = media.answer_as(sent, kind, _TYPES)
            # TorchServe keeps query parameters to itself.
            asked = parameters.read_headers(headers.items(), "predict")
            body = bytes(item.get("body", item.get("data", b"")))
            query = bodies.read_query(self._key[0], kind, body, asked, self._limits.request_bytes, gradient=False)
            answer = self._answer(query)
            status, content = 200, bodies.write_answer(answer, answered, bodies.answer_dtype(asked))
            told = bodies.headers_of(answer)
        except HTTPException as error:
            status, answered, told = error.status_code, media.PROBLEM, dict(error.headers or {})
            content = media.problem(status, error.detail)
        except Exception as failure:
            domain = as_domain_error(failure, request_id)
            status, answered, told = http_status(domain), media.PROBLEM, {}
            content = media.problem(status, str(domain), domain)
        context.set_response_status(status, "", index)
        context.set_response_content_type(index, answered)
        for name, value in told.items():
            context.set_response_header(index, name, value)
        return content


class _Catalog:
    """What there is: which twin a name means, without loading any."""

    def __init__(self, folder: Path) -> None:
        (device, *_) = choose(json.loads((folder / "catalog.json").read_text())["device"])
        manifests = [bundle.read_manifest(found) for found in folders(folder / "models")]
        self._twins = {
            (manifest.mouse, manifest.model, manifest.version): summarize(manifest, digest, device.kind)
            for manifest, digest in manifests
        }

    def __call__(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        return [_reply(item, self._call, context.get_request_id(index)) for index, item in enumerate(data)]

    def _call(self, call: str, request: bytes) -> Message:
        if call == "ListMice":
            wire.parse(pb.ListMiceRequest, request)
            return pb.ListMiceResponse(twins=[wire.summary_to_proto(twin) for twin in self._twins.values()])
        if call == "GetMouse":
            # The twin itself tells the rest.
            ref = wire.ref_from_proto(wire.parse(pb.GetMouseRequest, request).twin)
            return pb.Mouse(summary=wire.summary_to_proto(self._twins[resolve(self._twins, ref)]))
        raise NotFound(f"{call[:80]}: the catalog answers ListMice and GetMouse", field="call")


def _reply(item: Mapping[str, Any], answer: Callable[[str, bytes], Message], request_id: str | None) -> bytes:
    """A `Reply`: TorchServe's gRPC has no statuses of ours, so errors travel inside."""
    request_id = request_id or new_request_id()
    try:
        for name in item:
            if name not in ("call", "request"):
                raise InvalidArgument(f"{name[:80]}: not an input here, expected call and request", field=name[:80])
        message = answer(_text(item.get("call", b"")), bytes(item.get("request", b"")))
        reply = pb.Reply(response=message.SerializeToString())
    except Exception as failure:
        error: MousetwinError = as_domain_error(failure, request_id)
        told = pb.Error(code=error.code, message=str(error), field=error.field, request_id=request_id)
        reply = pb.Reply(error=told)
    return reply.SerializeToString()


def _text(value: Any) -> str:
    return bytes(value).decode("utf-8", "replace") if isinstance(value, (bytes, bytearray)) else str(value)
