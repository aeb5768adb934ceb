"""Whatever the bytes are, reading them gives plain numbers or one of our own errors; what is valid comes back exact."""

from __future__ import annotations

import codecs
import io
import json
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
from fuzzing import damaged, laid_out, npy, npz
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mousetwin import arrays, wire
from mousetwin.errors import InvalidArgument, MousetwinError, PayloadTooLarge
from mousetwin.query import PredictQuery, Space, TwinRef
from mousetwin.v1 import digital_twin_pb2 as pb
from mousetwin_serve.api import bodies, parameters

LIMIT = 1 << 20
FUZZ = settings(max_examples=200, deadline=None, derandomize=True, database=None)
NAMES = ("images", "behavior", "pupil_center", "neurons", "unit_ids")


def header(shape: str, descr: str = "'|u1'", order: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def same(found: Any, expected: Any) -> None:
    """Equal bit for bit, byte order aside."""
    native = np.dtype(expected.dtype.newbyteorder("="))
    assert found.dtype.newbyteorder("=") == native
    assert found.shape == expected.shape
    assert found.astype(native).tobytes() == expected.astype(native).tobytes()


def names_its_field(error: MousetwinError) -> None:
    assert error.field
    assert str(error).startswith(error.field)
    assert len(str(error)) < 1000


def plain_or_refused(read: Any, *arguments: Any) -> None:
    try:
        found = read(*arguments)
    except (InvalidArgument, PayloadTooLarge) as error:
        names_its_field(error)
        return
    found = found.values() if isinstance(found, dict) else [found]
    for array in found:
        assert array.dtype.name in arrays.DTYPES


# --- what is valid


@given(laid_out())
@FUZZ
def test_npy_round_trip(array: Any) -> None:
    same(arrays.read_npy(npy(array), "images"), array)
    same(np.load(io.BytesIO(arrays.write_npy(array)), allow_pickle=False), array)


@given(st.dictionaries(st.sampled_from(NAMES), laid_out()), st.booleans())
@FUZZ
def test_npz_round_trip(given_arrays: dict[str, Any], compressed: bool) -> None:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **given_arrays)
    found = arrays.read_npz(stream.getvalue(), NAMES, LIMIT)
    assert found.keys() == given_arrays.keys()
    with np.load(io.BytesIO(arrays.write_npz(given_arrays))) as written:
        for name, array in given_arrays.items():
            same(found[name], array)
            same(written[name], array)


@given(laid_out())
@FUZZ
def test_protobuf_round_trip(array: Any) -> None:
    message = pb.Array.FromString(arrays.to_proto(array).SerializeToString())
    assert message.data == array.astype(array.dtype.newbyteorder("<")).tobytes()
    same(arrays.from_proto(message, "images"), array)


# Without empty ones, whose shape JSON does not keep.
@given(
    hnp.arrays(
        st.sampled_from([np.dtype("int64"), np.dtype("float64")]),
        hnp.array_shapes(min_dims=0, max_dims=5, max_side=4),
        elements={"allow_nan": False},
    )
)
@FUZZ
def test_json_round_trip(array: Any) -> None:
    found = arrays.from_nested(json.loads(json.dumps(array.tolist())), "images")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@given(
    laid_out(),
    st.dictionaries(st.sampled_from(NAMES[1:]), laid_out()),
    st.sampled_from([None, Space.RAW, Space.MODEL]),
    st.text(),
)
@FUZZ
def test_query_round_trip(images: Any, others: dict[str, Any], space: Space | None, mouse: str) -> None:
    query = PredictQuery(TwinRef(mouse, "m", "1"), images, space=space, **others)
    found = wire.query_from_proto(pb.PredictRequest.FromString(wire.query_to_proto(query).SerializeToString()))
    assert (found.twin, found.space) == (query.twin, space)
    for name in NAMES:
        expected = getattr(query, name)
        if expected is None:
            assert getattr(found, name) is None
        else:
            same(getattr(found, name), expected)


# --- what is not


