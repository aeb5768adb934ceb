"""Whatever an optimisation asks for, it is run or refused with one of our own errors; and the wire keeps it whole."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from bundles import FULL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mousetwin import optimization_wire
from mousetwin.errors import InvalidArgument, MousetwinError
from mousetwin.optimization import Ascent, Constraints, Diversity, OptimizeQuery, OptimizeResult, Start, Target
from mousetwin.query import Space, TwinRef
from mousetwin.v1 import digital_twin_pb2 as pb
from mousetwin_serve.device import CPU, choose
from mousetwin_serve.limits import Limits
from mousetwin_serve.optimizer.run import optimize
from mousetwin_serve.repository import Repository
from mousetwin_serve.twin import Twin

wild = st.one_of(st.floats(), st.floats(-3, 300), st.sampled_from([0.0, 1.0]))
counts = st.one_of(st.integers(0, 12), st.sampled_from([2**31, 2**32 - 1]))
maybe = st.none() | wild
small = st.integers(0, 3)
integers = hnp.arrays(np.int64, st.tuples(st.integers(0, 3), st.integers(0, 3)), elements=st.integers(-1, 8))
planes = (
    st.none() | hnp.arrays(np.float64, (6, 8), elements=wild) | hnp.arrays(np.float32, hnp.array_shapes(max_side=4))
)


def rows(width: int) -> st.SearchStrategy[Any]:
    return st.none() | hnp.arrays(np.float32, st.tuples(small, st.just(width)), elements=st.floats(-2, 2, width=32))


queries = st.builds(
    OptimizeQuery,
    twins=st.just((TwinRef("full"),)),
    target=st.builds(
        Target,
        neurons=st.none() | integers,
        unit_ids=st.none() | integers,
        weights=st.none() | hnp.arrays(np.float64, hnp.array_shapes(max_dims=2, max_side=3), elements=wild),
        against=st.none() | integers,
        temperature=wild,
    ),
    behavior=rows(3),
    pupil_center=rows(2),
    space=st.sampled_from([None, *Space]),
    constraints=st.builds(
        Constraints,
        norm=maybe,
        max_std=st.none() | wild,
        mean=maybe,
        low=maybe,
        high=maybe,
        mask=planes,
        background=planes,
    ),
    start=st.builds(
        Start,
        kind=st.sampled_from(["noise", "gray", ""]),
        images=st.none()
        | hnp.arrays(np.float32, st.tuples(small, st.just(6), st.just(8)), elements=st.floats(width=32)),
        trials=small,
        trial_steps=small,
        seed=counts,
        first_image=counts,
    ),
    ascent=st.builds(
        Ascent,
        optimizer=st.sampled_from(["ascent", "adam", ""]),
        steps=st.sampled_from([0, 1, 2, 3, 2**32 - 1]),
        step_size=wild,
        step_size_end=wild,
        momentum=wild,
        patience=counts,
        tolerance=wild,
        blur=wild,
        blur_end=wild,
        fourier=wild,
        jitter=counts,
        total_variation=wild,
        l2=wild,
    ),
    diversity=st.builds(Diversity, group=st.none() | hnp.arrays(np.int64, small), min_share=wild),
    report_every=counts,
)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    folder = tmp_path_factory.mktemp("models")
    FULL.write(folder)
    return Repository.load(folder, choose("cpu")).find(TwinRef("full"))


# Steps as long as a float holds lead where they lead; what counts is that the service is not hurt.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(query=queries)
def test_it_is_run_or_refused(twin: Twin, query: OptimizeQuery) -> None:
    request = optimization_wire.query_to_proto(query).SerializeToString()
    received = optimization_wire.query_from_proto(pb.OptimizeRequest.FromString(request))
    try:
        *_, result = optimize(received, [twin], Limits(), lambda number, batch: twin.engine.answer(batch), CPU)
    except MousetwinError as error:
        refusal = error
    else:
        assert isinstance(result, OptimizeResult)
        assert len(result.images) == len(result.values) == len(result.responses)
        return
    assert refusal.field
    assert str(refusal)


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(query=queries)
def test_the_wire_keeps_a_query_whole(query: OptimizeQuery) -> None:
    request = optimization_wire.query_to_proto(query).SerializeToString()
    received = optimization_wire.query_from_proto(pb.OptimizeRequest.FromString(request))
    assert same(received, query)


def same(one: Any, other: Any) -> bool:
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    return bool(one == other or (one != one and other != other))


def test_what_a_message_leaves_out_stands_at_its_default() -> None:
    assert optimization_wire.query_from_proto(pb.OptimizeRequest()) == OptimizeQuery(twins=(), target=Target())


@pytest.mark.parametrize("steps", [-1, 2**32, "many"])
def test_a_number_that_its_field_cannot_hold_is_refused_where_it_is_sent(steps: Any) -> None:
    query = OptimizeQuery((TwinRef("full"),), Target(neurons=np.array([[1]])), ascent=Ascent(steps=steps))
    with pytest.raises(InvalidArgument, match="steps"):
        optimization_wire.query_to_proto(query)
