"""Query parameters: which there are, where each is taken, how it is read, and what the OpenAPI document says of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mousetwin.arrays import whole_numbers
from mousetwin.errors import InvalidArgument
from mousetwin.query import Space

Schema = dict[str, Any]

# As headers on TorchServe, which keeps query parameters to itself: X-Mousetwin-Neurons: 1,2
HEADER_PREFIX = "x-mousetwin-"

# A list may come in parts, as HTTP libraries write one: neurons=0&neurons=1, neurons[]=0&neurons[]=1, neurons[0]=0&…
_BRACKETED = re.compile(r"([a-z_]+)\[(0|[1-9][0-9]{0,8})?\]")
_SECONDS = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LONGEST = 80


def _word(text: str, name: str) -> str:
    return text


def _one_of(*values: str) -> Callable[[str, str], str]:
    def read(text: str, name: str) -> str:
        if text not in values:
            expected = " or ".join(repr(value) for value in values)
            raise InvalidArgument(f"{name}: {text[:_LONGEST]!r}, expected {expected}", field=name)
        return text

    return read


def _space(text: str, name: str) -> Space:
    return Space(_one_of(*(space.value for space in Space))(text, name))


def _dtype(text: str, name: str) -> np.dtype[Any]:
    return np.dtype(_one_of("float32", "float16")(text, name))


def _true(text: str, name: str) -> bool:
    return _one_of("true", "false")(text, name) == "true"


def _seconds(text: str, name: str) -> float:
    seconds = float(text) if _SECONDS.fullmatch(text) else math.nan
    if not 0 < seconds < math.inf:
        raise InvalidArgument(f"{name}: {text[:_LONGEST]!r}, expected seconds, more than 0", field=name)
    return seconds


def _integers(text: str, name: str) -> list[int]:
    try:
        return whole_numbers(text)
    except ValueError:
        message = f"{name}: {text[:_LONGEST]!r}, expected whole numbers separated by commas"
        raise InvalidArgument(message, field=name) from None


@dataclass(frozen=True)
class Parameter:
    """One parameter, by `name`.

    Attributes:
        taken_by: operationIds of the calls that take it.
        description, schema: as the OpenAPI document has them.
        read: from (text, name) to a value; raises InvalidArgument.
        is_list: whether it may come in parts, each read to a list of whole numbers.
        not_on_torchserve: why it is not taken there; empty where it is.
    """

    name: str
    taken_by: tuple[str, ...]
    description: str
    schema: Schema
    read: Callable[[str, str], Any]
    is_list: bool = False
    not_on_torchserve: str = ""


_ASKING = ("predict", "gradient", "score")
_NAME: Schema = {"type": "string"}
_LIST: Schema = {"type": "array", "minItems": 1, "uniqueItems": True}

PARAMETERS = (
    Parameter("model", ("getMouse", *_ASKING), "needed where the mouse has several", _NAME, _word),
    Parameter("version", ("getMouse", *_ASKING), "the newest where it is left out", _NAME, _word),
    Parameter(
        "space",
        _ASKING,
        "raw: gray level 0-255, behavior and pupil center as recorded. model: what the network takes.",
        {"type": "string", "enum": ["raw", "model"]},
        _space,
    ),
    Parameter(
        "condition_space",
        _ASKING,
        "of behavior and pupil center, where it is not the images'",
        {"type": "string", "enum": ["raw", "model"]},
        _space,
    ),
    Parameter(
        "neurons",
        ("predict", "gradient"),
        "0-based columns to return, separated by commas or as a parameter each",
        {**_LIST, "items": {"type": "integer", "minimum": 0}},
        _integers,
        is_list=True,
    ),
    Parameter(
        "unit_ids",
        ("predict", "gradient"),
        "the recording's own ids instead of neurons, likewise",
        {**_LIST, "items": {"type": "integer"}},
        _integers,
        is_list=True,
    ),
    Parameter(
        "timeout",
        _ASKING,
        "seconds after which the request is dropped",
        {"type": "number", "exclusiveMinimum": 0},
        _seconds,
        not_on_torchserve="TorchServe has a time-out of its own, responseTimeout in config.properties",
    ),
    Parameter(
        "dtype",
        ("predict",),
        "of the responses as .npy or .npz; float32",
        {"type": "string", "enum": ["float32", "float16"]},
        _dtype,
    ),
    Parameter(
        "early",
        ("predict",),
        "true: the answer to a .npy of any length begins while it still comes, for callers that read while they send",
        {"type": "string", "enum": ["true", "false"]},
        _true,
        not_on_torchserve="TorchServe takes a body whole and answers it whole",
    ),
)
_BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


def taken_by(call: str) -> tuple[Parameter, ...]:
    """The parameters of a call, by its operationId."""
    return tuple(parameter for parameter in PARAMETERS if call in parameter.taken_by)


def read_value(name: str, text: str) -> Any:
    """What a text means as the parameter of that name. Raises InvalidArgument."""
    return _BY_NAME[name].read(text, name)


def read(given: Iterable[tuple[str, str]], call: str, *, torchserve: bool = False) -> dict[str, Any]:
    """What came in a query, by name: words, `space` a Space, lists int64 arrays, `timeout` seconds, `dtype` a dtype.

    Args:
        given: names and texts in the order in which they came.
        call: by its operationId.
        torchserve: whether the host is TorchServe, which takes fewer.

    Raises:
        InvalidArgument: a name that the call does not take, also one in another case; anything but a list that is
            given twice; a malformed value. An empty one is malformed but for `model` and `version`, where it stands
            for none, as in a `TwinRef`.
    """
    taken = {p.name: p for p in taken_by(call) if not (torchserve and p.not_on_torchserve)}
    values: dict[str, Any] = {}
    parts: dict[str, int] = {}
    for came, text in given:
        bracketed = _BRACKETED.fullmatch(came)
        name = bracketed[1] if bracketed else came
        parameter = taken.get(name)
        if parameter is None or (bracketed and not parameter.is_list):
            raise _unknown(came, taken, torchserve)
        # TorchServe has lost the order of headers.
        if name in values and not (parameter.is_list and not torchserve):
            raise InvalidArgument(f"{name}: given twice", field=name)
        if not parameter.is_list:
            values[name] = read_value(name, text)
            continue
        number = parts.get(name, 0)
        if bracketed and bracketed[2] and int(bracketed[2]) != number:
            raise InvalidArgument(f"{name}: {_shown(came)}, expected {name}[{number}] next", field=name)
        parts[name] = number + 1
        values.setdefault(name, []).extend(read_value(name, text))
    return {name: np.array(value, np.int64) if name in parts else value for name, value in values.items()}


def read_headers(given: Iterable[tuple[str, str]], call: str) -> dict[str, Any]:
    """What came in TorchServe's headers: `X-Mousetwin-Unit-Ids: 7, 8` is `unit_ids`. Raises as `read`."""
    names = ((name.lower(), text) for name, text in given)
    # HTTP puts ", " between the parts of a header.
    asked = [
        (name.removeprefix(HEADER_PREFIX).replace("-", "_"), text.replace(", ", ","))
        for name, text in names
        if name.startswith(HEADER_PREFIX)
    ]
    return read(asked, call, torchserve=True)


def _unknown(came: str, taken: Iterable[str], torchserve: bool) -> InvalidArgument:
    parameter, shown = _BY_NAME.get(came), _shown(came)
    if torchserve and parameter is not None and parameter.not_on_torchserve:
        return InvalidArgument(f"{shown}: not on this host: {parameter.not_on_torchserve}", field=shown)
    expected = f"expected one of {', '.join(taken)}" if taken else "there are none"
    return InvalidArgument(f"{shown}: no parameter of this call, {expected}", field=shown)


def _shown(name: str) -> str:
    """As a name is told of: short, on one line, and as it came."""
    return repr(name[:_LONGEST])[1:-1] or "''"