@given(st.binary() | damaged(laid_out().map(npy)))
@example(header("(0, 9223372036854775807, 9223372036854775807)"))
@example(header("(0, 100000000000000000000000000)"))
@example(header("(18446744073709551616,)"))
@example(header("(-1,)") + b"a")
@example(header("(True,)") + b"a")
@example(header("(" + "1," * 70 + ")") + b"a")
@example(header("(1,)", "'O'") + b"\x80\x04N.")
@example(header("(1,)", "[('a', 'u1')]") + b"a")
@example(header("(1,)", "('u1', (1,))") + b"a")
@example(header("(1,)", "'S0'"))
@example(header("(2,)", "'V1'") + b"aa")
@example(header("(1,)", "'M8[s]'") + b"a" * 8)
@example(header("(1,)", "'<f2'", "'yes'") + b"aa")
@example(header("()") + b"a")
@example(header("(" * 3000 + ")" * 3000))
@FUZZ
def test_any_bytes_as_npy(data: bytes) -> None:
    plain_or_refused(arrays.read_npy, data, "images")


@given(
    st.binary()
    | damaged(st.dictionaries(st.sampled_from(NAMES), laid_out()).map(arrays.write_npz))
    | damaged(st.dictionaries(st.sampled_from(NAMES), laid_out().map(npy)).map(npz))
    | st.dictionaries(st.sampled_from(["images.npy", "images", "behavior.npy", "x", "/"]), st.binary()).map(npz)
)
@example(npz({"images.npy": header("(0, 9223372036854775807, 9)")}))
@FUZZ
def test_any_bytes_as_npz(data: bytes) -> None:
    plain_or_refused(arrays.read_npz, data, NAMES, LIMIT)


def test_a_small_npz_of_a_large_array() -> None:
    bomb = npz({"images.npy": npy(np.zeros(LIMIT, np.uint8))})
    assert len(bomb) < LIMIT / 100
    with np.testing.assert_raises(PayloadTooLarge):
        arrays.read_npz(bomb, NAMES, LIMIT)
    # The size in the directory is the sender's word: with a smaller one the array is still not expanded beyond it.
    size = (LIMIT + 128).to_bytes(4, "little")
    assert bomb.count(size) == 2
    with np.testing.assert_raises(InvalidArgument):
        arrays.read_npz(bomb.replace(size, (1000).to_bytes(4, "little")), NAMES, LIMIT)


sizes = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 5)
messages = st.builds(
    pb.Array, dtype=st.sampled_from([*arrays.DTYPES, "object", "O", "bool", "complex64", "<f4"]) | st.text(),
    shape=st.lists(sizes, max_size=10), data=st.binary(),
)  # fmt: skip


@given(messages)
@example(pb.Array(dtype="uint8", shape=[0, 2**62, 2**62]))
@example(pb.Array(dtype="float64", shape=[0, 2**63 - 1]))
@example(pb.Array(dtype="uint8", shape=[2**32, 2**32]))
@example(pb.Array(dtype="uint8", shape=[-1, -1], data=b"a"))
@FUZZ
def test_any_array_message(message: pb.Array) -> None:
    plain_or_refused(arrays.from_proto, message, "images")


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=20,
)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@given(json_values)
@example(nested(40))
@example(nested(900))
@example([2**63, -1])
@example([10**400])
@example([1, 10**30])
@example([True, 2])
@FUZZ
def test_any_nested_lists(value: Any) -> None:
    plain_or_refused(arrays.from_nested, value, "images")


def query_or_refused(media_type: str, body: bytes, given: list[tuple[str, str]]) -> None:
    try:
        asked = parameters.read(given, "predict")
        query = bodies.read_query("mouse", media_type, body, asked, LIMIT, gradient=False)
    except (InvalidArgument, PayloadTooLarge) as error:
        names_its_field(error)
        return
    assert query.images.dtype.name in arrays.DTYPES
    for name in NAMES[1:]:
        assert (array := getattr(query, name)) is None or array.dtype.name in arrays.DTYPES


