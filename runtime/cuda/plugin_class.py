"""EchoUpsample as a TensorRT plugin class, for TensorRT 10.3 to 10.8 (JetPack 6).

Those versions cannot keep a kernel in an engine by themselves, so the plugin keeps it among its fields:
an engine needs this class where it runs, and no compiler. The kernel is launched through the CUDA
driver itself, for TensorRT hands over its stream as an address, and PyCUDA takes none but its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from echoir.runtime.cuda.driver import driver_library
from echoir.runtime.errors import BackendError

NAME, NAMESPACE, VERSION = "EchoUpsample", "echoir", "1"


@dataclass(frozen=True)
class KernelCode:
    """A kernel and how to launch it; see :class:`echoir.export.echo.ptx.CompiledKernel`."""

    name: str
    ptx: str
    threads: int
    shared: int
    rows: int
    columns: int

    def grid(self, n: int, height: int, width: int) -> tuple[int, int, int]:
        """Blocks for a low-resolution plane of this size."""
        return -(-width // self.columns), -(-height // self.rows), n


# (shape of down, shape of guide, types of down, guide and sigmas, radius, combine) -> code
Compile = Callable[[tuple[int, ...], tuple[int, ...], tuple[Any, Any, Any], int, int], KernelCode]


def register(trt: Any, compile_node: Compile | None = None) -> None:
    """Let TensorRT know the plugin, once per process.

    Args:
        trt: the ``tensorrt`` module.
        compile_node: makes the kernel while an engine is built; None where engines only run.

    Raises:
        BackendError: this TensorRT and this numpy do not go together.
    """
    if not reads_fields(trt):
        raise BackendError(
            f"TensorRT {trt.__version__} misreads arrays of numpy {np.__version__}; run: pip install 'numpy<2'"
        )
    registry = trt.get_plugin_registry()
    if registry.get_creator(NAME, VERSION, NAMESPACE) is None:
        creator = make_creator(trt, compile_node)
        registry.register_creator(creator, NAMESPACE)
        _kept.append(creator)


def reads_fields(trt: Any) -> bool:
    """Whether the library's Python reads a plugin's fields; up to 10.9 it was compiled for numpy 1."""
    values = np.array([1, 2], np.int32)
    return bool((trt.PluginField("probe", values, trt.PluginFieldType.INT32).data == values).all())


_kept: list[Any] = []  # the registry does not keep Python's half of a creator alive


def make_creator(trt: Any, compile_node: Compile | None) -> Any:
    """The plugin's creator for this library; its classes derive from the library's own."""
    plugin_class = _plugin_class(trt, compile_node)

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            kind = trt.PluginFieldType.INT32
            self.field_names = trt.PluginFieldCollection(
                [trt.PluginField(name, np.array([], np.int32), kind) for name in ("radius", "combine")]
            )

        def create_plugin(self, name: str, field_collection: Any, phase: Any) -> Any:
            fields = {entry.name: entry.data for entry in field_collection}
            plugin = plugin_class()
            plugin.radius, plugin.combine = (int(fields[key][0]) for key in ("radius", "combine"))
            if "ptx" in fields:
                kernel, ptx = (bytes(np.asarray(fields[key], np.int8)).decode() for key in ("kernel", "ptx"))
                plugin.code = KernelCode(kernel, ptx, *(int(value) for value in fields["launch"]))
            return plugin

    return Creator()


def _plugin_class(trt: Any, compile_node: Compile | None) -> Any:
    class EchoUpsample(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
        radius: int
        combine: int
        code: KernelCode | None = None

        def __init__(self) -> None:
            trt.IPluginV3.__init__(self)
            trt.IPluginV3OneCore.__init__(self)
            trt.IPluginV3OneBuild.__init__(self)
            trt.IPluginV3OneRuntime.__init__(self)
            self.plugin_name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            self.num_outputs = 1

        def get_capability_interface(self, type: Any) -> Any:
            return self

        def get_output_data_types(self, input_types: Any) -> Any:
            return [input_types[0]]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, expr_builder: Any) -> Any:
            (batch, channels), (height, width) = (inputs[0][0], inputs[0][1]), (inputs[1][2], inputs[1][3])
            return [trt.DimsExprs([batch, channels, height, width])]

        def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:
            here = in_out[pos].desc
            if here.format != trt.TensorFormat.LINEAR:
                return False
            if pos == 0:
                return here.type in (trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.BF16)
            same: bool = here.type == (in_out[0].desc.type if pos in (1, num_inputs) else trt.DataType.FLOAT)
            return same

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            if compile_node is None:
                raise BackendError("EchoUpsample was registered to run engines, not to build them")
            down, guide, sigma = (inputs[index] for index in (0, 1, 2))
            types = (down.desc.type, guide.desc.type, sigma.desc.type)
            self.code = compile_node(_sizes(down), _sizes(guide), types, self.radius, self.combine)

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            pass  # N, h and w are free

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            return 0

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, tactic: int) -> None:
            pass

        def attach_to_context(self, resource_context: Any) -> Any:
            return self.clone()

        def clone(self) -> Any:
            copy = EchoUpsample()
            copy.__dict__.update(self.__dict__)
            return copy

        def get_fields_to_serialize(self) -> Any:
            assert self.code is not None
            code, types = self.code, trt.PluginFieldType
            values: dict[str, Any] = {
                "radius": np.array([self.radius], np.int32),
                "combine": np.array([self.combine], np.int32),
                "kernel": np.frombuffer(code.name.encode(), np.int8),
                "ptx": np.frombuffer(code.ptx.encode(), np.int8),
                "launch": np.array([code.threads, code.shared, code.rows, code.columns], np.int32),
            }
            self.serialized = values  # a field holds an address, and keeps nothing alive
            return trt.PluginFieldCollection(
                [
                    trt.PluginField(name, value, types.CHAR if value.dtype == np.int8 else types.INT32)
                    for name, value in values.items()
                ]
            )

        def enqueue(
            self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int
        ) -> int:
            assert self.code is not None
            n, _, height, width = input_desc[0].dims
            kernel = load_kernel(self.code.ptx, self.code.name)
            scalars = (ctypes.c_int(height), ctypes.c_int(width))
            pointers = [ctypes.c_void_p(address) for address in (*inputs, *outputs)]
            grid, block = self.code.grid(n, height, width), (self.code.threads, 1, 1)
            return kernel.launch(stream, grid, block, self.code.shared, (*pointers[:4], *scalars, pointers[4]))

    return EchoUpsample


def _sizes(tensor: Any) -> tuple[int, ...]:
    """Of a dynamic description: the usual size where it is open."""
    return tuple(usual if size < 0 else size for size, usual in zip(tensor.desc.dims, tensor.opt, strict=True))


class DriverKernel:
    """A kernel of a PTX text, launched by the CUDA driver in the current context.

    Raises:
        BackendError: the driver does not take the text.
    """

    def __init__(self, ptx: str, name: str) -> None:
        self._library = driver_library()
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        code = self._library.cuModuleLoadData(ctypes.byref(module), ctypes.c_char_p(ptx.encode()))
        if not code:
            code = self._library.cuModuleGetFunction(
                ctypes.byref(self._function), module, ctypes.c_char_p(name.encode())
            )
        if code:
            version = next((line for line in ptx.splitlines() if line.startswith(".version")), "without a version")
            raise BackendError(f"the driver does not take the kernel {name} (CUDA error {code}; PTX {version})")

    def launch(
        self,
        stream: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared: int,
        arguments: tuple[ctypes.c_void_p | ctypes.c_int, ...],
    ) -> int:
        """Put the kernel into a stream; CUDA's error code, 0 for none."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(value) for value in arguments))
        code: int = self._library.cuLaunchKernel(
            self._function, *grid, *block, shared, ctypes.c_void_p(stream), pointers, None
        )
        return code


@cache  # loading takes milliseconds; a kernel lasts as long as the process's context
def load_kernel(ptx: str, name: str) -> DriverKernel:
    """A kernel, loaded once."""
    return DriverKernel(ptx, name)
