"""Where commands write: kinds of files, pipes and devices, links, what is there already, and what is read."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
import pytest
from bundles import BUSY, FULL
from mousetwin.cli import main
from mousetwin.optimized import Optimized
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from recordings import record, zipped
from running import Command, Service, as_command, until

IMAGES = np.random.default_rng(3).integers(0, 256, (300, *FULL.stimulus)).astype(np.uint8)
MANY = np.random.default_rng(4).integers(0, 256, (1500, *BUSY.stimulus)).astype(np.uint8)

Run = Callable[..., int]


@pytest.fixture
def run(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`mousetwin predict images.npy …` for the full twin, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", IMAGES)

    def predict(*arguments: str, images: str = "images.npy") -> int:
        return main(["predict", images, "--mouse", "full", "--server", service.grpc, *arguments])

    return predict


@pytest.fixture
def right(service: Service) -> NDArray[np.float32]:
    """What the client gets for the same images."""
    with mousetwin.connect(service.grpc) as twins:
        return np.asarray(twins["full"].predict(IMAGES))


@pytest.fixture(scope="module")
def command(models: Path) -> Iterator[Command]:
    with as_command("--models", str(models)) as started:
        yield started


def listing(folder: Path | None = None) -> list[str]:
    return sorted(str(path) for path in (folder or Path()).rglob("*"))


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line that was printed."""
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("mousetwin: ")
    return line.removeprefix("mousetwin: ")


def read(path: str, dtype: str = "float32") -> NDArray[Any]:
    kind = Path(path).suffix.lower()
    if kind == ".zarr":
        zarr = pytest.importorskip("zarr")
        return np.asarray(zarr.open_array(path, mode="r")[:])
    if kind == ".csv":
        return np.loadtxt(path, delimiter=",", skiprows=1, dtype=dtype)
    loaded = np.load(path, allow_pickle=False)
    return np.asarray(loaded["responses"] if kind == ".npz" else loaded)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["r.npy", "r.NPY", "r.npz", "R.Npz", "r.csv", "r.CSV", "r.zarr", "r.ZARR"])
def test_a_name_is_taken_for_what_it_says(name: str, dtype: str, run: Run, right: NDArray[np.float32]) -> None:
    if name.lower().endswith("zarr"):
        pytest.importorskip("zarr")
    assert run("--out", name, "--dtype", dtype) == 0
    found = read(name, dtype)
    assert found.dtype == dtype
    # To the last bit, in text too.
    assert_array_equal(found, right.astype(dtype))
    assert [path.name for path in Path().iterdir() if path.name != "images.npy"] == [name]


def test_what_stands_beside_the_responses(run: Run, service: Service) -> None:
    with mousetwin.connect(service.grpc) as twins:
        twin = twins["full"].summary.twin
    assert run("--out", "r.npz", "--neurons", "5,0") == 0
    with np.load("r.npz", allow_pickle=False) as found:
        assert sorted(found) == ["defaults", "digest", "neurons", "responses", "twin"]
        assert found["neurons"].tolist() == [5, 0]
        assert (str(found["twin"]), str(found["digest"])) == (f"full/{twin.model}/{twin.version}", twin.digest)
        assert found["defaults"].tolist() == ["behavior", "pupil_center"]
    assert run("--out", "ids.npz", "--unit-ids", "1002,11") == 0
    assert np.load("ids.npz")["unit_ids"].tolist() == [1002, 11]
    for arguments, header in [
        (["--neurons", "5,0"], "5,0"),
        (["--unit-ids", "1002,11"], "1002,11"),
        ([], "0,1,2,3,4,5,6"),
    ]:
        assert run("--out", "r.csv", "--overwrite", *arguments) == 0
        lines = Path("r.csv").read_text().splitlines()
        assert (lines[0], len(lines)) == (header, 301)


