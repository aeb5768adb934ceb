"""REST bodies: JSON, `.npy` and `.npz` to queries, predictions to the same."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from mousetwin import arrays
from mousetwin.errors import InvalidArgument
from mousetwin.objects import MAX_RANK
from mousetwin.query import GradientQuery, Prediction, PredictQuery, TwinRef
from numpy.typing import NDArray

from . import parameters

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
ARRAYS = ("images", "behavior", "pupil_center", "neurons", "unit_ids", "cotangent")
WORDS = ("space", "condition_space", "model", "version")
# Every string of a JSON text, and the colon behind it where it is a name.
_STRINGS = re.compile(rb'("(?:[^"\\]|\\.)*")(\s*:)?')


def _nested(depth: int) -> Any:
    """The type of numbers in lists, lists of lists and so on."""
    kind: Any = int | float
    for _ in range(depth):
        kind = int | float | list[kind]
    return kind


_NESTED = _nested(MAX_RANK) | None
_KINDS: dict[str, Any] = {**dict.fromkeys(WORDS, str | None), "version": str | int | None}
_TOLD = {"str": "a string", "bool": "true or false", "object": "an object", "array": "a list", "null": "null"}
_EXPECTED = {
    "body": "a JSON object with images",
    **dict.fromkeys(ARRAYS, f"numbers in lists nested at most {MAX_RANK} deep"),
    **dict.fromkeys(WORDS, "a string"),
}
_CAME = re.compile(r"got `(.+?)`")
_PLACE = re.compile(r"at `\$(.+?)`")


def read_query(
    mouse: str, media_type: str, body: bytes, asked: Mapping[str, Any], max_bytes: int, *, gradient: bool
) -> PredictQuery:
    """The query in a request's body and query parameters; a `GradientQuery` where a gradient is asked for.

    Args:
        asked: the query parameters, as `parameters.read` gives them.

    Raises:
        InvalidArgument: the body cannot be read, or something is given twice.
        PayloadTooLarge: an `.npz` that expands to more than `max_bytes`.
    """
    return build_query(mouse, _READERS[media_type](body, max_bytes), asked, gradient=gradient)


def build_query(
    mouse: str, found: Mapping[str, Any], asked: Mapping[str, Any], *, gradient: bool = False
) -> PredictQuery:
    """The query of what a body held and of query parameters. Raises as `read_query`."""
    found = dict(found)
    for name in ("neurons", "unit_ids", *WORDS):
        if name in asked:
            if found.get(name) is not None:
                raise InvalidArgument(f"{name}: given both in the body and as a query parameter", field=name)
            found[name] = asked[name]
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
        found.get("space"),
        found.get("neurons"),
        found.get("unit_ids"),
        found.get("condition_space"),
    )
    return GradientQuery(**vars(query), cotangent=found["cotangent"]) if gradient else query


def twin_of(mouse: str, asked: Mapping[str, Any]) -> TwinRef:
    return TwinRef(mouse, asked.get("model") or "", asked.get("version") or "")


def answer_dtype(asked: Mapping[str, Any]) -> np.dtype[Any]:
    """Of the responses: float32 where the query does not say."""
    dtype: np.dtype[Any] = asked.get("dtype", np.dtype(np.float32))
    return dtype


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
    text = body.removeprefix(codecs.BOM_UTF8)
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in text[:4]:
        raise InvalidArgument("body: JSON in another encoding than UTF-8, expected UTF-8", field="body")
    document = _decode(text, "body", dict[str, msgspec.Raw])
    for name in document:
        if name not in (*ARRAYS, *WORDS):
            raise InvalidArgument(
                f"body: {name[:80]!r} is not known, expected {', '.join((*ARRAYS, *WORDS))}", field="body"
            )
    found = {name: _decode(raw, name, _KINDS.get(name, _NESTED)) for name, raw in document.items()}
    _check_once_each(text)
    return {
        name: parameters.read_value(name, str(value)) if name in WORDS else arrays.from_nested(value, name)
        for name, value in found.items()
        if value is not None
    }


def _decode(text: bytes | msgspec.Raw, name: str, kind: Any) -> Any:
    """JSON of a kind. Raises InvalidArgument."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{name}: {_told(str(error))}, expected {_EXPECTED[name]}", field=name) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"body: malformed JSON: {error}", field="body") from error


def _told(error: str) -> str:
    """What came, of msgspec's "Expected `int | float`, got `str` - at `$[0][1]`"."""
    came, place = _CAME.search(error), _PLACE.search(error)
    what = _TOLD.get(came[1], "a number") if came else "a number out of range"
    return f"{what} at {place[1]}" if place else what


def _check_once_each(text: bytes) -> None:
    """That no name is given twice in an object whose values hold no others."""
    names = Counter(msgspec.json.decode(name) for name, colon in _STRINGS.findall(text) if colon)
    for name, times in names.items():
        if times > 1:
            raise InvalidArgument(f"body: {name!r} is given twice", field="body")


def _read_npy(body: bytes, max_bytes: int) -> dict[str, Any]:
    return {"images": arrays.read_npy(body, "images")}


def _read_npz(body: bytes, max_bytes: int) -> dict[str, Any]:
    return dict(arrays.read_npz(body, ARRAYS, max_bytes))


_READERS: dict[str, Callable[[bytes, int], dict[str, Any]]] = {JSON: _read_json, NPY: _read_npy, NPZ: _read_npz}
