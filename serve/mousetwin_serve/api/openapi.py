"""The REST contract as an OpenAPI document, and as a page that needs nothing from the internet."""

from __future__ import annotations

import html
from importlib.metadata import version
from typing import Any

from mousetwin.scores import METRICS

from ..limits import Limits
from .bodies import JSON, NPY, NPZ
from .parameters import PARAMETERS, Schema, taken_by

_BINARY: Schema = {"type": "string", "format": "binary"}
_STRINGS: Schema = {"type": "array", "items": {"type": "string"}}
_NUMBERS: Schema = {"type": "array", "items": {"type": "number"}}
_ROWS: Schema = {"type": "array", "items": _NUMBERS}
_INTEGERS: Schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1, "uniqueItems": True}
_COLUMNS: Schema = {**_INTEGERS, "items": {"type": "integer", "minimum": 0}}
_PAIR: Schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}


def _object(required: dict[str, Schema], **optional: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _maybe(schema: Schema) -> Schema:
    told = {"description": schema["description"]} if "description" in schema else {}
    return {"anyOf": [{n: v for n, v in schema.items() if n != "description"}, {"type": "null"}], **told}


_IMAGES: Schema = {
    "type": "array",
    "minItems": 1,
    "description": "(N, H, W) or (N, 1, H, W). Numbers without a point are gray levels 0-255 at the stimulus or the "
    "native size unless `space` says otherwise; other numbers need `space`.",
    "items": {"type": "array", "items": {"type": "array", "items": {"anyOf": [{"type": "number"}, _NUMBERS]}}},
}
_BEHAVIOR: Schema = {"anyOf": [_NUMBERS, _ROWS], "description": "(N, B), or (B) for all images."}
_PUPIL_CENTER: Schema = {"anyOf": [_NUMBERS, _ROWS], "description": "(N, 2), or (2) for all images."}
_COTANGENT: Schema = {
    "anyOf": [_NUMBERS, _ROWS],
    "description": "(N, K), or (K) for all images: what each response counts for in the sum to be differentiated.",
}
_WARNINGS: Schema = {**_STRINGS, "description": "what was taken and is nearly always a mistake"}


def _chosen(several: Schema, description: str) -> Schema:
    """Neurons: some, one, or one an image."""
    each = {"type": "array", "items": {**several, "maxItems": 1}, "minItems": 1}
    return {"anyOf": [several, each, several["items"]], "description": description}


def _as_parameter(name: str) -> Schema:
    (parameter,) = (p for p in PARAMETERS if p.name == name)
    return {**parameter.schema, "description": parameter.description}


_QUERY: dict[str, Schema] = {
    "behavior": _maybe(_BEHAVIOR),
    "pupil_center": _maybe(_PUPIL_CENTER),
    "space": _maybe(_as_parameter("space")),
    "condition_space": _maybe(_as_parameter("condition_space")),
    "neurons": _maybe(_chosen(_COLUMNS, "0-based columns to return (K); or (N, 1), one for each image")),
    "unit_ids": _maybe(_chosen(_INTEGERS, "the recording's own ids instead of neurons")),
    "model": _maybe(_as_parameter("model")),
    "version": _maybe({**_as_parameter("version"), "type": ["string", "integer"]}),
}

_SCHEMAS: dict[str, Schema] = {
    "Problem": {
        "type": "object",
        "description": "RFC 9457 problem details: `detail` names the field, what came and what was expected.",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string", "description": "the gRPC status's name"},
            "field": {"type": "string"},
            "request_id": {"type": "string"},
        },
        "required": ["type", "title", "status", "detail"],
    },
    "Twin": _object(
        {
            "mouse": {"type": "string"},
            "model": {"type": "string"},
            "version": {"type": "string"},
            "digest": {"type": "string", "description": "sha256 of the bundle's manifest"},
        }
    ),
    "TwinSummary": _object(
        {
            "twin": _ref("Twin"),
            "description": {"type": "string"},
            "synthetic": {"type": "boolean"},
            "neurons": {"type": "integer"},
            "native_size": _PAIR,
            "stimulus_size": _PAIR,
            "behavior": _STRINGS,
            "pupil_center": _STRINGS,
            "takes_raw": {"type": "boolean"},
            "graphs": _STRINGS,
            "device": {"type": "string"},
            "required": _STRINGS,
            "no_gradient": {"type": "string", "description": "why the twin has no gradient; empty where it has"},
            "newer_refused": {
                **_STRINGS,
                "description": "newer versions that were found and do not verify: this one answers in their place",
            },
        }
    ),
    "Moments": _object({"mean": _NUMBERS, "std": _NUMBERS}),
    "GraphReport": _object(
        {
            "opset": {"type": "integer"},
            "parity_max_abs_error": {"type": "number"},
            "parity_tolerance": {"type": "number"},
            "replay_error": _maybe({"type": "number", "description": "null until the graph is first asked for"}),
            "parity_gradient_error": _maybe({"type": "number"}),
            "parity_gradient_tolerance": _maybe({"type": "number"}),
            "replay_tolerance": _maybe({"type": "number"}),
            "replay_gradient_tolerance": _maybe({"type": "number"}),
            "not_on_device": {
                "type": "array",
                "items": {"type": "string"},
                "description": "nodes that ran on the CPU though the twin is on a GPU",
            },
        }
    ),
    "Mouse": _object(
        {
            "summary": _ref("TwinSummary"),
            "unit_ids": _maybe({"type": "array", "items": {"type": "integer"}}),
            "cell_motor_coordinates": _maybe({**_ROWS, "description": "(x, y, z) per neuron, µm"}),
            "receptive_field_center": _maybe({**_ROWS, "description": "(x, y) per neuron, native pixels"}),
            "receptive_field_size": _maybe(_PAIR),
            "statistics": {"type": "object", "additionalProperties": _ref("Moments")},
            "output_units": {"type": "string"},
            "graphs": {"type": "object", "additionalProperties": _ref("GraphReport")},
            "source": {"type": "string"},
            "source_sha256": {"type": "string"},
            "licence": {"type": "string"},
            "built_with": {"type": "object", "additionalProperties": {"type": "string"}},
            "truth": {"type": "object", "additionalProperties": _NUMBERS},
        }
    ),
    "Metric": _object(
        {
            "mean": _maybe({"type": "number", "description": "over the neurons that have it"}),
            "per_neuron": _maybe({"type": "array", "items": _maybe({"type": "number"})}),
        }
    ),
    "Scores": _object(
        {
            **{key: {"type": "string"} for key in ("mouse", "model", "version", "digest")},
            "defaults": _STRINGS,
            "warnings": _WARNINGS,
            **{key: {"type": "integer"} for key in ("trials", "images", "neurons", "neurons_in_feve")},
            **dict.fromkeys(METRICS, _ref("Metric")),
        }
    ),
    "PredictRequest": _object({"images": _IMAGES}, **_QUERY),
    "GradientRequest": _object({"images": _IMAGES, "cotangent": _COTANGENT}, **_QUERY),
    "GradientResponse": _object(
        {
            "responses": _ROWS,
            "twin": _ref("Twin"),
            "defaults": _STRINGS,
            "warnings": _WARNINGS,
            "images": {**_IMAGES, "description": "gradient, in the shape and units of the images that were sent"},
            "behavior": _maybe({**_ROWS, "description": "gradient (N, B)"}),
            "pupil_center": _maybe({**_ROWS, "description": "gradient (N, 2)"}),
        }
    ),
    "PredictResponse": _object({"responses": _ROWS, "twin": _ref("Twin"), "defaults": _STRINGS, "warnings": _WARNINGS}),
}


