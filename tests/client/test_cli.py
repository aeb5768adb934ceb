"""The `mousetwin` command, as far as the client alone has it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mousetwin
import numpy as np
import pytest
from mousetwin.cli import main
from mousetwin.optimized import Optimized
from numpy.testing import assert_allclose

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 36, 64)).astype(np.uint8)
BEHAVIOR = np.array([[40.0, 0.0, 3.0], [55.0, 1.5, 20.0], [25.0, -2.0, 0.0], [30.0, 0.0, 1.0]])
PUPIL = np.array([92.0, 88.0])

Run = Callable[..., int]


@pytest.fixture
def run(server_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`mousetwin predict …` in a folder with some files."""
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", IMAGES)
    np.save("behavior.npy", BEHAVIOR)
    np.save("pupil.npy", PUPIL)
    np.savez("all.npz", images=IMAGES, behavior=BEHAVIOR, pupil_center=PUPIL)
    Path("empty.npy").touch()
    Path("text.npy").write_text("not an array")
    Path("zip.npy").write_bytes(b"PK\x03\x04 not a zip")
    Path("short.npy").write_bytes(Path("images.npy").read_bytes()[:-9])
    Path("short.npz").write_bytes(Path("all.npz").read_bytes()[:-40])
    np.save("objects.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    np.savez("other.npz", pictures=IMAGES)
    Path("folder").mkdir()
    return lambda *arguments: main(["predict", *arguments, "--server", server_address])


def listing() -> list[str]:
    return sorted(path.name for path in Path().rglob("*"))


def test_mice(server_address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mice", "--server", server_address]) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(
        r"demo  \S+ v1  \d+ neurons  36x64  takes images, behavior, pupil_center  on \w+  [0-9a-f]{12}  SYNTHETIC\n",
        printed.out,
    )
    assert not printed.err


def test_predict_writes_what_the_client_gives(
    run: Run, mouse: mousetwin.Mouse, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("images.npy", "--mouse", "demo", "--out", "responses.npy") == 0
    found = np.load("responses.npy", allow_pickle=False)
    assert found.dtype == np.float32
    assert_allclose(found, mouse.predict(IMAGES), rtol=0, atol=1e-6)
    printed = capsys.readouterr()
    assert printed.out.startswith(f"responses.npy: 4 images × {mouse.summary.neurons} neurons, float32, from demo/")
    assert printed.out.endswith("behavior and pupil_center at the training set's mean\n")
    assert mouse.summary.twin.digest[:12] in printed.out
    assert "4/4 images" in printed.err


def test_predict_takes_the_rest_from_files_and_flags(
    run: Run, mouse: mousetwin.Mouse, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = np.asarray(mouse.predict(IMAGES, BEHAVIOR, PUPIL))
    assert run("all.npz", "--mouse", "demo", "--out", "a.npy") == 0
    assert "mean" not in capsys.readouterr().out
    flags = ("--behavior", "behavior.npy", "--pupil-center", "pupil.npy")
    assert run("images.npy", "--mouse", "demo", "--out", "b.npy", *flags, "--neurons", "7,0") == 0
    assert mouse.info.unit_ids is not None
    ids = ",".join(str(n) for n in mouse.info.unit_ids[[3, 2]])
    assert run("all.npz", "--mouse", "demo", "--out", "c.npy", "--unit-ids", ids, "--version", "1") == 0
    np.save("floats.npy", IMAGES.astype(np.float64))
    assert run("floats.npy", "--mouse", "demo", "--out", "d.npy", *flags, "--space", "raw") == 0
    assert_allclose(np.load("a.npy"), expected, rtol=0, atol=1e-6)
    assert_allclose(np.load("b.npy"), expected[:, [7, 0]], rtol=0, atol=1e-6)
    assert_allclose(np.load("c.npy"), expected[:, [3, 2]], rtol=0, atol=1e-6)
    assert_allclose(np.load("d.npy"), expected, rtol=0, atol=1e-6)


def test_predict_replaces_an_earlier_answer_only_where_that_is_asked_for(
    run: Run, mouse: mousetwin.Mouse, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("images.npy", "--mouse", "demo", "--out", "responses.npy") == 0
    # Others may read it as they may any file this user makes.
    assert Path("responses.npy").stat().st_mode == Path("images.npy").stat().st_mode
    Path("responses.npy").write_text("yesterday's")
    Path("responses.npy").chmod(0o640)
    before = listing()
    capsys.readouterr()
    for more in ([], ["--neurons", "1,2"]):
        assert run("images.npy", "--mouse", "demo", "--out", "responses.npy", *more) == 1
        assert capsys.readouterr().err == "mousetwin: out: responses.npy exists; --overwrite replaces it\n"
        assert Path("responses.npy").read_text() == "yesterday's"
    assert run("images.npy", "--mouse", "demo", "--out", "responses.npy", "--overwrite") == 0
    assert listing() == before
    assert_allclose(np.load("responses.npy"), mouse.predict(IMAGES), rtol=0, atol=1e-6)
    assert Path("responses.npy").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.npy"], "nothing.npy: No such file"),
        (["nothing.npz"], "nothing.npz: No such file"),
        (["folder"], "folder: "),
        (["empty.npy"], "empty.npy"),
        (["text.npy"], "text.npy"),
        (["zip.npy"], "zip.npy"),
        (["short.npy"], "short.npy"),
        (["short.npz"], "short.npz"),
        (["objects.npy"], "objects.npy"),
        (["other.npz"], "'pictures'"),
        (["images.npy", "--behavior", "nothing.npy"], "nothing.npy: No such file"),
        (["images.npy", "--behavior", "empty.npy"], "empty.npy"),
        (["images.npy", "--behavior", "images.npy"], "behavior: shape (4, 36, 64)"),
        (["all.npz", "--behavior", "behavior.npy"], "behavior: given both in all.npz and as behavior.npy"),
        (["images.npy", "--mouse", "nobody"], "'nobody' is not served, expected one of demo"),
        (["images.npy", "--version", "99"], "'99'"),
        (["images.npy", "--neurons", "0,100000"], "neurons: 100000"),
        (["images.npy", "--space", "model", "--behavior", "behavior.npy", "--unit-ids", "-5"], "unit_ids: -5"),
        (
            ["behavior.npy", "--space", "model"],
            "images: shape (4, 3) is one image, expected (N, H, W)",
        ),
        (["images.npy", "--out", "folder"], "folder: cannot be written"),
        (["images.npy", "--out", "nowhere/a.npy"], "nowhere/a.npy: cannot be written"),
        (["images.npy", "--out", "images.npy/a.npy"], "images.npy/a.npy: cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_failure_is_one_line_and_leaves_nothing_behind(
    run: Run, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing()
    given = [] if "--mouse" in arguments else ["--mouse", "demo"]
    given += [] if "--out" in arguments else ["--out", "responses.npy"]
    assert run(*arguments, *given) == 1
    printed = capsys.readouterr()
    assert not printed.out
    complaints = [line for line in printed.err.splitlines() if line.startswith("mousetwin: ")]
    assert len(complaints) == 1
    assert words in complaints[0]
    # The bar may have been drawn before the answer could not be written; there is nothing else.
    assert len(printed.err.splitlines()) <= 2
    assert listing() == before


@pytest.mark.parametrize("arguments", [["--neurons", "1,b"], ["--space", "rgb"], ["--mouse"]])
def test_flags_that_cannot_be_read_show_the_usage(
    run: Run, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run("images.npy", "--mouse", "demo", "--out", "responses.npy", *arguments)
    assert caught.value.code == 2
    assert "usage: mousetwin predict" in capsys.readouterr().err


# By command: what it needs, and options that may be given once.
ONCE: dict[str, tuple[list[str], list[list[str]]]] = {
    "mice": ([], [["--timeout", "5"]]),
    "predict": (
        ["images.npy", "--mouse", "demo", "--out", "r.npy"],
        [
            ["--mouse", "demo"],
            ["--out", "s.npy"],
            ["--neurons", "2"],
            ["--unit-ids=2"],
            ["--space", "raw"],
            ["--behavior", "b.npy"],
            ["--tier", "test"],
            ["--dtype", "float16"],
            ["--model", "gabor"],
        ],
    ),
    "score": (["set", "--mouse", "demo"], [["--tier", "test"], ["--csv", "a.csv"], ["--mouse", "demo"]]),
    "mei": (["--mouse", "demo", "--out", "m.npz"], [["--neurons", "1"], ["--norm", "3"], ["--behavior", "1,2,3"]]),
    "serve": ([], [["--models", "m"], ["--threads", "1"], ["--tf32"], ["--device", "cpu"]]),
    "archive": (["--out", "store"], [["--workers", "1"], ["--max-mb", "1"]]),
    "export": (
        ["c.pth", "--config", "c.yaml", "--mouse", "demo", "--out", "m"],
        [["--mouse", "demo"], ["--no-gradient"], ["--model", "cnn"]],
    ),
    "fetch": ([], [["--mouse", "m"]]),
}


@pytest.mark.parametrize("command", ONCE)
def test_an_option_that_is_given_twice(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """argparse takes the last in silence."""
    for package, its in (("mousetwin_serve", ("serve", "archive")), ("mousetwin_export", ("export", "fetch"))):
        if command in its:
            pytest.importorskip(package)
    needed, options = ONCE[command]
    for option in options:
        name = option[0].partition("=")[0]
        twice = option if name in needed else option * 2
        with pytest.raises(SystemExit) as caught:
            main([command, *needed, *twice])
        assert caught.value.code == 2
        told = capsys.readouterr().err
        assert f"usage: mousetwin {command}" in told
        assert told.endswith(f"mousetwin {command}: error: argument {name}: given twice\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "images.npy", "--mouse", "demo", "--out", "r.npy", "--neuron", "2"],
        ["predict", "images.npy", "--mouse", "demo", "--out", "r.npy", "--unit", "2"],
        ["predict", "images.npy", "--mouse", "demo", "--out", "r.npy", "--Space", "raw"],
        ["mei", "--mous", "demo", "--mouse", "demo", "--out", "m.npz"],
        ["mice", "--serv", "local:"],
    ],
    ids=" ".join,
)
def test_an_option_by_a_part_of_its_name(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: unrecognized arguments: --" in capsys.readouterr().err


def test_an_option_that_is_meant_to_be_repeated(
    server_address: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["score", str(tmp_path), "--mouse", "demo", "--server", server_address]
    assert main([*command, "--model", "gabor", "--model", "cnn"]) == 1
    assert "twice" not in capsys.readouterr().err


def test_where_the_service_is_may_be_said_again(run: Run) -> None:
    """Scripts wrap a command with a service of their own, and whoever calls them says another."""
    assert run("images.npy", "--mouse", "demo", "--out", "a.npy", "--server", "127.0.0.1:1") == 0
    assert Path("a.npy").exists()


def test_lists_of_whole_numbers(run: Run, mouse: mousetwin.Mouse, capsys: pytest.CaptureFixture[str]) -> None:
    for n, text in enumerate(("4,2", "4, 2")):
        assert run("images.npy", "--mouse", "demo", "--out", f"{n}.npy", "--neurons", text) == 0
        assert_allclose(np.load(f"{n}.npy"), mouse.predict(IMAGES, neurons=[4, 2]), rtol=0, atol=1e-6)
    for text in ("1_0", "+1", "٣", "1.0", "1,,2", "", "9" * 20):
        with pytest.raises(SystemExit):
            run("images.npy", "--mouse", "demo", "--out", "r.npy", f"--neurons={text}")
        assert "expected whole numbers separated by commas" in capsys.readouterr().err


def test_most_exciting_images_to_a_file(
    server_address: str, mouse: mousetwin.Mouse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--mouse", "demo", "--neurons", "3,14", "--out", str(tmp_path / "meis.npz"), "--steps", "12"]
    assert main(["mei", *arguments, "--norm", "6", "--behavior", "0,0,0", "--server", server_address]) == 0
    printed = capsys.readouterr()
    assert [line.split(":")[0] for line in printed.out.splitlines()] == ["demo neuron 3", "demo neuron 14"]
    assert "synthetic mouse" in printed.out
    assert "12/12 steps" in printed.err
    saved = Optimized.load(tmp_path / "meis.npz")
    assert_allclose(np.linalg.norm(saved.images, axis=(1, 2)), 6, rtol=1e-3)
    found = mouse.predict(saved.images, [0, 0, 0], neurons=[3, 14], space="model")
    assert_allclose(found.diagonal(), saved.values, atol=1e-4)
    assert main(["mei", *arguments, "--server", server_address]) == 1
    assert "exists; --overwrite replaces it" in capsys.readouterr().err
    assert main(["mei", *arguments, "--norm", "-1", "--overwrite", "--server", server_address]) == 1
    assert capsys.readouterr().err.startswith("mousetwin: norm: -1")
    assert Optimized.load(tmp_path / "meis.npz").values.tolist() == saved.values.tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "."], ".: cannot be written: Is a directory"),
        (["--out", "file/meis.npz"], "file/meis.npz: cannot be written: Not a directory"),
        (["--out", "nowhere/meis.npz"], "nowhere/meis.npz: cannot be written: No such file or directory"),
        (["--plot", "nowhere/meis.png"], "nowhere/meis.png: cannot be written: No such file or directory"),
        (["--plot", "meis.jpgg"], "plot: 'meis.jpgg', expected a name that ends in one of"),
        (["--plot", "meis"], "plot: 'meis', expected a name that ends in one of"),
        (["--plot", "-"], "plot: '-', expected a name that ends in one of"),
        (["--out", "meis.mat"], "out: 'meis.mat', expected a name that ends in one of .npz, or - for"),
        (["--out", "meis"], "out: 'meis', expected a name that ends in one of .npz, or - for"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_most_exciting_images_that_cannot_be_written(
    server_address: str,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    given = [] if "--out" in arguments else ["--out", "meis.npz"]
    command = ["mei", "--mouse", "demo", "--neurons", "3", "--steps", "2", "--server", server_address]
    assert main([*command, *given, *arguments]) == 1
    (complaint,) = [line for line in capsys.readouterr().err.splitlines() if "mousetwin" in line]
    assert complaint.startswith(f"mousetwin: {words}")
    # All of it before the work.
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_nothing_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert main(["mice", "--server", address]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"mousetwin: no answer from {address}: ")
    assert len(printed.err.splitlines()) == 1


def test_a_service_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert main(["mice", "--server", f"127.0.0.1:{server.getsockname()[1]}", "--timeout", "0.2"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("mousetwin: ")
    assert "deadline" in printed.err.lower()
    assert len(printed.err.splitlines()) == 1


def test_the_command_as_a_program(server_address: str, mouse: mousetwin.Mouse, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    command = [sys.executable, "-m", "mousetwin.cli", "predict", "images.npy", "--mouse", "demo", "--out", "r.npy"]
    environment = {**os.environ, "MOUSETWIN_SERVER": server_address}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("r.npy: 4 images × ")
    assert_allclose(np.load(tmp_path / "r.npy"), mouse.predict(IMAGES), rtol=0, atol=1e-6)
    done = subprocess.run(
        [*command[:4], "gone.npy", *command[5:]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "mousetwin: gone.npy: No such file or directory\n")


@pytest.mark.parametrize(("terminal", "lines"), [(False, 1), (True, 4)])
def test_the_progress_bar(terminal: bool, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from mousetwin import progress

    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    clock = iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    stream = Stream()
    bar = progress.ProgressBar("demo", stream=stream)
    for done in (10, 20, 30, 40):
        bar(done, 40)
    drawn = stream.getvalue()
    assert len(re.findall("demo", drawn)) == lines
    assert drawn.endswith("[########################] 40/40 images  10/s  4.0 s\n")
    assert ("10/40 images  10/s  3 s left" in drawn) == terminal
