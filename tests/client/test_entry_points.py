"""Hosts that other packages bring."""

from __future__ import annotations

from pathlib import Path

import mousetwin
import pytest


def test_of_two_packages_that_serve_one_scheme_none_is_picked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("second", "first"):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[mousetwin.transports]\nlab = {name}:open_lab\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(mousetwin.InvalidArgument, match="lab is served by first:open_lab and by second:open_lab"):
        mousetwin.connect("lab:anything")
