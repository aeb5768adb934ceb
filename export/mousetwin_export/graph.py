"""From a torch module to an ONNX graph that ONNX Runtime serves without torch."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import onnx
import torch
from mousetwin_serve.bundle import Tensor
from torch import nn
from torch.export import Dim, ExportedProgram

OPSET = 18
aten: Any = torch.ops.aten


def _elu(value: torch.Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    # ONNX Runtime's Elu takes three times as long on the CPU as these four operations; exp(x) - 1 is never below x.
    if alpha != 1 or scale != 1 or input_scale != 1:
        return NotImplemented
    return torch.maximum(value, torch.exp(torch.clamp(value, max=0)) - 1)


# What ONNX Runtime computes faster in other words.
CHEAPER = {aten.elu.default: _elu}


def export_program(module: nn.Module, inputs: Sequence[Tensor], *, by_name: bool = True) -> ExportedProgram:
    """`module` as torch.export sees it, for any size of the dimensions that `inputs` give a name instead of a size.

    Args:
        module: called with the inputs by name, or in their order.
        inputs: what it takes.
        by_name: how it is called.
    """
    given = examples(inputs)
    sizes = {name: Dim(name, min=1) for name in _names(inputs)}
    shapes = {
        t.name: {i: sizes[size] for i, size in enumerate(t.shape) if isinstance(size, str)} or None for t in inputs
    }
    with quiet():
        program: Any = torch.export.export(
            module.eval(),
            () if by_name else tuple(given.values()),
            given if by_name else None,
            dynamic_shapes=shapes if by_name else tuple(shapes.values()),
            # Strides of sums lead to conditions on the batch that always hold and that torch cannot prove.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    return cast(ExportedProgram, program)


def cheaper(program: ExportedProgram) -> ExportedProgram:
    """The program in operations that ONNX Runtime is faster at."""
    with quiet():
        return cast(ExportedProgram, program.run_decompositions(CHEAPER))


def examples(inputs: Sequence[Tensor]) -> dict[str, torch.Tensor]:
    """Zeros of the inputs' shapes; sizes that stand for names differ from all others, lest one be taken for another."""
    taken = {size for t in inputs for size in t.shape}
    free = (size for size in itertools.count(5) if size not in taken)
    sizes: dict[int | str, int] = dict(zip(_names(inputs), free, strict=False))
    return {
        t.name: torch.zeros([int(sizes.get(size, size)) for size in t.shape], dtype=getattr(torch, t.dtype))
        for t in inputs
    }


def to_onnx(program: ExportedProgram, inputs: Sequence[Tensor], outputs: Sequence[str]) -> bytes:
    """The ONNX model of an exported program, the same bytes each time.

    Args:
        program: as `export_program` gives it.
        inputs: what it was exported with.
        outputs: names for what it answers.
    """
    with quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[t.name for t in inputs],
            output_names=list(outputs),
            verbose=False,
            external_data=False,
        )
    assert exported is not None
    model = exported.model_proto
    _strip(model)
    _name_sizes(model.graph, inputs)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def describe(data: bytes) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The model's inputs and outputs, for the bundle."""
    graph = onnx.load_from_string(data).graph
    return _tensors(graph.input), _tensors(graph.output)


def _tensors(values: Iterable[onnx.ValueInfoProto]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name=value.name,
            dtype=onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            shape=tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def _names(inputs: Sequence[Tensor]) -> list[str]:
    return list(dict.fromkeys(size for t in inputs for size in t.shape if isinstance(size, str)))


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's own warnings."""
    # The exporter tells of its own deprecations, and of torchvision's absence, which are not the caller's to mend.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _name_sizes(graph: onnx.GraphProto, inputs: Sequence[Tensor]) -> None:
    # The exporter has names of its own for them.
    names: dict[str, str] = {}
    for value, given in zip(graph.input, inputs, strict=True):
        sizes = value.type.tensor_type.shape.dim
        names |= {d.dim_param: name for d, name in zip(sizes, given.shape, strict=True) if isinstance(name, str)}
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = names[size.dim_param]


def _strip(model: onnx.ModelProto) -> None:
    # The exporter notes where in our files each node came from: of no use to a reader of the bundle, and another
    # digest for the same weights on every machine.
    graph = model.graph
    parts: list[Any] = [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]
