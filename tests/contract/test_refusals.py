"""The client's own refusals, the same over gRPC and in this process, each with a good request beside it.

What other clients can get wrong on the wire is in test_bad_input.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import mousetwin
import numpy as np
import pytest
from bundles import BARE, FULL, IMAGE_ONLY
from hosts import ClientHost, open_host
from numpy.testing import assert_allclose
from running import Service

SHOWN = np.random.default_rng(0).integers(0, 256, (2, *FULL.stimulus)).astype(np.uint8)
MODEL = FULL.inputs(2)["images"]
WRONG = np.where(np.arange(48).reshape(6, 8) == 11, np.inf, MODEL[:, 0])

# What is asked, the error, the field, and words of the message.
CASES: dict[str, tuple[dict[str, Any], type[mousetwin.MousetwinError], str, list[str]]] = {
    "unknown mouse": ({"mouse": "nobody"}, mousetwin.NotFound, "mouse", ["nobody", "full", "bare"]),
    "unknown model": ({"model": "cnn"}, mousetwin.NotFound, "model", ["cnn", "linear"]),
    "unknown version": ({"version": "2"}, mousetwin.NotFound, "version", ["'2'", "1"]),
    "model not named": ({"mouse": "two-models"}, mousetwin.InvalidArgument, "model", ["cnn, ln"]),
    "rank": ({"images": SHOWN[0]}, mousetwin.InvalidArgument, "images", ["(24, 32)", "images[None]"]),
    "a single number": ({"images": 3}, mousetwin.InvalidArgument, "images", ["rank 0"]),
    "size": ({"images": SHOWN[:, :20]}, mousetwin.InvalidArgument, "images", ["20×32", "6×8 or 24×32"]),
    "channels": ({"images": SHOWN[:, None].repeat(3, 1)}, mousetwin.InvalidArgument, "images", ["3 channels", "1"]),
    "dtype": ({"images": SHOWN > 9}, mousetwin.InvalidArgument, "images", ["bool", "uint8"]),
    "complex": ({"images": MODEL * 1j, "space": "model"}, mousetwin.InvalidArgument, "images", ["complex"]),
    "objects": ({"images": [[[None]]], "space": "model"}, mousetwin.InvalidArgument, "images", ["(None)"]),
    "words": ({"images": [[["a"]]], "space": "model"}, mousetwin.InvalidArgument, "images", ["str, expected"]),
    "ragged": ({"images": [[[1, 2], [3]]]}, mousetwin.InvalidArgument, "images", ["one length"]),
    "none": ({"images": SHOWN[:0]}, mousetwin.InvalidArgument, "images", ["at least one"]),
    "infinite": ({"images": WRONG, "space": "model"}, mousetwin.InvalidArgument, "images", ["inf at (0, 1, 3)"]),
    "no space": ({"images": MODEL}, mousetwin.InvalidArgument, "space", ["float32", "raw", "model"]),
    "unknown space": ({"space": "rgb"}, mousetwin.InvalidArgument, "space", ["rgb", "raw", "model"]),
    "no statistics": ({"mouse": "bare"}, mousetwin.InvalidArgument, "space", ["statistics", "--dataset"]),
    "too bright": ({"images": SHOWN.astype(int) + 9}, mousetwin.InvalidArgument, "images", ["0 to 255"]),
    "behavior missing": (
        {"mouse": "bare", "images": BARE.inputs(1)["images"], "space": "model"},
        mousetwin.InvalidArgument,
        "behavior",
        ["missing", "(N, 3)", "running"],
    ),
    "behavior unwanted": (
        {"mouse": "image-only", "images": IMAGE_ONLY.inputs(1)["images"], "space": "model", "behavior": [1, 2, 3]},
        mousetwin.InvalidArgument,
        "behavior",
        ["takes none"],
    ),
    "behavior width": ({"behavior": [[1, 2]]}, mousetwin.InvalidArgument, "behavior", ["(1, 2)", "(2, 3)"]),
    "behavior dtype": ({"behavior": ["a", "b", "c"]}, mousetwin.InvalidArgument, "behavior", ["str, expected"]),
    "pupil": ({"pupil_center": np.ones((3, 2))}, mousetwin.InvalidArgument, "pupil_center", ["(3, 2)", "(2, 2)"]),
    "neuron negative": ({"neurons": [-1]}, mousetwin.InvalidArgument, "neurons", ["-1", "0 to 6"]),
    "neuron too large": ({"neurons": [0, 7]}, mousetwin.InvalidArgument, "neurons", ["7", "0 to 6"]),
    "neuron repeated": ({"neurons": [1, 1]}, mousetwin.InvalidArgument, "neurons", ["repeated"]),
    "neurons float": ({"neurons": [1.0]}, mousetwin.InvalidArgument, "neurons", ["float64", "whole"]),
    "no neurons": ({"neurons": []}, mousetwin.InvalidArgument, "neurons", ["at least one"]),
    "unit unknown": ({"unit_ids": [11, 12]}, mousetwin.InvalidArgument, "unit_ids", ["12"]),
    "units not known": ({"mouse": "image-only", "images": np.ones((1, 9, 5), int), "unit_ids": [1]},
                        mousetwin.InvalidArgument, "unit_ids", ["neurons", "--dataset"]),
}  # fmt: skip


@pytest.fixture(scope="module", params=["grpc", "local"])
def twins(request: pytest.FixtureRequest, service: Service, models: Path) -> Any:
    opened = open_host(request.param, service, models)
    assert isinstance(opened, ClientHost)
    yield opened.twins
    opened.close()


@pytest.mark.parametrize("case", CASES)
def test_a_refusal_names_the_field_and_costs_nobody_else(case: str, twins: mousetwin.Twins) -> None:
    asked, error, field, words = CASES[case]
    question = {"mouse": "full", "model": "", "version": None, "images": SHOWN} | asked
    mouse, model, version, images = (question.pop(name) for name in ("mouse", "model", "version", "images"))
    together = Barrier(3)
    right = FULL.respond_raw(SHOWN)

    def ask_well() -> None:
        full = twins["full"]
        together.wait(30)
        assert_allclose(full.predict(SHOWN), right, rtol=0, atol=2e-6)

    with ThreadPoolExecutor(2) as pool:
        beside = [pool.submit(ask_well) for _ in range(2)]
        together.wait(30)
        with pytest.raises(error) as caught:
            twins.mouse(mouse, model, version).predict(images, **question)
        for one in beside:
            one.result()
    assert caught.value.field == field
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.startswith(field)
    assert not any(word in message for word in ("Traceback", ".py", "numpy", "onnx", "\n")), message
    assert_allclose(twins["full"].predict(SHOWN), right, rtol=0, atol=2e-6)
