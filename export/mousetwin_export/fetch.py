"""The official SENSORIUM 2022 baselines, from their public repository."""

from __future__ import annotations

import hashlib
import http.client
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mousetwin.transport import HostPort
from mousetwin_serve import bundle

from .checkpoint import read_checkpoint
from .config import ModelConfig, parse_config
from .errors import ExportError
from .export import Contract, Say, export_twin, say_on_stderr

COMMIT = "c433fed25f234724fd9adf0cef3c260a2068b1fa"
BASE_URL = f"https://raw.githubusercontent.com/sinzlab/sensorium/{COMMIT}/notebooks/model_tutorial/model_checkpoints/pretrained"
_MAX_BYTES = 64 << 20
_TIMEOUT_SECONDS = 30

# As published in github.com/bryanlimy/V1T, src/v1t/pretrain/data.py: gray levels of the training images.
STATISTICS = bundle.Statistics(images=bundle.Moments(mean=(113.52469635009766,), std=(64.55815124511719,)))


@dataclass(frozen=True)
class Baseline:
    """One published checkpoint: sha256 of its file, and how it was trained."""

    file: str
    sha256: str
    mouse: str
    model: str
    description: str
    layers: int
    linear: bool
    shifter: bool

    @property
    def config(self) -> ModelConfig:
        return parse_config(
            {
                "pad_input": False,
                "stack": -1,
                "layers": self.layers,
                "input_kern": 9,
                "hidden_kern": 7,
                "hidden_channels": 64,
                "depth_separable": True,
                "grid_mean_predictor": {
                    "type": "cortex",
                    "input_dimensions": 2,
                    "hidden_layers": 1,
                    "hidden_features": 30,
                    "final_tanh": True,
                },
                "gauss_type": "full",
                "linear": self.linear,
                "shifter": self.shifter,
            }
        )


BASELINES = (
    Baseline(
        "sensorium_sota_model.pth",
        "7a87989732c34068fe10aaf1dd2c0421cb47cb1693b4f95a5e0e381632456173",
        "26872-17-20",
        "cnn",
        "SENSORIUM 2022 baseline: convolutional core, image only",
        layers=4,
        linear=False,
        shifter=False,
    ),
    Baseline(
        "sensorium_ln_model.pth",
        "4a243d8b76b9a523563c58530414bc6da5778be0448c7ec37b9d1a010989114a",
        "26872-17-20",
        "ln",
        "SENSORIUM 2022 baseline: linear-nonlinear, image only",
        layers=3,
        linear=True,
        shifter=False,
    ),
    Baseline(
        "sensorium_p_sota_model.pth",
        "2c82812e8193ce72896d37e0ca6a5bf688ec3e284ba1e27dad8040ee21da274a",
        "27204-5-13",
        "cnn",
        "SENSORIUM+ 2022 baseline: convolutional core, behavior and shifter",
        layers=4,
        linear=False,
        shifter=True,
    ),
    Baseline(
        "sensorium_p_ln_model.pth",
        "786723be498d87f676459f7fd9e975df61d7c86295dda8ea3afae8a29dc1d161",
        "27204-5-13",
        "ln",
        "SENSORIUM+ 2022 baseline: linear-nonlinear, behavior and shifter",
        layers=3,
        linear=True,
        shifter=True,
    ),
)


def choose(mouse: str | None, model: str | None) -> list[Baseline]:
    """The baselines of one mouse or one model, or all of them.

    Raises:
        ExportError: there is none; the message lists those there are.
    """
    chosen = [b for b in BASELINES if mouse in (None, b.mouse) and model in (None, b.model)]
    if not chosen:
        there = ", ".join(f"{b.mouse} {b.model}" for b in BASELINES)
        raise ExportError(f"no published baseline for mouse {mouse!r} and model {model!r}, expected one of {there}")
    return chosen


def fetch(
    baselines: list[Baseline],
    models: Path,
    base_url: str = BASE_URL,
    *,
    gradient: bool = True,
    progress: Callable[[str], Callable[[int, int], None]] = lambda label: lambda done, total: None,
    say: Say = say_on_stderr,
) -> list[Path]:
    """Download, verify and export; returns the bundles' folders.

    Args:
        baselines: which.
        models: where the bundles go.
        base_url: of the folder that holds the files.
        gradient: whether to make gradients.
        progress: makes, for a file's name, what is told of (bytes done, bytes in all).
        say: told what happens.

    Raises:
        ExportError: the download fails, is not what was published, or does not export.
    """
    folders = []
    with tempfile.TemporaryDirectory() as scratch:
        for baseline in baselines:
            url = f"{base_url.rstrip('/')}/{baseline.file}"
            data = download(url, progress(baseline.file))
            found = hashlib.sha256(data).hexdigest()
            if found != baseline.sha256:
                raise ExportError(f"{url}: sha256 is {found}, the published file's is {baseline.sha256}; not used")
            path = Path(scratch) / baseline.file
            path.write_bytes(data)
            contract = Contract(
                mouse=baseline.mouse,
                model=baseline.model,
                native_size=(36, 64),
                description=baseline.description,
                statistics=STATISTICS,
                source=bundle.Source(
                    description=f"{baseline.file}, github.com/sinzlab/sensorium at {COMMIT[:12]}",
                    sha256=found,
                    licence="MIT",
                ),
            )
            twin = read_checkpoint(path)
            folders.append(export_twin(twin, baseline.config, contract, models, gradient=gradient, say=say))
    return folders


def download(url: str, progress: Callable[[int, int], None]) -> bytes:
    """The bytes behind a URL.

    Raises:
        ExportError: in one line: the URL, and why it could not be had.
    """
    data = bytearray()
    try:
        # A proxy is for what is elsewhere.
        here = HostPort(urllib.parse.urlsplit(url).hostname or "", 0).is_loopback
        opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if here else []))
        with opener.open(url, timeout=_TIMEOUT_SECONDS) as response:
            total = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(1 << 16):
                data += chunk
                if len(data) > _MAX_BYTES:
                    raise ExportError(f"{url}: larger than {_MAX_BYTES} bytes; not used")
                progress(len(data), max(total, len(data)))
    except urllib.error.HTTPError as error:
        raise ExportError(f"{url}: the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise ExportError(f"{url}: cannot be reached: {error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ExportError(f"{url}: cannot be read: {reason}") from None
    return bytes(data)
