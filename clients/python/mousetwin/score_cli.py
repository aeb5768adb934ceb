"""`mousetwin score`: every model of a mouse on its data set, side by side, as the competition scores them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import scores
from .apart import check_outputs
from .dataset import Dataset
from .errors import InvalidArgument
from .figures import picture_kinds
from .files import Destination, add_overwrite, named_path, output, whole_file
from .fits import check_fits
from .frames import frame_size
from .interrupts import terminable
from .progress import ProgressBar
from .sources import Sources
from .submission import TIERS, submission_path, write_submission
from .twins import Mouse, Twins, connect


def add_score(commands: Any, add_server: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add `score` to the `mousetwin` command."""
    parser = commands.add_parser("score", help="score a mouse's models on its data set")
    parser.add_argument(
        "dataset", type=named_path, metavar="DATASET", help="the mouse's SENSORIUM data set, folder or zip"
    )
    parser.add_argument("--mouse", required=True, metavar="KEY", help="data_key, as 'mousetwin mice' lists it")
    parser.add_argument("--model", action="append", metavar="NAME", help="may be repeated; default: every model served")
    parser.add_argument("--tier", default="test", help="default: %(default)s")
    parser.add_argument("--report", metavar="JSON", help=".json to write, with every neuron's scores; - for stdout")
    parser.add_argument("--csv", metavar="CSV", help=".csv to write, a row a neuron (of one model); - for stdout")
    parser.add_argument("--plot", metavar="PNG", help="distributions to draw (needs the plot extra)")
    parser.add_argument(
        "--submission", type=named_path, metavar="DIR", help="folder for the competition's submission files"
    )
    add_overwrite(parser)
    add_server(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    outputs = _outputs(args)
    # What standard output is for, others' lines are not in.
    say = partial(print, file=sys.stderr if any(out.is_standard_output for out in outputs.values()) else sys.stdout)
    with ExitStack() as stack:
        stack.enter_context(terminable())
        dataset = stack.enter_context(Dataset.open(args.dataset))
        sources = Sources.begin(dataset.path, lambda: dataset.stamps(dataset.variables, np.arange(dataset.trials)))
        twins = stack.enter_context(connect(args.server, timeout=args.timeout))
        mice = _models(twins, args.mouse, args.model)
        several = len(mice) > 1
        if several and (args.csv or args.submission):
            raise InvalidArgument("--csv and --submission are of one model: name it with --model", field="model")
        for mouse in mice:
            if odd := check_fits(dataset, mouse.info):
                print(f"note: {odd}", file=sys.stderr)
        if args.submission is not None:
            _submit(dataset, mice[0], sources, args.submission, say)
        try:
            found = {mouse.summary.twin.model: _score(dataset, mouse, sources, args.tier) for mouse in mice}
        except InvalidArgument as error:
            if error.field == "dataset":
                raise
            if error.field != "responses" or args.submission is None:
                raise InvalidArgument(f"{args.dataset}: tier {args.tier}: {error}", field=error.field) from None
            say(f"tier {args.tier}: {error}")
            return 0
    _print(found, args.mouse, args.tier, say)
    about = [{**_about(mouse, args), **found[mouse.summary.twin.model].report()} for mouse in mice]
    if "report" in outputs:
        with whole_file(outputs["report"], "report") as stream:
            stream.write((json.dumps(about[0] if not several else {"models": about}, indent=1) + "\n").encode())
    if "csv" in outputs:
        next(iter(found.values())).write_csv(outputs["csv"], dataset.unit_ids)
    if "plot" in outputs:
        made_up = " (synthetic mouse)" if mice[0].summary.synthetic else ""
        scores.plot(found, f"{args.mouse}{made_up}, tier {args.tier}", outputs["plot"])
    return 0


def _outputs(args: argparse.Namespace) -> dict[str, Destination]:
    """The files that were asked for, by option. Raises as `check_outputs`."""
    replacing = {"overwrite": args.overwrite}
    found = {}
    if args.report is not None:
        found["report"] = output(args.report, "report", (".json",), default=".json", **replacing)
    if args.csv is not None:
        found["csv"] = output(args.csv, "csv", (".csv",), default=".csv", **replacing)
    if args.plot is not None:
        found["plot"] = output(args.plot, "plot", picture_kinds(), **replacing)
    submitted = [] if args.submission is None else [submission_path(args.submission, tier) for tier in TIERS]
    more = [output(str(path), "submission", (".csv",), make_folder=True, **replacing) for path in submitted]
    check_outputs([*found.values(), *more], {"dataset": args.dataset})
    return found


def _models(twins: Twins, data_key: str, names: list[str] | None) -> list[Mouse]:
    if names is None:
        names = list(dict.fromkeys(s.twin.model for s in twins.mice() if s.twin.mouse == data_key))
    # Without any, the service says which mice there are.
    return [twins.mouse(data_key, name) for name in names or [""]]


def _predict(
    dataset: Dataset, mouse: Mouse, sources: Sources, trials: NDArray[np.intp], label: str
) -> Iterator[NDArray[np.float32]]:
    """Predictions for some trials, batch after batch. Raises InvalidArgument at the end where files have changed."""
    summary = mouse.summary
    named = [name for name in ("behavior", "pupil_center") if getattr(summary, name)]
    for name in ("images", *named):
        if name not in dataset.variables:
            raise InvalidArgument(f"no files in data/{name}, which {summary.twin.mouse} needs", field=name)
    height, width = summary.stimulus_size
    size = frame_size(8 * height * width, 4 * summary.neurons)
    columns = [dataset.batches(name, trials, size) for name in ("images", *named)]
    frames = (
        {**dict(zip(("images", *named), rows, strict=True)), "space": "raw"} for rows in zip(*columns, strict=True)
    )
    bar, done = ProgressBar(label, unit="trials"), 0
    for responses in mouse.predict_frames(frames):
        done += len(responses)
        bar(done, len(trials))
        yield np.asarray(responses)
    sources.check_unchanged()


def _score(dataset: Dataset, mouse: Mouse, sources: Sources, tier: str) -> scores.Scores:
    trials = dataset.trials_of(tier)
    responses = np.concatenate(list(dataset.batches("responses", trials, 256)))
    if not responses.any():
        # Before the twin has worked for nothing.
        scores.score(responses, responses, dataset.image_ids[trials])
    std = dataset.statistic("responses", "std")
    if std is None:
        raise InvalidArgument("meta/statistics/responses/all/std.npy: missing", field="std")
    label = f"{mouse.summary.twin.model} {tier}"
    predictions = np.concatenate(list(_predict(dataset, mouse, sources, trials, label)))
    return scores.score(responses / std, predictions, dataset.image_ids[trials])


def _submit(dataset: Dataset, mouse: Mouse, sources: Sources, folder: Path, say: Callable[[object], None]) -> None:
    ids = dataset.unit_ids if dataset.unit_ids is not None else mouse.info.unit_ids
    if ids is None:
        raise InvalidArgument("meta/neurons/unit_ids.npy: missing, a submission names its neurons", field="unit_ids")
    there = set(dataset.tiers.tolist()) & TIERS.keys()
    if not there:
        raise InvalidArgument("meta/trials/tiers.npy: neither test nor final_test, nothing to submit", field="tier")
    for tier in sorted(there, reverse=True):
        trials = dataset.trials_of(tier)
        predictions = _predict(dataset, mouse, sources, trials, f"submission {tier}")
        say(write_submission(folder, tier, dataset.trial_idx[trials], dataset.image_ids[trials], predictions, ids))


def _about(mouse: Mouse, args: argparse.Namespace) -> dict[str, Any]:
    twin = mouse.summary.twin
    return {
        "mouse": twin.mouse,
        "model": twin.model,
        "version": twin.version,
        "digest": twin.digest,
        "synthetic": mouse.summary.synthetic,
        "tier": args.tier,
        "dataset": str(args.dataset),
    }


def _print(found: dict[str, scores.Scores], mouse: str, tier: str, say: Callable[[object], None]) -> None:
    width = max(len("model"), *(len(name) for name in found))
    one = next(iter(found.values()))
    say(f"{mouse}, tier {tier}: {one.trials} trials of {one.images} images, {one.neurons} neurons")
    say(f"{'model':<{width}}  {'single trial':>12}  {'to average':>10}  {'FEV':>7}  {'FEVE':>7}")
    for name, each in found.items():
        cells = ["-" if mean is None else f"{mean:.4f}" for mean in each.mean.values()]
        say(f"{name:<{width}}  {cells[0]:>12}  {cells[1]:>10}  {cells[2]:>7}  {cells[3]:>7}")
    if one.mean["fev"] is None:
        say("FEV and FEVE need every image to be shown more than once")
