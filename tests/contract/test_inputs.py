"""What `mousetwin predict` reads: every kind of file is taken for what it is, or refused in one line that names it."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mousetwin
import numpy as np
import pytest
from bundles import BUSY, FULL
from mousetwin.cli import main
from mousetwin.inputs import open_inputs
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from recordings import record, zipped
from running import Service, limited, until

IMAGES = np.random.default_rng(3).integers(0, 256, (5, *FULL.stimulus)).astype(np.uint8)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(path: str | Path, tier: str | None = None, start: int = 0) -> Any:
    """The images that a command would read."""
    with ExitStack() as stack:
        blocks = list(open_inputs(Path(path), stack, tier).rows(start, 2))
    return np.concatenate(blocks)


def refused(path: str | Path, *words: str) -> None:
    with pytest.raises(mousetwin.MousetwinError) as caught:
        read(path)
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 400
    for word in words:
        assert word in told


def predicted(service: Service, *arguments: str) -> Any:
    assert main(["predict", *arguments, "--mouse", "full", "--out", "r.npy", "--server", service.grpc]) == 0
    return np.load("r.npy")


# --- kinds of files


def save_png(path: str, images: Any = IMAGES[:1]) -> None:
    Image.fromarray(images[0]).save(path, "PNG")


def save_zip(path: str) -> None:
    folder = Path(path).parent / "recorded"
    recording = record(folder, FULL)
    zipped(recording.folder, Path(path))
    shutil.rmtree(folder)


def save_npz(path: str) -> None:
    with open(path, "wb") as stream:
        np.savez_compressed(stream, images=IMAGES)


def save_npy(path: str) -> None:
    with open(path, "wb") as stream:
        np.save(stream, IMAGES)


@pytest.mark.parametrize("suffix", ["lower", "UPPER", "none"])
@pytest.mark.parametrize(
    ("kind", "save", "count"),
    [("npy", save_npy, 5), ("npz", save_npz, 5), ("png", save_png, 1), ("zip", save_zip, 140)],
)
def test_files_by_their_suffix_or_how_they_begin(
    kind: str, save: Callable[[str], None], count: int, suffix: str, here: Path
) -> None:
    name = {"lower": f"x.{kind}", "UPPER": f"x.{kind.upper()}", "none": "x"}[suffix]
    save(name)
    found = read(name)
    assert found.shape == (count, *FULL.stimulus)
    if kind != "zip":
        assert_array_equal(found, IMAGES[:count])


def test_a_single_picture_under_many_conditions(service: Service, here: Path) -> None:
    save_png("one.PNG")
    behavior = np.random.default_rng(2).normal(4, 1, (3, 3))
    np.save("behavior.npy", behavior)
    found = predicted(service, "one.PNG", "--behavior", "behavior.npy")
    assert_allclose(found, FULL.respond_raw(IMAGES[[0, 0, 0]], behavior), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jpg", b"\xff\xd8\xff\xe0"),
        ("a.mat", b"MATLAB 5.0"),
        ("a", b""),
        ("a.npy.gz", b"\x1f\x8b"),
        ("a.h5", b"\x89HDF"),
    ],
)
def test_other_files(name: str, content: bytes, here: Path) -> None:
    Path(name).write_bytes(content)
    refused(name, name, ".npy, .npz or .png", "folder", ".zip")


def test_what_is_no_file(here: Path) -> None:
    os.mkfifo("pipe.npy")
    Path("gone.npy").symlink_to("nowhere")
    Path("loop.npy").symlink_to("loop.npy")
    refused("pipe.npy", "pipe.npy: a pipe, expected a file")
    refused("/dev/null", "/dev/null: a device")
    refused("gone.npy", "gone.npy: No such file")
    refused("loop.npy", "loop.npy: Too many levels")
    refused("n" * 300, "File name too long")
    refused("-", "standard input")
    Path("x").mkdir()
    for make, words in (
        (lambda p: p.mkdir(), "2.npy: a folder, expected a file"),
        (os.mkfifo, "2.npy: a pipe, expected a file"),
        (lambda p: p.symlink_to("nowhere"), "2.npy: No such file"),
        (lambda p: p.symlink_to("2.npy"), "2.npy: Too many levels"),
    ):
        shutil.rmtree("x")
        Path("x").mkdir()
        np.save("x/1.npy", IMAGES[0])
        make(Path("x/2.npy"))
        refused("x", words)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_what_may_not_be_read(here: Path) -> None:
    save_npy("secret.npy")
    Path("secret.npy").chmod(0)
    Path("closed").mkdir(0)
    Path("open/lost+found").mkdir(parents=True)
    Path("open/lost+found").chmod(0)
    save_png("open/1.png")
    here.chmod(0o755)
    os.seteuid(65534)
    try:
        for name in ("secret.npy", "closed", "closed/x.npy"):
            refused(name, f"{name}: Permission denied")
        # A folder that is closed to this user, such as lost+found, holds no images that could be meant.
        assert_array_equal(read("open"), IMAGES[:1])
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["a\nb.npy", "a\x1b[31m.npy", "\udcff\udcfe.npy", "日本.npy"])
def test_names_that_cannot_be_printed(name: str, here: Path, service: Service) -> None:
    """Neither a refusal nor a prediction breaks on them, whatever the terminal's encoding."""
    for content in (b"no", npy(IMAGES)):
        Path(name).write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-m", "mousetwin.cli", "predict", name, "--mouse", "full", "--out", "r.npy"],
            env={**os.environ, "MOUSETWIN_SERVER": service.grpc, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == (content == b"no"), done.stderr
        told = [line for line in done.stderr.split(b"\n") if line.startswith(b"mousetwin: ")]
        assert len(told) == (content == b"no")
        assert b"Traceback" not in done.stderr
        assert b"\x1b" not in b"".join(told)


# --- one reader of .npy files


def npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


BYTES: dict[str, tuple[bytes, str]] = {
    "more": (npy(IMAGES) + b"x", "came"),
    "another array": (npy(IMAGES) * 2, "came"),
    "less": (npy(IMAGES)[:-1], "came"),
    "no numbers": (npy(np.array(["a", "b"])), "dtype is <U1"),
    "complex": (npy(np.zeros((2, 3), complex)), "dtype is complex128"),
    "booleans": (npy(np.zeros((2, 3), bool)), "dtype is bool"),
    "records": (npy(np.zeros(2, [("a", "u1")])), "a structured array of a"),
    "dates": (npy(np.zeros(2, "M8[s]")), "dtype is datetime64"),
    "negative": (
        b"\x93NUMPY\x01\x00\x39\x00{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}\n",
        "shape is (-1,)",
    ),
    "nothing": (b"", "not a .npy file"),
}


@pytest.mark.parametrize("where", ["images.npy", "folder/1.npy", "behavior.npy", "set/data/images/3.npy", "images.npz"])
@pytest.mark.parametrize("how", BYTES)
def test_npy_files_are_read_by_the_rules_of_rest(
    how: str, where: str, here: Path, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    data, words = BYTES[how]
    source = where.partition("/")[0]
    options: list[str] = []
    if source == "set":
        record(here / "set", FULL)
    elif source == "folder":
        Path("folder").mkdir()
    elif source == "behavior.npy":
        save_npy("images.npy")
        source, options = "images.npy", ["--behavior", where]
    if where.endswith(".npz"):
        with zipfile.ZipFile(where, "w") as archive:
            archive.writestr("images.npy", data)
    else:
        Path(where).write_bytes(data)
    command = ["predict", source, *options, "--mouse", "full", "--out", "r.npy", "--server", service.grpc]
    assert main(command) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mousetwin: ")]
    assert len(told) == 1
    assert where in told[0].replace("set: ", "set/")
    # What is streamed is told in other words where more or less comes; a data set may hold words, though not here.
    assert (
        words in told[0]
        or (where.endswith(".npz") and words in ("came", "shape is (-1,)"))
        or (where.startswith("set") and words == "dtype is <U1" and "expected finite numbers" in told[0])
    )
    assert not Path("r.npy").exists()


@pytest.mark.parametrize("kind", ["npy", "npz", "npz compressed", "folder", "set"])
@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("dtype", ["|u1", ">i2", "<u8", ">f4"])
def test_orders_and_dtypes(dtype: str, order: Any, kind: str, here: Path) -> None:
    images = np.asarray(IMAGES.astype(dtype), order=order)
    if kind == "npy":
        np.save("x.npy", images)
    elif kind == "folder":
        Path("x").mkdir()
        for n, image in enumerate(IMAGES):
            np.save(f"x/{n}.npy", np.asarray(image.astype(dtype), order=order))
    elif kind == "set":
        record(here / "x", FULL)
        for n, image in enumerate(IMAGES):
            np.save(f"x/data/images/{n}.npy", np.asarray(image.astype(dtype), order=order))
    else:
        (np.savez_compressed if "compressed" in kind else np.savez)("x.npz", images=images)
    name = {"npy": "x.npy", "folder": "x", "set": "x"}.get(kind, "x.npz")
    for start in (0, 3):
        found = read(name, start=start)
        assert_array_equal(found[: 5 - start], IMAGES[start:])
        assert kind == "set" or found.dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (4,)])
