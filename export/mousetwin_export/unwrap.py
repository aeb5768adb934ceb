"""Which of what is in a checkpoint are the weights: wrappers around a state_dict, and prefixes of all its keys.

Weights are known by the parts that every model of the family has. What may be meant in more than one way is refused,
with the names of all that there are; `--weights` picks one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .errors import ExportError

_PART = re.compile(r"(?:(.+?)\.)?((?:core|readout|shifter)\..+)")
# torch.compile puts it wherever a module was compiled; it names nothing.
_COMPILED = "_orig_mod."
_DEEPEST = 5
# How weights are called that have no name.
_TOP = "."


@dataclass(frozen=True)
class Weights:
    """The state_dict that was found. read_from: what it was taken out of; "" where it is all that there is."""

    tensors: Mapping[str, Any]
    read_from: str


def find_weights(path: str, loaded: Any, chosen: str | None = None) -> Weights:
    """The weights in what was loaded.

    Args:
        path: what errors begin with.
        loaded: of any kind.
        chosen: the name of the weights, where there may be several: the keys that lead to them, joined by dots.

    Raises:
        ExportError: there are none, or more than one.
    """
    if not isinstance(loaded, dict | list | tuple) or not loaded:
        raise ExportError(f"{path}: holds a {type(loaded).__name__}, expected a state_dict of named tensors")
    found = {name: one for holder in _holders(loaded, "") for name, one in _groups(*holder).items()}
    if chosen is not None:
        if chosen not in found:
            there = _listed(found) or "none"
            raise ExportError(f"{path}: weights: no {chosen!r}, expected one of {there}")
        group = found[chosen]
    elif len(found) > 1:
        raise ExportError(f"{path}: holds weights more than once: {_listed(found)}; say which with --weights NAME")
    elif found:
        (group,) = found.values()
        if group.beside:
            raise ExportError(
                f"{path}: {group.beside[0]} stands beside weights named {group.prefix}…: "
                f"if these are the weights, --weights {next(iter(found))}"
            )
    elif isinstance(loaded, dict) and any(isinstance(value, Tensor) for value in loaded.values()):
        # Of another family; the config tells what is missing.
        return Weights(loaded, "")
    else:
        raise ExportError(
            f"{path}: holds {_brief(loaded)}; expected a state_dict of named tensors with core, readout or shifter"
        )
    return Weights(group.tensors, group.told)


@dataclass(frozen=True)
class _Group:
    """Weights under one prefix. beside: keys of the same mapping that are not under it."""

    holder: str
    prefix: str
    tensors: dict[str, Any]
    beside: list[str]
    compiled: bool

    @property
    def told(self) -> str:
        without = [f"the prefix {self.prefix!r}"] if self.prefix else []
        without += [f"{_COMPILED!r} in names"] if self.compiled and _COMPILED not in self.prefix else []
        parts = [f"read from {self.holder!r}"] if self.holder else []
        parts += [f"without {' and '.join(without)}"] if without else []
        return ", ".join(parts)


def _holders(value: Any, name: str, depth: int = 0) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Mappings in which names of weights stand, with what leads to them."""
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        if any(isinstance(key, str) and isinstance(one, Tensor) and _PART.fullmatch(key) for key, one in value.items()):
            yield value, name
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list | tuple):
        children = [(str(number), child) for number, child in enumerate(value)]
    else:
        return
    for key, child in children:
        yield from _holders(child, f"{name}.{key}" if name else key, depth + 1)


def _groups(mapping: Mapping[str, Any], holder: str) -> dict[str, _Group]:
    """By name, the weights in one mapping."""
    named: dict[str, dict[str, Any]] = defaultdict(dict)
    originals: dict[str, list[str]] = defaultdict(list)
    others: dict[str, Any] = {}
    for key, value in mapping.items():
        match = _PART.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            others[key] = value
            continue
        prefix = f"{match[1]}." if match[1] else ""
        plain = match[2].replace(_COMPILED, "")
        # Both there are two, of which the config expects one.
        named[prefix][match[2] if f"{prefix}{plain}" in mapping else plain] = value
        originals[prefix].append(match[2])
    found = {}
    for prefix, tensors in named.items():
        beside = []
        for key, value in others.items():
            if not prefix:
                tensors[key] = value
            elif isinstance(key, str) and key.startswith(prefix):
                tensors[key.removeprefix(prefix)] = value
            else:
                beside.append(str(key))
        name = ".".join(part for part in (holder, prefix.removesuffix(".")) if part) or _TOP
        compiled = any(_COMPILED in key for key in originals[prefix])
        found[name] = _Group(holder, prefix, tensors, beside, compiled)
    return found


def _listed(found: Mapping[str, _Group]) -> str:
    return ", ".join(f"{name!r} ({len(group.tensors)} tensors)" for name, group in found.items())


def _brief(loaded: Any) -> str:
    """What is in it, in a few words."""
    if not isinstance(loaded, dict):
        return f"a {type(loaded).__name__} of {', '.join(sorted({type(one).__name__ for one in loaded}))}"
    named = [f"{key!r} ({type(value).__name__})" for key, value in list(loaded.items())[:6]]
    return ", ".join(named) + (", …" if len(loaded) > 6 else "")
