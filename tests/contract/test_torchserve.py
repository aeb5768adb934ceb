"""The same twins on a real TorchServe: the same bits, the same errors, and its traps."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import signal
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import mousetwin
import numpy as np
import pytest
from bundles import FULL, IMAGE_ONLY, WIDE
from mousetwin.arrays import read_npy, read_npz, write_npy, write_npz
from mousetwin.cli import main
from numpy.testing import assert_allclose, assert_array_equal
from running import Service, TorchServe, as_torchserve, until

NPY, NPZ, JSON = "application/x-npy", "application/x-npz", "application/json"
IMAGES = np.random.default_rng(0).integers(0, 256, (70, *FULL.stimulus)).astype(np.uint8)


@pytest.fixture(scope="module")
def there(torchserve: TorchServe) -> Iterator[mousetwin.Twins]:
    with mousetwin.connect(f"torchserve://{torchserve.grpc}", timeout=60) as twins:
        yield twins


@pytest.fixture(scope="module")
def here(service: Service) -> Iterator[mousetwin.Twins]:
    with mousetwin.connect(service.grpc) as twins:
        yield twins


def test_the_same_bits(here: mousetwin.Twins, there: mousetwin.Twins) -> None:
    assert there.mice() == here.mice()
    for name, stimulus in (("full", FULL.stimulus), ("image-only", IMAGE_ONLY.stimulus)):
        images = np.random.default_rng(1).integers(0, 256, (60, *stimulus)).astype(np.uint8)
        assert_array_equal(there[name].predict(images), here[name].predict(images))
        images = images[:10]
        found, expected = (t[name].gradient(images, np.ones(t[name].summary.neurons)) for t in (there, here))
        assert_array_equal(found.images, expected.images)
        assert_array_equal(found.responses, expected.responses)
    assert there["full"].info.source == here["full"].info.source
    found = there["full"].predict(IMAGES[:3])
    assert found.defaults == ("behavior", "pupil_center")
    assert found.twin == here["full"].summary.twin


BAD: dict[str, dict[str, Any]] = {
    "size": {"images": IMAGES[:, :5]},
    "no space": {"images": IMAGES[:9].astype(float)},
    "nan": {"images": np.full((2, *FULL.native), np.nan), "space": "model"},
    "gray level": {"images": IMAGES[:9].astype(int) * 2},
    "behavior": {"images": IMAGES[:2], "behavior": np.zeros((2, 4))},
    "neurons": {"images": IMAGES[:2], "neurons": [7]},
    "twice": {"images": IMAGES[:2], "neurons": [1, 1]},
    "unit ids": {"images": IMAGES[:2], "unit_ids": [-1]},
    "none": {"images": IMAGES[:0]},
}


@pytest.mark.parametrize("case", BAD)
def test_the_same_errors(case: str, here: mousetwin.Twins, there: mousetwin.Twins) -> None:
    told = []
    for twins in (here, there):
        with pytest.raises(mousetwin.InvalidArgument) as caught:
            twins["full"].predict(**BAD[case])
        told.append((str(caught.value), caught.value.field, type(caught.value)))
        assert caught.value.request_id
    assert told[0] == told[1]
    assert there["full"].predict(IMAGES[:1]).shape == (1, 7)


@pytest.mark.parametrize("name", [("nobody",), ("full", "gru"), ("versions", "linear", "3"), ("two-models",)])
def test_the_same_names(name: tuple[str, ...], here: mousetwin.Twins, there: mousetwin.Twins) -> None:
    told = []
    for twins in (here, there):
        with pytest.raises(mousetwin.MousetwinError) as caught:
            twins.mouse(*name)
        told.append((str(caught.value), caught.value.field, type(caught.value)))
    assert told[0] == told[1]
    assert there.mouse("versions").summary.twin.version == "10"


def test_what_this_host_cannot_do(there: mousetwin.Twins) -> None:
    with pytest.raises(mousetwin.Unimplemented, match="not on this host"), there["full"].session() as session:
        session.predict(IMAGES[:1])
    with pytest.raises(mousetwin.Unimplemented, match="not on this host"):
        there["full"].optimize([0])
    with pytest.raises(mousetwin.InvalidArgument, match="torchserve://host:port"):
        mousetwin.connect("torchserve:somewhere")
    with pytest.raises(mousetwin.DeadlineExceeded):
        there["busy"].predict(np.zeros((200, 24, 32), np.uint8), timeout=1e-3)


def post(torchserve: TorchServe, body: bytes, content_type: str, accept: str = "*/*", **asked: str) -> httpx.Response:
    headers = {"content-type": content_type, "accept": accept, **{f"X-Mousetwin-{n}": v for n, v in asked.items()}}
    url = f"{torchserve.http}/predictions/full_linear_1"
    return httpx.post(url, content=body, headers=headers, timeout=60)


def test_rest_takes_and_gives_the_same_bodies(torchserve: TorchServe, here: mousetwin.Twins) -> None:
    behavior = np.random.default_rng(3).normal(FULL.behavior_mean, FULL.behavior_std, (70, 3))
    right = here["full"].predict(IMAGES, behavior)
    answer = post(torchserve, write_npz({"images": IMAGES, "behavior": behavior}), NPZ)
    assert answer.status_code == 200
    assert_array_equal(read_npz(answer.content, ["responses"], 1 << 20)["responses"], right)
    assert answer.headers["x-mousetwin-twin"] == "full/linear/1"
    assert answer.headers["x-mousetwin-defaults"] == "pupil_center"
    answer = post(torchserve, write_npy(IMAGES), NPY, neurons="4,2", dtype="float16")
    assert_allclose(read_npy(answer.content, "r"), here["full"].predict(IMAGES)[:, [4, 2]], rtol=1e-3, atol=1e-3)
    answer = post(torchserve, f'{{"images": {IMAGES[:2].tolist()}}}'.encode(), JSON)
    assert_allclose(answer.json()["responses"], here["full"].predict(IMAGES[:2]), rtol=1e-6)
    answer = post(torchserve, write_npy(IMAGES[:2]), NPY, accept=JSON)
    assert answer.json()["twin"]["mouse"] == "full"


@pytest.mark.parametrize(
    ("content_type", "body", "asked"),
    [
        (NPY, b"nothing", {}),
        (NPY, write_npy(IMAGES[:, :3]), {}),
        (NPY, write_npy(IMAGES), {"neurons": "a"}),
        (NPY, write_npy(IMAGES), {"model": "gru"}),
        (NPZ, b"PK", {}),
        (JSON, b"{", {}),
        (JSON, b'{"pictures": 1}', {}),
        (JSON, b"[1, 2]", {}),
        (JSON, b'{"images": [[[1]]], "images": [[[2]]]}', {}),
        (JSON, b'{"images": [[[1, true]]]}', {}),
        (JSON, '{"images": [[[1]]]}'.encode("utf-16"), {}),
        (NPZ, write_npz({"images": IMAGES, "Images": IMAGES}), {}),
        (NPY, write_npy(IMAGES), {"space": "RAW"}),
        (NPY, write_npy(IMAGES), {"neurons": "1_0"}),
        (NPY, write_npy(IMAGES), {"dtype": ""}),
        ("text/plain", b"hello", {}),
    ],
)
def test_rest_refuses_as_ours_does(
    content_type: str, body: bytes, asked: dict[str, str], torchserve: TorchServe, service: Service
) -> None:
    found = post(torchserve, body, content_type, **asked)
    url = f"{service.http}/v1/mice/full/predict"
    expected = httpx.post(url, content=body, headers={"content-type": content_type}, params=asked)
    assert found.status_code == expected.status_code
    assert found.headers["content-type"] == "application/problem+json"
    told, right = found.json(), expected.json()
    assert told.pop("request_id", None) == found.headers["x-request-id"] or "request_id" not in right
    right.pop("request_id", None)
    assert told == right


def test_headers_are_the_query_parameters(torchserve: TorchServe, here: mousetwin.Twins) -> None:
    right = np.asarray(here["full"].predict(IMAGES))
    body = write_npy(IMAGES)
    for asked, columns in (
        ({"Unit-Ids": "5,11"}, [3, 0]),
        ({"unit_ids": "5, 11"}, [3, 0]),
        ({"Neurons": "4", "Space": "raw", "Model": "linear", "Version": "1"}, [4]),
    ):
        answer = post(torchserve, body, NPY, **asked)
        assert_allclose(read_npy(answer.content, "r"), right[:, columns], rtol=0, atol=1e-6)
    body = b"\xef\xbb\xbf" + f'{{"images": {IMAGES[:2].tolist()}, "neurons": 4}}'.encode()
    assert_allclose(post(torchserve, body, JSON).json()["responses"], right[:2, [4]], rtol=1e-6)


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        ({"Neuron": "1"}, "neuron", "expected one of model, version, space, condition_space, neurons, unit_ids, dtype"),
        ({"": "1"}, "''", "expected one of model"),
        ({"Twin": "full/linear/1"}, "twin", "expected one of model"),
        ({"Space[]": "raw"}, "space[]", "expected one of model"),
        ({"Timeout": "5"}, "timeout", "not on this host"),
        ({"Early": "true"}, "early", "not on this host"),
        ({"Condition-Space": "RAW"}, "condition_space", "'raw' or 'model'"),
        ({"Unit-Ids": "7", "Unit_Ids": "7"}, "unit_ids", "twice"),
        ({"Space": "raw", "space": "raw"}, "space", "twice"),
        ({"Neurons": ""}, "neurons", "''"),
    ],
    ids=str,
)
def test_headers_that_are_not_known(asked: dict[str, str], field: str, words: str, torchserve: TorchServe) -> None:
    # As they are written: an HTTP library would put what differs by case into one.
    body = write_npy(IMAGES)
    with closing(http.client.HTTPConnection(torchserve.http.removeprefix("http://"), timeout=60)) as connection:
        connection.putrequest("POST", "/predictions/full_linear_1")
        for name, value in {"Content-Type": NPY, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        for name, value in asked.items():
            connection.putheader(f"X-Mousetwin-{name}", value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
    assert answer.status == 400, content[:200]
    problem = json.loads(content)
    assert problem["field"] == field
    assert words in problem["detail"]


def test_rest_refuses_compressed_bodies_by_name(torchserve: TorchServe) -> None:
    url, headers = f"{torchserve.http}/predictions/full_linear_1", {"content-type": NPY, "content-encoding": "gzip"}
    answer = httpx.post(url, content=gzip.compress(write_npy(IMAGES[:2])), headers=headers, timeout=60)
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "identity"
    assert answer.json()["detail"].startswith("content-encoding: 'gzip', expected none")


@pytest.fixture(scope="module")
def second(torchserve: TorchServe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """Another instance beside the first: batches of four, small requests and answers."""
    folder = tmp_path_factory.mktemp("second")
    for twin in (FULL, WIDE):
        twin.write(folder / "models")
    with as_torchserve(folder / "models", folder, batch_size=4, batch_delay_ms=200, max_mb=1) as running:
        yield running


def test_a_bad_request_costs_its_batch_nothing(second: TorchServe) -> None:
    right = FULL.respond_raw(IMAGES)
    with mousetwin.connect(f"torchserve://{second.grpc}", timeout=60) as twins, ThreadPoolExecutor(16) as pool:
        mouse = twins["full"]

        def ask(n: int) -> Any:
            try:
                return mouse.predict(IMAGES[n : n + 1] if n % 3 else IMAGES[n : n + 1, :5])
            except mousetwin.InvalidArgument as error:
                return error

        for n, answer in enumerate(pool.map(ask, range(48))):
            if n % 3:
                assert_allclose(answer, right[n : n + 1], rtol=0, atol=1e-5)
            else:
                assert "expected 6×8 or 24×32" in str(answer)


def test_sizes_over_the_limit(second: TorchServe) -> None:
    """An answer over TorchServe's own limit would kill its worker."""
    workers = second.workers("wide_linear_1")
    images = np.zeros((90, *WIDE.stimulus), np.uint8)
    with mousetwin.connect(f"torchserve://{second.grpc}", timeout=60) as twins:
        body, headers = write_npy(images), {"content-type": NPY}
        answer = httpx.post(f"{second.http}/predictions/wide_linear_1", content=body, headers=headers, timeout=60)
        assert answer.status_code == 413
        assert "send at most" in answer.json()["detail"]
        with pytest.raises(mousetwin.ResourceExhausted):
            twins["wide"].predict(np.zeros((64, *WIDE.stimulus), np.uint8))
        assert_allclose(twins["wide"].predict(images[:50]), WIDE.respond_raw(images[:50]), rtol=0, atol=1e-5)
    assert [worker["pid"] for worker in second.workers("wide_linear_1")] == [worker["pid"] for worker in workers]


