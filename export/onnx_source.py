"""A network that somebody else exported: a bare ONNX file. It is its own reference, in float32."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxsim
import torch
from onnx import TensorProto, helper, numpy_helper, shape_inference
from torch import Tensor, nn

from echoir.export.declared import NOTHING, Declared
from echoir.export.graph import INPUT, OPSET, OUTPUT
from echoir.export.probe import Behaviour, describe, probe
from echoir.export.reference import IO, PyTorchSession
from echoir.export.whole import Floats, in_one_piece
from echoir.runtime.descriptor import CHANNELS, Descriptor
from echoir.runtime.errors import ArtifactError, BackendError
from echoir.runtime.external import has_external_data
from echoir.runtime.files import sha256_file
from echoir.runtime.manifest import CheckpointRecord
from echoir.runtime.onnx_session import session_options
from echoir.runtime.output import displayable

CONTROL = {"If", "Loop", "Scan", "SequenceMap"}
OLDEST = 11  # of ONNX's operator sets: Resize and Clip have their present inputs from there on


class OnnxSource:
    """One ONNX file with one picture in and one out, [N, C, H, W] float32 in [0, 1].

    Args:
        path: the file; what a TOML file of the same name beside it says is known.
        said: what else is known, and goes before the TOML.

    Raises:
        ArtifactError: no ONNX, another interface than one picture in and one out, weights in other files, control
            flow, another type, or a description that a run disproves; the message names it.
    """

    reference = "the given ONNX in float32"

    def __init__(self, path: Path, said: Declared = NOTHING) -> None:
        self.model = _load(path)
        if (described := path.with_suffix(".toml")).is_file():
            said = said.or_else(Declared.read(described))
        batch, height, width = _input_sizes(self.model)
        self.batch: int | None = batch
        fixed = height is not None and width is not None
        if height is not None and width is not None:
            said = said.or_else(Declared(tile=(height, width), multiple=(height, width)))
            if said.tile != (height, width):
                raise ArtifactError("network.tile", f"{height} x {width}, fixed in {path.name}", said.tile)
        self.module = _Module(self.model, self.batch)
        said = said.or_else(Declared(architecture=displayable(path.stem), phase=(1, 1) if fixed else None))
        parameters = sum(int(np.prod(tensor.dims)) for tensor in self.model.graph.initializer)
        self.descriptor: Descriptor = describe(self.module, said, parameters=parameters, fixed=fixed)
        behaviour = probe(self.module, self.descriptor, fixed=fixed)
        self._behaviour = Behaviour(behaviour.any_size, self._activation())
        self._fixed, self._path = fixed, path

    @cached_property
    def record(self) -> CheckpointRecord:
        return CheckpointRecord(displayable(self._path.name), sha256_file(self._path))

    def graph(self, *, tile: tuple[int, int], batch: int | None, io: IO, free: bool = False) -> onnx.ModelProto:
        if self._fixed and (free or tile != self.descriptor.tile):
            needed = " x ".join(map(str, self.descriptor.tile))
            raise ArtifactError("tile", f"{tile[0]} x {tile[1]}", f"{needed}, fixed in {self._path.name}")
        if self.batch is not None and self.batch != batch:
            found = "any" if batch is None else batch
            hint = f"export with --batch {self.batch}, or the ONNX again with an open batch"
            raise ArtifactError("batch", found, f"{self.batch}, fixed in {self._path.name}", hint)
        sides = ["rows", "columns"] if free else tile
        shape = [batch or "batch", CHANNELS[self.descriptor.input], *sides]
        model = _fixed_to(self.model, shape)
        if io == "uint8":
            model = _for_cameras(model)
        return shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)

    def session(self, *, io: IO = "float", threads: int | None = None) -> PyTorchSession:
        if threads is not None:
            self.module.open(threads)
        return PyTorchSession(self.module, io=io)

    def whole(self, image: Floats) -> Floats | None:
        if self._fixed:
            return None
        return in_one_piece(self.module, self.descriptor, self._behaviour, image)

    def _activation(self) -> float:
        """Numbers per pixel of the input in the graph's largest value."""
        height, width = self.descriptor.tile
        model = _fixed_to(self.model, [self.batch or 1, CHANNELS[self.descriptor.input], height, width], simplify=False)
        largest = 0
        for value in shape_inference.infer_shapes(model, data_prop=True).graph.value_info:
            sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            largest = max(largest, int(np.prod(sizes)) if sizes else 0)
        return largest / (self.batch or 1) / height / width


