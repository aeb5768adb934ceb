"""The graphs of a bundle: each variant of a twin forwards and, where it can be traced, with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mousetwin_serve import bundle
from torch import nn
from torch.export import ExportedProgram

from . import graph, parity
from .errors import ExportError
from .gradient import Untraceable, trace_gradient, translate_gradient

Say = Callable[[str], None]


@dataclass(frozen=True)
class Variant:
    """A module that answers responses, of all neurons or of those it is given.

    suffix: to the names of its graphs. rows: what the rows that describe neurons are of, "neurons" for the same ones
    for all images, "batch" for one an image; None where it answers all.
    """

    suffix: str
    module: nn.Module
    rows: str | None = None


@dataclass
class Built:
    """Graphs and their measured errors by name; no_gradient says why there is none, or is empty."""

    graphs: dict[str, bytes] = field(default_factory=dict)
    parity: dict[str, bundle.Parity] = field(default_factory=dict)
    no_gradient: str = ""


def compile_variants(
    exact: nn.Module,
    variants: Sequence[Variant],
    table: parity.Arrays,
    shapes: Mapping[str, tuple[int, ...]],
    neurons: int,
    tolerance: float,
    *,
    gradient: bool,
    say: Say,
) -> Built:
    """Trace and measure all graphs.

    Args:
        exact: the plain modules, which the graphs are measured against in float64.
        variants: the first answers all neurons.
        table: what neurons are, a row each.
        shapes: of one image's inputs.
        neurons: how many there are.
        tolerance: of responses.
        gradient: whether to make gradients.
        say: told of each step.

    Raises:
        ExportError: a graph is off by more than its tolerance.
    """
    built = Built(no_gradient="" if gradient else "not asked for when it was exported")
    meter = parity.Meter(exact, shapes, table, neurons, tolerance)
    for variant in variants:
        inputs = [
            *(bundle.Tensor(name=name, dtype="float32", shape=("batch", *dims)) for name, dims in shapes.items()),
            *(_row(name, variant.rows, table) for name in table if variant.rows is not None),
        ]
        answered = dict[str | None, int | str]({None: neurons, "neurons": "neurons", "batch": 1})[variant.rows]
        name = f"forward{variant.suffix}"
        say(f"tracing {name}")
        program = graph.export_program(variant.module.requires_grad_(False), inputs)
        built.graphs[name] = graph.to_onnx(graph.cheaper(program), inputs, ["responses"])
        built.parity[name] = _held(name, meter.forward(built.graphs[name], variant.rows, say))
        if not built.no_gradient:
            cotangent = bundle.Tensor(name="cotangent", dtype="float32", shape=("batch", answered))
            _add_gradient(built, variant, program, inputs, cotangent, meter, say)
    return built


def _add_gradient(
    built: Built,
    variant: Variant,
    program: ExportedProgram,
    inputs: list[bundle.Tensor],
    cotangent: bundle.Tensor,
    meter: parity.Meter,
    say: Say,
) -> None:
    name = f"gradient{variant.suffix}"
    say(f"tracing {name}")
    try:
        traced = trace_gradient(program, inputs, cotangent, meter.names)
        outputs = ["responses", *(f"d_{source}" for source in meter.names)]
        model = translate_gradient(traced, [cotangent, *inputs], outputs)
    except Untraceable as error:
        built.no_gradient = str(error)
        say(f"no gradient: {error}")
        return
    built.graphs[name] = model
    built.parity[name] = _held(name, meter.gradient(model, variant.rows, say))


def _held(name: str, record: bundle.Parity) -> bundle.Parity:
    if parity.holds(record):
        return record
    gradient = "" if record.gradient_error is None else f", its gradient by {record.gradient_error:.2g} of its norm"
    limits = f"tolerance {record.tolerance:.2g}" + (f" and {record.gradient_tolerance:.2g}" if gradient else "")
    raise ExportError(
        f"parity: the graph {name} is off by {record.max_abs_error:.2g} from the float64 model{gradient}, {limits}; "
        "nothing was written"
    )


def _row(name: str, rows: str | None, table: parity.Arrays) -> bundle.Tensor:
    assert rows is not None
    return bundle.Tensor(name=name, dtype=table[name].dtype.name, shape=(rows, *table[name].shape[1:]))
