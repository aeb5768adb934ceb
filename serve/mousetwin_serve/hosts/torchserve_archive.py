"""Writes a folder that TorchServe serves: an archive (.mar) a twin, and one that knows them all."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from mousetwin.errors import InvalidArgument, NotFound

from .. import bundle
from ..repository import folders, located
from .torchserve_settings import Settings

# TorchServe's own name for a model that answers which twins there are.
CATALOG = "mousetwin"
_HANDLER = """# Written by `mousetwin archive`; TorchServe imports it from here.
from mousetwin_serve.hosts.torchserve_handler import handle  # noqa: F401
"""
# A zip's members all have this date, so that the same twin gives the same archive.
_DATE = (1980, 1, 1, 0, 0, 0)


def write_store(models: Path, store: Path, settings: Settings | None = None) -> list[str]:
    """Write `STORE/*.mar` and `STORE/config.properties`.

    Args:
        models: a folder of bundles, all of which are verified first.
        store: is made; must not be there, or be one that this wrote. Archives that others put there stay.
        settings: ports and sizes.

    Returns:
        The names TorchServe has for the twins.

    Raises:
        NotFound: no twin in `models`, or `store` cannot be written.
        InvalidArgument: a setting out of range, or a bundle that cannot be served; the message says why.
    """
    settings = settings or Settings()
    settings.check()
    found = _verified(models)
    limit = (settings.max_mb << 20) - (64 << 10)
    told = {"request_bytes": limit, "response_bytes": limit, "device": settings.device}
    catalog = {"catalog.json": json.dumps({"device": settings.device}).encode()}
    try:
        store.mkdir(parents=True, exist_ok=True)
        if not (store / f"{CATALOG}.mar").is_file() and any(store.iterdir()):
            raise InvalidArgument(f"{store}: holds other things, expected a new folder", field="out")
        for file in store.glob("*.mar"):
            if _is_ours(file):
                file.unlink()
        for name, folder in found.items():
            inside = "/".join(("models", *folder.parts[-3:]))
            files = {f"{inside}/{file.name}": file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
            _write_archive(store / f"{name}.mar", name, told, files)
            catalog[f"{inside}/{bundle.MANIFEST}"] = files[f"{inside}/{bundle.MANIFEST}"]
        _write_archive(store / f"{CATALOG}.mar", CATALOG, {"catalog": True}, catalog)
        (store / "config.properties").write_text(_properties(store, list(found), settings))
    except OSError as error:
        raise NotFound(f"{store}: cannot be written: {error.strerror}", field="out") from None
    return list(found)


def _verified(models: Path) -> dict[str, Path]:
    """The folder of each twin, by what TorchServe calls it."""
    found: dict[str, Path] = {}
    for folder in folders(models):
        try:
            manifest = bundle.read(folder).manifest
        except bundle.BundleError as error:
            raise InvalidArgument(located(error, folder), field="models") from None
        name = f"{manifest.mouse}_{manifest.model}_{manifest.version}"
        if name in found:
            raise InvalidArgument(f"{folder} and {found[name]}: TorchServe would call both {name}", field="models")
        found[name] = folder
    if not found:
        raise NotFound(f"{models}: no twin in it, expected MOUSE/MODEL/VERSION/bundle.json", field="models")
    return found


def _is_ours(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.read("handler.py") == _HANDLER.encode()
    except (KeyError, zipfile.BadZipFile):
        return False


def _write_archive(path: Path, name: str, told: dict[str, Any], files: dict[str, bytes]) -> None:
    manifest = {
        "createdOn": "",
        "runtime": "python",
        "model": {"modelName": name, "handler": "handler.py", "modelVersion": "1.0", "configFile": "model-config.yaml"},
        "archiverVersion": "0.12.0",
    }
    members = {
        "MAR-INF/MANIFEST.json": json.dumps(manifest, indent=1).encode(),
        "handler.py": _HANDLER.encode(),
        # JSON is YAML.
        "model-config.yaml": json.dumps(told).encode(),
        **files,
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member, _DATE), data)


def _properties(store: Path, names: list[str], settings: Settings) -> str:
    models = {
        name: {
            "1.0": {
                "defaultVersion": True,
                "marName": f"{name}.mar",
                "minWorkers": settings.workers,
                "maxWorkers": settings.workers,
                "batchSize": settings.batch_size,
                "maxBatchDelay": settings.batch_delay_ms,
                "responseTimeout": 120,
            }
        }
        for name in (CATALOG, *names)
    }
    lines = {
        "inference_address": f"http://127.0.0.1:{settings.http_port}",
        "management_address": f"http://127.0.0.1:{settings.management_port}",
        "metrics_address": f"http://127.0.0.1:{settings.metrics_port}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": settings.grpc_port,
        "grpc_management_port": settings.grpc_management_port,
        "model_store": store.resolve(),
        "load_models": "all",
        "models": json.dumps(models),
        # Its own default is a token in a file of the working folder, which no client of ours has.
        "disable_token_authorization": "true",
        "max_request_size": settings.max_mb << 20,
        "max_response_size": settings.max_mb << 20,
        "enable_envvars_config": "false",
        "install_py_dep_per_model": "false",
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())
