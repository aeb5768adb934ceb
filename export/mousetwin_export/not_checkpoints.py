"""Files that people take for checkpoints, told by how they begin: what each is, and what to do about it."""

from __future__ import annotations

import io
import re
import zipfile

# What helps against most of it.
SAVE = "save it with torch.save(model.state_dict(), …)"
_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch that with git lfs pull"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ\x00", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x93NUMPY", f"a numpy file, not one of torch: {SAVE}"),
    (b"\x89HDF", f"an HDF5 file (Keras, MATLAB), not one of torch: {SAVE}"),
    (b"MATLAB", f"a MATLAB file, not one of torch: {SAVE}"),
)
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)", re.I)
_ANNEX = re.compile(rb"[./\w]*annex/objects/")
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]+")
# torch wrote this before the state_dict, until it wrote zips.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def not_a_checkpoint(data: bytes) -> str:
    """What the bytes of a file are if they are no checkpoint of torch; "" where they may be one."""
    for beginning, what in _BEGINNINGS:
        if data.startswith(beginning):
            return what
    if not data:
        return "an empty file"
    if _PAGE.match(data):
        return "an HTML page, saved instead of the file: download the file itself"
    if _ANNEX.match(data):
        return "a git-annex pointer, not the file itself: fetch that with git annex get"
    if data.startswith(b"PK"):
        return _zip(data)
    if data[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if _is_safetensors(data):
        return "a safetensors file: torch.save(safetensors.torch.load_file(path), …) makes a checkpoint of it"
    # Of a model, field 1 is a small number, its version, and fields 2 to 8 are all of them.
    if data[:1] == b"\x08" and len(data) > 2 and data[1] < 64 and data[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42):
        return f"an ONNX graph, not a checkpoint of torch: {SAVE}"
    if data[:1] == b"\x80" and not data.startswith(_LEGACY):
        return f"a pickle that torch did not write: {SAVE}"
    if _TEXT.fullmatch(data[:512]):
        return f"a text file that begins {data[:40].decode('ascii').splitlines()[0]!r}"
    return ""


def _zip(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except Exception:  # of a damaged one anything may come
        return "a zip, as torch writes them, that is cut off or damaged"
    within = {name.partition("/")[2] for name in names}
    if "constants.pkl" in within or any(name.startswith("code/") for name in within):
        return f"a TorchScript archive, not a state_dict: {SAVE}"
    if "data.pkl" in within:
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return f"a numpy file, not one of torch: {SAVE}"
    return f"a zip archive, with {names[0]!r} in it: unpack it first" if names else "an empty zip archive"


def _is_safetensors(data: bytes) -> bool:
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8
