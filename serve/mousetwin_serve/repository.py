"""The folder of bundles: finds them, loads them, and answers which twin a reference means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from mousetwin.errors import InvalidArgument, NotFound
from mousetwin.query import TwinRef

from . import bundle
from .device import Device
from .stimulus import Limits
from .twin import Twin

# Mouse, model and version.
Key = tuple[str, str, str]

DEMO_MODELS = Path(__file__).parent / "demo"


class Repository:
    """The twins that are served.

    Attributes:
        twins: by mouse, model and version, the newest version last.
        refused: a line for each bundle that was found and is not served, with the reason.
    """

    def __init__(self, twins: Iterable[Twin], refused: Iterable[str] = ()) -> None:
        self.twins = {(t.identity.mouse, t.identity.model, t.identity.version): t for t in twins}
        self.refused = list(refused)

    @classmethod
    def load(cls, models: Path, devices: Sequence[Device], limits: Limits | None = None) -> Repository:
        """Everything in `MODELS/<mouse>/<model>/<version>/`, each twin on all the devices.

        A bundle that cannot be served is noted in `refused`.

        Raises:
            NotFound: `models` is no folder.
        """
        twins, refused = [], []
        for folder in folders(models):
            try:
                twins.append(Twin(bundle.read(folder), devices, limits or Limits()))
            except bundle.BundleError as error:
                refused.append(f"not served: {located(error, folder)}")
        return cls(twins, refused)

    def find(self, ref: TwinRef) -> Twin:
        """The twin that `ref` means. Raises as `resolve`."""
        return self.twins[resolve(self.twins, ref)]


def folders(models: Path) -> list[Path]:
    """Folders that may hold bundles, versions of a model from the oldest to the newest.

    Raises:
        NotFound: no such folder of models.
    """
    if not models.is_dir():
        raise NotFound(f"{models}: no such folder of exported twins", field="models")
    found = sorted(models.glob("*/*/*"), key=_by_version)
    return [folder for folder in found if folder.is_dir() and not folder.name.startswith(".")]


def resolve(twins: Iterable[Key], ref: TwinRef) -> Key:
    """Which of the twins (mouse, model, version) `ref` means.

    Args:
        twins: versions of a model from the oldest to the newest.
        ref: as a caller named it.

    Raises:
        NotFound: no such mouse, model or version; the message lists those there are.
        InvalidArgument: the mouse is not named, or has several models and none is named.
    """
    keys = list(twins)
    mice = _listed(mouse for mouse, _, _ in keys)
    if not ref.mouse:
        raise InvalidArgument(f"mouse: missing, expected one of {mice}", field="mouse")
    models = list(dict.fromkeys(model for mouse, model, _ in keys if mouse == ref.mouse))
    if not models:
        raise NotFound(f"mouse: {_brief(ref.mouse)} is not served, expected one of {mice}", field="mouse")
    if not ref.model and len(models) > 1:
        raise InvalidArgument(f"model: {ref.mouse} has several, expected one of {_listed(models)}", field="model")
    model = ref.model or models[0]
    if model not in models:
        raise NotFound(f"model: {ref.mouse} has no {_brief(model)}, expected one of {_listed(models)}", field="model")
    versions = [version for mouse, name, version in keys if (mouse, name) == (ref.mouse, model)]
    version = ref.version or versions[-1]
    if version not in versions:
        raise NotFound(
            f"version: {ref.mouse}/{model} has no {_brief(version)}, expected one of {_listed(versions)}",
            field="version",
        )
    return ref.mouse, model, version


def located(error: bundle.BundleError, folder: Path) -> str:
    """What is wrong with the bundle in `folder`, in one line."""
    # One line, and with the folder even where only a file's name is told, as the engine does.
    message = " ".join(str(error).split())
    return message if str(folder) in message else f"{folder}/{message}"


def _by_version(folder: Path) -> tuple[str, str, list[tuple[int, str]]]:
    # Numbers count as numbers, so that version 10 is newer than 9.
    parts = [(int(part or 0), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", folder.name)]
    return (folder.parent.parent.name, folder.parent.name, parts)


def _listed(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - 20} more" if len(unique) > 20 else ""
    return (", ".join(unique[:20]) + more) or "none: nothing is served"


def _brief(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:80] + "…")
