"""How well predictions fit recorded responses, as the SENSORIUM competition scores them.

The formulas are those of its starter kit (sinzlab/sensorium, `utility/metrics.py`) and of
neuralpredictors' `measures.np_functions`, in float64.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import from_labels, from_nested
from .errors import InvalidArgument
from .figures import new_figure, saved
from .files import Where, whole_file

Float = NDArray[np.float64]

METRICS = ("single_trial_correlation", "correlation_to_average", "fev", "feve")
_TITLES = ("single-trial correlation", "correlation to average", "FEV", "FEVE")
# Neurons with less explainable variance than this are left out of FEVE.
FEV_THRESHOLD = 0.15
_EPSILON = 1e-8
# Numbers of each kind that are scored at once.
_BLOCK = 1 << 18


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one twin on one set of trials.

    Attributes:
        per_neuron: float64 (K,) by metric; NaN where a neuron has none. `fev` and `feve` are missing where no image
            was shown more than once to tell noise from signal.
        trials, images: how many.
    """

    per_neuron: Mapping[str, Float]
    trials: int
    images: int

    def __repr__(self) -> str:
        means = ", ".join(f"{name} {value:.4g}" for name, value in self.mean.items() if value is not None)
        return f"<Scores of {self.neurons} neurons, {self.trials} trials of {self.images} images: {means}>"

    @property
    def mean(self) -> dict[str, float | None]:
        """By metric, over the neurons that have it; None where none has."""
        found = {name: self.per_neuron[name] for name in METRICS if name in self.per_neuron}
        counted = {name: values[np.isfinite(values)] for name, values in found.items()}
        means = {name: float(values.mean()) for name, values in counted.items() if values.size}
        return {name: means.get(name) for name in METRICS}

    @property
    def neurons(self) -> int:
        return len(self.per_neuron["single_trial_correlation"])

    def report(self) -> dict[str, Any]:
        """As JSON has it: each metric's `mean` and `per_neuron`, null where there is none."""
        report: dict[str, Any] = {"trials": self.trials, "images": self.images, "neurons": self.neurons}
        for name, mean in self.mean.items():
            values = self.per_neuron.get(name)
            listed = None if values is None else [v if np.isfinite(v) else None for v in values.tolist()]
            report[name] = {"mean": mean, "per_neuron": listed}
        report["neurons_in_feve"] = int(np.isfinite(self.per_neuron.get("feve", np.empty(0))).sum())
        return report

    def write_csv(self, path: Where, unit_ids: ArrayLike | None = None) -> None:
        """A row a neuron: its column, its unit id where known, and the metrics, empty where there is none.

        Raises:
            InvalidArgument: `unit_ids` are neither numbers nor words.
            NotFound: `path` cannot be written.
            InvalidArgument: its name does not end in `.csv`.
        """
        ids = [""] * self.neurons if unit_ids is None else from_labels(unit_ids, "unit_ids").tolist()
        with whole_file(path, "csv", (".csv",)) as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
            writer = csv.writer(text)
            writer.writerow(["neuron", "unit_id", *METRICS])
            nothing = np.full(self.neurons, np.nan)
            columns = [self.per_neuron.get(name, nothing).tolist() for name in METRICS]
            for neuron, (unit_id, *values) in enumerate(zip(ids, *columns, strict=True)):
                writer.writerow([neuron, unit_id, *("" if np.isnan(value) else value for value in values)])


def score(responses: ArrayLike, predictions: ArrayLike, image_ids: ArrayLike) -> Scores:
    """The competition's scores, each neuron's.

    - single-trial correlation: over trials;
    - correlation to average: over images, the repeats of each averaged first;
    - FEV: the share of a neuron's variance that its image explains, (total - noise) / total, noise being the mean over
      images of the variance over repeats;
    - FEVE: the share of that which is predicted, 1 - (mse - noise) / (total - noise); NaN where FEV is less than 0.15.

    Args:
        responses: (T, K), as recorded, divided by each neuron's standard deviation.
        predictions: (T, K), of the same trials.
        image_ids: (T,): trials of one image have one.

    Raises:
        InvalidArgument: shapes disagree; values are not finite; or all responses are 0, as those of the competition's
            mice that are withheld.
    """
    recorded, predicted = from_nested(responses, "responses"), from_nested(predictions, "predictions")
    ids = from_labels(image_ids, "image_ids")
    _check(recorded, predicted, ids)
    width = block_width(len(recorded))
    starts = range(0, recorded.shape[1], width)
    return score_blocks(((recorded[:, i : i + width], predicted[:, i : i + width]) for i in starts), ids)