class _Module(nn.Module):
    """ONNX Runtime in the place of PyTorch: a picture or several in, the same out."""

    def __init__(self, model: onnx.ModelProto, batch: int | None) -> None:
        super().__init__()
        self._model, self._batch = model, batch
        self.open(None)

    def open(self, threads: int | None) -> None:
        """A session with so many threads."""
        import onnxruntime

        options = session_options(threads)
        try:
            self._session = onnxruntime.InferenceSession(
                self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own exceptions derive from Exception directly
            raise ArtifactError("weights", f"an ONNX that does not load ({error})", "one that runs") from None

    def forward(self, images: Tensor) -> Tensor:
        size = self._batch or len(images)
        made = []
        for start in range(0, len(images), size):
            part = images[start : start + size].numpy()
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            made.append(self._session.run([OUTPUT], {INPUT: filled})[0][: len(part)])
        return torch.from_numpy(np.concatenate(made))


def _load(path: Path) -> onnx.ModelProto:
    """The checked model, its picture's names those of this project, every node with a name of its own."""

    def refuse(found: str, needed: str, hint: str = "") -> ArtifactError:
        return ArtifactError("weights", f"{path.name} {found}", needed, hint)

    if not path.is_file():
        raise ArtifactError("weights", f"no file at {path}", "an ONNX file")
    if has_external_data(path):
        raise refuse("with weights in other files", "all of the model in it", "onnx.save(onnx.load(path), path)")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's own exceptions have no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise refuse(f"is no valid ONNX ({reason[:200]})", "a model that onnx.checker accepts") from None
    graph = model.graph
    inside = {node.op_type for node in graph.node} & CONTROL
    if inside or any(
        attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute
    ):
        named = ", ".join(sorted(inside)) or "a graph within a node"
        raise refuse(f"has control flow ({named})", "one that does the same for every picture", "export it by tracing")
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    for role, values in (("input", inputs), ("output", list(graph.output))):
        if len(values) != 1:
            names = ", ".join(value.name for value in values) or "none"
            raise refuse(f"has {len(values)} {role}s ({names})", f"one {role}, a picture")
        kind = values[0].type.tensor_type
        if kind.elem_type != TensorProto.FLOAT:
            named = helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else "nothing"
            raise refuse(f"has an {role} of {named}", "float32", "give the float32 model; it is typed here")
        if len(kind.shape.dim) != 4:
            raise refuse(f"has an {role} of {len(kind.shape.dim)} axes", "four, [N, C, H, W]")
    model = _at_opset(model, refuse)
    kept = [value for value in graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    _rename(model, {inputs[0].name: INPUT, graph.output[0].name: OUTPUT})
    return model


def _at_opset(model: onnx.ModelProto, refuse: Any) -> onnx.ModelProto:
    """The model in an operator set that engines read and passes know."""
    version = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if OLDEST <= version <= OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET if version > OPSET else max(version, 17))
    except Exception as error:  # the converter's own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        needed = f"operator set {OLDEST} to {OPSET}"
        raise refuse(f"in operator set {version}, which does not convert ({reason[:120]})", needed) from None


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Values by new names, and nodes by names that are there and differ."""
    graph = model.graph
    taken = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    for old, new in names.items():
        if new in taken and new != old:  # something inside has the name already
            names = {new: f"{new}/inner", **names}
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    seen: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def _input_sizes(model: onnx.ModelProto) -> tuple[int | None, int | None, int | None]:
    """Batch, height and width where they are fixed."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    batch, _, height, width = (dim.dim_value if dim.WhichOneof("value") == "dim_value" else None for dim in dims)
    if (height is None) != (width is None):
        raise ArtifactError("network.tile", "one side fixed and the other open", "both or neither")
    return batch, height, width


def _fixed_to(model: onnx.ModelProto, shape: list[Any], *, simplify: bool = True) -> onnx.ModelProto:
    """A copy for one shape of its input, simplified."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    graph = fixed.graph
    del graph.value_info[:]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape))
    made = graph.output[0].type.tensor_type.shape.dim
    for dim, name in zip(made, ("batch", "planes", "rows", "columns"), strict=True):
        dim.dim_param = name  # not what was said of another size; inferred anew
    if not simplify:
        return fixed
    try:
        fixed, sound = onnxsim.simplify(fixed)
    except Exception as error:  # onnxsim's own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(f"onnxsim cannot simplify the graph for {shape}: {reason}") from None
    if not sound:
        raise BackendError("onnxsim changed what the graph computes; this is a defect, please report it")
    return fixed


def _for_cameras(model: onnx.ModelProto) -> onnx.ModelProto:
    """uint8 NHWC in and out around a float graph, as :class:`echoir.export.graph._Deployment` has it."""
    graph = model.graph
    graph.input[0].name, graph.output[0].name = "image", "restored"
    for node in graph.node:
        node.input[:] = ["image" if name == INPUT else name for name in node.input]
        node.output[:] = ["restored" if name == OUTPUT else name for name in node.output]
        node.input[:] = ["restored" if name == OUTPUT else name for name in node.input]
    before = [
        helper.make_node("Cast", [INPUT], ["codes"], "codes", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["codes"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "per_code"], ["image"], "image"),
    ]
    after = [
        helper.make_node("Clip", ["restored", "black", "white"], ["clipped"], "clipped"),
        helper.make_node("Mul", ["clipped", "codes_per"], ["spread"], "spread"),
        helper.make_node("Round", ["spread"], ["rounded"], "rounded"),
        helper.make_node("Transpose", ["rounded"], ["last"], "last", perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["last"], [OUTPUT], OUTPUT, to=TensorProto.UINT8),
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    for name, value in {"per_code": 1 / 255, "codes_per": 255.0, "black": 0.0, "white": 1.0}.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    shapes = [
        [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (graph.input[0], graph.output[0])
    ]
    for value, name, (n, c, h, w) in zip((graph.input[0], graph.output[0]), (INPUT, OUTPUT), shapes, strict=True):
        value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, [n, h, w, c]))
    del graph.value_info[:]
    return model
