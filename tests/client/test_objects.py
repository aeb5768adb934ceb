"""What a Python caller may hand over for an array, and what is refused because it says more than its numbers do."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import io
import pathlib
from collections.abc import Callable
from typing import Any

import mousetwin
import numpy as np
import pytest
from mousetwin import experiments, scores
from mousetwin.arrays import from_nested
from numpy.testing import assert_array_equal

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 36, 64)).astype(np.uint8)
BEHAVIOR = np.array([[40.0, 0.0, 3.0], [55.0, 1.5, 20.0], [25.0, -2.0, 0.0]])


def hiding(values: Any) -> Any:
    """The values, the last one masked."""
    masked = np.ma.array(values)
    masked[(-1,) * masked.ndim] = np.ma.masked
    return masked


def refused(ask: Callable[[], Any], field: str, words: str) -> None:
    with pytest.raises(mousetwin.InvalidArgument, match=words) as caught:
        ask()
    told = str(caught.value)
    assert caught.value.field == field
    assert told.startswith(f"{field}: ")
    assert "\n" not in told


# --- masks, wherever they are handed over


@pytest.mark.parametrize("within", [lambda a: a, lambda a: [a], lambda a: (a, a), lambda a: [[a]], collections.deque])
def test_a_mask_that_hides_anything_is_refused(within: Callable[[Any], Any]) -> None:
    value = hiding(BEHAVIOR)
    refused(lambda: from_nested(within(value), "behavior"), "behavior", "a masked array that hides 1 of [39] values")


def test_a_mask_that_hides_nothing_is_none() -> None:
    for plain in (np.ma.array(BEHAVIOR), np.ma.array(BEHAVIOR, mask=np.zeros(BEHAVIOR.shape, bool))):
        assert_array_equal(from_nested(plain, "behavior"), BEHAVIOR)
        assert type(from_nested(plain, "behavior")) is np.ndarray
        assert_array_equal(from_nested([plain, plain], "behavior"), [BEHAVIOR, BEHAVIOR])


def test_constants_and_records() -> None:
    refused(lambda: from_nested([1.0, np.ma.masked], "behavior"), "behavior", "hides 1 of 1")
    refused(lambda: from_nested(np.ma.masked, "behavior"), "behavior", "hides 1 of 1")
    pairs = np.ma.array([(1.0, 2.0)], dtype=[("x", float), ("y", float)], mask=[(True, False)])
    refused(lambda: from_nested(pairs, "pupil_center"), "pupil_center", "a structured array of x, y")
    refused(lambda: from_nested(pairs.data, "pupil_center"), "pupil_center", "a structured array of x, y")


def test_no_call_uses_what_a_mask_hides(mouse: mousetwin.Mouse) -> None:
    native = np.zeros((2, 36, 64))
    model: dict[str, Any] = {"space": "model"}
    gray, neurons = native[0], mouse.summary.neurons
    cells = hiding([3, 14])
    rows, ids = np.random.default_rng(0).random((4, 2)), [0, 0, 1, 1]
    asked: list[tuple[str, Callable[[], Any]]] = [
        ("images", lambda: mouse.predict(hiding(native), space="model")),
        ("behavior", lambda: mouse.predict(IMAGES, behavior=hiding(BEHAVIOR))),
        ("pupil_center", lambda: mouse.predict(IMAGES, pupil_center=hiding([1.0, 2.0]))),
        ("neurons", lambda: mouse.predict(IMAGES, neurons=cells)),
        ("unit_ids", lambda: mouse.predict(IMAGES, unit_ids=cells)),
        ("behavior", lambda: list(mouse.predict_frames([{"images": IMAGES, "behavior": hiding(BEHAVIOR)}]))),
        ("cotangent", lambda: mouse.gradient(IMAGES, hiding(np.ones(neurons)))),
        ("images", lambda: mouse.session().predict(hiding(native), space="model")),
        ("start", lambda: mouse.optimize([3], start=hiding(native[:1]))),
        ("weights", lambda: mouse.optimize([[3, 14]], weights=hiding([1.0, 2.0]))),
        ("against", lambda: mouse.optimize([3], against=hiding([14]))),
        ("mask", lambda: mouse.optimize([3], mask=hiding(gray))),
        ("background", lambda: mouse.optimize([3], background=hiding(gray))),
        ("behavior", lambda: mouse.optimize([3], behavior=hiding(BEHAVIOR))),
        ("norm", lambda: mouse.optimize([3], norm=np.ma.masked)),
        ("image", lambda: experiments.contrast_series(mouse, hiding(gray))),
        ("contrasts", lambda: experiments.contrast_series(mouse, gray, hiding([0.5, 1.0]))),
        ("behavior", lambda: experiments.behavior_sweep(mouse, gray, hiding(BEHAVIOR), **model)),
        ("image", lambda: experiments.behavior_sweep(mouse, hiding(gray), BEHAVIOR, **model)),
        ("pupil_center", lambda: experiments.pupil_sweep(mouse, gray, hiding([[1.0, 2.0]]), **model)),
        ("orientations", lambda: experiments.grating_tuning(mouse, hiding([0.0, 90.0]))),
        ("spatial_frequencies", lambda: experiments.grating_tuning(mouse, [0.0], hiding([0.1, 0.2]))),
        ("phases", lambda: experiments.grating_tuning(mouse, [0.0], [0.1], hiding([0.0, 1.0]))),
        ("neurons", lambda: experiments.grating_tuning(mouse, [0.0], neurons=cells)),
        ("neurons", lambda: experiments.receptive_fields(mouse, cells)),
        ("neurons", lambda: experiments.gradient_fields(mouse, cells)),
        ("images", lambda: experiments.top_images(mouse, hiding(native), **model)),
        ("images", lambda: experiments.top_images(mouse, [native, hiding(native)], **model)),
        ("unit_ids", lambda: experiments.top_images(mouse, IMAGES, unit_ids=cells)),
        ("orientation", lambda: experiments.gratings((36, 64), hiding([0.0, 1.0]))),
        ("phase", lambda: experiments.gabors((36, 64), phase=hiding([0.0, 1.0]))),
        ("responses", lambda: scores.score(hiding(rows), rows, ids)),
        ("predictions", lambda: scores.score(rows, hiding(rows), ids)),
        ("image_ids", lambda: scores.score(rows, rows, hiding(ids))),
        ("image_ids", lambda: scores.score(rows, rows, hiding(list("aabb")))),
    ]
    for field, ask in asked:
        refused(ask, field, "a masked array that hides 1 of")


def test_scores_tell_images_apart_by_words_too() -> None:
    rows = np.random.default_rng(0).random((6, 2))
    by_number = scores.score(rows, rows + 1, [5, 5, 7, 7, 9, 9])
    for words in (list("aabbcc"), np.array(list("aabbcc")), np.array([b"a", b"a", b"b", b"b", b"c", b"c"])):
        assert_array_equal(scores.score(rows, rows + 1, words).per_neuron["feve"], by_number.per_neuron["feve"])


# --- other things that are no plain numbers


class Length(np.ndarray[Any, Any]):
    """As astropy's quantities are: an array whose units numpy drops."""

    unit, value = "m", 1