def block_width(trials: int) -> int:
    """How many neurons to score at once: what is worked with stays within some 20 MB."""
    return max(1, _BLOCK // max(1, trials))


def score_blocks(blocks: Iterable[tuple[NDArray[Any], NDArray[Any]]], image_ids: NDArray[Any]) -> Scores:
    """As `score`, for some neurons after others, so that not all responses need to fit into memory.

    Args:
        blocks: responses and predictions, (T, some) each, that have been checked.
        image_ids: (T,).
    """
    # Trials of one image side by side: every sum over repeats is one over neighbours.
    order = np.argsort(image_ids, kind="stable")
    ids = image_ids[order]
    starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    repeats = np.diff(np.append(starts, len(ids)))[:, None]
    found = [
        _score(recorded[order].astype(np.float64), predicted[order].astype(np.float64), starts, repeats)
        for recorded, predicted in blocks
    ]
    per_neuron = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    return Scores(per_neuron, len(ids), len(starts))


def _score(recorded: Float, predicted: Float, starts: NDArray[np.intp], repeats: NDArray[np.intp]) -> dict[str, Float]:
    """Each metric of each neuron. starts, repeats: where each image's trials begin, and how many it has."""

    def averaged(values: Float) -> Float:
        sums: Float = np.add.reduceat(values, starts, 0)
        return sums / repeats

    means = averaged(recorded)
    found = {
        "single_trial_correlation": _correlation(recorded, predicted),
        "correlation_to_average": _correlation(means, averaged(predicted)),
    }
    if (repeats > 1).all():
        squares = np.add.reduceat((recorded - np.repeat(means, repeats[:, 0], 0)) ** 2, starts, 0)
        noise = (squares / (repeats - 1)).mean(0)
        total = recorded.var(0, ddof=1)
        error = ((recorded - predicted) ** 2).mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            fev = (total - noise) / total
            feve = 1 - (error - noise) / (total - noise)
        found |= {"fev": fev, "feve": np.where(fev >= FEV_THRESHOLD, feve, np.nan)}
    return found


def plot(scores: Mapping[str, Scores], title: str, path: Where | None = None) -> Any:
    """The distributions over neurons, a panel a metric, a line a model. Returns the matplotlib figure.

    Raises:
        Unimplemented: matplotlib is not installed (`pip install 'mousetwin[plot]'`).
        InvalidArgument: `path` is no picture's name.
        NotFound: `path` cannot be written.
    """
    figure = new_figure(12, 3)
    for panel, metric, name in zip(figure.subplots(1, len(METRICS)), METRICS, _TITLES, strict=True):
        panel.set_title(name, fontsize=10)
        shown = {name: one.per_neuron[metric] for name, one in scores.items() if metric in one.per_neuron}
        shown = {name: values[np.isfinite(values)] for name, values in shown.items()}
        values = np.concatenate([*shown.values(), np.empty(0)])
        # A few neurons with almost no explainable variance would squeeze all others into one bar.
        low, high = (-1.0, 1.0) if not values.size else np.quantile(values, [0.005, 0.995])
        edges = np.linspace(low, max(high, low + 1e-6), 41)
        for color, (name, each) in enumerate(shown.items()):
            panel.hist(np.clip(each, edges[0], edges[-1]), edges, histtype="step", color=f"C{color}", label=name)
            if each.size:
                panel.axvline(each.mean(), color=f"C{color}", linestyle=":")
        panel.set_ylabel("neurons" if metric == METRICS[0] else "")
        if not values.size:
            panel.text(0.5, 0.5, "needs repeats", ha="center", transform=panel.transAxes)
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(f"{title} (dotted: mean)", fontsize=10)
    return saved(figure, path)


def _check(responses: NDArray[Any], predictions: NDArray[Any], image_ids: NDArray[Any]) -> None:
    if responses.ndim != 2 or not responses.size:
        raise InvalidArgument(f"responses: shape {responses.shape}, expected (trials, neurons)", field="responses")
    if predictions.shape != responses.shape:
        raise InvalidArgument(
            f"responses: shape {responses.shape}, the predictions have {predictions.shape}", field="responses"
        )
    check_image_ids(image_ids, len(responses))
    check_numbers(responses, "responses")
    check_numbers(predictions, "predictions")
    check_recorded(bool(responses.any()))


def check_image_ids(image_ids: NDArray[Any], trials: int) -> None:
    """Raises InvalidArgument where they are not one a trial."""
    if image_ids.shape != (trials,):
        raise InvalidArgument(
            f"image_ids: shape {image_ids.shape}, expected ({trials},): one a trial", field="image_ids"
        )
    if image_ids.dtype.kind == "f":
        check_numbers(image_ids, "image_ids")


def check_numbers(values: NDArray[Any], name: str) -> None:
    """Raises InvalidArgument for anything but finite numbers."""
    if values.dtype.kind not in "uif" or not np.isfinite(values).all():
        raise InvalidArgument(f"{name}: expected finite numbers", field=name)


def check_recorded(any_response: bool) -> None:
    """Raises InvalidArgument where all responses are 0."""
    if not any_response:
        raise InvalidArgument(
            "responses: all 0: they are withheld, so there is nothing to compare predictions with", field="responses"
        )


def _correlation(first: Float, second: Float) -> Float:
    """Of columns; 0 where one does not vary."""
    first, second = (v - v.mean(0) for v in (first, second))
    product = (first / (first.std(0) + _EPSILON)) * (second / (second.std(0) + _EPSILON))
    return np.asarray(np.nan_to_num(product.mean(0)), np.float64)