def _answer(description: str, **content: Schema) -> Schema:
    return {"description": description, "content": {kind: {"schema": schema} for kind, schema in content.items()}}


def _body(**content: Schema) -> Schema:
    return {"required": True, "content": {kind: {"schema": schema} for kind, schema in content.items()}}


def _problems(*statuses: int) -> Schema:
    what = {
        400: "A field or a parameter is malformed, out of range, missing, unwanted or not known.",
        404: "No such mouse, model or version.",
        406: "None of the accepted media types is on offer.",
        413: "The request or its answer is over a size limit.",
        415: "The body is of no known media type, or compressed.",
        429: "The queue is full, or there is no room on the service's disk.",
        501: "The twin has no gradient.",
        503: "The service is shutting down.",
        504: "The deadline passed first.",
    }
    problem = {"content": {"application/problem+json": {"schema": _ref("Problem")}}}
    return {str(status): {"description": what[status], **problem} for status in statuses}


def _parameters(call: str) -> list[Schema]:
    """Of a call, by its operationId: the mouse, and what `parameters` declares."""
    mouse = {"name": "mouse", "in": "path", "required": True, "schema": {"type": "string"}, "description": "data_key"}
    # As neurons=0,1; that they may come as a parameter each can only be told in words.
    separated = {"style": "form", "explode": False}
    return [
        mouse,
        *(
            {"name": p.name, "in": "query", "description": p.description, "schema": p.schema}
            | (separated if p.is_list else {})
            for p in taken_by(call)
        ),
    ]