@pytest.mark.parametrize(
    "name", ["r", "r.h5", "r.mat", "r.txt", "r.npy.gz", "r.npyy", "r.json", ".npy", "r.partial", ""]
)
def test_a_name_that_says_nothing_known(name: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing()
    assert run("--out", name) == 1
    expected = f"out: {name!r}, expected a name that ends in one of .npy, .npz, .csv, .zarr, or - for standard output"
    assert complaint(capsys) == expected
    assert listing() == before


@pytest.mark.parametrize("out", ["-", "/dev/stdout", "/dev/fd/1"])
def test_standard_output(out: str, run: Run, right: NDArray[np.float32], capfdbinary: Any) -> None:
    assert run("--out", out) == 0
    printed = capfdbinary.readouterr()
    assert_array_equal(np.load(io.BytesIO(printed.out)), right)
    assert b"300 images" in printed.err
    assert listing() == ["images.npy"]


def shell(line: str, folder: Path, service: Service) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which `predict` is `mousetwin predict images.npy` for the full twin."""
    function = f'predict() {{ "{sys.executable}" -m mousetwin.cli predict images.npy --mouse full "$@"; }}; {line}'
    environment = {**os.environ, "MOUSETWIN_SERVER": service.grpc}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", function], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_what_shells_make(run: Run, service: Service, right: NDArray[np.float32], tmp_path: Path) -> None:
    Path("more.npy").write_bytes(b"before")
    lines = {
        "predict --out - > redirected.npy": "redirected.npy",
        "predict --out /dev/stdout > device.npy": "device.npy",
        "predict --out - | cat > piped.npy": "piped.npy",
        "predict --out >(cat > substituted.npy; touch done)": "substituted.npy",
        "predict --out /dev/fd/7 7> seven.npy": "seven.npy",
        "mkfifo p.csv; predict --out p.csv & cat p.csv > fifo.csv; wait": "fifo.csv",
        "mkfifo p.npz; predict --out p.npz & cat p.npz > fifo.npz; wait": "fifo.npz",
        "mkfifo p; predict --out p & cat p > nameless.npy; wait": "nameless.npy",
    }
    for line, name in lines.items():
        done = shell(line, tmp_path, service)
        assert done.returncode == 0, done.stderr
        if "done" in line:
            until(Path("done").exists)
        assert_array_equal(read(name), right, err_msg=line)
    assert all(stat.S_ISFIFO(Path(name).stat().st_mode) for name in ("p", "p.csv", "p.npz"))
    # What stood there before an append still does.
    assert shell("predict --out /dev/stdout >> more.npy", tmp_path, service).returncode == 0
    assert_array_equal(np.load(io.BytesIO(Path("more.npy").read_bytes().removeprefix(b"before"))), right)
    assert not [name for name in listing() if "partial" in name]


@pytest.mark.parametrize("out", ["-", "x.csv", "x.npz"])
def test_a_pipe_that_is_closed_is_told_in_one_line(out: str, run: Run, service: Service, tmp_path: Path) -> None:
    lines = {"-": "predict --out - | true", "x.csv": "mkfifo x.csv; true < x.csv & predict --out x.csv"}
    lines["x.npz"] = lines["x.csv"].replace("csv", "npz")
    done = shell(lines[out], tmp_path, service)
    assert done.returncode == 1
    complaints = [line for line in done.stderr.splitlines() if "images" not in line]
    assert complaints == [f"mousetwin: {'standard output' if out == '-' else out}: cannot be written: Broken pipe"]


def test_devices_stay_what_they_are(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("null.npy").symlink_to("/dev/null")
    before = os.stat("/dev/null")
    for out in ("/dev/null", "null.npy"):
        for _ in range(2):
            assert run("--out", out) == 0
    assert Path("null.npy").is_symlink()
    after = os.stat("/dev/null")
    assert (after.st_mode, after.st_rdev, after.st_ino) == (before.st_mode, before.st_rdev, before.st_ino)
    try:
        os.mknod("device.csv", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        with open("device.csv", "wb"):
            pass
    except PermissionError:
        pytest.skip("devices cannot be made here")
    assert run("--out", "device.csv") == 0
    assert stat.S_ISCHR(os.stat("device.csv").st_mode)
    assert not [name for name in listing() if "partial" in name]


def test_what_cannot_be_written_to(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("loop.npy").symlink_to("loop.npy")
    Path("astray.npy").symlink_to("nowhere/r.npy")
    os.mkfifo("pipe.zarr")
    with socket.socket(socket.AF_UNIX) as listening, open("images.npy", "rb") as reading:
        listening.bind("socket.npy")
        for out, words in {
            "loop.npy": "loop.npy: cannot be written: Too many levels of symbolic links",
            "astray.npy": "astray.npy: cannot be written: No such file or directory",
            "socket.npy": "socket.npy: cannot be written: neither a file, a pipe nor a character device",
            "pipe.zarr": "out: 'pipe.zarr' is a device or a pipe, and a zarr array is a folder",
            "images.npy/r.npy": "images.npy/r.npy: cannot be written: Not a directory",
            "nowhere/r.npy": "nowhere/r.npy: cannot be written: No such file or directory",
            "/dev/fd/876": "/dev/fd/876: cannot be written: Bad file descriptor",
            f"/dev/fd/{reading.fileno()}": f"/dev/fd/{reading.fileno()}: cannot be written: Bad file descriptor",
        }.items():
            before = listing()
            assert run("--out", out) == 1
            assert complaint(capsys) == words
            assert listing() == before


def test_links_are_followed(run: Run, right: NDArray[np.float32]) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/there.npy").write_bytes(b"old")
    Path("elsewhere/there.npy").chmod(0o604)
    Path("link.npy").symlink_to("elsewhere/there.npy")
    Path("second.npy").symlink_to("link.npy")
    Path("dangling.csv").symlink_to("elsewhere/new.csv")
    assert run("--out", "second.npy") == 1
    assert Path("elsewhere/there.npy").read_bytes() == b"old"
    assert run("--out", "second.npy", "--overwrite") == 0
    assert run("--out", "dangling.csv") == 0
    assert all(Path(name).is_symlink() for name in ("link.npy", "second.npy", "dangling.csv"))
    assert_array_equal(np.load("elsewhere/there.npy"), right)
    assert Path("elsewhere/there.npy").stat().st_mode & 0o777 == 0o604
    assert_array_equal(read("elsewhere/new.csv"), right)
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == ["new.csv", "there.npy"]


def test_a_linked_file_is_written_beside_where_it_is(command: Command, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "r.npy").symlink_to("disk/r.npy")
    process = start(tmp_path, command.service.grpc)
    until(lambda: rows(tmp_path / "disk/r.npy") > 0)
    process.kill()
    process.communicate()
    assert (tmp_path / "disk/r.npy.partial").exists()
    process = start(tmp_path, command.service.grpc)
    assert "going on after" in process.communicate(timeout=120)[1]
    assert (tmp_path / "r.npy").is_symlink()
    assert len(np.load(tmp_path / "r.npy")) == len(MANY)


def hard(name: str, target: str) -> Callable[[], None]:
    return lambda: os.link(target, name)


def soft(name: str, target: str) -> Callable[[], None]:
    return lambda: os.symlink(target, name)


def nothing() -> None:
    pass


SAME: dict[str, tuple[Callable[[], None], list[str]]] = {
    "itself": (nothing, ["images.npy", "--out", "images.npy"]),
    "by another way": (nothing, ["images.npy", "--out", "./folder/../images.npy"]),
    "output is a link": (soft("o.npy", "images.npy"), ["images.npy", "--out", "o.npy"]),
    "input is a link": (soft("i.npy", "images.npy"), ["i.npy", "--out", "images.npy"]),
    "hard link": (hard("o.npy", "images.npy"), ["images.npy", "--out", "o.npy"]),
    "behavior": (nothing, ["images.npy", "--behavior", "b.npy", "--out", "b.npy"]),
    "pupil_center": (nothing, ["images.npy", "--pupil-center", "p.npy", "--out", "p.npy"]),
    "npz": (nothing, ["all.npz", "--out", "all.npz"]),
    "a folder that is a zarr by name": (nothing, ["pictures.zarr", "--out", "pictures.zarr"]),
    "a folder with the input in it": (nothing, ["pictures.zarr/1.npy", "--out", "pictures.zarr"]),
    "one of a folder's images": (nothing, ["folder", "--out", "folder/1.npy"]),
    "an image in a folder inside": (lambda: Path("folder/inside").mkdir(), ["folder", "--out", "folder/inside/r.npy"]),
    "one more of a folder's images": (nothing, ["folder", "--out", "folder/R.NPY"]),
    "beside a folder's images, as if they were more": (nothing, ["folder", "--out", "folder/r.npz"]),
    "in the folder that is here": (nothing, [".", "--out", "r.npy"]),
    "linked into the folder": (soft("folder/2.npy", "../r.npy"), ["folder", "--out", "r.npy"]),
    "linked from the folder": (soft("o.npy", "folder/1.npy"), ["folder", "--out", "o.npy"]),
    "a data set's zip": (nothing, ["set.zip", "--out", "zip.npy"]),
    "a data set's trial": (nothing, ["set", "--out", "set/data/images/3.npy"]),
    "a data set's trials": (nothing, ["set", "--out", "set/data/images/more.zarr"]),
    "a data set's facts": (nothing, ["set", "--out", "set/meta/neurons/r.npz"]),
    "a data set's trial, a folder up": (nothing, ["up", "--out", "up/set/data/images/3.npy"]),
    "a data set's trial by a link": (soft("set/data/images/900.npy", "../../../r.npy"), ["set", "--out", "r.npy"]),
    "a data set": (nothing, ["set.zarr", "--out", "set.zarr"]),
    "the partial file": (nothing, ["r.npy.partial", "--out", "r.npy"]),
}


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
@pytest.mark.parametrize("case", SAME)
def test_an_input_is_never_an_output(
    case: str, overwrite: list[str], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("b.npy", np.zeros(3))
    np.save("p.npy", np.zeros(2))
    np.save("r.npy", IMAGES[0])
    shutil.copy("images.npy", "r.npy.partial")
    np.savez("all.npz", images=IMAGES)
    for folder in ("folder", "pictures.zarr"):
        Path(folder).mkdir()
        np.save(f"{folder}/1.npy", IMAGES[0])
    if "data set" in case:
        record(tmp_path / "set", FULL)
        shutil.copytree("set", "set.zarr")
        shutil.copytree("set", "up/set")
        os.link(zipped(tmp_path / "set", tmp_path / "set.zip"), "zip.npy")
    make, (images, *arguments) = SAME[case]
    make()
    before = {name: Path(name).read_bytes() for name in listing() if Path(name).is_file()}
    assert run(*arguments, *overwrite, images=images) == 1
    line = complaint(capsys)
    assert line.startswith(f"out: {arguments[-1]} ")
    assert line.endswith(f": {arguments[-1] if case in ('behavior', 'pupil_center') else images}")
    assert {name: Path(name).read_bytes() for name in listing() if Path(name).is_file()} == before


def test_beside_what_is_read_is_allowed(run: Run, tmp_path: Path) -> None:
    Path("folder/results").mkdir(parents=True)
    for n in range(3):
        np.save(f"folder/{n}.npy", IMAGES[n])
    recording = record(tmp_path / "set", FULL)
    for images, out, count in [
        ("folder", "folder/r.csv", 3),
        ("folder", "folder/results/r.csv", 3),
        ("set", "set/r.npy", len(recording.images)),
    ]:
        for _ in range(2):
            assert run("--out", out, "--overwrite", images=images) == 0
            assert len(read(out)) == count


def start(folder: Path, server: str, *arguments: str) -> subprocess.Popen[str]:
    """`mousetwin predict images.npy --out r.npy` for the busy twin."""
    if not (folder / "images.npy").exists():
        np.save(folder / "images.npy", MANY)
    out = [] if "--out" in arguments else ["--out", "r.npy"]
    given = ["images.npy", "--mouse", "busy", *out, "--server", server, *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "mousetwin.cli", "predict", *given],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(out: Path) -> int:
    """How many rows are safely there."""
    try:
        return int(json.loads(out.with_name(f"{out.name}.partial.json").read_text())["rows"])
    except (OSError, ValueError):
        return 0


def test_what_another_command_is_writing_is_left_alone(command: Command, tmp_path: Path) -> None:
    first = start(tmp_path, command.service.grpc)
    until(lambda: rows(tmp_path / "r.npy") > 0)
    first.send_signal(signal.SIGSTOP)
    kept = (tmp_path / "r.npy.partial").stat().st_ino
    for arguments in ([], ["--overwrite"], ["--neurons", "1"], ["--neurons", "1", "--overwrite"], ["--neurons", "99"]):
        second = start(tmp_path, command.service.grpc, *arguments)
        _, told = second.communicate(timeout=120)
        assert (second.returncode, told) == (1, "mousetwin: out: another command is writing r.npy.partial\n")
        assert (tmp_path / "r.npy.partial").stat().st_ino == kept
    first.send_signal(signal.SIGCONT)
    assert "1500 images" in first.communicate(timeout=120)[0]
    assert np.load(tmp_path / "r.npy").shape == (1500, BUSY.neurons)
    assert listing(tmp_path) == [str(tmp_path / name) for name in ("images.npy", "r.npy")]


def test_a_failure_leaves_other_peoples_files(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.npy.partial").write_bytes(b"somebody's")
    Path("r.zarr.partial").mkdir()
    Path("r.zarr.partial/notes.txt").write_text("somebody's")
    before = listing()
    assert run("--out", "r.npy") == 1
    assert complaint(capsys) == "out: r.npy.partial is not of this command; --overwrite starts over"
    assert run("--out", "r.npy", "--neurons", "99") == 1
    assert run("--out", "r.zarr") == 1
    capsys.readouterr()
    assert run("--out", "r.zarr", "--overwrite") == 1
    assert "notes.txt" in complaint(capsys)
    assert listing() == before
    assert Path("r.npy.partial").read_bytes() == b"somebody's"
    assert run("--out", "r.npy", "--overwrite") == 0


def in_the_way(name: str, make: Callable[[str], Any]) -> Any:
    return pytest.param(name, make, id=f"{name} {make.__name__}")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        in_the_way("r.npy", os.mkdir),
        in_the_way("r.npy", os.mkfifo),
        in_the_way("r.npy", lambda name: os.symlink("folder", name)),
        in_the_way("r.npy", lambda name: os.symlink("nothing", name)),
        in_the_way("r.zarr", lambda name: Path(name).touch()),
        in_the_way("r.zarr", lambda name: os.symlink(".", name)),
    ],
)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
def test_what_no_command_left_is_not_touched(
    name: str, make: Callable[[str], Any], overwrite: list[str], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    make(f"{name}.partial")
    before = listing()
    assert run("--out", name, *overwrite) == 1
    assert complaint(capsys).startswith(f"out: {name}.partial is ")
    assert listing() == before
    assert np.load("images.npy").shape == IMAGES.shape


def test_names_that_are_too_long(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for length in (245, 300):
        assert run("--out", f"{'a' * length}.npy") == 1
        assert "cannot be written: File name too long" in complaint(capsys)
    assert listing() == ["images.npy"]


@pytest.mark.parametrize("name", ["full.npy", "full.npz", "full.csv"])
def test_a_device_that_is_full(name: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).symlink_to("/dev/full")
    assert run("--out", name) == 1
    assert complaint(capsys) == f"{name}: cannot be written: No space left on device"


def folder_of(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text("{}")

    return make


def group(form: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        zarr = pytest.importorskip("zarr")
        made = zarr.create_group(str(path), zarr_format=form)
        made.create_array("0", shape=(3,), dtype="float32")

    return make


def array_and_notes(path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(path), shape=(3,), dtype="float32", zarr_format=2)
    (path / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    "make",
    [folder_of("notes.txt"), folder_of("0.0"), folder_of("data/1.npy"), group(2), group(3), array_and_notes],
    ids=["notes", "a chunk by name", "a data set", "group of format 2", "group of format 3", "an array and notes"],
)
def test_only_a_zarr_array_is_replaced_by_one(
    make: Callable[[Path], None], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("zarr")
    make(tmp_path / "r.zarr")
    before = listing()
    assert run("--out", "r.zarr") == 1
    assert "exists" in complaint(capsys)
    assert run("--out", "r.zarr", "--overwrite") == 1
    assert "it is not replaced" in complaint(capsys)
    assert listing() == before


@pytest.mark.parametrize("form", ["2", "3"])
def test_a_zarr_array_is_replaced_where_that_is_asked_for(form: str, run: Run, right: NDArray[np.float32]) -> None:
    zarr = pytest.importorskip("zarr")
    for arguments in (["--zarr-format", form, "--neurons", "0"], ["--overwrite"]):
        assert run("--out", "r.zarr", *arguments) == 0
    array = zarr.open_array("r.zarr", mode="r")
    assert array.metadata.zarr_format == 2
    assert_array_equal(array[:], right)
    assert [path.name for path in Path().iterdir() if "zarr" in path.name] == ["r.zarr"]


def test_the_format_of_a_zarr_array(run: Run, right: NDArray[np.float32], capsys: pytest.CaptureFixture[str]) -> None:
    zarr = pytest.importorskip("zarr")
    assert run("--out", "r.zarr", "--zarr-format", "3") == 0
    array = zarr.open_array("r.zarr", mode="r")
    assert array.metadata.zarr_format == 3
    assert_array_equal(array[:], right)
    capsys.readouterr()
    assert run("--out", "r.npy", "--zarr-format", "2") == 1
    assert complaint(capsys) == "zarr_format: only of a .zarr, out is 'r.npy'"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["r.npy", "r.npz", "r.csv", "r.zarr"])
def test_an_interrupted_command_says_that_it_goes_on(
    name: str, number: signal.Signals, status: int, command: Command, tmp_path: Path
) -> None:
    if name == "r.zarr":
        pytest.importorskip("zarr")
    process = start(tmp_path, command.service.grpc, "--out", name)
    until(lambda: rows(tmp_path / name) > 0)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    kept = rows(tmp_path / name)
    assert (process.returncode, told) == (
        status,
        f"mousetwin: interrupted; {kept} rows are kept, the same command goes on from there\n",
    )
    process = start(tmp_path, command.service.grpc, "--out", name)
    assert f"going on after {kept} of 1500 images" in process.communicate(timeout=120)[1]
    whole = start(tmp_path, command.service.grpc, "--out", f"whole{name}")
    whole.communicate(timeout=120)
    assert_array_equal(read(str(tmp_path / name)), read(str(tmp_path / f"whole{name}")))
    if name != "r.zarr":
        assert (tmp_path / name).read_bytes() == (tmp_path / f"whole{name}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.npy", name, f"whole{name}"]


@pytest.mark.parametrize(
    "arguments", [["predict", "images.npy", "--out", "r.npy"], ["mei", "--neurons", "1", "--out", "m.npz"]]
)
def test_an_interrupt_before_there_is_anything(arguments: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "mousetwin.cli", *arguments, "--mouse", "full", "--server", server],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = silent.accept()
        connection.close()
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (143, "mousetwin: interrupted\n")
    assert listing(tmp_path) == [str(tmp_path / "images.npy")]


def test_most_exciting_images(service: Service, tmp_path: Path, monkeypatch: Any, capfdbinary: Any) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["mei", "--mouse", "full", "--neurons", "3", "--steps", "2", "--server", service.grpc]
    assert main([*command, "--out", "-"]) == 0
    printed = capfdbinary.readouterr()
    Path("piped.npz").write_bytes(printed.out)
    assert b"full neuron 3" in printed.err
    assert main([*command, "--out", "M.NPZ"]) == 0
    assert main([*command, "--out", "/dev/null"]) == 0
    assert_array_equal(Optimized.load("piped.npz").images, Optimized.load("M.NPZ").images)
    pytest.importorskip("matplotlib")
    Path("m.png").symlink_to("M.NPZ")
    Path("old.png").write_bytes(b"old")
    before = Path("M.NPZ").read_bytes()
    for arguments, words in {
        ("--out", "M.NPZ"): b"out: M.NPZ exists; --overwrite replaces it",
        ("--out", "m.npz", "--plot", "old.png"): b"plot: old.png exists; --overwrite replaces it",
        ("--out", "M.NPZ", "--plot", "m.png", "--overwrite"): b"plot: m.png is the same file as out: M.NPZ",
        ("--out", "m.csv"): b"out: 'm.csv', expected a name that ends in one of .npz",
    }.items():
        capfdbinary.readouterr()
        assert main([*command, *arguments]) == 1
        assert words in capfdbinary.readouterr().err
    assert (Path("M.NPZ").read_bytes(), Path("old.png").read_bytes()) == (before, b"old")
    assert main([*command, "--out", "M.NPZ", "--plot", "old.png", "--overwrite"]) == 0
    assert Path("old.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(mousetwin.InvalidArgument, match=r"expected a name that ends in one of \.npz"):
        Optimized.load("M.NPZ").save("m.mat")


def test_scores(service: Service, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "set", FULL)
    command = ["score", "set", "--mouse", "full", "--server", service.grpc]
    assert main([*command, "--report", "-"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["mouse"] == "full"
    assert "single trial" in printed.err
    assert main([*command, "--csv", "/dev/stdout"]) == 0
    assert capsys.readouterr().out.startswith("neuron,unit_id,")
    Path("r.json").symlink_to("set/meta/neurons/unit_ids.npy")
    for name in ("old.json", "old.csv"):
        Path(name).write_text("old")
    os.link("old.json", "same.csv")
    Path("sub").mkdir()
    Path("sub/submission_file_live_test.csv").write_text("old")
    before = {name: Path(name).read_bytes() for name in listing() if Path(name).is_file()}
    for arguments, words in {
        ("--report", "old.json"): "report: old.json exists; --overwrite replaces it",
        ("--csv", "old.csv"): "csv: old.csv exists; --overwrite replaces it",
        ("--submission", "sub"): "submission: sub/submission_file_live_test.csv exists; --overwrite replaces it",
        ("--report", "r.txt"): "report: 'r.txt', expected a name that ends in one of .json, or - for standard output",
        ("--csv", "r.xlsx"): "csv: 'r.xlsx', expected a name that ends in one of .csv, or - for standard output",
        ("--report", "r.json", "--overwrite"): "report: r.json is among the files that are read from dataset: set",
        ("--report", "set/meta/r.json"): "report: set/meta/r.json is among the files that are read from dataset: set",
        ("--report", "-", "--csv", "-"): "csv: standard output is the same file as report: standard output",
        (
            "--report",
            "old.json",
            "--csv",
            "same.csv",
            "--overwrite",
        ): "csv: same.csv is the same file as report: old.json",
        ("--report", "nowhere/r.json"): "nowhere/r.json: cannot be written: No such file or directory",
    }.items():
        assert main([*command, *arguments]) == 1
        assert complaint(capsys) == words
    assert {name: Path(name).read_bytes() for name in listing() if Path(name).is_file()} == before
    assert main([*command, "--report", "old.json", "--csv", "old.csv", "--submission", "sub", "--overwrite"]) == 0
    assert json.loads(Path("old.json").read_text())["mouse"] == "full"
    assert all(Path(name).read_text() != "old" for name in ("old.csv", "sub/submission_file_live_test.csv"))


def test_a_picture_goes_where_its_path_leads(service: Service, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with mousetwin.connect(service.grpc) as twins:
        found = twins["full"].optimize([3], steps=2)
    os.mkfifo(tmp_path / "p.svg")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "p.svg").read_bytes()))
    reader.start()
    found.plot(tmp_path / "p.svg")
    reader.join(60)
    assert b"<svg" in got[0]
    (tmp_path / "l.PNG").symlink_to("t.PNG")
    found.plot(tmp_path / "l.PNG")
    assert (tmp_path / "l.PNG").is_symlink()
    assert (tmp_path / "t.PNG").read_bytes().startswith(b"\x89PNG")
