"""The folder of bundles: finds them, loads them, and answers which twin a reference means."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mousetwin.errors import InvalidArgument, NotFound
from mousetwin.query import Prediction, TwinRef, stand_in_warning
from mousetwin.sources import by_number, is_skipped

from . import bundle
from .device import Device
from .limits import Limits
from .twin import Twin

# Mouse, model and version.
Key = tuple[str, str, str]

DEMO_MODELS = Path(__file__).parent / "demo"
_REFUSED = "was found and does not verify: the service's log says why"


class Repository:
    """The twins that are served.

    Attributes:
        twins: by mouse, model and version, the newest version last.
        refused: for each bundle that was found and is not served, a line with the reason.
    """

    def __init__(self, twins: Iterable[Twin], refused: Mapping[Key, str] | None = None) -> None:
        self.twins = {(t.identity.mouse, t.identity.model, t.identity.version): t for t in twins}
        self.refused = dict(refused or {})
        for (mouse, model, version), twin in self.twins.items():
            newer = [v for m, n, v in self.refused if (m, n) == (mouse, model) and by_number(v) > by_number(version)]
            twin.stands_in_for(tuple(newer))

    @classmethod
    def load(cls, models: Path, devices: Sequence[Device], limits: Limits | None = None) -> Repository:
        """Everything in `MODELS/<mouse>/<model>/<version>/`, each twin on all the devices.

        A bundle that cannot be served is noted in `refused`.

        Raises:
            NotFound: `models` is no folder.
        """
        twins, refused = [], dict[Key, str]()
        for folder in folders(models):
            try:
                twins.append(Twin(bundle.read(folder), devices, limits or Limits()))
            except bundle.BundleError as error:
                refused[_key(folder)] = f"not served: {located(error, folder)}"
        return cls(twins, refused)

    def find(self, ref: TwinRef) -> Twin:
        """The twin that `ref` means. Raises as `resolve`."""
        return self.twins[resolve(self.twins, ref, self.refused)]

    def with_stand_in(self, answer: Prediction, ref: TwinRef) -> Prediction:
        """The answer with a warning where `ref` left the version open and a newer one was found and refused."""
        if ref.version or not (warning := stand_in_warning(self.find(ref).summary)):
            return answer
        return replace(answer, warnings=(*answer.warnings, warning))


def folders(models: Path) -> list[Path]:
    """Folders that may hold bundles, versions of a model from the oldest to the newest.

    Raises:
        NotFound: no such folder of models.
    """
    try:
        # Listed, since what cannot be read looks empty to `glob`.
        os.listdir(models)
    except OSError as error:
        why = "" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else f": {error.strerror}"
        raise NotFound(f"{models}: no such folder of exported twins{why}", field="models") from None
    found = sorted(models.glob("*/*/*"), key=_by_version)
    return [folder for folder in found if folder.is_dir() and not any(map(is_skipped, folder.parts[-3:]))]


def resolve(twins: Iterable[Key], ref: TwinRef, refused: Iterable[Key] = ()) -> Key:
    """Which of the twins (mouse, model, version) `ref` means.

    A model that is not named is only meant where the mouse has no other, served or refused. A version that is not named
    is the newest that is served.

    Args:
        twins: versions of a model from the oldest to the newest.
        ref: as a caller named it.
        refused: what was found and is not served.

    Raises:
        NotFound: no such mouse, model or version; the message lists those there are, and tells of a refused one.
        InvalidArgument: the mouse is not named, or has several models and none is named.
    """
    keys, others = list(twins), list(refused)
    mice = _listed(mouse for mouse, _, _ in keys)
    if not ref.mouse:
        raise InvalidArgument(f"mouse: missing, expected one of {mice}", field="mouse")
    models = list(dict.fromkeys(model for mouse, model, _ in keys if mouse == ref.mouse))
    if not models:
        why = _REFUSED if any(mouse == ref.mouse for mouse, _, _ in others) else "is not served"
        raise NotFound(f"mouse: {_brief(ref.mouse)} {why}, expected one of {mice}", field="mouse")
    unserved = list(dict.fromkeys(m for mouse, m, _ in others if mouse == ref.mouse and m not in models))
    if not ref.model and len(models) + len(unserved) > 1:
        also = f"; {_listed(unserved)} {_REFUSED}" if unserved else ""
        raise InvalidArgument(f"model: {ref.mouse} has several, expected one of {_listed(models)}{also}", field="model")
    model = ref.model or models[0]
    if model not in models:
        what = f"{_brief(model)} {_REFUSED}" if model in unserved else f"{ref.mouse} has no {_brief(model)}"
        raise NotFound(f"model: {what}, expected one of {_listed(models)}", field="model")
    versions = [version for mouse, name, version in keys if (mouse, name) == (ref.mouse, model)]
    version = ref.version or versions[-1]
    if version not in versions:
        there = (ref.mouse, model, version) in others
        what = f"{_brief(version)} {_REFUSED}" if there else f"{ref.mouse}/{model} has no {_brief(version)}"
        raise NotFound(f"version: {what}, expected one of {_listed(versions)}", field="version")
    return ref.mouse, model, version


def located(error: bundle.BundleError, folder: Path) -> str:
    """What is wrong with the bundle in `folder`, in one line."""
    # One line, and with the folder even where only a file's name is told, as the engine does.
    message = " ".join(str(error).split())
    return message if str(folder) in message else f"{folder}/{message}"


def _by_version(folder: Path) -> tuple[str, str, Any]:
    mouse, model, version = _key(folder)
    # Numbers count as numbers, so that version 10 is newer than 9.
    return (mouse, model, by_number(version))


def _key(folder: Path) -> Key:
    return (folder.parent.parent.name, folder.parent.name, folder.name)


def _listed(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - 20} more" if len(unique) > 20 else ""
    return (", ".join(unique[:20]) + more) or "none: nothing is served"


def _brief(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:80] + "…")
