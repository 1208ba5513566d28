"""Runs in a process of its own, against one version's real bindings: ``python tensorrt_contract.py WHAT ARGUMENTS``.

The bindings' native libraries are stubs, so nothing of TensorRT computes here. Three of its C++ classes hold
symbolic sizes and cannot be made from Python (IDimensionExpr, ISymExpr, DimsExprs): Python ones stand in for
them. All else that the plugins touch is the bindings' own code.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from types import SimpleNamespace
from typing import Any

import tensorrt_bindings as trt

sys.modules["tensorrt"] = trt  # the package of that name only re-exports the bindings


def look_up(wanted: dict[str, list[int]]) -> dict[str, str]:
    """{dotted name: numbers of arguments it is called with} -> {name: what is wrong}."""
    if any(name.startswith("plugin.") for name in wanted):
        import tensorrt.plugin  # noqa: F401  # a module of its own, below the bindings
    wrong = {}
    for name, counts in wanted.items():
        try:
            found = functools.reduce(getattr, name.split("."), trt)
        except AttributeError:
            wrong[name] = "missing"
            continue
        takes = signatures(name.rpartition(".")[2], found.__doc__ or "")
        bad = [count for count in counts if takes and not any(low <= count <= high for low, high in takes)]
        if bad:
            wrong[name] = f"called with {bad} arguments, takes {takes}"
    return wrong


def signatures(name: str, text: str) -> list[tuple[int, int]]:
    """(fewest, most) arguments without self of each overload, as pybind11 writes them into docstrings."""
    found = []
    for match in re.finditer(rf"^(?:\d+\. )?{name}\((.*)\) -> ", text, re.MULTILINE):
        parts, depth = [""], 0
        for character in match[1]:
            depth += (character in "[(<") - (character in "])>")
            if character == "," and not depth:
                parts.append("")
            else:
                parts[-1] += character
        parts = [part.strip() for part in parts if part.strip() and not part.strip().startswith("self")]
        if any(part.startswith("*") for part in parts):
            continue
        found.append((sum(" = " not in part for part in parts), len(parts)))
    return found


class Size:
    """A size that TensorRT knows while it builds, or -1."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return self.value >= 0

    def get_constant_value(self) -> int:
        return self.value


