"""REST bodies: JSON, `.npy` and `.npz` to queries, predictions to the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from mousetwin import arrays
from mousetwin.errors import InvalidArgument
from mousetwin.query import GradientQuery, Prediction, PredictQuery, TwinRef, space_of
from numpy.typing import NDArray

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
ARRAYS = ("images", "behavior", "pupil_center", "neurons", "unit_ids", "cotangent")
WORDS = ("space", "condition_space", "model", "version")


def read_query(
    mouse: str, media_type: str, body: bytes, parameters: Mapping[str, str], max_bytes: int, *, gradient: bool
) -> PredictQuery:
    """The query in a request's body and query parameters; a `GradientQuery` where a gradient is asked for.

    Raises:
        InvalidArgument: the body cannot be read, a parameter is malformed, or something is given twice.
        PayloadTooLarge: an `.npz` that expands to more than `max_bytes`.
    """
    return build_query(mouse, _READERS[media_type](body, max_bytes), parameters, gradient=gradient)


def build_query(
    mouse: str, found: Mapping[str, Any], parameters: Mapping[str, str], *, gradient: bool = False
) -> PredictQuery:
    """The query of what a body held and of query parameters. Raises as `read_query`."""
    found = dict(found)
    for name in ("neurons", "unit_ids", *WORDS):
        if name in parameters:
            if found.get(name) is not None:
                raise InvalidArgument(f"{name}: given both in the body and as a query parameter", field=name)
            value = parameters[name]
            found[name] = value if name in WORDS else _integers(value, name)
    if found.get("images") is None:
        raise InvalidArgument("images: missing", field="images")
    if (found.get("cotangent") is None) == gradient:
        how = "missing" if gradient else "not taken here: gradients are at …/gradient"
        raise InvalidArgument(f"cotangent: {how}", field="cotangent")
    query = PredictQuery(
        twin_of(mouse, found),
        found["images"],
        found.get("behavior"),
        found.get("pupil_center"),
        space_of(found.get("space")),
        found.get("neurons"),
        found.get("unit_ids"),
        space_of(found.get("condition_space"), "condition_space"),
    )
    return GradientQuery(**vars(query), cotangent=found["cotangent"]) if gradient else query


def twin_of(mouse: str, parameters: Mapping[str, Any]) -> TwinRef:
    return TwinRef(mouse, parameters.get("model") or "", parameters.get("version") or "")


def answer_dtype(parameters: Mapping[str, str]) -> np.dtype[Any]:
    """Of the responses: float32, or float16 where the query parameter `dtype` says so. Raises InvalidArgument."""
    name = parameters.get("dtype", "float32")
    if name not in ("float32", "float16"):
        raise InvalidArgument(f"dtype: {name[:80]!r}, expected 'float32' or 'float16'", field="dtype")
    return np.dtype(name)


def write_answer(answer: Prediction, media_type: str, dtype: np.dtype[Any]) -> bytes:
    """The body of an answer: `.npy` of the responses, `.npz` with `responses` and gradients, or JSON."""
    written = {**vars(answer), "responses": encode(answer.responses, dtype)}
    if media_type == NPY:
        return arrays.write_npy(written["responses"])
    if media_type == NPZ:
        return arrays.write_npz({name: v for name, v in written.items() if isinstance(v, np.ndarray)})
    return write_json(written)


def encode(responses: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Responses as they are sent. Raises InvalidArgument for one that is beyond float16."""
    return arrays.narrowed(responses, dtype)


def headers_of(answer: Prediction) -> dict[str, str]:
    """What an answer's HTTP headers tell of it."""
    twin = answer.twin
    return {
        "X-Mousetwin-Twin": f"{twin.mouse}/{twin.model}/{twin.version}",
        "X-Mousetwin-Digest": twin.digest,
        "X-Mousetwin-Defaults": ",".join(answer.defaults),
        **({"X-Mousetwin-Warnings": json.dumps(answer.warnings)} if answer.warnings else {}),
    }


def write_json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in an answer")


def _read_json(body: bytes, max_bytes: int) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"body: malformed JSON: {error}", field="body") from error
    if not isinstance(document, dict):
        raise InvalidArgument("body: expected a JSON object with images", field="body")
    for name in document:
        if name not in (*ARRAYS, *WORDS):
            raise InvalidArgument(
                f"body: {name[:80]!r} is not known, expected {', '.join((*ARRAYS, *WORDS))}", field="body"
            )
    found: dict[str, Any] = {}
    for name, value in document.items():
        if value is None:
            continue
        if name in WORDS:
            found[name] = _word(name, value)
        else:
            found[name] = arrays.from_nested(value, name)
    return found


def _word(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name == "version" and type(value) is int:
        return str(value)
    raise InvalidArgument(f"{name}: expected a string", field=name)


def _read_npy(body: bytes, max_bytes: int) -> dict[str, Any]:
    return {"images": arrays.read_npy(body, "images")}


def _read_npz(body: bytes, max_bytes: int) -> dict[str, Any]:
    return dict(arrays.read_npz(body, ARRAYS, max_bytes))


_READERS: dict[str, Callable[[bytes, int], dict[str, Any]]] = {JSON: _read_json, NPY: _read_npy, NPZ: _read_npz}


def _integers(text: str, name: str) -> NDArray[np.int64]:
    try:
        return np.array([int(part) for part in text.split(",")], np.int64)
    except (ValueError, OverflowError):
        message = f"{name}: {text[:80]!r}, expected whole numbers separated by commas"
        raise InvalidArgument(message, field=name) from None