def test_arrays_of_odd_shapes(shape: tuple[int, ...], here: Path) -> None:
    """Whether they are images is for the service to say."""
    np.save("x.npy", np.zeros(shape))
    np.savez("x.npz", images=np.zeros(shape))
    for name in ("x.npy", "x.npz"):
        with ExitStack() as stack:
            found = open_inputs(Path(name), stack)
            assert (found.count, *found.shape) == shape
            assert sum(len(block) for block in found.rows(0, 2)) == shape[0]


# --- pictures


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png(image: Any = IMAGES[0], **options: Any) -> bytes:
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def of_size(width: int, height: int, more: bytes = b"", pixels: int = 100, depth: int = 8) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return png()[:8] + head + more + chunk(b"IDAT", zlib.compress(bytes(pixels))) + chunk(b"IEND", b"")


def in_mode(mode: str) -> bytes:
    return png(Image.fromarray(IMAGES[0]).convert(mode))


def palette() -> bytes:
    picture = Image.fromarray(IMAGES[0]).convert("P")
    picture.putpalette([n // 3 ^ 0x55 for n in range(768)])
    return png(picture)


def flipped(data: bytes) -> bytes:
    at = data.index(b"IDAT") + 20
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(stream, "JPEG")
    return stream.getvalue()


PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "palette": (palette, "mode P (indices into a palette, not gray levels), expected 8-bit gray (L)"),
    "black and white": (lambda: in_mode("1"), "mode 1"),
    "gray with transparency": (lambda: in_mode("LA"), "mode LA"),
    "color": (lambda: in_mode("RGB"), "mode RGB"),
    "color with transparency": (lambda: in_mode("RGBA"), "mode RGBA"),
    "16-bit": (lambda: png(IMAGES[0].astype(np.uint16) * 257), "16-bit gray"),
    "a transparent level": (lambda: png(transparency=7), "transparent"),
    "animated": (
        lambda: png(save_all=True, append_images=[Image.fromarray(i) for i in IMAGES[1:]]),
        "an animation, expected one image",
    ),
    "huge": (lambda: of_size(60_000, 60_000), "60000×60000 pixels, expected at most 16777216"),
    "huge in one direction": (lambda: of_size(2**31 - 1, 1), "1×2147483647 pixels"),
    "two bits": (lambda: of_size(32, 24, pixels=216, depth=2), "2-bit gray, expected 8-bit gray"),
    "rows are missing": (lambda: of_size(32, 24, pixels=33 * 10), "330 bytes of pixels, expected 792"),
    "rows too many": (lambda: of_size(32, 24, pixels=33 * 25), "793 bytes of pixels, expected 792"),
    "without pixels": (lambda: of_size(0, 5), "not a PNG file, or a damaged one"),
    "too few pixels": (lambda: of_size(32, 24), "not a PNG file, or a damaged one"),
    "a bomb of text": (
        lambda: of_size(32, 24, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))),
        "not a PNG file, or a damaged one",
    ),
    "cut off": (lambda: png()[:-30], "truncated"),
    "without an end": (lambda: png()[:-12], "truncated"),
    "a bit flipped": (lambda: flipped(png()), "damaged"),
    "two in one file": (lambda: png() * 2, "after the end of the picture, expected one image"),
    "a JPEG by another name": (jpeg, "not a PNG file"),
    "empty": (lambda: b"", "not a PNG file"),
}


