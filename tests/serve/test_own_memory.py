"""A device with memory of its own answers with the same bits, and images stay in it from step to step."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from away import Away, AwayDevice
from bundles import FULL, IMAGE_ONLY, TinyTwin
from mousetwin.optimization import Ascent, Constraints, Diversity, OptimizeQuery, OptimizeResult, Start, Target
from mousetwin.query import Prediction, PredictQuery, Space, TwinRef
from mousetwin_serve import bundle
from mousetwin_serve.batch import Answer, Batch
from mousetwin_serve.batcher import BatchSettings
from mousetwin_serve.bound import Profile
from mousetwin_serve.device import CPU, Device
from mousetwin_serve.engine import Engine
from mousetwin_serve.limits import Limits
from mousetwin_serve.optimizer.run import optimize, warm_up
from mousetwin_serve.repository import DEMO_MODELS, Repository
from mousetwin_serve.service import TwinService
from mousetwin_serve.twin import Twin
from numpy.testing import assert_array_equal

DEMO = DEMO_MODELS / "demo/gabor/1"


def twin_on(device: Device) -> Twin:
    return Repository.load(DEMO_MODELS, [device]).find(TwinRef("demo"))


@pytest.fixture(scope="module")
def here() -> Twin:
    return twin_on(CPU)


@pytest.fixture(scope="module")
def there() -> Twin:
    return twin_on(AwayDevice())


def batch_of(count: int, columns: Any, cotangent: bool) -> Batch:
    rng = np.random.default_rng(count)
    asked = 320 if columns is None else len(columns) if columns.ndim == 1 else 1
    return Batch(
        rng.normal(size=(count, 1, 36, 64)).astype(np.float32),
        rng.normal(1, 1, (count, 3)).astype(np.float32),
        rng.normal(size=(count, 2)).astype(np.float32),
        columns,
        rng.normal(size=(count, asked)).astype(np.float32) if cotangent else None,
    )


@pytest.mark.parametrize("cotangent", [False, True])
@pytest.mark.parametrize("columns", [None, np.array([7, 300, 2]), np.array([[5], [9], [9], [0], [319]])])
def test_the_same_bits(here: Twin, there: Twin, columns: Any, cotangent: bool) -> None:
    batch = batch_of(5, columns, cotangent)
    expected = here.engine.answer(batch)
    put = there.engine.devices[0].put
    away = replace(
        batch,
        **{
            name: put(values)
            for name in ("images", "behavior", "pupil_center", "cotangent")
            if (values := getattr(batch, name)) is not None
        },
    )
    brought, stayed = there.engine.answer(batch), there.engine.answer(away)
    assert isinstance(brought.responses, np.ndarray)
    assert isinstance(stayed.responses, Away)
    assert_array_equal(brought.responses, expected.responses)
    assert_array_equal(stayed.responses.get(), expected.responses)
    assert brought.gradient.keys() == stayed.gradient.keys() == expected.gradient.keys()
    for name, values in expected.gradient.items():
        assert_array_equal(brought.gradient[name], values)
        assert_array_equal(stayed.gradient[name].get(), values)  # type: ignore[attr-defined]


def test_what_is_on_the_device_rides_with_its_like_only(there: Twin) -> None:
    engine, batch = there.engine, batch_of(3, None, False)
    put = engine.devices[0].put
    away = Batch(put(batch.images), put(batch.behavior), put(batch.pupil_center))  # type: ignore[arg-type]
    assert engine.plan(batch).key != engine.plan(away).key
    assert engine.plan(away).key == engine.plan(away).key
    together = engine.run([engine.plan(away), engine.plan(away)])
    assert_array_equal(together[1].responses.get(), engine.answer(batch).responses)  # type: ignore[attr-defined]


TARGET = Target(neurons=np.array([[3], [14], [159]]))
SEVERAL = Target(neurons=np.array([[3, 7], [14, 7], [159, 2]]), weights=np.array([1.0, -0.5]))
QUERIES: dict[str, dict[str, Any]] = {
    "as it comes": {"target": TARGET},
    "weights, conditions": {
        "target": SEVERAL,
        "behavior": np.array([[1.0, 0, 2], [2, 1, 0]], np.float32),
        "condition_space": Space.MODEL,
    },
    "contrast": {"target": Target(neurons=np.array([[3, 7]]), against=np.array([[40, 41]]), temperature=0.5)},
    "adam": {"target": TARGET, "ascent": Ascent(optimizer="adam", steps=12)},
    "blur, spectrum, variation, jitter": {
        "target": TARGET,
        "ascent": Ascent(steps=12, blur=2.0, fourier=1.0, total_variation=0.01, l2=0.01, jitter=3),
    },
    "range, mean, mask": {
        "target": TARGET,
        "constraints": Constraints(std=0.4, mean=0.1, low=-1.5, high=1.5, mask=np.tri(36, 64)),
    },
    "images that differ": {
        "target": Target(neurons=np.array([[3], [3], [14], [14]])),
        "diversity": Diversity(group=np.array([0, 0, 1, 1]), min_share=0.9),
    },
    "given images": {
        "target": TARGET,
        "start": Start(images=np.random.default_rng(0).normal(size=(3, 36, 64)).astype(np.float32)),
    },
    "patience": {"target": TARGET, "ascent": Ascent(steps=60, patience=2, tolerance=0.05)},
}


@pytest.mark.parametrize("name", QUERIES)
def test_an_optimisation_stays_on_the_device(name: str, here: Twin, there: Twin) -> None:
    asked = {"ascent": Ascent(steps=12), **QUERIES[name]}
    query = OptimizeQuery(twins=(TwinRef("demo"),), report_every=4, **asked)
    device = there.engine.devices[0]
    assert isinstance(device, AwayDevice)

    def ask(number: int, batch: Batch) -> Answer:
        assert isinstance(batch.images, Away)
        answer = there.engine.answer(batch)
        assert isinstance(answer.gradient.get("images", batch.images), Away)
        return answer

    image = 36 * 64 * 4
    events = optimize(query, [there], Limits(), ask, device)
    found = [next(events)]
    del device.put_bytes[:]
    found += events
    expected = list(optimize(query, [here], Limits(), lambda number, batch: here.engine.answer(batch), CPU))
    assert max(device.put_bytes, default=0) < image
    assert len(found) == len(expected)
    for one, other in zip(found[:-1], expected[:-1], strict=True):
        assert_array_equal(one.values, other.values)  # type: ignore[union-attr]
    result, reference = found[-1], expected[-1]
    assert isinstance(result, OptimizeResult)
    assert isinstance(reference, OptimizeResult)
    for field in ("images", "responses", "values", "trace"):
        assert_array_equal(getattr(result, field), getattr(reference, field))


def test_served_from_the_device(here: Twin) -> None:
    """Optimisations and predictions side by side, of more images than one run takes, on two devices."""
    service = TwinService(Repository.load(DEMO_MODELS, [AwayDevice(), AwayDevice(index=1)]), batching=BatchSettings(8))
    query = OptimizeQuery((TwinRef("demo"),), Target(neurons=np.arange(10)[:, None]), ascent=Ascent(steps=3))
    images = np.random.default_rng(0).normal(size=(20, 1, 36, 64)).astype(np.float32)
    asked = PredictQuery(TwinRef("demo"), images, space=Space.MODEL)

    async def optimized() -> OptimizeResult:
        *_, result = [event async for event in service.optimize(query)]
        assert isinstance(result, OptimizeResult)
        return result

    async def both() -> tuple[OptimizeResult, OptimizeResult, Prediction]:
        found = await asyncio.gather(optimized(), optimized(), service.answer(asked))
        await service.drain()
        return found

    first, second, prediction = asyncio.run(both())
    *_, expected = optimize(query, [here], Limits(), lambda number, batch: here.engine.answer(batch), CPU)
    assert isinstance(expected, OptimizeResult)
    assert_array_equal(first.images, expected.images)
    assert_array_equal(second.images, expected.images)
    stimulus = here.stimulus.read(asked)
    assert_array_equal(prediction.responses, here.engine.answer(stimulus.batch).responses)


def test_several_devices_share_the_work() -> None:
    batch = batch_of(40, None, True)
    one, three = (
        Engine(bundle.read(DEMO), [replace(CPU, threads=1)]),
        Engine(bundle.read(DEMO), [AwayDevice(index=i) for i in range(3)]),
    )
    assert (one.runs, three.runs) == (1, 3)
    assert_array_equal(three.answer(batch).responses, one.answer(batch).responses)
    away = three.devices[1].put(batch.images)
    on_second = replace(batch, images=away, **{n: three.devices[1].put(getattr(batch, n)) for n in _OTHERS})
    assert_array_equal(three.answer(on_second).responses.get(), one.answer(batch).responses)  # type: ignore[attr-defined]


_OTHERS = ("behavior", "pupil_center", "cotangent")


def test_everything_is_ready_before_the_first_request() -> None:
    assert set(twin_on(CPU).engine.replays) == {"forward"}
    fresh = twin_on(AwayDevice())
    assert set(fresh.engine.replays) == set(fresh.summary.graphs)
    assert 1 <= fresh.engine.best_batch <= fresh.engine.max_batch


@pytest.mark.parametrize("twin", [FULL, IMAGE_ONLY, replace(FULL, statistics=False), replace(FULL, has_gradient=False)])
def test_what_an_optimisation_needs_is_compiled_before_the_first_request(twin: TinyTwin, tmp_path: Path) -> None:
    twin.write(tmp_path)
    devices = [AwayDevice(), AwayDevice(index=1)]
    twins = Repository.load(tmp_path, devices).twins
    for device in devices:
        device.put_bytes.clear()
    warm_up(twins.values())
    # Eight trials of an image of doubles, where there is anything to climb.
    image = 8 * int(np.prod(twin.native)) * 8
    for device in devices:
        assert (image in device.put_bytes) == twin.has_gradient


def test_what_a_replay_may_be_off_by_is_told() -> None:
    for device, responses, gradients in ((AwayDevice(), 1e-4, 1e-3), (AwayDevice(tf32=True), 0.05, 0.02)):
        reports = twin_on(device).info.graphs
        assert reports["forward"].replay_tolerance == pytest.approx(responses)
        assert reports["forward"].replay_gradient_tolerance is None
        assert reports["gradient"].replay_gradient_tolerance == gradients
        assert reports["gradient"].replay_error <= gradients  # type: ignore[operator]
        assert reports["gradient"].not_on_device == ()


def test_what_ran_elsewhere_is_named() -> None:
    """On a GPU a node without a kernel there runs on the CPU; here all of them do."""
    twin = bundle.read(DEMO)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    profile = Profile(options)
    options.add_external_initializers(
        list(twin.manifest.graphs["forward"].weights),
        [ort.OrtValue.ortvalue_from_numpy(twin.weights[name]) for name in twin.manifest.graphs["forward"].weights],
    )
    session = ort.InferenceSession(twin.graphs["forward"], options, providers=["CPUExecutionProvider"])
    session.run(None, {name: twin.replay[name] for name in ("images", "behavior", "pupil_center")})
    named = profile.elsewhere(session, "CUDAExecutionProvider")
    nodes = {f"{node.name} ({node.op_type})" for node in onnx.load_from_string(twin.graphs["forward"]).graph.node}
    assert set(named) <= nodes
    operators = {node.rpartition("(")[2][:-1] for node in named}
    assert {"Conv", "MatMul", "Exp"} <= operators
    assert "Shape" not in operators
    assert twin_on(AwayDevice()).info.graphs["forward"].not_on_device == ()