words = st.text(max_size=8) | st.sampled_from(["raw", "model", "1,2", "9" * 30, "1_0", "٣", " 1", "0x1", "\ud800"])
known = ["space", "model", "version", "neurons", "unit_ids", "timeout", "dtype", "neurons[]", "unit_ids[0]"]
queries = st.lists(st.tuples(st.sampled_from(known) | words, words), max_size=4)
documents = st.dictionaries(st.sampled_from([*NAMES, "space", "model", "version"]) | st.text(max_size=4), json_values)


@given(documents.map(json.dumps).map(str.encode) | damaged(documents.map(json.dumps).map(str.encode)), queries)
@example(b'{"images": ' + b"[" * 5000, [])
@example(b'{"images": ' + b"[" * 900 + b"]" * 900 + b"}", [])
@example(b'{"images": [1e999]}', [])
@example(b'{"images": [1], "images": [2]}', [])
@example(b'{"images": [1], "model": "\\ud800"}', [])
@example(b'{"images": [1], "\\ud800": 1}', [])
@FUZZ
def test_any_bytes_as_json_body(body: bytes, query: list[tuple[str, str]]) -> None:
    query_or_refused(bodies.JSON, body, query)


@given(documents, st.booleans())
@FUZZ
def test_json_is_read_as_it_says(document: dict[str, Any], marked: bool) -> None:
    """What is taken is what Python's own JSON reads, and a name that is given again is refused."""
    text = json.dumps(document).encode()
    try:
        query = bodies.read_query("mouse", bodies.JSON, codecs.BOM_UTF8 * marked + text, {}, LIMIT, gradient=False)
    except (InvalidArgument, PayloadTooLarge):
        return
    for name in NAMES:
        found, sent = getattr(query, name), document.get(name)
        assert (found is None) == (sent is None)
        if found is not None:
            np.testing.assert_array_equal(found, np.array(sent))
    for name in document:
        again = text[:-1] + f", {json.dumps(name)}: {json.dumps(document[name])}}}".encode()
        with np.testing.assert_raises_regex(InvalidArgument, "twice"):
            bodies.read_query("mouse", bodies.JSON, again, {}, LIMIT, gradient=False)


@given(st.sampled_from([bodies.NPY, bodies.NPZ]), st.binary() | damaged(laid_out().map(npy)), queries)
@FUZZ
def test_any_bytes_as_array_body(media_type: str, body: bytes, query: list[tuple[str, str]]) -> None:
    query_or_refused(media_type, body, query)


@given(queries, st.sampled_from(["listMice", "getMouse", "predict", "gradient", "score"]))
@FUZZ
def test_any_query(query: list[tuple[str, str]], call: str) -> None:
    """Everything that was sent is in what is read, or it is refused."""
    try:
        asked = parameters.read(query, call)
    except InvalidArgument as error:
        names_its_field(error)
        return
    assert asked.keys() == {name.partition("[")[0] for name, _ in query}
    for name in ("neurons", "unit_ids"):
        sent = [int(n) for came, text in query if came.partition("[")[0] == name for n in text.split(",")]
        assert asked.get(name, np.empty(0)).tolist() == sent


requests = st.builds(
    pb.PredictRequest,
    twin=st.builds(pb.TwinRef, mouse=st.text(max_size=5)),
    images=messages,
    behavior=messages,
    neurons=st.none() | messages,
    space=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 2),
)


@given(requests | damaged(requests.map(pb.PredictRequest.SerializeToString)) | st.binary())
@FUZZ
def test_any_predict_request(request: pb.PredictRequest | bytes) -> None:
    if isinstance(request, bytes):
        message = pb.PredictRequest()
        try:
            message.ParseFromString(request)
        except Exception:  # protobuf's own refusal, which the service turns into INVALID_ARGUMENT
            return
        request = message
    try:
        query = wire.query_from_proto(request)
    except InvalidArgument as error:
        names_its_field(error)
    else:
        assert query.images.dtype.name in arrays.DTYPES
