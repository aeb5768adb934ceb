"""From a torch module to an ONNX graph that ONNX Runtime serves without torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from typing import Any

import onnx
import torch
from mousetwin_serve import bundle
from torch import Tensor, nn

OPSET = 18
Inputs = dict[str, Tensor]


def to_onnx(module: nn.Module, inputs: Inputs) -> bytes:
    """The ONNX model of `module`, with the first dimension of all inputs as its one dynamic dimension.

    Args:
        module: called with keyword arguments, answers one tensor.
        inputs: examples by name, with a batch of two: one would be taken for a constant.

    Returns:
        Bytes of a model with those inputs and the output `responses`; the same bytes each time.
    """
    batch = torch.export.Dim("batch", min=1)
    # The exporter tells of its own deprecations, and of torchvision's absence, which are not the caller's to mend.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=["responses"],
            dynamic_shapes={name: {0: batch} for name in inputs},
            verbose=False,
            external_data=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def describe(data: bytes) -> tuple[tuple[bundle.Tensor, ...], tuple[bundle.Tensor, ...]]:
    """The model's inputs and outputs, for the bundle."""
    graph = onnx.load_from_string(data).graph
    return _tensors(graph.input), _tensors(graph.output)


def _tensors(values: Iterable[onnx.ValueInfoProto]) -> tuple[bundle.Tensor, ...]:
    return tuple(
        bundle.Tensor(
            name=value.name,
            dtype=onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            shape=tuple("batch" if d.dim_param else d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def _strip(model: onnx.ModelProto) -> None:
    # The exporter notes where in our files each node came from: of no use to a reader of the bundle, and another
    # digest for the same weights on every machine.
    graph = model.graph
    parts: list[Any] = [model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
