"""A trained network to ONNX: one fixed tile shape or free sides, typed for its precision, runnable as it is."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import onnxsim
import torch
from torch import Tensor, nn

from echoir.export.lowering import lowering_of
from echoir.export.operators import operators_in
from echoir.export.reference import IO
from echoir.runtime.descriptor import CHANNELS, Descriptor
from echoir.runtime.errors import BackendError

OPSET = 20  # Gelu became an operator in 20; TensorRT 10.3 reads up to 20
INPUT, OUTPUT = "input", "output"
LARGEST = 1 << 16  # pixels of a side, where sides are free


def build_model(
    network: nn.Module, descriptor: Descriptor, *, tile: tuple[int, int], batch: int | None, io: IO, free: bool = False
) -> onnx.ModelProto:
    """The simplified float32 graph with the functions of its operators, in memory.

    Args:
        network: float32, as its descriptor says.
        tile: (height, width) of every input in pixels, multiples of ``descriptor.multiple``.
        batch: images per run, or None for any number.
        io: the format of input and output; see :func:`echoir.export.typed.export_onnx`.
        free: inputs of other sizes too, as long as their sides are multiples of ``descriptor.multiple``.

    Raises:
        ValueError: a tile that does not fit the network, or a batch below 1.
        BackendError: the exporter refuses the network.
    """
    if any(side < 1 or side % multiple for side, multiple in zip(tile, descriptor.multiple, strict=True)):
        needed = " x ".join(map(str, dict.fromkeys(descriptor.multiple)))
        raise ValueError(f"tile sides must be multiples of {needed}, got {tile[0]} x {tile[1]}")
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    module = _Deployment(lowering_of(descriptor.architecture).rewrite(network), io).eval()
    channels = CHANNELS[descriptor.input]
    shape = (batch or 2, channels, *tile) if io == "float" else (batch or 2, *tile, channels)
    example = torch.zeros(shape, dtype=torch.float32 if io == "float" else torch.uint8)
    axes: dict[int, Any] = {} if batch is not None else {0: torch.export.Dim("batch", min=1)}
    if free:
        first = 2 if io == "float" else 1
        for axis, (name, multiple) in enumerate(zip(("rows", "columns"), descriptor.multiple, strict=True), first):
            side = torch.export.Dim(name, min=1, max=LARGEST // multiple)
            axes[axis] = multiple * side if multiple > 1 else side
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(axes,) if axes else None,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            hint = " with free sides; give it a fixed --tile" if free else ""
            raise BackendError(f"PyTorch could not export the network{hint}: {error}") from error
    assert program is not None
    model = program.model_proto
    _name_by_module(model)
    _add_functions(model)
    model, sound = onnxsim.simplify(model)
    if not sound:
        raise BackendError("onnxsim changed what the graph computes; this is a defect, please report it")
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


class _Deployment(nn.Module):
    """The network between the input and output formats of a device."""

    def __init__(self, network: nn.Module, io: IO) -> None:
        super().__init__()
        self.network, self.io = network, io

    def forward(self, x: Tensor) -> Tensor:
        if self.io == "float":
            output: Tensor = self.network(x)
            return output
        # TensorRT takes uint8 at inputs and outputs only, next to a cast.
        restored: Tensor = self.network(x.float().permute(0, 3, 1, 2) * (1 / 255))
        return (restored.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).to(torch.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter warns about its own internals and about torchvision; neither is the user's."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _name_by_module(model: onnx.ModelProto) -> None:
    """Name nodes and their outputs after the module they come from, e.g. ``up1/reduce/Conv``.

    Profilers show these names. The exporter's own notes (among them paths of source files) go.
    """
    renamed: dict[str, str] = {}
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    taken = set(fixed)
    for node in model.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        del node.metadata_props[:]
        node.doc_string = ""
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "['']"))
        module = scopes[-2].removeprefix("network").removeprefix(".") if len(scopes) > 1 else ""
        base = name = "/".join([*filter(None, module.split(".")), node.op_type])
        count = 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        node.name = name
        for index, output in enumerate(node.output):
            if output and output not in fixed:
                renamed[output] = name if index == 0 else f"{name}.{index}"
    for tensor in model.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
        renamed[tensor.name] = tensor.name = tensor.name.removeprefix("network.")
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    del model.graph.value_info[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]


def _add_functions(model: onnx.ModelProto) -> None:
    """Give the model the functions its own operators' nodes call."""
    imports = [opset for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    del model.functions[:]
    for operator, kinds in operators_in(model).items():
        if len(kinds) > 1:
            raise BackendError(f"one file holds one kind of {operator.name}, this network has {kinds}")
        model.functions.append(operator.function(kinds[0], OPSET))
        imports.append(onnx.helper.make_opsetid(operator.domain, 1))
    del model.opset_import[:]
    model.opset_import.extend(imports)