@pytest.mark.parametrize("how", PICTURES)
def test_pictures_that_are_not_taken(how: str, here: Path) -> None:
    make, words = PICTURES[how]
    Path("x").mkdir()
    save_png("x/1.png")
    Path("x/2.png").write_bytes(make())
    refused("x", "x/2.png: ", words)
    refused("x/2.png", "x/2.png: ", words)


def test_a_huge_picture_through_the_command(here: Path, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.png").write_bytes(of_size(60_000, 60_000))
    assert main(["predict", "x.png", "--mouse", "full", "--out", "r.npy", "--server", service.grpc]) == 1
    assert capsys.readouterr().err.startswith("mousetwin: x.png: 60000×60000 pixels")


# --- folders


def test_names_in_the_order_of_their_numbers(here: Path) -> None:
    names = ["01.png", "1.png", "1²2.png", "2.png", "10.png", "²3.png", "½.png", "٣.png", "a9.png", "a10.png"]
    images = np.random.default_rng(0).integers(0, 256, (len(names), 4, 6)).astype(np.uint8)
    Path("x").mkdir()
    for n in np.random.default_rng(1).permutation(len(names)):
        save_png(f"x/{names[n]}", images[[n]])
    order = [0, 1, 2, 3, 4, 8, 9, 5, 6, 7]
    assert_array_equal(read("x"), images[order])


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_what_a_system_puts_beside_images_is_skipped(kind: str, here: Path) -> None:
    """As macOS, Windows, Jupyter and Kubernetes do; where Kubernetes mounts a folder, files are links into `..data`."""
    Path("x/..2024_01_01").mkdir(parents=True)
    Path("x/..data").symlink_to("..2024_01_01")
    for n, image in enumerate(IMAGES):
        name = f"{n}.{kind}"
        save_png(f"x/..2024_01_01/{name}", image[None]) if kind == "png" else np.save(f"x/..2024_01_01/{name}", image)
        Path(f"x/{name}").symlink_to(f"..data/{name}")
        Path(f"x/._{name}").write_bytes(b"\x00\x05\x16\x07")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        Path(f"x/{name}").write_bytes(b"?")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        Path(f"x/{name}").mkdir()
        shutil.copyfile(f"x/1.{kind}", f"x/{name}/1.{kind}")
    assert_array_equal(read("x"), IMAGES)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("6.jpg", "6.jpg in it: .jpg files are not taken"),
        ("6.TIFF", "6.TIFF in it: .tiff files are not taken"),
        ("6.npz", "6.npz in it"),
        ("6.npy", "both .npy and .png"),
        ("more/6.png", "images in it and in more inside, expected one folder"),
    ],
)
def test_nothing_that_may_be_an_image_is_left_out(name: str, words: str, here: Path) -> None:
    Path("x/more").mkdir(parents=True)
    save_png("x/1.png")
    Path(f"x/{name}").write_bytes(b"?")
    refused("x", words)


