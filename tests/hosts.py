"""One way to ask, whatever the host and protocol, so that a contract case is written once."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import mousetwin
import numpy as np
from numpy.typing import NDArray
from running import Service

HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 413,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
}
NPY, NPZ, JSON = "application/x-npy", "application/x-npz", "application/json"


@dataclass(frozen=True)
class Answer:
    """gradient: by input, those that came; empty to a prediction."""

    responses: NDArray[np.float32]
    twin: tuple[str, str, str]
    digest: str
    defaults: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    gradient: dict[str, NDArray[np.float32]] = field(default_factory=dict)


INPUTS = ("images", "behavior", "pupil_center")
WORDS = ("model", "version", "space", "condition_space")


class Refused(Exception):
    """code: the gRPC status's name."""

    def __init__(self, code: str, field: str, message: str, request_id: str) -> None:
        super().__init__(f"{code} {field}: {message}")
        self.code, self.field, self.message, self.request_id = code, field, message, request_id


class Host(Protocol):
    def predict(self, mouse: str, images: Any, **arguments: Any) -> Answer: ...

    def gradient(self, mouse: str, images: Any, cotangent: Any, **arguments: Any) -> Answer: ...

    def about(self, mouse: str, **which: str) -> tuple[dict[str, Any], str]:
        """What the host tells of a twin, as JSON would, and its digest."""
        ...

    def close(self) -> None: ...


class ClientHost:
    """Through the Python client: gRPC, or in this process."""

    def __init__(self, address: str) -> None:
        self.twins = mousetwin.connect(address)

    def predict(self, mouse: str, images: Any, *, model: str = "", version: str = "", **arguments: Any) -> Answer:
        return self._answer(lambda: self.twins.mouse(mouse, model, version or None).predict(images, **arguments))

    def gradient(self, mouse: str, images: Any, cotangent: Any, **arguments: Any) -> Answer:
        whole: list[mousetwin.Gradient] = []

        def ask() -> mousetwin.Responses:
            whole.append(self.twins[mouse].gradient(images, cotangent, **arguments))
            return whole[0].responses

        answer = self._answer(ask)
        gradient = {name: getattr(whole[0], name) for name in INPUTS}
        return replace(answer, gradient={name: values for name, values in gradient.items() if values is not None})

    def _answer(self, ask: Callable[[], mousetwin.Responses]) -> Answer:
        try:
            found = ask()
        except mousetwin.MousetwinError as error:
            raise Refused(error.code, error.field, str(error), error.request_id) from error
        assert found.twin is not None
        twin = found.twin
        named = (twin.mouse, twin.model, twin.version)
        return Answer(np.asarray(found), named, twin.digest, found.defaults, found.warnings)

    def about(self, mouse: str, **which: str) -> tuple[dict[str, Any], str]:
        info = self.twins.mouse(mouse, **which).info
        summary = info.summary
        return {
            "neurons": summary.neurons,
            "native_size": list(summary.native_size),
            "stimulus_size": list(summary.stimulus_size),
            "behavior": list(summary.behavior),
            "pupil_center": list(summary.pupil_center),
            "takes_raw": summary.takes_raw,
            "required": list(summary.required),
            "unit_ids": None if info.unit_ids is None else info.unit_ids.tolist(),
            "image_mean": list(info.statistics["images"].mean),
        }, summary.twin.digest

    def close(self) -> None:
        self.twins.close()


class RestHost:
    """Plain HTTP, with bodies of one media type."""

    def __init__(self, base_url: str, media_type: str) -> None:
        self.http = httpx.Client(base_url=base_url, timeout=60)
        self.media_type = media_type

    def predict(self, mouse: str, images: Any, **arguments: Any) -> Answer:
        return self._answer(f"/v1/mice/{mouse}/predict", images=images, **arguments)

    def gradient(self, mouse: str, images: Any, cotangent: Any, **arguments: Any) -> Answer:
        return self._answer(f"/v1/mice/{mouse}/gradient", images=images, cotangent=cotangent, **arguments)

    def _answer(self, path: str, **arguments: Any) -> Answer:
        words = {name: arguments.pop(name) for name in WORDS if name in arguments}
        arrays = {name: value for name, value in arguments.items() if value is not None}
        if self.media_type == JSON:
            content = json.dumps({**{name: np.asarray(v).tolist() for name, v in arrays.items()}, **words}).encode()
            response = self.http.post(path, content=content, headers={"content-type": self.media_type})
        else:
            stream = io.BytesIO()
            np.savez(stream, **{name: np.asarray(value) for name, value in arrays.items()})
            response = self.http.post(
                path,
                content=stream.getvalue(),
                headers={"content-type": self.media_type},
                params=words,
            )
        if response.is_error:
            raise refusal(response)
        headers = response.headers
        twin, digest = tuple(headers["x-mousetwin-twin"].split("/")), headers["x-mousetwin-digest"]
        defaults = tuple(filter(None, headers["x-mousetwin-defaults"].split(",")))
        assert headers["content-type"] == self.media_type
        if self.media_type == JSON:
            found = response.json()
            assert tuple(found["twin"].values()) == (*twin, digest)
            assert tuple(found["defaults"]) == defaults
        else:
            with np.load(io.BytesIO(response.content)) as archive:
                found = dict(archive)
        gradient = {name: np.array(found[name], np.float32) for name in INPUTS if found.get(name) is not None}
        warnings = tuple(json.loads(headers.get("x-mousetwin-warnings", "[]")))
        if self.media_type == JSON:
            assert tuple(found["warnings"]) == warnings
        return Answer(np.array(found["responses"], np.float32), twin, digest, defaults, warnings, gradient)

    def about(self, mouse: str, **which: str) -> tuple[dict[str, Any], str]:
        info = self.http.get(f"/v1/mice/{mouse}", params=which).raise_for_status().json()
        summary = info["summary"]
        digest = summary.pop("twin")["digest"]
        return {
            **{name: summary[name] for name in ("neurons", "native_size", "stimulus_size", "behavior")},
            **{name: summary[name] for name in ("pupil_center", "takes_raw", "required")},
            "unit_ids": info["unit_ids"],
            "image_mean": info["statistics"]["images"]["mean"],
        }, digest

    def close(self) -> None:
        self.http.close()


def refusal(response: httpx.Response) -> Refused:
    """The problem in a response, after checking that it is told as RFC 9457 says."""
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["title"]
    if "code" in problem:
        assert response.status_code == HTTP_STATUS[problem["code"]]
        assert problem["request_id"] == response.headers["x-request-id"]
    return Refused(
        problem.get("code", str(response.status_code)),
        problem.get("field", ""),
        problem["detail"],
        response.headers.get("x-request-id", ""),
    )


def open_host(name: str, service: Service, models: Path) -> Host:
    if name == "grpc":
        return ClientHost(service.grpc)
    if name == "local":
        return ClientHost(f"local:{models}")
    return RestHost(service.http, {"rest-json": JSON, "rest-npz": NPZ}[name])


HOSTS = ("grpc", "rest-json", "rest-npz", "local", "torchserve")