class Sizes:
    """IExprBuilder"""

    def constant(self, value: int) -> Size:
        return Size(value)

    def operation(self, kind: Any, a: Size, b: Size) -> Size:
        kinds = {
            trt.DimensionOperation.PROD: lambda: a.value * b.value,
            trt.DimensionOperation.SUM: lambda: a.value + b.value,
            trt.DimensionOperation.CEIL_DIV: lambda: -(-a.value // b.value),
        }
        return Size(kinds[kind]())


class Symbol:
    """ISymExpr"""


def describe(dims: tuple[int, ...], kind: Any) -> Any:
    tensor = trt.DynamicPluginTensorDesc()
    tensor.desc.dims, tensor.desc.type, tensor.desc.format = dims, kind, trt.TensorFormat.LINEAR
    tensor.opt = tensor.min = tensor.max = dims
    return tensor


class Registry:
    """IPluginRegistry"""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self.creators[creator.name, creator.plugin_version, namespace] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators.get((name, version, namespace))


def kernel(*asked: Any, **options: Any) -> Any:
    """In the place of the compiler, where Triton is not installed."""
    asked_for.append(asked)
    tiling = SimpleNamespace(rows=4, columns=32)
    return SimpleNamespace(name="kernel", ptx=".version 8.0\n", threads=128, shared=64, tiling=tiling)


asked_for: list[Any] = []
kept: list[Any] = []
SHAPES = ((1, 16, 30, 50), (1, 8, 60, 100), (1,), (1,), (1, 16, 60, 100))  # down, guide, sigmas, output


def stand_in() -> Registry:
    registry = Registry()
    trt.get_plugin_registry = lambda: registry
    trt.IDimensionExpr, trt.ISymExpr = Size, Symbol
    trt.DimsExprs = lambda sizes: [None] * sizes if isinstance(sizes, int) else sizes
    return registry


def io(storage: str) -> tuple[Any, ...]:
    half, full = getattr(trt.DataType, storage), trt.DataType.FLOAT
    return half, half, full, full, half


def fields(names: Any) -> Any:
    import numpy as np

    values = {"radius": 1, "combine": 0}
    assert {field.name for field in names} == set(values)
    arrays = [np.array([value], np.int32) for value in values.values()]
    kept.extend(arrays)  # a field holds an address
    kind = trt.PluginFieldType.INT32
    return trt.PluginFieldCollection(
        [trt.PluginField(name, array, kind) for name, array in zip(values, arrays, strict=True)]
    )


def embedded(storages: list[str]) -> list[dict[str, Any]]:
    """The decorator plugin from its registration to its launch."""
    registry = stand_in()
    from echoir.export.echo import plugin, plugin_code

    plugin_code.compile_forward = kernel
    plugin.aim("8.7")
    return [_embedded(registry.creators["EchoUpsample", "1", "echoir"], storage) for storage in storages]


def _embedded(creator: Any, storage: str) -> dict[str, Any]:
    asked_for.clear()
    made = creator.create_plugin(
        "EchoUpsample",
        "echoir",
        fields(creator.field_names),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.PREFER_AOT,
    )
    kinds = io(storage)
    types = made.get_output_data_types(list(kinds[:4]), [len(shape) for shape in SHAPES[:4]])
    sizes = [[Size(size) for size in shape] for shape in SHAPES[:4]]
    shapes = made.get_output_shapes(sizes, [], Sizes())
    tensors = [describe(shape, kind) for shape, kind in zip(SHAPES, kinds, strict=True)]
    formats = made.get_supported_format_combinations(tensors, 4)
    made.configure_plugin(tensors[:4], tensors[4:])
    made.set_tactic(0)
    launch, scalars = SimpleNamespace(), Scalars()
    made.get_launch_params(sizes, tensors, 4, launch, scalars, Sizes())
    name, ptx = made.get_kernel([t.desc for t in tensors[:4]], [t.desc for t in tensors[4:]])
    made.clone()
    return {
        "types": [kind.name for kind in types],
        "shape": [size.value for size in shapes[0]],
        "formats": [[one.type.name, one.format.name] for one in formats],
        "launch": {key: value.expr.value for key, value in vars(launch).items()},
        "scalars": [value.expr.value for value in scalars.values],
        "kernel": [name, ptx.decode()],
        "asked": asked_for[0],
    }


class Scalars:
    """ISymExprs"""

    nbSymExprs = 0  # noqa: N815

    def __init__(self) -> None:
        self.values: list[Any] = []

    def __setitem__(self, index: int, value: Any) -> None:
        assert index == len(self.values) < self.nbSymExprs
        self.values.append(value)


def classed(storages: list[str]) -> list[dict[str, Any]]:
    """The plugin class from its registration through an engine to its launch."""
    registry = stand_in()
    from echoir.runtime.cuda import plugin_class
    from echoir.runtime.cuda.plugin_class import KernelCode

    def compile_node(*asked: Any) -> KernelCode:
        asked_for.append([list(asked[0]), list(asked[1]), [kind.name for kind in asked[2]], *asked[3:]])
        return KernelCode("kernel", ".version 8.0\n", 128, 64, 4, 32)

    plugin_class.register(trt, compile_node)
    plugin_class.register(trt, compile_node)  # a second time changes nothing
    return [_classed(registry.creators["EchoUpsample", "1", "echoir"], storage) for storage in storages]


def _classed(creator: Any, storage: str) -> dict[str, Any]:
    from echoir.runtime.cuda import plugin_class

    asked_for.clear()
    made = creator.create_plugin("EchoUpsample", fields(creator.field_names), trt.TensorRTPhase.BUILD)
    kinds = io(storage)
    tensors = [describe(shape, kind) for shape, kind in zip(SHAPES, kinds, strict=True)]
    wrong = [*tensors[:4], describe(SHAPES[4], trt.DataType.INT32)]
    supported = [made.supports_format_combination(i, tensors, 4) for i in range(5)]
    refused = made.supports_format_combination(4, wrong, 4)
    types = made.get_output_data_types(list(kinds[:4]))
    shape = made.get_output_shapes([[Size(s) for s in one] for one in SHAPES[:4]], [], Sizes())[0]
    made.configure_plugin(tensors[:4], tensors[4:])
    attached = made.attach_to_context(None)
    written = attached.get_fields_to_serialize()
    loaded = plugin_class.make_creator(trt, None).create_plugin("EchoUpsample", written, trt.TensorRTPhase.RUNTIME)
    launched: list[Any] = []

    class Kernel:
        def launch(self, stream: int, grid: Any, block: Any, shared: int, arguments: Any) -> int:
            launched.append([stream, grid, block, shared, [value.value for value in arguments]])
            return 0

    plugin_class.load_kernel = lambda ptx, name: launched.append([ptx, name]) or Kernel()
    # The library would own these; 10.3's bindings crash when Python destroys them.
    kept.extend([made, loaded, attached, creator, written, tensors, wrong])
    done = loaded.enqueue([t.desc for t in tensors[:4]], [tensors[4].desc], [1, 2, 3, 4], [5], 0, 77)
    loaded.on_shape_change([], [])
    loaded.set_tactic(0)
    return {
        "types": [kind.name for kind in types],
        "shape": [size.value for size in shape],
        "supported": supported,
        "refused": refused,
        "tactics": made.get_valid_tactics(),
        "workspace": made.get_workspace_size([], []),
        "asked": asked_for[0],
        "launched": launched,
        "done": done,
        "identity": [loaded.plugin_name, loaded.plugin_namespace, loaded.plugin_version, loaded.num_outputs],
    }


def reads_fields() -> bool:
    from echoir.runtime.cuda.plugin_class import reads_fields

    return reads_fields(trt)


class Checked:
    """An object of a class of the bindings: names that the class lacks raise, all else is written down."""

    def __init__(self, kind: str, log: list[str], answers: dict[str, Any] | None = None) -> None:
        self.__dict__.update(_kind=kind, _log=log, _answers=answers or {})

    def __getattr__(self, name: str) -> Any:
        getattr(getattr(trt, self._kind), name)
        if name in self._answers:
            return self._answers[name]
        return lambda *arguments, **keywords: self._log.append(name)

    def __iter__(self) -> Any:
        return iter(())  # no layers

    def __setattr__(self, name: str, value: Any) -> None:
        getattr(getattr(trt, self._kind), name)
        self._log.append(f"{name} = {value}")


def configured() -> list[str]:
    """What Polygraphy sets for the worker's options, on objects of this version's classes."""
    from echoir.export import engine_worker

    log: list[str] = []
    config = Checked("IBuilderConfig", log)
    tensor = Checked("ITensor", log, {"name": "input", "shape": (-1, 3, 32, 32), "is_shape_tensor": False})
    profile = Checked("IOptimizationProfile", log)
    builder = Checked(
        "Builder", log, {"create_builder_config": lambda: config, "create_optimization_profile": lambda: profile}
    )
    network = Checked("INetworkDefinition", log, {"num_inputs": 1, "get_input": lambda index: tensor, "num_layers": 0})
    options = {"workspace": 512, "optimization_level": 4, "version_compatible": True, "hardware_compatible": True}
    request = {"options": options, "module": "tensorrt", "batches": [1, 2, 8], "onnx": ""}
    engine_worker._configure(trt, builder, network, request, None)
    return log


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    run = {
        "look_up": look_up,
        "embedded": embedded,
        "classed": classed,
        "configured": configured,
        "reads_fields": reads_fields,
    }[what]
    answer = run(*(json.loads(argument) for argument in arguments))  # type: ignore[operator]
    print(json.dumps([trt.__version__, answer], default=str), flush=True)
    os._exit(0)  # without destroying what the library would own
