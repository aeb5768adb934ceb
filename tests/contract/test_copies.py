"""Pickles and copies of twins: the same address, the same twin, wherever they are opened."""

from __future__ import annotations

import asyncio
import copy
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mousetwin
import mousetwin.aio
import numpy as np
import pytest
from bundles import FULL, VERSIONS
from hosts import ClientHost, Host
from numpy.testing import assert_array_equal

NATIVE = np.random.default_rng(0).integers(0, 256, (3, *FULL.native)).astype(np.uint8)
ASK = """
import pickle, sys
mouse, images = pickle.load(sys.stdin.buffer)
pickle.dump(mouse.predict(images), sys.stdout.buffer)
"""


def test_on_every_host_of_the_client(host: Host) -> None:
    if not isinstance(host, ClientHost):
        pytest.skip("asked without the client")
    mouse = host.twins["full"]
    right = mouse.predict(NATIVE)
    for again in (pickle.loads(pickle.dumps(mouse)), copy.deepcopy(mouse), copy.deepcopy(host.twins)["full"]):
        found = again.predict(NATIVE)
        assert_array_equal(found, right)
        assert (found.twin, found.defaults) == (right.twin, right.defaults)


def test_a_folder_is_found_from_another_one(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models.parent)
    mouse = mousetwin.connect(f"local:{models.name}")["full"]
    right = mouse.predict(NATIVE)
    monkeypatch.chdir(tmp_path)
    given = pickle.dumps((mouse, NATIVE))
    run = subprocess.run([sys.executable, "-c", ASK], input=given, capture_output=True, check=True)
    found = pickle.loads(run.stdout)
    assert_array_equal(found, right)
    assert (found.twin, found.defaults) == (right.twin, right.defaults)


def test_the_version_stays_though_a_newer_one_came(tmp_path: Path) -> None:
    old, new = VERSIONS
    folder = old.write(tmp_path)
    mouse = mousetwin.connect(f"local:{tmp_path}")[old.mouse]
    kept = pickle.dumps(mouse)
    new.write(tmp_path)
    assert mousetwin.connect(f"local:{tmp_path}")[old.mouse].summary.twin.version == new.version
    again = pickle.loads(kept)
    assert again.predict(NATIVE).twin == mouse.summary.twin
    # What was written anew under the same version is another twin.
    shutil.rmtree(folder)
    replace(old, seed=old.seed + 1).write(tmp_path)
    other = mousetwin.connect(f"local:{tmp_path}").mouse(old.mouse, version=old.version)
    assert other.summary.twin != mouse.summary.twin
    assert copy.deepcopy(other).predict(NATIVE).twin == other.summary.twin


def test_a_connection_of_asyncio_says_that_it_cannot() -> None:
    async def attempt() -> None:
        async with mousetwin.aio.connect("127.0.0.1:1") as twins:
            for copied in (pickle.dumps, copy.deepcopy):
                with pytest.raises(TypeError, match="of one event loop, and cannot be pickled or copied"):
                    copied(twins)

    asyncio.run(attempt())