_ANSWERED = (
    "The answer is of the type that was sent unless Accept says otherwise. X-Mousetwin-Twin, -Digest and -Defaults "
    "tell how it came about; X-Mousetwin-Warnings, a JSON list, what is nearly always a mistake."
)


def document(limits: Limits) -> Schema:
    """The OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mousetwin",
            "version": version("mousetwin"),
            "description": "Digital twins of mouse visual cortex: an image in, the predicted response of every "
            f"recorded neuron out. A request may hold {limits.request_bytes} bytes, an answer {limits.response_bytes}.",
        },
        "paths": {
            "/v1/mice": {
                "get": {
                    "operationId": "listMice",
                    "summary": "What is served",
                    "responses": {
                        "200": _answer(
                            "One entry per mouse, model and version.",
                            **{JSON: _object({"mice": {"type": "array", "items": _ref("TwinSummary")}})},
                        ),
                        **_problems(400),
                    },
                }
            },
            "/v1/mice/{mouse}": {
                "get": {
                    "operationId": "getMouse",
                    "summary": "Everything a twin's bundle tells",
                    "parameters": _parameters("getMouse"),
                    "responses": {"200": _answer("The twin.", **{JSON: _ref("Mouse")}), **_problems(400, 404)},
                }
            },
            "/v1/mice/{mouse}/predict": {
                "post": {
                    "operationId": "predict",
                    "summary": "Predicted responses to a batch of images",
                    "description": "Arrays as JSON lists, as one .npy (the images), or as .npz with images, behavior, "
                    f"pupil_center, neurons, unit_ids. {_ANSWERED} A .npy may be of any length: it is worked on as "
                    "it comes and answered once it has come, as a .npy of the announced length, which ends early where "
                    "something fails on the way. So is an .npz over the limit.",
                    "parameters": _parameters("predict"),
                    "requestBody": _body(**{JSON: _ref("PredictRequest"), NPY: _BINARY, NPZ: _BINARY}),
                    "responses": {
                        "200": _answer(
                            "Responses (N, K), float32, in units of each neuron's standard deviation.",
                            **{JSON: _ref("PredictResponse"), NPY: _BINARY, NPZ: _BINARY},
                        ),
                        **_problems(400, 404, 406, 413, 415, 429, 503, 504),
                    },
                }
            },
            "/v1/mice/{mouse}/gradient": {
                "post": {
                    "operationId": "gradient",
                    "summary": "Responses, and the gradient of a weighted sum of them",
                    "description": "As predict, with cotangent beside the images, as JSON or .npz; the answer holds "
                    f"responses and the gradients by input. {_ANSWERED}",
                    "parameters": _parameters("gradient"),
                    "requestBody": _body(**{JSON: _ref("GradientRequest"), NPZ: _BINARY}),
                    "responses": {
                        "200": _answer(
                            "Responses (N, K), and gradients of Σ cotangent · responses in the units that were sent.",
                            **{JSON: _ref("GradientResponse"), NPZ: _BINARY},
                        ),
                        **_problems(400, 404, 406, 413, 415, 429, 501, 503, 504),
                    },
                }
            },
            "/v1/mice/{mouse}/score": {
                "post": {
                    "operationId": "score",
                    "summary": "How well the twin predicts recorded responses",
                    "description": "An .npz of any length, uncompressed, with images, responses (N, K), image_ids (N), "
                    "and behavior and pupil_center where the twin takes them: the competition's metrics, of each "
                    "neuron and as means. Raw responses are as recorded, model ones divided by each neuron's standard "
                    "deviation.",
                    "parameters": _parameters("score"),
                    "requestBody": _body(**{NPZ: _BINARY}),
                    "responses": {
                        "200": _answer("The scores.", **{JSON: _ref("Scores")}),
                        **_problems(400, 404, 406, 413, 415, 429, 503, 504),
                    },
                }
            },
            "/livez": {"get": _health("livez", "Whether the process answers")},
            "/readyz": {"get": _health("readyz", "Whether new work is taken", not_ready=True)},
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Counters in Prometheus' text format",
                    "responses": {"200": _answer("Counters.", **{"text/plain": {"type": "string"}})},
                }
            },
        },
        "components": {"schemas": _SCHEMAS},
    }


def _health(name: str, summary: str, *, not_ready: bool = False) -> Schema:
    refused = {**_STRINGS, "description": "bundles that do not verify, as mouse/model/version"}
    status = {JSON: _object({"status": {"type": "string"}}, **({"not_served": refused} if not_ready else {}))}
    responses = {"200": _answer("Yes.", **status)}
    if not_ready:
        responses["503"] = _answer("No: shutting down.", **status)
    return {"operationId": name, "summary": summary, "responses": responses}


def page(document: Schema) -> str:
    """The document as one HTML page without scripts."""
    parts = [
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        "<title>mousetwin API</title><style>"
        "body{font:16px/1.5 system-ui;max-width:56rem;margin:2rem auto;padding:0 1rem}h2{margin-top:2.5rem}"
        "code{background:#f2f2f2;padding:.1em .3em}table{border-collapse:collapse;margin:.5rem 0}"
        "td,th{border:1px solid #ddd;padding:.25rem .6rem;text-align:left;vertical-align:top}</style>",
        f"<h1>mousetwin {_text(document['info']['version'])}</h1><p>{_text(document['info']['description'])}</p>",
        "<p>Machine-readable: <a href=/openapi.json>/openapi.json</a></p>",
    ]
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            parts.append(f"<h2><code>{verb.upper()} {_text(path)}</code></h2><p>{_text(operation['summary'])}. ")
            parts.append(f"{_text(operation.get('description', ''))}</p>")
            taken = [
                (p["name"], p["in"], _shape(p["schema"]), p.get("description", ""))
                for p in operation.get("parameters", ())
            ]
            parts.append(_table(("parameter", "in", "type", "what"), taken))
            content = operation.get("requestBody", {}).get("content", {})
            parts.append(_table(("body", "what"), [(kind, _shape(c["schema"])) for kind, c in content.items()]))
            answers = [(code, _text_of(r), ", ".join(r["content"])) for code, r in operation["responses"].items()]
            parts.append(_table(("status", "what", "as"), answers))
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"<h2 id={name}>{name}</h2>")
        rows = [(field, _shape(s), s.get("description", "")) for field, s in schema["properties"].items()]
        parts.append(_table(("field", "type", "what"), rows))
    return "".join(parts)


def _text(value: Any) -> str:
    return html.escape(str(value))


def _text_of(response: Schema) -> str:
    return str(response["description"])


def _shape(schema: Schema) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_shape(s) for s in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_shape(schema['items'])}"
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if isinstance(schema.get("type"), list):
        return " or ".join(schema["type"])
    return str(schema.get("format") or schema.get("type", "any"))


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    if not rows:
        return ""
    cells = ["<tr>" + "".join(f"<th>{_text(cell)}" for cell in head)]
    cells += ["<tr>" + "".join(f"<td>{_text(cell)}" for cell in row) for row in rows]
    return "<table>" + "".join(cells) + "</table>"
