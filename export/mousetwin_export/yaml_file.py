"""YAML files, as far as a config or statistics need them: mappings, lists, words and numbers."""

from __future__ import annotations

import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from mousetwin.errors import MousetwinError
from mousetwin.sources import read_file

from .errors import ExportError

# Statistics of ten thousand neurons are half a megabyte.
_MAX_BYTES = 4 << 20
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 80


def read_yaml(path: Path) -> Any:
    """The document in a YAML file.

    Raises:
        ExportError: the file cannot be read, is not YAML, names a key twice, or refers to another part of itself.
    """
    try:
        data = read_file(path, "yaml", _MAX_BYTES)
    except MousetwinError as error:
        raise ExportError(str(error)) from None
    try:
        # By bytes: YAML is UTF-8, or says what else it is, whatever this machine's encoding.
        return yaml.load(data, _Loader)
    except RecursionError:
        raise ExportError(f"{path}: not taken: nested too deeply") from None
    except Exception as error:  # PyYAML raises of every kind where a number or a date is none
        raise ExportError(f"{path}: not YAML: {' '.join(str(error).split())[:300]}") from None


def shown(value: Any) -> str:
    """A value as an error shows it, however long it is."""
    try:
        return _BRIEF.repr(value)
    except ValueError:
        # Python does not write down whole numbers of thousands of digits.
        return f"{type(value).__name__} too long to show"


def named(key: Any) -> str:
    """A key as an error names it."""
    text = key if isinstance(key, str) else shown(key)
    return text if len(text) <= 80 else f"{text[:80]}…"


class _Loader(yaml.SafeLoader):
    """No aliases, by which a short file can stand for a value without end; and no key twice, of which one would win."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "an alias (*NAME), expected the value itself", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep=deep)
        if len(found) != len(node.value):
            counts = Counter(self.construct_object(key, deep=True) for key, _ in node.value)
            twice = named(next(key for key, count in counts.items() if count > 1))
            raise yaml.constructor.ConstructorError(None, None, f"{twice} twice in a mapping", node.start_mark)
        return found
