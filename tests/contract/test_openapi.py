"""The OpenAPI document against the running service, by schemathesis: what it promises is what happens."""

from __future__ import annotations

from typing import Any

import httpx
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import schemathesis
from bundles import FULL, IMAGE_ONLY
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from mousetwin import arrays
from mousetwin_serve.api import openapi
from mousetwin_serve.api.bodies import JSON, NPY, NPZ
from mousetwin_serve.limits import Limits
from running import REQUEST_BYTES, RESPONSE_BYTES, Service
from schemathesis.checks import positive_data_acceptance

# The same document as the service hands out, which the first test proves: pytest needs it before a service runs.
LIMITS = Limits(request_bytes=REQUEST_BYTES, response_bytes=RESPONSE_BYTES)
IMAGES = hnp.arrays(np.uint8, st.sampled_from([(2, *FULL.native), (1, 1, *FULL.stimulus), (3, *IMAGE_ONLY.native)]))
schemathesis.openapi.media_type(NPY, IMAGES.map(arrays.write_npy) | st.binary())
COTANGENTS = hnp.arrays(np.float32, (FULL.neurons,), elements=st.floats(-9, 9, width=32))
BODIES = st.fixed_dictionaries({"images": IMAGES}, optional={"cotangent": COTANGENTS})
schemathesis.openapi.media_type(NPZ, BODIES.map(arrays.write_npz) | st.binary())


@schemathesis.serializer(NPY, NPZ)
def as_they_are(context: schemathesis.SerializationContext, value: Any) -> Any:
    return value if isinstance(value, bytes) else str(value).encode()


schema = schemathesis.openapi.from_dict(openapi.document(LIMITS))
BOUNDED = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


def test_the_service_hands_out_this_document(service: Service) -> None:
    assert httpx.get(f"{service.http}/openapi.json").json() == schema.raw_schema


def test_the_page_tells_what_the_document_does(service: Service) -> None:
    page = httpx.get(f"{service.http}/docs").text
    for name, told in (
        ("behavior", "(N, B), or (B) for all images."),
        ("pupil_center", "(N, 2), or (2) for all images."),
        ("neurons", "0-based columns to return (K); or (N, 1), one for each image"),
    ):
        rows = [row for row in page.split("<tr>") if row.startswith(f"<td>{name}<td>")]
        assert any(told in row for row in rows), name
        for call in ("PredictRequest", "GradientRequest"):
            described = schema.raw_schema["components"]["schemas"][call]["properties"][name]
            assert described["description"] == told
    assert "uncompressed" in schema.raw_schema["paths"]["/v1/mice/{mouse}/score"]["post"]["description"]


@schema.exclude(operation_id=["predict", "gradient"]).parametrize()
@BOUNDED
def test_what_the_document_promises_is_what_happens(case: schemathesis.Case, service: Service) -> None:
    case.call_and_validate(base_url=service.http)


@pytest.mark.parametrize("mouse", ["full", "image-only", None])
@schema.include(operation_id=["predict", "gradient"]).parametrize()
@BOUNDED
def test_what_the_document_promises_of_answers(case: schemathesis.Case, mouse: str | None, service: Service) -> None:
    """With a mouse that there is, to get beyond the name; and with any."""
    if mouse is not None:
        case.path_parameters["mouse"] = mouse
    # No document can say which sizes a twin takes, so that images that fit the schema may still be refused.
    case.call_and_validate(base_url=service.http, excluded_checks=[positive_data_acceptance])


@pytest.mark.parametrize("mouse", ["full", "image-only", "bare"])
def test_a_mouse_that_there_is_is_told_as_the_document_says(mouse: str, service: Service) -> None:
    case = schema["/v1/mice/{mouse}"]["GET"].Case(path_parameters={"mouse": mouse})
    assert case.call_and_validate(base_url=service.http).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"images": np.zeros((2, *FULL.native), int).tolist()},
        {
            "images": np.zeros((2, 1, *FULL.native)).tolist(),
            "behavior": [[1, 2, 3], [4, 5, 6]],
            "pupil_center": [0.5, 1],
            "space": "model",
            "neurons": [2, 0],
            "unit_ids": None,
            "model": "linear",
            "version": 1,
        },
    ],
    ids=["images", "everything"],
)
@pytest.mark.parametrize("accept", [JSON, NPY, NPZ])
def test_an_answer_is_as_the_document_says(body: Any, accept: str, service: Service) -> None:
    case = schema["/v1/mice/{mouse}/predict"]["POST"].Case(
        path_parameters={"mouse": "full"}, body=body, media_type=JSON, headers={"Accept": accept}
    )
    response = case.call_and_validate(base_url=service.http)
    assert response.status_code == 200
    assert response.headers["content-type"] == [accept]


@pytest.mark.parametrize("accept", [JSON, NPZ])
def test_a_gradient_is_as_the_document_says(accept: str, service: Service) -> None:
    body = {"images": np.zeros((2, *FULL.native), int).tolist(), "cotangent": [1, -1, 0.5], "neurons": [2, 0, 5]}
    case = schema["/v1/mice/{mouse}/gradient"]["POST"].Case(
        path_parameters={"mouse": "full"}, body=body, media_type=JSON, headers={"Accept": accept}
    )
    response = case.call_and_validate(base_url=service.http)
    assert response.status_code == 200
    assert response.headers["content-type"] == [accept]