def test_a_folder_of_folders_and_zips(here: Path) -> None:
    Path("x/a").mkdir(parents=True)
    refused("x", "no .npy and no .png file, and no data set")
    save_png("x/a/1.png")
    Path("x/a.zip").write_bytes(b"PK")
    refused("x", "there is a: name it")
    shutil.rmtree("x/a")
    refused("x", "there is a.zip: name it")


# --- the same again


def edit(path: str, values: Any = None) -> Callable[[], None]:
    def change() -> None:
        found = np.load(path)
        np.save(path, found[::-1].copy() if values is None else values)

    return change


def replaced(path: str) -> Callable[[], None]:
    """Another content of the same size and times, as `cp -p` and `rsync` leave it."""

    def change() -> None:
        before = Path(path).stat()
        shutil.copyfile(path, "other")
        with open("other", "r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"\x01")
        os.utime("other", ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace("other", path)

    return change


def rewritten(path: str) -> Callable[[], None]:
    """Changed in place, and its time set back."""

    def change() -> None:
        before = Path(path).stat()
        with open(path, "r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"\x01")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return change


def tiers() -> None:
    found = np.load("set/meta/trials/tiers.npy")
    train, test = (np.flatnonzero(found == tier)[0] for tier in ("train", "test"))
    found[[train, test]] = found[[test, train]]
    np.save("set/meta/trials/tiers.npy", found)


def more_trials() -> None:
    for name in ("images", "responses", "behavior", "pupil_center"):
        shutil.copyfile(f"set/data/{name}/0.npy", f"set/data/{name}/140.npy")
    for name in ("tiers", "frame_image_id", "trial_idx"):
        found = np.load(f"set/meta/trials/{name}.npy")
        np.save(f"set/meta/trials/{name}.npy", np.append(found, found[:1]))


CHANGES: dict[str, tuple[str, Callable[[], None]]] = {
    "an array": ("x.npy", edit("x.npy")),
    "an array of the same size and time": ("x.npy", replaced("x.npy")),
    "an array in place": ("x.npy", rewritten("x.npy")),
    "an .npz": ("x.npz", replaced("x.npz")),
    "a picture": ("x.png", rewritten("x.png")),
    "an image": ("arrays", edit("arrays/1.npy")),
    "an image of the same size and time": ("arrays", replaced("arrays/1.npy")),
    "an image in place": ("arrays", rewritten("arrays/1.npy")),
    "one image more": ("arrays", lambda: np.save("arrays/9.npy", IMAGES[0])),
    "one image less": ("arrays", lambda: Path("arrays/2.npy").unlink()),
    "images that changed places": (
        "arrays",
        lambda: [os.rename(f"arrays/{a}.npy", f"arrays/{b}.npy") for a, b in [(1, 9), (2, 1), (9, 2)]] and None,
    ),
    "a trial's image": ("set", edit("set/data/images/3.npy")),
    "a trial's image in place": ("set", rewritten("set/data/images/3.npy")),
    "a trial's image, replaced": ("set", replaced("set/data/images/139.npy")),
    "a trial's behavior": ("set", edit("set/data/behavior/139.npy")),
    "a trial's pupil center": ("set", rewritten("set/data/pupil_center/0.npy")),
    "behavior that went away": ("set", lambda: shutil.rmtree("set/data/behavior")),
    "tiers": ("set", tiers),
    "trials that came": ("set", more_trials),
    "statistics": ("set", rewritten("set/meta/statistics/images/all/mean.npy")),
    "neurons": ("set", edit("set/meta/neurons/unit_ids.npy")),
    "a zip": ("set.zip", rewritten("set.zip")),
}


@pytest.fixture
def many(here: Path) -> Path:
    """An input of every kind."""
    save_npy("x.npy")
    save_npz("x.npz")
    save_png("x.png")
    Path("arrays").mkdir()
    for n, image in enumerate(IMAGES):
        np.save(f"arrays/{n}.npy", image)
    zipped(record(here / "set", FULL).folder, here / "set.zip")
    return here


def told(name: str, tier: str | None = None) -> Any:
    with ExitStack() as stack:
        return open_inputs(Path(name), stack, tier).told


@pytest.mark.parametrize("what", CHANGES)
def test_inputs_that_changed_are_not_gone_on_with(what: str, many: Path) -> None:
    name, change = CHANGES[what]
    with ExitStack() as stack:
        opened = open_inputs(Path(name), stack)
        before = opened.told
        assert told(name) == before
        assert told(str(many / name)) == before
        opened.sources.check_unchanged()
        change()
        with pytest.raises(mousetwin.InvalidArgument, match="was changed while it was read") as caught:
            opened.sources.check_unchanged()
        assert name in str(caught.value)
    try:
        assert told(name) != before
    except mousetwin.MousetwinError:
        # It cannot be read any more, so it is not gone on with either.
        assert what in ("a picture", "a zip", "an .npz")


def test_other_inputs_of_the_same_kind_are_others(many: Path) -> None:
    shutil.copytree("arrays", "arrays2")
    shutil.copyfile("x.npy", "y.npy")
    everything = [told("arrays"), told("arrays2"), told("x.npy"), told("y.npy"), told("set"), told("set.zip")]
    everything += [told("set", "test"), told("set", "final_test")]
    assert len({str(sorted(each.items())) for each in everything}) == len(everything)
    # Of other trials than those that are read, nothing matters.
    before = told("set", "test")
    with ExitStack() as stack:
        (train,) = np.flatnonzero(np.load("set/meta/trials/tiers.npy") == "train")[:1]
        rewritten(f"set/data/images/{train}.npy")()
        assert open_inputs(Path("set"), stack, "test").told == before


def test_images_that_change_under_a_running_command(models: Path, here: Path, service: Service) -> None:
    """Overwritten as a script that makes them does, cut short and written again."""
    images = np.random.default_rng(0).integers(0, 256, (1500, *BUSY.stimulus)).astype(np.uint8)
    np.save("images.npy", images)
    command = [sys.executable, "-m", "mousetwin.cli", "predict", "images.npy", "--mouse", "busy", "--out", "r.npy"]
    process = subprocess.Popen([*command, "--server", service.grpc], stderr=subprocess.PIPE, text=True)
    until(lambda: Path("r.npy.partial.json").exists())
    np.save("images.npy", images[::-1])
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1, told
    assert "images.npy: was changed while it was read" in told
    assert "Traceback" not in told
    assert not Path("r.npy").exists()


def test_a_recording_that_changes_while_it_is_scored(
    here: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By somebody who acts when the progress bar is drawn: all has been read then, and nothing told."""
    recording = record(here / "set", FULL)
    trial = int(recording.of("test")[0])

    class Meddling(io.StringIO):
        def write(self, text: str) -> int:
            if "trials" in text:
                np.save(f"set/data/images/{trial}.npy", 255 - recording.images[trial])
            return super().write(text)

    for output in (["--report", "r.json"], ["--submission", "files"]):
        told = Meddling()
        monkeypatch.setattr(sys, "stderr", told)
        assert main(["score", "set", "--mouse", "full", *output, "--server", service.grpc]) == 1
        assert f"data/images/{trial}.npy: was changed while it was read" in told.getvalue()
        assert not Path("r.json").exists()
        assert not list(Path().glob("files/*"))


def test_a_recording_that_changed_is_begun_anew(here: Path, service: Service) -> None:
    """A command that was stopped goes on with the same data set, and only with the same."""
    recording = record(here / "set", BUSY)

    def run(limit: int | None = None) -> str:
        """What the command says; where its file may not grow over the limit, it stops on the way."""
        given = ["predict", "set", "--mouse", "busy", "--out", "r.npy", "--server", service.grpc]
        command = [sys.executable, "-m", "mousetwin.cli", *given]
        return subprocess.run(limited(command, limit) if limit else command, capture_output=True, text=True).stderr

    # Of three frames the first fits.
    assert "64 rows are kept" in run(2500)
    assert "going on after 64 of 140 images" in run()
    assert_allclose(np.load("r.npy"), BUSY.respond_raw(recording.images), rtol=0, atol=1e-4)
    Path("r.npy").unlink()
    assert "64 rows are kept" in run(2500)
    images = recording.images.copy()
    images[3, 0, 0] ^= 255
    np.save("set/data/images/3.npy", images[3])
    assert "going on" not in run()
    if Path("r.npy").exists():
        assert_allclose(np.load("r.npy"), BUSY.respond_raw(images), rtol=0, atol=1e-4)