def test_a_killed_worker_is_replaced(second: TorchServe) -> None:
    with mousetwin.connect(f"torchserve://{second.grpc}", timeout=60) as twins, ThreadPoolExecutor(8) as pool:
        mouse = twins["full"]
        asked = [pool.submit(mouse.predict, IMAGES[:1]) for _ in range(8)]
        os.kill(int(second.workers("full_linear_1")[0]["pid"]), signal.SIGKILL)
        for one in asked:
            # Whatever was under way is answered or fails in words of ours.
            failure = one.exception(60)
            assert failure is None or isinstance(failure, mousetwin.MousetwinError)

        def answered() -> bool:
            try:
                return mouse.predict(IMAGES[:1]).shape == (1, 7)
            except mousetwin.MousetwinError:
                return False

        until(answered, 120)


def test_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for twin in (FULL, WIDE):
        twin.write(tmp_path / "models")
    command = ["archive", str(tmp_path / "models"), "--out", str(tmp_path / "store"), "--grpc-port", "7170"]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["full_linear_1", "wide_linear_1"]
    assert printed[2].startswith("Serve them with: torchserve --start --foreground --ncs --ts-config ")
    assert "grpc_inference_port=7170\n" in (tmp_path / "store/config.properties").read_text()
    first = (tmp_path / "store/full_linear_1.mar").read_bytes()
    assert main(command) == 0
    assert (tmp_path / "store/full_linear_1.mar").read_bytes() == first
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.testzip() is None
        source = archive.read("handler.py").decode()
    assert "torch" not in source.replace("torchserve", "")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--grpc-port", "8080"], "http_port: 8080, expected 1 to 65535 and another for each port"),
        (["--http-port", "0"], "http_port: 0"),
        (["--max-mb", "2048"], "max_mb: 2048, expected 1 to 2047"),
        (["--workers", "0"], "workers: 0, expected 1 or more"),
    ],
)
def test_a_store_that_could_not_start_is_not_written(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["archive", "--out", str(tmp_path / "store"), *options]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_store_is_replaced_only_by_a_whole_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = FULL.write(tmp_path / "models")
    command = ["archive", str(tmp_path / "models"), "--out", str(tmp_path / "store")]
    assert main(command) == 0
    written = {file: file.read_bytes() for file in (tmp_path / "store").iterdir()}
    assert main(["archive", str(tmp_path / "none"), "--out", str(tmp_path / "store")]) == 1
    assert main(["archive", str(tmp_path / "models"), "--out", str(tmp_path)]) == 1
    assert "holds other things" in capsys.readouterr().err
    assert main(["archive", str(tmp_path / "models"), "--out", str(bundle / "bundle.json")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    (bundle / "forward.onnx").write_bytes(b"damaged")
    assert main(command) == 1
    assert "forward.onnx" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (tmp_path / "store").iterdir()} == written


def test_archives_of_others_stay_in_the_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    FULL.write(tmp_path / "models")
    assert main(["archive", str(tmp_path / "models"), "--out", str(store)]) == 0
    with zipfile.ZipFile(store / "theirs.mar", "w") as archive:
        archive.writestr("handler.py", "")
    (store / "broken.mar").write_bytes(b"no archive")
    WIDE.write(tmp_path / "others")
    assert main(["archive", str(tmp_path / "others"), "--out", str(store)]) == 0
    found = sorted(file.name for file in store.iterdir())
    assert found == ["broken.mar", "config.properties", "mousetwin.mar", "theirs.mar", "wide_linear_1.mar"]


def test_twins_that_torchserve_could_not_tell_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace(FULL, mouse="a_b", model="c").write(tmp_path / "models")
    replace(FULL, mouse="a", model="b_c").write(tmp_path / "models")
    assert main(["archive", str(tmp_path / "models"), "--out", str(tmp_path / "store")]) == 1
    assert "TorchServe would call both a_b_c_1" in capsys.readouterr().err