class Broken:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("one line\nand another")


class Lazy:
    """As netCDF4's variables are: what comes out of it has a mask."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return hiding([1.0, 2.0])


ITSELF: list[Any] = []
ITSELF.append(ITSELF)

REFUSED: dict[str, tuple[Any, str]] = {
    "units": (np.ones(3).view(Length), "Length with units, expected plain numbers.*\\.value"),
    "a list of units": ([np.ones(3).view(Length)] * 2, "Length with units"),
    "an array that fails": (Broken(), "Broken that cannot be read as an array: one line$"),
    "an array with a mask": ([Lazy()], "hides 1 of 2"),
    "nothing": (None, "None"),
    "nothing in a list": ([1.0, None], "a missing value \\(None\\)"),
    "a truth": (True, "bool, expected numbers"),
    "truths among numbers": ([[True, 2]], "bool, expected numbers"),
    "truths of numpy": ([np.True_, 2], "bool"),
    "an array of truths": (np.ones(3, bool), "dtype is bool"),
    "such an array among others": ([np.ones(3, bool), np.ones(3)], "ndarray of dtype bool"),
    "a file's name": ("images.npy", "str, expected numbers.*load it"),
    "names": (["a.npy", "b.npy"], "str, expected numbers"),
    "a path": (pathlib.Path("images.npy"), "Path, expected numbers.*load it"),
    "bytes": (b"\x00\x01", "bytes, expected numbers.*load it"),
    "a bytearray": (bytearray(b"\x00\x01"), "bytearray, expected numbers.*load it"),
    "an open file": (io.BytesIO(b"\x00"), "BytesIO, expected numbers.*load it"),
    "a dictionary": ({"images": [1]}, "dict, expected numbers"),
    "a set": ({1, 2}, "set, which has no order"),
    "keys": ({1: 2}.keys(), "dict_keys, which has no order"),
    "a generator": ((n for n in range(3)), "generator, expected numbers.*make a list"),
    "complex": (np.ones(3, complex), "dtype is complex128"),
    "a complex number": ([1j], "complex"),
    "a decimal": ([decimal.Decimal(1)], "Decimal, expected numbers"),
    "a date": (datetime.datetime(2022, 6, 1), "datetime, expected numbers"),
    "dates": (np.array(["2022-06-01"], "M8[D]"), "dtype is datetime64"),
    "objects": (np.array([1, None]), "object arrays are not taken"),
    "ragged": ([[1], [1, 2]], "all of one length"),
    "beyond 64 bits": ([10**30], "beyond 64 bits"),
    "lists without end": (ITSELF, "nested more than 8 deep"),
    "a function": (len, "builtin_function_or_method, expected numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_array_of_numbers_is_refused(name: str, mouse: mousetwin.Mouse) -> None:
    value, words = REFUSED[name]
    refused(lambda: from_nested(value, "images"), "images", words)
    if value is not None:
        refused(lambda: mouse.predict(IMAGES, behavior=value), "behavior", words)


@pytest.mark.parametrize(
    "given",
    [
        BEHAVIOR.tolist(),
        tuple(map(tuple, BEHAVIOR)),
        list(BEHAVIOR),
        collections.deque(BEHAVIOR),
        BEHAVIOR.view(np.recarray),
        np.asfortranarray(BEHAVIOR),
        BEHAVIOR[::-1][::-1],
        BEHAVIOR.astype(">f8"),
        memoryview(BEHAVIOR),
        [array.array("d", row) for row in BEHAVIOR],
        [[np.float64(number) for number in row] for row in BEHAVIOR],
    ],
    ids=lambda value: type(value).__name__,
)
def test_arrays_of_every_kind_are_taken(given: Any, mouse: mousetwin.Mouse) -> None:
    assert_array_equal(from_nested(given, "behavior"), BEHAVIOR)
    assert_array_equal(mouse.predict(IMAGES, behavior=given), mouse.predict(IMAGES, behavior=BEHAVIOR))


def test_a_plain_array_is_not_copied() -> None:
    assert from_nested(IMAGES, "images") is IMAGES
    assert np.shares_memory(from_nested(np.ma.array(IMAGES), "images"), IMAGES)


# --- arrays of other libraries


def test_pandas(mouse: mousetwin.Mouse) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(BEHAVIOR, columns=list("abc"))
    right = mouse.predict(IMAGES, behavior=BEHAVIOR)
    for taken in (frame, frame.convert_dtypes(), frame.astype(object), frame.astype("Float64")):
        assert_array_equal(mouse.predict(IMAGES, behavior=taken), right)
    assert_array_equal(
        mouse.predict(IMAGES, neurons=pd.Series([3, 14], dtype="Int64")), mouse.predict(IMAGES, neurons=[3, 14])
    )
    holed = frame.copy()
    holed.iloc[1, 2] = np.nan
    empty = holed.astype(object).where(holed.notna(), None)
    for missing in (holed, holed.convert_dtypes(), holed.astype("Float64"), empty):
        refused(lambda given=missing: mouse.predict(IMAGES, behavior=given), "behavior", "missing")  # type: ignore[misc]
    refused(lambda: mouse.predict(IMAGES, behavior=holed.iloc[1]), "behavior", "Series in which 1 of 3 values")
    refused(lambda: mouse.predict(IMAGES, behavior=[1.0, pd.NA, 2.0]), "behavior", "a missing value")
    refused(lambda: mouse.predict(IMAGES, neurons=pd.array([1, None], dtype="Int64")), "neurons", "missing")
    refused(lambda: mouse.predict(IMAGES, behavior=frame > 0), "behavior", "bool")
    refused(lambda: mouse.predict(IMAGES, behavior=frame.astype(str)), "behavior", "str|<U|dtype")
    for time in (pd.Timestamp("2022-06-01"), [pd.NaT], pd.date_range("2022-06-01", periods=3)):
        refused(lambda given=time: mouse.predict(IMAGES, behavior=given), "behavior", "expected")  # type: ignore[misc]


def test_xarray(mouse: mousetwin.Mouse) -> None:
    xr = pytest.importorskip("xarray")
    labelled = xr.DataArray(BEHAVIOR, dims=("trial", "channel"))
    assert_array_equal(mouse.predict(IMAGES, behavior=labelled), mouse.predict(IMAGES, behavior=BEHAVIOR))
    shown = xr.DataArray(IMAGES, dims=("trial", "y", "x"))
    assert_array_equal(mouse.predict(shown), mouse.predict(IMAGES))
    found = experiments.top_images(mouse, shown, 2, neurons=[3])
    assert_array_equal(found.indices, experiments.top_images(mouse, IMAGES, 2, neurons=[3]).indices)
    refused(lambda: mouse.predict(IMAGES, behavior=labelled.where(labelled != 20)), "behavior", "1 of 9 values")
    refused(lambda: mouse.predict(xr.Dataset({"images": shown})), "images", "Dataset, expected numbers.*choose one")


def test_pint(mouse: mousetwin.Mouse) -> None:
    pint = pytest.importorskip("pint")
    units = pint.UnitRegistry()
    for speed in (BEHAVIOR * units.cm, [20 * units.cm] * 3, 3 * units.dimensionless):
        refused(
            lambda given=speed: mouse.predict(IMAGES, behavior=given),  # type: ignore[misc]
            "behavior",
            r"Quantity with units, expected plain numbers: convert it and pass its \.magnitude",
        )
    xr = pytest.importorskip("xarray")
    refused(lambda: mouse.predict(IMAGES, behavior=xr.DataArray(BEHAVIOR * units.cm)), "behavior", "with units")


@pytest.mark.parametrize("mode", ["P", "LA", "PA", "RGB", "RGBA", "CMYK", "HSV", "1", "I", "I;16", "F"])
def test_pictures_are_taken_in_gray_only(mode: str, mouse: mousetwin.Mouse) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = image.new(mode, (64, 36))
    for given in (picture, [picture], [IMAGES[0], picture]):
        refused(lambda value=given: mouse.predict(value), "images", rf"a picture of mode '{mode}'.*\.convert\('L'\)")  # type: ignore[misc]


def test_gray_pictures(mouse: mousetwin.Mouse) -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = [image.fromarray(each) for each in IMAGES]
    assert_array_equal(mouse.predict(pictures), mouse.predict(IMAGES))
    refused(lambda: mouse.predict(pictures[0]), "images", r"shape \(36, 64\) is one image.*images\[None\]")


def test_tensors(mouse: mousetwin.Mouse) -> None:
    torch = pytest.importorskip("torch")
    behavior = torch.tensor(BEHAVIOR)
    right = mouse.predict(IMAGES, behavior=BEHAVIOR)
    for given in (
        behavior,
        behavior.clone().requires_grad_(),
        torch.nn.Parameter(behavior),
        list(behavior.clone().requires_grad_()),
        [list(row) for row in behavior],
        torch.complex(BEHAVIOR[0, 0] * 0 + behavior, -behavior).conj().imag,
    ):
        assert_array_equal(mouse.predict(IMAGES, behavior=given), right)
    low = behavior.to(torch.bfloat16)
    assert_array_equal(mouse.predict(IMAGES, behavior=low), mouse.predict(IMAGES, behavior=low.float().numpy()))
    assert_array_equal(mouse.predict(torch.tensor(IMAGES)), mouse.predict(IMAGES))
    for wrong in (behavior > 0, behavior.cfloat(), behavior.to_sparse(), behavior.to("meta")):
        refused(lambda given=wrong: mouse.predict(IMAGES, behavior=given), "behavior", "dtype|cannot be read")  # type: ignore[misc]


def test_sparse_matrices(mouse: mousetwin.Mouse) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    for matrix in (sparse.csr_matrix(BEHAVIOR), sparse.coo_array(BEHAVIOR)):
        refused(lambda given=matrix: mouse.predict(IMAGES, behavior=given), "behavior", r"\.toarray\(\)")  # type: ignore[misc]
