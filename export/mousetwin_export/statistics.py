"""The training set's statistics, from a YAML file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mousetwin_serve import bundle

from .errors import ExportError
from .yaml_file import named, read_yaml, shown

VARIABLES = ("images", "behavior", "pupil_center", "responses")


def read_statistics(path: Path) -> bundle.Statistics:
    """Statistics from a YAML file: `images`, `behavior`, `pupil_center`, `responses`, each with `mean` and `std`.

    Values are numbers or lists, in the data set's own units (images: gray level 0-255).

    Raises:
        ExportError: the file cannot be read, or a key or value is not as expected; the message names it.
    """
    document = read_yaml(path)
    if not isinstance(document, dict) or not document:
        raise ExportError(f"{path}: expected some of the keys {', '.join(VARIABLES)}")
    found: dict[str, bundle.Moments] = {}
    for variable, moments in document.items():
        if variable not in VARIABLES:
            raise ExportError(f"{path}: {named(variable)} is not known, expected some of {', '.join(VARIABLES)}")
        if not isinstance(moments, dict) or not moments or not set(moments) <= {"mean", "std"}:
            raise ExportError(f"{path}: {variable}: expected the keys mean and std")
        values = {kind: _numbers(path, f"{variable}.{kind}", value) for kind, value in moments.items()}
        if min(values.get("std", (1.0,))) <= 0:
            raise ExportError(f"{path}: {variable}.std: expected positive numbers")
        found[variable] = bundle.Moments(**values)
    return bundle.Statistics(**found)


def merge(first: bundle.Statistics, second: bundle.Statistics) -> bundle.Statistics:
    """What `first` knows, and what `second` knows of the variables that `first` does not."""
    nothing = bundle.Moments()
    chosen = {name: getattr(first, name) for name in VARIABLES}
    return bundle.Statistics(**{n: m if m != nothing else getattr(second, n) for n, m in chosen.items()})


def _numbers(path: Path, key: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    try:
        if values and all(type(v) in (int, float) and math.isfinite(v) for v in values):
            return tuple(float(v) for v in values)
    except OverflowError:
        # A whole number that float has none for.
        pass
    raise ExportError(f"{path}: {key}: {shown(value)}, expected a number or a list of numbers")
